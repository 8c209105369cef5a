"""Two hidden layers of 512 ELU units: the encoder and decoder of Marino, Yue & Mandt 2018 ("Iterative Amortized Inference") for MNIST."""

from __future__ import annotations

from math import prod

from torch import nn

from zoo.networks.batched import Batched
from zoo.networks.lin import final_linear

__all__ = ["elu_decoder", "elu_encoder"]

HIDDEN = 512


def elu_encoder(event_shape: tuple[int, ...], out_features: int, *, bias: bool = True, init_scale: float = 0.05) -> nn.Module:
    """The pixels, flattened, two hidden layers, then a linear map."""
    final = final_linear(HIDDEN, out_features, bias=bias, init_scale=init_scale)
    return Batched(event_shape, nn.Sequential(nn.Flatten(), *_hidden(prod(event_shape)), final))


def elu_decoder(in_features: int, event_shape: tuple[int, ...], *, bias: bool = False, init_scale: float = 0.05) -> nn.Module:
    """Two hidden layers, then a linear map to the pixels; ``bias`` is of the first map, ``init_scale`` is not used."""
    body = nn.Sequential(*_hidden(in_features, bias=bias), nn.Linear(HIDDEN, prod(event_shape)), nn.Unflatten(-1, event_shape))
    if bias:
        nn.init.zeros_(body[0].bias)
    return Batched((in_features,), body)


def _hidden(inputs: int, bias: bool = True) -> list[nn.Module]:
    return [nn.Linear(inputs, HIDDEN, bias=bias), nn.ELU(), nn.Linear(HIDDEN, HIDDEN), nn.ELU()]
