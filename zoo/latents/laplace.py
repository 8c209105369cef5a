r"""Laplace latents, :math:`p(z_k) = \exp(-|z_k - \mathrm{loc}| / \mathrm{scale}) / (2\,\mathrm{scale})`.

The prior of sparse coding (Olshausen & Field 1996). The closed-form KL divergence comes with PyTorch.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from zoo.distributions.units import laplace_units
from zoo.latents.location_scale import LocationScale, natural_gradient

__all__ = ["Laplace"]


class Laplace(LocationScale):
    """Laplace latents with parameters ``loc`` and ``log_scale``."""

    def distribution(self, params: Tensor) -> Distribution:
        loc, log_scale = params.unbind(-2)
        return laplace_units(loc, log_scale.exp())

    def natural(self, params: Tensor, gradient: Tensor) -> Tensor:
        """Fisher information ``diag(1 / scale², 1)`` for ``(loc, log_scale)``."""
        return natural_gradient(params, gradient, scale=1.0)
