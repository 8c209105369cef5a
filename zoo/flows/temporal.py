r"""Autoregressive affine flows over time, :math:`x_t = \mu(x_{<t}) + \sigma(x_{<t})\, y_t` (Marino, Chen, He & Mandt 2020).

The density needs y from x, in one pass for all frames, as all that is predicted from is there: :math:`y_t = (x_t - \mu_t) / \sigma_t`.
Drawing goes frame by frame. Each layer predicts from the last ``past`` frames; the first frames have fewer, and where there is none its
place holds zeros: a frame's *age*, the number of frames it is predicted from, is known to every predictor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.flows.base import Flow
from zoo.flows.frames import pasts

__all__ = ["Temporal"]


class Temporal(Flow):
    """Frames along the first dimension of the event; subclasses give :meth:`predict`.

    Arguments:
        event_shape: ``(frames, *frame_shape)``.
        past: Frames that each one is predicted from, p ≥ 1.
    """

    def __init__(self, event_shape: Sequence[int], past: int = 1) -> None:
        super().__init__(event_shape)
        if len(self.event_shape) < 2 or past < 1:
            raise ValueError(f"a temporal flow takes (frames, *frame_shape) and a past of 1 frame or more; got {tuple(event_shape)} "
                             f"and {past}")
        self.past = past
        self.frame_shape = self.event_shape[1:]

    def predict(self, past: Tensor, ages: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and logarithm of the scale of frames, each ``(…, t, *frame_shape)`` or of a shape that broadcasts to it.

        Arguments:
            past: The frames before each, the latest first, ``(…, t, p, *frame_shape)``.
            ages: How many of them are there, ``(t,)``, never decreasing; the others hold zeros.
        """
        raise NotImplementedError

    def whiten(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.predict(pasts(self.check(x), self.past, len(self.frame_shape)), self._ages(0, self.event_shape[0], x))
        y = (x - shift) * (-log_scale).exp()
        kept = x.dim() - len(self.event_shape) if log_scale.dim() == x.dim() else 0
        return y, -log_scale.flatten(kept).sum(-1)

    def _call(self, y: Tensor) -> Tensor:
        time = self.check(y).dim() - len(self.event_shape)
        empty = torch.zeros_like(y.select(time, 0))
        recent, frames = [empty] * self.past, []
        for t in range(self.event_shape[0]):
            past = torch.stack(recent, time).unsqueeze(time)
            shift, log_scale = self.predict(past, self._ages(t, t + 1, y))
            frames.append((shift + log_scale.exp() * y.narrow(time, t, 1)).squeeze(time))
            recent = [frames[-1], *recent[:-1]]
        return torch.stack(frames, time)

    def _ages(self, start: int, stop: int, like: Tensor) -> Tensor:
        return torch.arange(start, stop, device=like.device).clamp(max=self.past)
