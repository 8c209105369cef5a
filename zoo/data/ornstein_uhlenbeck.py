"""Smooth random paths: the stationary Ornstein–Uhlenbeck process, seen at equal steps of time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["ornstein_uhlenbeck"]


def ornstein_uhlenbeck(n: int, frames: int, size: tuple[int, ...], time_constant: float, *, generator: torch.Generator | None = None,
                       dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Tensor:
    """Independent stationary paths ``(n, frames, *size)``: at every frame standard Normal, with autocorrelation exp(−k / ``time_constant``)
    at a distance of k frames (Uhlenbeck & Ornstein 1930, "On the theory of the Brownian motion", Physical Review 36).

    Arguments:
        time_constant: In frames; infinite for values that stay as they are.
        generator: Source of randomness, on ``device``; PyTorch's own if None.

    Raises:
        ValueError: if n or frames is not a whole number of at least 1, or the time constant is not positive.
    """
    for name, value in (("n", n), ("frames", frames)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    if not time_constant > 0.0:
        raise ValueError(f"the time constant must be positive (frames), not {time_constant}")
    kept = math.exp(-1.0 / time_constant)
    fresh = math.sqrt(-math.expm1(-2.0 / time_constant))
    path = torch.empty(n, frames, *size, dtype=dtype, device=device).normal_(generator=generator)
    for now in range(1, frames):
        path[:, now].mul_(fresh).add_(path[:, now - 1], alpha=kept)
    return path
