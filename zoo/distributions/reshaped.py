"""A law of vectors as a law of images."""

from __future__ import annotations

from math import prod

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

__all__ = ["Reshaped"]


class Reshaped(TorchDistribution):
    """The law of ``x`` with event shape ``event_shape`` if ``x.flatten()`` follows ``base``, with event shape ``(D,)``."""

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, base: Distribution, event_shape: tuple[int, ...]) -> None:
        if len(base.event_shape) != 1 or prod(event_shape) != base.event_shape[0]:
            raise ValueError(f"a law of event shape {tuple(base.event_shape)} has no images {tuple(event_shape)}")
        self.base_dist = base
        super().__init__(base.batch_shape, torch.Size(event_shape), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def has_rsample(self) -> bool:
        return self.base_dist.has_rsample

    @property
    def mean(self) -> Tensor:
        return self.base_dist.mean.unflatten(-1, self.event_shape)

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance.unflatten(-1, self.event_shape)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> Reshaped:
        return Reshaped(self.base_dist.expand(batch_shape), tuple(self.event_shape))

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        return self.base_dist.rsample(sample_shape).unflatten(-1, self.event_shape)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.base_dist.sample(sample_shape).unflatten(-1, self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base_dist.log_prob(value.flatten(-len(self.event_shape)))
