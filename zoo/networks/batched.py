"""Any number of leading dimensions, and one clear error for an input of another shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Batched", "leading_shape"]


def leading_shape(x: Tensor, event_shape: tuple[int, ...]) -> torch.Size:
    """The dimensions of ``x`` to the left of ``event_shape``.

    Raises:
        ValueError: if ``x`` does not end in ``event_shape``.
    """
    cut = x.dim() - len(event_shape)
    if cut < 0 or tuple(x.shape[cut:]) != event_shape:
        wanted = ", ".join(map(str, event_shape))
        raise ValueError(f"this network takes tensors of shape (…, {wanted}); got {tuple(x.shape)}")
    return x.shape[:cut]


class Batched(nn.Module):
    """``body``, which maps ``(N, *event_shape)`` to ``(N, …)``, for any number of leading dimensions."""

    def __init__(self, event_shape: tuple[int, ...], body: nn.Module) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        lead = leading_shape(x, self.event_shape)
        if not lead:
            return self.body(x.unsqueeze(0)).squeeze(0)
        return self.body(x.flatten(0, len(lead) - 1)).unflatten(0, lead)
