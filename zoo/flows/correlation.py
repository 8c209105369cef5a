"""How much a frame tells of a later one: correlations over time, and the band that noise alone stays in."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["autocorrelation", "noise_band"]


def autocorrelation(x: Tensor, lags: int) -> Tensor:
    """Correlation of every pixel with itself ``k`` = 0 … ``lags`` frames later, ``(lags + 1, *frame_shape)``, in float64.

    Arguments:
        x: Sequences ``(n, frames, *frame_shape)``. Mean and variance are each pixel's over all sequences and frames, and products are
            averaged over all pairs of frames, n · (frames − k) of them.

    Raises:
        ValueError: for lags that the sequences are too short for.
    """
    length = x.shape[1]
    if not 0 <= lags < length:
        raise ValueError(f"lags must be 0 to {length - 1} for sequences of {length} frames, not {lags}")
    centred = x.detach().double()
    centred = centred - centred.mean((0, 1))
    products = [(centred[:, : length - lag] * centred[:, lag:]).mean((0, 1)) for lag in range(lags + 1)]
    return torch.stack(products) / products[0]


def noise_band(pairs: int) -> float:
    """Half width of the 95 % band around 0 of a correlation over ``pairs`` pairs of independent numbers, 1.96 / √pairs (many pairs)."""
    return 1.96 / math.sqrt(pairs)
