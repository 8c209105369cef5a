r"""Student-t latents, sparse and with heavy tails: :math:`p(z_k) \propto (1 + r^2 / \nu)^{-(\nu + 1)/2}`, :math:`r = (z_k - \mathrm{loc}) /
\mathrm{scale}`.

The proper form of the kurtotic prior of predictive coding (Rao & Ballard 1999), whose density :math:`(1 + r^2)^{-\alpha/2}` has an
integral only for α > 1: with scale :math:`1/\sqrt\nu` this is α = ν + 1. One degree of freedom is the Cauchy law, which has no mean.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from zoo.latents.location_scale import LocationScale, natural_gradient

__all__ = ["StudentT"]


class StudentT(LocationScale):
    r"""Student-t latents with parameters ``loc`` and ``log_scale``; their prior has loc 0 and scale :math:`1/\sqrt\nu`.

    There is no closed form of the KL divergence between two of them. A posterior of this family keeps ν, so that the expected square of an
    error under it, and with it an ELBO under Normal noise, is infinite up to ν = 2: take chains or points there.

    Arguments:
        df: Degrees of freedom ν, which posteriors keep; 1 is the Cauchy law, and up to 2 the variance is infinite.

    Raises:
        ValueError: if ``df`` is not positive.
    """

    def __init__(self, df: float = 3.0) -> None:
        if not 0.0 < df < float("inf"):
            raise ValueError(f"df must be positive and finite, not {df}")
        self.df = df

    def distribution(self, params: Tensor) -> Distribution:
        loc, log_scale = params.unbind(-2)
        return dist.StudentT(self.df, loc, log_scale.exp()).to_event(1)

    def initial_prior(self, units: int) -> Tensor:
        prior = torch.zeros(2, units)
        prior[1] = -0.5 * torch.tensor(self.df).log()
        return prior

    def natural(self, params: Tensor, gradient: Tensor) -> Tensor:
        """Fisher information ``diag((ν + 1) / (ν + 3) / scale², 2 ν / (ν + 3))`` for ``(loc, log_scale)`` (Lange, Little & Taylor 1989)."""
        return natural_gradient(params, gradient, scale=2.0 * self.df / (self.df + 3.0), loc=(self.df + 1.0) / (self.df + 3.0))
