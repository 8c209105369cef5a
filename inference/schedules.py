"""What changes during training, as functions of the fraction ``t`` of it that is done, from 0 to 1."""

from __future__ import annotations

import math

from torch import nn

from zoo.latents.base import Family

__all__ = ["cosine", "ramp", "temperatures"]


def cosine(t: float, peak: float, final: float, warmup: float, restarts: int = 0) -> float:
    """Linear warm-up from 0 over the fraction ``warmup``, then a cosine from ``peak`` to ``final``.

    With ``restarts`` = r the cosine swings down and up again, in 2r + 1 half-periods, and ends at ``final``.
    """
    if t < warmup:
        return peak * t / warmup
    phase = (2 * restarts + 1) * math.pi * (t - warmup) / max(1.0 - warmup, 1e-12)
    return final + 0.5 * (peak - final) * (1.0 + math.cos(phase))


def ramp(t: float, start: float, end: float, portion: float, hold: float = 0.0) -> float:
    """``start`` over the fraction ``hold``, then linear to ``end`` over the fraction ``portion``, then constant."""
    if t < hold:
        return start
    return end if t - hold >= portion else start + (end - start) * (t - hold) / portion


def temperatures(model: nn.Module) -> tuple[float, float]:
    """Temperatures at the start and the end of training: the slowest-cooling schedule among the model's latents that are relaxed."""
    families = [family for family, _ in model.latents.values()]
    schedules = [family.anneal for family in families if type(family).relaxed is not Family.relaxed]
    return max(schedules, key=lambda pair: pair[1], default=(1.0, 1.0))
