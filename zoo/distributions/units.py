r"""Independent Normal and Laplace units whose density of a whole code takes few passes over memory.

They are Pyro's ``Normal(loc, scale).to_event(1)`` and ``Laplace(loc, scale).to_event(1)`` in everything but :meth:`log_prob`: terms that do
not depend on the code are added up for the prior's parameters once, not for every image that they were expanded to, and the sign of a
Laplace gradient is copied, not computed.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["LaplaceUnits", "NormalUnits", "laplace_units", "normal_units"]


class NormalUnits(dist.Independent):
    """Normal units; see :func:`normal_units`."""

    def log_prob(self, value: Tensor) -> Tensor:
        loc, scale = _parameters(self, value)
        away = (value - loc) * scale.reciprocal()
        constant = 0.5 * math.log(2.0 * math.pi) * self.event_shape.numel()
        return _spread(self, -0.5 * away.square().sum(-1) - (scale.log().sum(-1) + constant))


class LaplaceUnits(dist.Independent):
    """Laplace units; see :func:`laplace_units`. At a mode, where it has no slope, the gradient is that from above."""

    def log_prob(self, value: Tensor) -> Tensor:
        loc, scale = _parameters(self, value)
        away = value - loc
        distance = away * torch.copysign(scale.reciprocal(), away.detach())
        return _spread(self, -distance.sum(-1) - (2.0 * scale).log().sum(-1))


def normal_units(loc: Tensor, scale: Tensor) -> NormalUnits:
    """Normal units, batch shape ``(…)`` and event shape ``(K,)``, of means and standard deviations ``(…, K)``."""
    return NormalUnits(dist.Normal(loc, scale), 1)


def laplace_units(loc: Tensor, scale: Tensor) -> LaplaceUnits:
    """Laplace units, batch shape ``(…)`` and event shape ``(K,)``, of means and scales ``(…, K)``."""
    return LaplaceUnits(dist.Laplace(loc, scale), 1)


def _parameters(units: dist.Independent, value: Tensor) -> tuple[Tensor, Tensor]:
    """Location and scale as they were before they were expanded to a batch."""
    base = units.base_dist
    if base._validate_args:
        base._validate_sample(value)
    return _unexpanded(base.loc), _unexpanded(base.scale)


def _unexpanded(parameter: Tensor) -> Tensor:
    for d in range(parameter.dim() - 1):
        if parameter.stride(d) == 0 and parameter.shape[d] > 1:
            parameter = parameter.narrow(d, 0, 1)
    return parameter


def _spread(units: dist.Independent, log_density: Tensor) -> Tensor:
    return log_density.expand(torch.broadcast_shapes(log_density.shape, units.batch_shape))
