"""Point estimates: one value of every latent for each image, as a guide of point masses."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from guides.base import center
from zoo.data.base import images_of
from zoo.latents.base import Family
from zoo.latents.support import support_kind
from zoo.program import Unconstrained

__all__ = ["Point", "inside", "start_values"]


OFF_CENTER = 0.3  # of unconstrained coordinates: at their origin a program's symmetries may leave an ascent without a slope


class Point(nn.Module):
    """A Pyro program ``guide(x)`` that puts every latent at a stored value, for a fixed batch of images.

    Arguments:
        model: The model.
        data: The images ``(N, *event_shape)``.
        values: Values ``{site: (N, *event)}``; a draw-free start at the prior's mean (rounded for counts, the most probable
            category for one-hots) if None.

    Raises:
        ValueError: if no images are given.
    """

    per_image = True

    def __init__(self, model: nn.Module, data: object = None, *, values: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        if data is None:
            raise ValueError("a point guide keeps values for each image: give the images as data")
        self._program = (model,)
        self.values = dict(values) if values is not None else start_values(model, images_of(data))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        with pyro.plate("data", len(x)):
            return {name: pyro.sample(name, dist.Delta(value, event_dim=value.dim() - 1))
                    for name, value in self.values.items()}


def start_values(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """A deterministic value for each latent inside its support, near the prior's mean, ``{site: (N, *event)}``."""
    values: dict[str, Tensor] = {}

    def keep(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
        if isinstance(family, Unconstrained):
            prior = prior + OFF_CENTER * torch.tensor([1.0, 0.0]).to(prior)[:, None]
        distribution = family.distribution(prior)
        value = inside(center(distribution), distribution)
        values[name] = value.expand(len(x), *distribution.event_shape).clone()
        return values[name]

    model.descend(keep, x)
    return values


def inside(mean: Tensor, distribution: Distribution) -> Tensor:
    """A mean as a value of the distribution's support: counts rounded down, of one-hots the most probable category."""
    kind = support_kind(distribution.support)
    if kind == "one_hot":
        return nn.functional.one_hot(mean.argmax(-1), mean.shape[-1]).to(mean.dtype)
    return mean.floor() if kind == "count" else mean
