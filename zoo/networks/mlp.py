"""Dense encoder and decoder, and the residual dense block that the convolutional encoder ends in as well."""

from __future__ import annotations

from math import prod

from torch import Tensor, nn

from zoo.networks.batched import Batched
from zoo.networks.lin import final_linear

__all__ = ["ResDense", "mlp_decoder", "mlp_encoder"]


class ResDense(nn.Module):
    """``LayerNorm(x + Linear(Dropout(ReLU(Linear(x)))))``, hidden layer ``expand`` times as wide as ``x``."""

    def __init__(self, features: int, expand: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Linear(features, expand * features),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(expand * features, features),
        )
        self.norm = nn.LayerNorm(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.branch(x))


def mlp_encoder(
    event_shape: tuple[int, ...], out_features: int, *, bias: bool = True, init_scale: float = 0.05
) -> nn.Module:
    """The pixels, flattened, :class:`ResDense` with 16 D hidden units, then a linear map."""
    pixels = prod(event_shape)
    final = final_linear(pixels, out_features, bias=bias, init_scale=init_scale)
    return Batched(event_shape, nn.Sequential(nn.Flatten(), ResDense(pixels, expand=16), final))


def mlp_decoder(
    in_features: int, event_shape: tuple[int, ...], *, bias: bool = False, init_scale: float = 0.05
) -> nn.Module:
    """A linear map to D, swish, :class:`ResDense`, swish, a linear map D to D; ``init_scale`` is not used."""
    pixels = prod(event_shape)
    body = nn.Sequential(
        nn.Linear(in_features, pixels, bias=bias),
        nn.SiLU(),
        ResDense(pixels),
        nn.SiLU(),
        nn.Linear(pixels, pixels),
        nn.Unflatten(-1, event_shape),
    )
    if bias:
        nn.init.zeros_(body[0].bias)
    return Batched((in_features,), body)
