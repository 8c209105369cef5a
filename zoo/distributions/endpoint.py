r"""The likelihood behind the endpoint error: each pixel's 2-vector has the density :math:`e^{-|x - \mu| / b} / (2\pi b^2)`.

Its negative logarithm is the sum over pixels of the error's length over b, plus a constant: the loss of Vafaii, Yates & Butts 2023,
divided by b, is that of a proper likelihood.
"""

from __future__ import annotations

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["EndpointError"]


class EndpointError(TorchDistribution):
    """Independent vectors around ``mean``, isotropic, with a length of the error of law Gamma(2, 1/b).

    Arguments:
        mean: Mean field ``(…, 2, H, W)``.
        scale: b > 0, ``()``; each component of the error has the variance 3 b².
    """

    arg_constraints = {"scale": constraints.positive}
    support = constraints.independent(constraints.real, 3)
    has_rsample = True

    def __init__(self, mean: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        if mean.dim() < 3 or mean.shape[-3] != 2:
            raise ValueError(f"mean must be a field (…, 2, H, W), not {tuple(mean.shape)}")
        self.loc, self.scale = mean, scale
        super().__init__(mean.shape[:-3], mean.shape[-3:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> EndpointError:
        return EndpointError(self.loc.expand(*batch_shape, *self.event_shape), self.scale, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return (3.0 * self.scale.square()).expand_as(self.loc)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        height, width = self.event_shape[-2:]
        direction = self.loc.new_empty(*sample_shape, *self.batch_shape, height, width).uniform_(0.0, 2.0 * math.pi)
        length = self.scale * (direction.new_empty(direction.shape).exponential_() + direction.new_empty(direction.shape).exponential_())
        return self.loc + torch.stack([length * direction.cos(), length * direction.sin()], -3)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # A vanishing error keeps a finite gradient: the law has a cusp there.
        tiny = torch.finfo(value.dtype).tiny
        length = (value - self.loc).square().sum(-3).clamp(min=tiny).sqrt().sum((-2, -1))
        pixels = self.event_shape[-2] * self.event_shape[-1]
        return -length / self.scale - pixels * (math.log(2.0 * math.pi) + 2.0 * self.scale.log())
