"""Encoders ``(…, *event_shape) -> (…, out_features)`` and decoders ``(…, in_features) -> (…, *event_shape)``.

The kinds "lin", "mlp" and "conv" are the architectures of Vafaii, Galor & Yates 2024 ("Poisson Variational
Autoencoder", arXiv 2405.14473); lin and conv reproduce the published numbers of parameters. "elu" is that of Marino, Yue & Mandt
2018. This module imports no torch; a kind is imported when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING

from zoo.registry import Registry

if TYPE_CHECKING:
    from torch import nn

__all__ = ["decoder", "decoders", "encoder", "encoders"]

encoders = Registry(
    "encoders",
    {
        "lin": ("zoo.networks.lin:lin_encoder", "one linear map of the pixels"),
        "mlp": ("zoo.networks.mlp:mlp_encoder", "a residual dense block on the pixels, then a linear map"),
        "conv": ("zoo.networks.conv:conv_encoder", "residual convolutions, then a linear map"),
        "elu": ("zoo.networks.elu:elu_encoder", "two hidden layers of 512 ELU units, then a linear map"),
    },
)

decoders = Registry(
    "decoders",
    {
        "lin": ("zoo.networks.lin:lin_decoder", "one linear map Phi; column k is the image of latent k"),
        "mlp": ("zoo.networks.mlp:mlp_decoder", "a linear map, a residual dense block, a linear map"),
        "conv": ("zoo.networks.conv:conv_decoder", "a linear map, then residual up-convolutions"),
        "elu": ("zoo.networks.elu:elu_decoder", "two hidden layers of 512 ELU units, then a linear map"),
    },
)


def encoder(
    kind: str, event_shape: Sequence[int], out_features: int, *, bias: bool = True, init_scale: float = 0.05
) -> nn.Module:
    """A network from images ``(…, *event_shape)`` to ``(…, out_features)``, with any leading dimensions.

    Arguments:
        kind: A name in :data:`encoders`; its builder is called with the other arguments as they are here.
        event_shape: (channels, height, width); "lin" and "mlp" take any shape of one dimension or more.
        out_features: Length of the output, e.g. K log rates or 2K locs and log scales.
        bias: Whether the final linear map has a bias (it starts at 0).
        init_scale: Standard deviation of the final linear map's initial weights, N(0, init_scale^2).

    The initial weights come from torch's global generator.

    Raises:
        ValueError: for an unknown kind, or a shape or size that the kind cannot take.
    """
    shape = _checked(event_shape, out_features, "out_features", init_scale)
    return encoders[kind](shape, out_features, bias=bias, init_scale=init_scale)


def decoder(
    kind: str, in_features: int, event_shape: Sequence[int], *, bias: bool = False, init_scale: float = 0.05
) -> nn.Module:
    """A network from latents ``(…, in_features)`` to images ``(…, *event_shape)``, any leading dimensions.

    Arguments:
        kind: A name in :data:`decoders`; its builder is called with the other arguments as they are here.
        in_features: Length of the input, e.g. K.
        event_shape: (channels, height, width); "lin" and "mlp" take any shape of one dimension or more.
        bias: Whether the first linear map has a bias (it starts at 0).
        init_scale: Standard deviation of the initial Phi of "lin", N(0, init_scale^2); "mlp" and
            "conv" have no such map and do not use it (as published, they start by the usual rules).

    The initial weights come from torch's global generator.

    Raises:
        ValueError: for an unknown kind, or a shape or size that the kind cannot take.
    """
    shape = _checked(event_shape, in_features, "in_features", init_scale)
    return decoders[kind](in_features, shape, bias=bias, init_scale=init_scale)


def _checked(event_shape: Sequence[int], features: int, name: str, init_scale: float) -> tuple[int, ...]:
    shape = tuple(event_shape) if isinstance(event_shape, Iterable) else ()
    if not shape or not all(_positive(n) for n in shape):
        raise ValueError(
            f"event_shape takes positive integers, (channels, height, width) for images; got {event_shape!r}"
        )
    if not _positive(features):
        raise ValueError(f"{name} takes a positive integer; got {features!r}")
    if not 0 <= init_scale < float("inf"):
        raise ValueError(f"init_scale is a standard deviation, finite and not negative; got {init_scale!r}")
    return tuple(int(n) for n in shape)


def _positive(n: object) -> bool:
    return isinstance(n, Integral) and not isinstance(n, bool) and n > 0
