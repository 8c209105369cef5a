"""Sequences ``(…, frames, *frame_shape)``: the past of every frame at once, and a flow over images applied to each frame."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.flows.base import Flow

__all__ = ["PerFrame", "pasts"]


def pasts(x: Tensor, past: int, frame_dims: int) -> Tensor:
    """The ``past`` frames before each frame, the latest first, zeros where there are none: ``(…, frames, past, *frame_shape)``.

    Arguments:
        x: ``(…, frames, *frame_shape)``, with ``frame_dims`` dimensions in a frame.
    """
    time = x.dim() - frame_dims - 1
    length = x.shape[time]
    earlier = torch.cat([torch.zeros_like(x.narrow(time, 0, 1)).repeat_interleave(past, time), x], time)
    return torch.stack([earlier.narrow(time, past - 1 - lag, length) for lag in range(past)], time + 1)


class PerFrame(Flow):
    """A flow over images, the same for every frame of a sequence.

    Arguments:
        flow: The flow over one frame.
        frames: Number of frames T.
    """

    def __init__(self, flow: Flow, frames: int) -> None:
        super().__init__((frames, *flow.event_shape))
        self.flow = flow
        self.closed_form = flow.closed_form

    def whiten(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = self.flow.whiten(self.check(x))
        return y, log_det.sum(-1) if log_det.dim() else log_det * self.event_shape[0]

    def _call(self, y: Tensor) -> Tensor:
        return self.flow(self.check(y))

    def fit(self, x: Tensor, ridge: float = 1e-5) -> PerFrame:
        self.flow.fit(self.check(x), ridge)
        return self
