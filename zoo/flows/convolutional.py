"""A temporal flow whose predictions are small convolutions of the last frames (Marino, Chen, He & Mandt 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.flows.temporal import Temporal

__all__ = ["Convolutional"]


class Convolutional(Temporal):
    r"""Shift and log scale from 3 × 3 convolutions of the last p frames; starts as the identity.

    Channels of the input are the past frames and, for each lag, ones where that frame is there and zeros where it is not. A linear
    convolution and one with a hidden layer add up, so that what is linear in the past is learned as such. Log scales are bounded smoothly,
    :math:`b \tanh(s / b)`.

    Arguments:
        event_shape: ``(frames, channels, height, width)``.
        past: Past frames p.
        channels: Channels of the hidden layers.
        layers: Hidden layers.
        bound: b, in nats.
    """

    def __init__(self, event_shape: Sequence[int], past: int = 2, channels: int = 16, layers: int = 1, bound: float = 5.0) -> None:
        super().__init__(event_shape, past)
        if len(self.event_shape) != 4:
            raise ValueError(f"convolutions take sequences (frames, channels, height, width), not {self.event_shape}")
        if channels < 1 or layers < 1 or not bound > 0:
            raise ValueError(f"channels and layers must be at least 1 and bound positive, not {channels}, {layers} and {bound}")
        inputs, outputs, self.bound = past * (self.frame_shape[0] + 1), 2 * self.frame_shape[0], bound
        self.linear = _silent(nn.Conv2d(inputs, outputs, 3, padding=1))
        hidden = [nn.Conv2d(inputs if i == 0 else channels, channels, 3, padding=1) for i in range(layers)]
        body = [part for conv in hidden for part in (conv, nn.SiLU())]
        self.nonlinear = nn.Sequential(*body, _silent(nn.Conv2d(channels, outputs, 3, padding=1)))

    def predict(self, past: Tensor, ages: Tensor) -> tuple[Tensor, Tensor]:
        there = (ages[:, None] > torch.arange(self.past, device=ages.device)).to(past)  # (t, p)
        mask = there[..., None, None].expand(*past.shape[:-3], *self.frame_shape[1:])
        seen = torch.cat([past.flatten(-4, -3), mask], -3)
        lead = seen.shape[:-3]
        seen = seen.flatten(0, -4)
        shift, log_scale = (self.linear(seen) + self.nonlinear(seen)).unflatten(0, lead).chunk(2, -3)
        return shift, self.bound * (log_scale / self.bound).tanh()


def _silent(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv
