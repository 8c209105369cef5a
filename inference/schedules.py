"""What changes during training, as functions of the fraction ``t`` of it that is done, from 0 to 1."""

from __future__ import annotations

import math

__all__ = ["cosine", "ramp"]


def cosine(t: float, peak: float, final: float, warmup: float, restarts: int = 0) -> float:
    """Linear warm-up from 0 over the fraction ``warmup``, then a cosine from ``peak`` to ``final``.

    With ``restarts`` = r the cosine swings down and up again, in 2r + 1 half-periods, and ends at ``final``.
    """
    if t < warmup:
        return peak * t / warmup
    phase = (2 * restarts + 1) * math.pi * (t - warmup) / max(1.0 - warmup, 1e-12)
    return final + 0.5 * (peak - final) * (1.0 + math.cos(phase))


def ramp(t: float, start: float, end: float, portion: float) -> float:
    """Linear from ``start`` to ``end`` over the fraction ``portion``, then constant."""
    return end if t >= portion else start + (end - start) * t / portion
