"""Draws that count alike, from draws with weights."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["resample"]


def resample(log_weights: Tensor, seed: int | None = 0) -> Tensor:
    """Systematic resampling (Kitagawa 1996): for log weights ``(n, N)`` the indices ``(n, N)``, ascending, of n draws that count alike.

    ``seed`` is that of the N random numbers that it takes; they come from the global generator if it is None.
    """
    count, images = log_weights.shape
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    start = torch.rand(images, generator=generator, dtype=torch.float64).to(log_weights.device)
    places = (torch.arange(count, device=log_weights.device, dtype=torch.float64) + start[:, None]) / count
    total = log_weights.double().softmax(0).cumsum(0).T.contiguous()
    return torch.searchsorted(total, places.clamp(max=1.0), right=True).clamp(max=count - 1).T
