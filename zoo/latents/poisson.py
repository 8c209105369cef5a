r"""Poisson latents: spike counts :math:`z_k \sim \mathrm{Poisson}(e^{\mathrm{log\_rate}_k})`.

The Poisson VAE (Vafaii, Galor & Yates 2024): prior rates are learned, a posterior multiplies them by a gain
:math:`e^{\delta(x)}`, and the KL divergence :math:`r (1 - e^\delta + \delta e^\delta)` grows with the prior rate, a metabolic cost.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from zoo.latents.base import Family, softclamp
from zoo.latents.relaxed.arrival import RAMPS, RelaxedPoisson
from zoo.latents.relaxed.gumbel import RelaxedCount

__all__ = ["Poisson"]

GAIN_BOUND = 10.0  # Vafaii et al. 2024: log-gains saturate at 10 …
LOG_RATE_BOUND = 5.3  # … and posterior log-rates at 5.3, about 200 spikes
ESTIMATORS = (*RAMPS, "gumbel", "score")


class Poisson(Family):
    """Count latents with the parameter ``log_rate``.

    Arguments:
        relaxation: How gradients pass through the counts: the ramp of the arrival-time relaxation (``"cubic"``, ``"sigmoid"``,
            ``"linear"``, ``"quintic"``, ``"cosine"``), ``"gumbel"`` for a Gumbel-softmax over counts, or ``"score"`` for the
            score-function estimator on true counts.
        straight_through: Whether relaxed samples are hard counts in value and soft in gradient.
        log_rate_init: Range of the uniform law that prior log-rates start from; the published ones are (−6, −4) for linear and
            (−6, −2) for other decoders.
    """

    parameters = ("log_rate",)
    learn_prior = True
    anneal = (1.0, 0.05)

    def __init__(self, relaxation: str = "cubic", straight_through: bool = False,
                 log_rate_init: tuple[float, float] = (-6.0, -4.0)) -> None:
        if relaxation not in ESTIMATORS:
            raise ValueError(f"unknown relaxation {relaxation!r}; known are: {', '.join(ESTIMATORS)}")
        if not log_rate_init[0] <= log_rate_init[1]:
            raise ValueError(f"log_rate_init must be (low, high) with low ≤ high, not {log_rate_init}")
        self.relaxation = relaxation
        self.straight_through = straight_through
        self.log_rate_init = log_rate_init

    def initial_prior(self, units: int) -> Tensor:
        low, high = self.log_rate_init
        return low + (high - low) * torch.rand(1, units)

    def distribution(self, params: Tensor) -> Distribution:
        return dist.Poisson(self._rate(params)).to_event(1)

    def relaxed(self, params: Tensor, temperature: float) -> Distribution:
        rate = self._rate(params)
        if self.relaxation == "score":
            return dist.Poisson(rate).to_event(1)
        if self.relaxation == "gumbel":
            return RelaxedCount(dist.Poisson(rate), temperature, straight_through=self.straight_through).to_event(1)
        return RelaxedPoisson(rate, temperature, self.relaxation, self.straight_through).to_event(1)

    def read(self, distribution: Distribution) -> Tensor:
        base = distribution.base_dist if isinstance(distribution, Independent) else distribution
        return base.rate.log().unsqueeze(-2)

    def posterior(self, prior: Tensor, delta: Tensor) -> Tensor:
        """Prior log-rate plus a log-gain that saturates at 10, or where the rate would pass e^5.3 ≈ 200."""
        return prior + softclamp(delta, (LOG_RATE_BOUND - prior).clamp(0.0, GAIN_BOUND))

    def bounded(self, raw: Tensor) -> Tensor:
        """A log-rate that saturates at 5.3."""
        return LOG_RATE_BOUND - torch.nn.functional.softplus(LOG_RATE_BOUND - raw)

    def moments(self, params: Tensor) -> tuple[Tensor, Tensor]:
        rate = self._rate(params)
        return rate, rate

    def unit_kl(self, q: Tensor, p: Tensor) -> Tensor:
        """Prior rate times ``1 − g + g log g`` for the gain ``g`` of the posterior's rate over the prior's."""
        log_q, log_p = q.squeeze(-2), p.squeeze(-2)
        return log_q.exp() * (log_q - log_p - 1.0) + log_p.exp()

    def natural(self, params: Tensor, gradient: Tensor) -> Tensor:
        """Fisher information ``rate``: the natural gradient is the gradient with the rate divided out."""
        return gradient * (-params).exp()

    def _rate(self, params: Tensor) -> Tensor:
        return params.squeeze(-2).exp()
