r"""Categorical latents: one-hot vectors, one group of :math:`K` categories or several groups side by side."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from zoo.latents.base import Family
from zoo.latents.relaxed.gumbel import RelaxedOneHot

__all__ = ["Categorical"]


class Categorical(Family):
    """One-hot latents with parameters ``logits``; ``K`` units are ``groups`` × categories.

    With one group the event shape is ``(K,)``; with ``G`` groups it is ``(G, K/G)``, flattened for the decoder.

    Arguments:
        groups: Number of independent one-hot groups.
        straight_through: Whether relaxed samples are hard in value and soft in gradient.
    """

    parameters = ("logits",)
    anneal = (1.0, 0.1)

    def __init__(self, groups: int = 1, straight_through: bool = False) -> None:
        if groups < 1:
            raise ValueError(f"groups must be at least 1, not {groups}")
        self.groups = groups
        self.straight_through = straight_through

    def distribution(self, params: Tensor) -> Distribution:
        return self._event(dist.OneHotCategorical(logits=self._logits(params)))

    def relaxed(self, params: Tensor, temperature: float) -> Distribution:
        one_hot = RelaxedOneHot(logits=self._logits(params), temperature=temperature,
                                straight_through=self.straight_through)
        return self._event(one_hot)

    def read(self, distribution: Distribution) -> Tensor:
        base = distribution.base_dist if isinstance(distribution, Independent) else distribution
        logits = base.logits.flatten(-2) if self.groups > 1 else base.logits
        return logits.unsqueeze(-2)

    def copies(self, count: int) -> Categorical:
        return Categorical(self.groups * count, self.straight_through)

    def code(self, z: Tensor) -> Tensor:
        return z.flatten(-2) if self.groups > 1 else z

    def moments(self, params: Tensor) -> tuple[Tensor, Tensor]:
        probs = self._probs(params)
        return probs, probs * (1 - probs)

    def decoded_variance(self, params: Tensor, weight: Tensor, moments: tuple[Tensor, Tensor] | None = None) -> Tensor:
        # Units of one group exclude each other: Cov = diag(p) − p pᵀ within the group.
        probs = self._probs(params) if moments is None else moments[0]
        columns = weight.unflatten(-1, (self.groups, -1)).permute(1, 2, 0)  # (G, C, D)
        by_group = probs.unflatten(-1, (self.groups, -1)).movedim(-2, 0).reshape(*columns.shape[:1], -1, columns.shape[1])
        means = by_group @ columns  # (G, images, D)
        return probs @ weight.square().sum(0) - means.square().sum((0, 2)).reshape(probs.shape[:-1])

    def unit_kl(self, q: Tensor, p: Tensor) -> Tensor:
        """Each category's share ``q log(q/p) − q + p`` ≥ 0: these sum to the KL, as both sum to one in a group."""
        log_q, log_p = self._log_probs(q), self._log_probs(p)
        return log_q.exp() * (log_q - log_p - 1) + log_p.exp()

    def natural(self, params: Tensor, gradient: Tensor) -> Tensor:
        """By the pseudoinverse of the Fisher information ``diag(p) − p pᵀ`` of each group, as logits are known up to a constant."""
        probs = self._probs(params).clamp(min=torch.finfo(params.dtype).tiny)  # those that underflow have no gradient left
        step = (gradient / probs.unsqueeze(-2)).unflatten(-1, (self.groups, -1))
        return (step - step.mean(-1, keepdim=True)).flatten(-2)

    def _logits(self, params: Tensor) -> Tensor:
        logits = params.squeeze(-2)
        return logits.unflatten(-1, (self.groups, -1)) if self.groups > 1 else logits

    def _log_probs(self, params: Tensor) -> Tensor:
        log_probs = self._logits(params).log_softmax(-1)
        return log_probs.flatten(-2) if self.groups > 1 else log_probs

    def _probs(self, params: Tensor) -> Tensor:
        return self._log_probs(params).exp()

    def _event(self, one_hot: Distribution) -> Distribution:
        return one_hot.to_event(1) if self.groups > 1 else one_hot
