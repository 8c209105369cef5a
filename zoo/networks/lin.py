"""Linear encoder and decoder: the maps of sparse coding and of the ``lin`` architectures."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from zoo.networks.batched import Batched, leading_shape

__all__ = ["LinearDecoder", "final_linear", "lin_decoder", "lin_encoder"]


class LinearDecoder(nn.Module):
    """``x = Phi z``, optionally ``+ bias``, reshaped to ``event_shape``.

    ``weight`` is Phi, of shape (D, K): column k is the image of latent k. ``bias`` has shape (D,) or is None.
    The attribute ``linear`` is True, for code that needs a linear decoder.

    Arguments:
        in_features: K.
        event_shape: (channels, height, width), D = their product.
        bias: Whether to add a bias, which starts at 0.
        init_scale: Phi starts as N(0, init_scale^2), drawn from torch's global generator.
    """

    linear = True

    def __init__(
        self, in_features: int, event_shape: tuple[int, ...], *, bias: bool = False, init_scale: float = 0.05
    ) -> None:
        super().__init__()
        pixels = prod(event_shape)
        self.in_features = in_features
        self.event_shape = tuple(event_shape)
        self.weight = nn.Parameter(init_scale * torch.randn(pixels, in_features))
        self.bias = nn.Parameter(torch.zeros(pixels)) if bias else None

    def forward(self, z: Tensor) -> Tensor:
        leading_shape(z, (self.in_features,))
        return nn.functional.linear(z, self.weight, self.bias).unflatten(-1, self.event_shape)


def final_linear(in_features: int, out_features: int, *, bias: bool, init_scale: float) -> nn.Linear:
    """A linear map that starts with weights N(0, init_scale^2) and bias 0."""
    linear = nn.Linear(in_features, out_features, bias=bias)
    nn.init.normal_(linear.weight, std=init_scale)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def lin_encoder(
    event_shape: tuple[int, ...], out_features: int, *, bias: bool = True, init_scale: float = 0.05
) -> nn.Module:
    """The pixels, flattened, then one linear map."""
    linear = final_linear(prod(event_shape), out_features, bias=bias, init_scale=init_scale)
    return Batched(event_shape, nn.Sequential(nn.Flatten(), linear))


def lin_decoder(
    in_features: int, event_shape: tuple[int, ...], *, bias: bool = False, init_scale: float = 0.05
) -> LinearDecoder:
    """Phi as a :class:`LinearDecoder`."""
    return LinearDecoder(in_features, event_shape, bias=bias, init_scale=init_scale)
