r"""What a latent family is: distributions over :math:`K` units, written in unconstrained parameters.

Parameters of a family are a tensor ``(…, P, K)``: ``P`` unconstrained numbers for each of ``K`` units (``loc`` and
``log_scale``; ``log_rate``; ``logits``). A prior is a point in that space, and a posterior is the prior's point plus what
inference adds, :math:`\mathrm{params}(q) = \mathrm{params}(p) + \delta(x)`: the residual posterior of hierarchical VAEs (Vahdat &
Kautz 2020), the gain-modulated rate of the Poisson VAE (Vafaii et al. 2024), the prediction error of predictive coding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

__all__ = ["Family", "softclamp"]


class Family:
    """Base class of latent families. A family must give :meth:`distribution`; the rest has defaults.

    Attributes:
        parameters: Names of a unit's unconstrained parameters, in the order of dimension ``P``.
        learn_prior: Whether models with this family learn the prior's parameters unless told otherwise.
        anneal: Temperatures of :meth:`relaxed` at the start and end of training.
    """

    parameters: tuple[str, ...] = ("loc", "log_scale")
    learn_prior: bool = False
    anneal: tuple[float, float] = (1.0, 1.0)

    def distribution(self, params: Tensor) -> Distribution:
        """The exact distribution: parameters ``(…, P, K)`` to batch shape ``(…)`` and event shape ``(K,)``."""
        raise NotImplementedError(f"{type(self).__name__} must define distribution(params)")

    def relaxed(self, params: Tensor, temperature: float) -> Distribution:
        """A reparameterized twin at a temperature > 0; the exact distribution itself where that needs none.

        A family without such a twin is trained with the score-function estimator.
        """
        return self.distribution(params)

    def initial_prior(self, units: int) -> Tensor:
        """The prior's parameters before training, ``(P, K)``; zeros (``Normal(0, 1)``, ``Laplace(0, 1)``, uniform logits)."""
        return torch.zeros(len(self.parameters), units)

    def read(self, distribution: Distribution) -> Tensor:
        """Parameters ``(…, P, K)`` of a distribution of this family: the inverse of :meth:`distribution`."""
        raise NotImplementedError(f"{type(self).__name__} does not read parameters off a distribution")

    def posterior(self, prior: Tensor, delta: Tensor) -> Tensor:
        """``prior + delta``, where a family may bound ``delta`` smoothly; equal to ``prior`` at ``delta = 0``."""
        return prior + delta

    def bounded(self, raw: Tensor) -> Tensor:
        """Parameters ``(…, P, K)`` that a network computes for a prior, kept smoothly where they make sense; ``raw`` itself here."""
        return raw

    def copies(self, count: int) -> Family:
        """The family of as many independent copies of its units side by side; itself where units are independent anyway."""
        return self

    def code(self, z: Tensor) -> Tensor:
        """What the decoder receives for a sample ``z`` of event shape ``event_shape``: ``(…, K)``."""
        return z

    def moments(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each unit of the code, each ``(…, K)``."""
        distribution = self.distribution(params)
        return distribution.mean, distribution.variance

    def decoded_variance(self, params: Tensor, weight: Tensor, moments: tuple[Tensor, Tensor] | None = None) -> Tensor:
        r"""Total variance of a linear decoding, :math:`\mathrm{tr}(\Phi\,\mathrm{Cov}[z]\,\Phi^\top)`, of shape ``(…)``.

        Arguments:
            weight: The decoder's matrix Φ, ``(D, K)``.
            moments: What :meth:`moments` says of ``params``, if it is at hand.
        """
        _, variance = self.moments(params) if moments is None else moments
        return variance @ weight.square().sum(0)

    def unit_kl(self, q: Tensor, p: Tensor) -> Tensor | None:
        """KL divergence of each unit in nats, ``(…, K)``; sums to the whole KL. None where there is no closed form.

        ``(…, 1)`` for a family whose units are not independent and which does not say how to share the KL among them.
        """
        q_units, p_units = self.distribution(q), self.distribution(p)
        try:
            if isinstance(q_units, Independent) and isinstance(p_units, Independent):
                return kl_divergence(q_units.base_dist, p_units.base_dist)
            return kl_divergence(q_units, p_units).unsqueeze(-1)
        except NotImplementedError:
            return None

    def natural(self, params: Tensor, gradient: Tensor) -> Tensor:
        r"""The natural gradient :math:`F^{-1} g`, with the Fisher information ``F`` of :meth:`distribution` (Amari 1998).

        Here ``F`` is the second derivative of the KL divergence at equality, a ``P`` × ``P`` block for each unit; families whose units are
        not independent, or whose ``F`` is simpler than that, say so themselves.

        Arguments:
            params: Where, ``(…, P, K)``.
            gradient: A gradient in these parameters, of the same shape.

        Raises:
            NotImplementedError: if the family has no closed-form KL divergence.
        """
        return torch.linalg.solve(_fisher(self, params), gradient.movedim(-2, -1).unsqueeze(-1)).squeeze(-1).movedim(-1, -2)


def _fisher(family: Family, params: Tensor) -> Tensor:
    """Blocks of the Fisher information ``(…, K, P, P)``, by differentiating the KL divergence twice."""
    with torch.enable_grad():
        here, near = params.detach(), params.detach().requires_grad_(True)
        divergence = family.unit_kl(here, near)
        if divergence is None:
            raise NotImplementedError(f"{type(family).__name__} has no closed-form KL divergence, so no Fisher information is known")
        slope, = torch.autograd.grad(divergence.sum(), near, create_graph=True)
        rows = [torch.autograd.grad(part.sum(), near, retain_graph=True)[0] for part in slope.unbind(-2)]
    return torch.stack(rows, dim=-2).movedim(-1, -3)


def softclamp(delta: Tensor, limit: Tensor | float) -> Tensor:
    """Saturates smoothly at about ``limit`` from below, is 0 at 0, and the identity far under the limit.

    The soft clamp ``c − softplus(c − a)`` of the Poisson VAE, shifted so that no evidence leaves the prior as it is.
    """
    if not isinstance(limit, Tensor):
        limit = torch.as_tensor(limit, dtype=delta.dtype, device=delta.device)
    softplus = torch.nn.functional.softplus
    return delta - softplus(delta - limit) + softplus(-limit)
