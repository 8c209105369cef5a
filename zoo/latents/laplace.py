r"""Laplace latents, :math:`p(z_k) = \exp(-|z_k - \mathrm{loc}| / \mathrm{scale}) / (2\,\mathrm{scale})`.

The prior of sparse coding (Olshausen & Field 1996). The closed-form KL divergence comes with PyTorch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from zoo.distributions.units import laplace_units
from zoo.latents.base import Family
from zoo.latents.gaussian import bounded_log_scale, location_scale_natural, residual

__all__ = ["Laplace"]


class Laplace(Family):
    """Laplace latents with parameters ``loc`` and ``log_scale``."""

    parameters = ("loc", "log_scale")

    def distribution(self, params: Tensor) -> Distribution:
        loc, log_scale = params.unbind(-2)
        return laplace_units(loc, log_scale.exp())

    def read(self, distribution: Distribution) -> Tensor:
        base = distribution.base_dist
        return torch.stack([base.loc, base.scale.log()], dim=-2)

    def posterior(self, prior: Tensor, delta: Tensor) -> Tensor:
        return residual(prior, delta)

    def bounded(self, raw: Tensor) -> Tensor:
        return bounded_log_scale(raw)

    def natural(self, params: Tensor, gradient: Tensor) -> Tensor:
        """Fisher information ``diag(1 / scale², 1)`` for ``(loc, log_scale)``."""
        return location_scale_natural(params, gradient, 1.0)
