r"""Amortized inference: one encoder for all images, :math:`\delta = \mathrm{encoder}(x)` (Kingma & Welling 2014)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guides.base import Guide, seen
from zoo import networks

__all__ = ["Amortized"]


class Amortized(Guide):
    """A guide with one encoder.

    Arguments:
        model: The model.
        encoder: ``"lin"``, ``"mlp"``, ``"conv"`` or another registered encoder.
        bias: Whether its last linear map has a bias. On by default: without it a Gaussian posterior's scale cannot be a learned
            constant (the handicap of the published lin|lin Gaussian and Laplace models).
        init_scale: Standard deviation of that map's weights at the start.
        seed: Seed of the initial weights.
    """

    def __init__(self, model: nn.Module, data: object = None, *, encoder: str = "lin", bias: bool = True,
                 init_scale: float = 0.05, seed: int = 0) -> None:
        super().__init__(model)
        self.sizes = {name: (len(family.parameters), units) for name, (family, units) in model.latents.items()}
        outputs = sum(count * units for count, units in self.sizes.values())
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = networks.encoder(encoder, model.event_shape, outputs, bias=bias, init_scale=init_scale)

    def delta(self, x: Tensor) -> dict[str, Tensor]:
        output = self.encoder(seen(self.model, x))
        parts = [output] if len(self.sizes) == 1 else output.split([count * units for count, units in self.sizes.values()], dim=-1)
        return {name: part.unflatten(-1, size) for (name, size), part in zip(self.sizes.items(), parts, strict=True)}
