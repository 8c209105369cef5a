"""Convolutional encoder and decoder of the Poisson VAE (Vafaii, Galor & Yates 2024, arXiv 2405.14473).

Published are 16x16 and 28x28 images. The rules that give exactly these two, and cover other sizes, are in
:func:`conv_encoder` and :func:`conv_decoder`.
"""

from __future__ import annotations

from math import ceil, log2

from torch import nn

from zoo.networks.batched import Batched
from zoo.networks.blocks import Conv, ConvPool, Resize, cell
from zoo.networks.lin import final_linear
from zoo.networks.mlp import ResDense

__all__ = ["conv_decoder", "conv_encoder"]

WIDTH = 32
SIDES = (4, 128)


def conv_encoder(
    event_shape: tuple[int, ...], out_features: int, *, bias: bool = True, init_scale: float = 0.05
) -> nn.Module:
    """3x3 stem to 32 channels, a residual cell, L stages, pooling to 1x1, :class:`ResDense`, a linear map.

    A stage is a cell that halves the size and doubles the channels, then a cell that keeps both. L is such
    that the shorter side ends at 4 pixels (3 or 4 where it is no power of two); the pooling convolution
    spans what is left of the map. If every halving is exact (16x16: L = 2) the stem is padded and the skips
    keep all four pixel phases; else (28x28: L = 3, by 26, 13, 7, 4) the stem is not padded and the skips
    have a stride.

    Raises:
        ValueError: unless ``event_shape`` is (channels, height, width) with sides of 4 to 128 pixels.
    """
    _check_image(event_shape)
    stages, exact = _encoder_stages(event_shape[1:])
    channels = WIDTH
    body: list[nn.Module] = [
        Conv(event_shape[0], channels, 3, padding=1 if exact else 0),
        cell(channels, channels, layers=2),
    ]
    size = event_shape[1:] if exact else tuple(n - 2 for n in event_shape[1:])
    for _ in range(stages):
        body.append(cell(channels, 2 * channels, layers=2, down="phases" if exact else "stride"))
        channels, size = 2 * channels, _halved(size)
        body.append(cell(channels, channels, layers=2))
    body += [ConvPool(channels, size), nn.Flatten(), ResDense(channels)]
    body.append(final_linear(channels, out_features, bias=bias, init_scale=init_scale))
    return Batched(event_shape, nn.Sequential(*body))


def conv_decoder(
    in_features: int, event_shape: tuple[int, ...], *, bias: bool = False, init_scale: float = 0.05
) -> nn.Module:
    """A linear map to 256 channels of 2x2, a residual cell, S stages, a 1x1 convolution.

    A stage is a cell that doubles the size and halves the channels, then a cell that keeps both. S is
    log2(longer side / 2), rounded (16x16: 3, 28x28: 4). Where doubling does not lead to ``event_shape``, the
    map is resized to half of it before the last stage (28x28: from 16 to 14, after the third stage).
    ``init_scale`` is not used.

    Raises:
        ValueError: unless ``event_shape`` is (channels, height, width) with sides of 4 to 128 pixels.
    """
    _check_image(event_shape)
    outputs, *image = event_shape
    target = tuple(image)
    stages = max(1, round(log2(max(target) / 2)))
    channels, size = 8 * WIDTH, (2, 2)
    first = nn.Linear(in_features, channels * size[0] * size[1], bias=bias)
    if bias:
        nn.init.zeros_(first.bias)
    body: list[nn.Module] = [first, nn.Unflatten(-1, (channels, *size)), cell(channels, channels, layers=1)]
    for stage in range(1, stages + 1):
        last = stage == stages
        if last and size != _halved(target):
            body.append(Resize(size, _halved(target)))
        size = target if last else (2 * size[0], 2 * size[1])
        body.append(cell(channels, channels // 2, layers=1, up=size))
        channels //= 2
        body.append(cell(channels, channels, layers=1))
    body.append(Conv(channels, outputs, 1))
    return Batched((in_features,), nn.Sequential(*body))


def _encoder_stages(image: tuple[int, ...]) -> tuple[int, bool]:
    """The number of stages, and whether they halve exactly."""
    shorter = min(image)
    stages = int(log2(shorter / 4))
    if shorter == 4 * 2**stages and all(n % 2**stages == 0 for n in image):
        return stages, True
    return max(0, ceil(log2((shorter - 2) / 4))), False


def _halved(size: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(ceil(n / 2) for n in size)


def _check_image(event_shape: tuple[int, ...]) -> None:
    low, high = SIDES
    if len(event_shape) != 3 or not all(low <= side <= high for side in event_shape[1:]):
        raise ValueError(
            f"the conv networks take an event_shape (channels, height, width) with sides of {low} pixels "
            f"(the map they pool) to {high} (channels double per halving); got {event_shape}: use lin or mlp"
        )
