r"""Gumbel-softmax twins: of any count distribution, through its log-probabilities, and of one-hot vectors.

The category :math:`\arg\max_k (\log p_k + g_k)` with independent Gumbel noise :math:`g_k` has probabilities
:math:`p_k`; a softmax at temperature τ in place of the arg max can be differentiated (Jang et al. 2017;
Maddison et al. 2017).
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.kl import kl_divergence, register_kl

from zoo.latents.relaxed.ramps import checked

__all__ = ["RelaxedCount", "RelaxedOneHot"]

MOST_COUNTS = 10_000


class RelaxedCount(dist.TorchDistribution):
    r"""A count with a pathwise gradient: :math:`z = \sum_{k=0}^U k\,\mathrm{softmax}_k((\log p(k) + g_k)/τ)`.

    :meth:`log_prob`, ``mean``, ``variance`` and KL divergences are those of ``base``. A relaxed value has
    no tractable density: do not read the :meth:`log_prob` of one as such. At temperature 0 samples are
    exact draws of ``base`` without a gradient. A sample holds ``U + 1`` numbers for every unit while it is
    drawn; for Poisson counts with high rates :class:`~zoo.latents.relaxed.arrival.RelaxedPoisson` is
    leaner, and less biased (here the mean grows with τ where it is small).

    Arguments:
        base: A distribution over counts 0, 1, 2 … with event shape ``()``; anything with a ``log_prob``.
        temperature: τ ≥ 0, one number; positive ones are raised to the dtype's machine epsilon.
        max_count: The highest count U, itself included. By default mean + 6 standard deviations + 10, rounded
            up, of the unit for which that is highest.
        straight_through: Whether samples are the counts of highest perturbed probability, with the relaxed
            gradient.

    Raises:
        ValueError: if ``base`` is no univariate count distribution, for a bad temperature or ``max_count``,
            or if the default would be above 10,000 or has no finite moments to go by.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.nonnegative
    has_rsample = True

    def __init__(self, base: Distribution, temperature: float, max_count: int | None = None,
                 straight_through: bool = False, validate_args: bool | None = None) -> None:
        if len(base.event_shape) > 0:
            raise ValueError(f"base must have event shape (), not {tuple(base.event_shape)}: "
                             "relax single units, then use to_event")
        if not base.support.is_discrete:
            raise ValueError(f"base must be a distribution over counts, not {type(base).__name__}")
        self.temperature = checked(temperature)
        self.max_count = _default_max(base) if max_count is None else max_count
        if self.max_count < 1 or self.max_count != int(self.max_count):
            raise ValueError(f"max_count must be a whole number of at least 1, not {max_count}")
        self.base = base.expand(base.batch_shape)
        self.base._validate_args = False  # it scores counts that some units do not reach, and relaxed ones
        self.straight_through = straight_through
        super().__init__(base.batch_shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: RelaxedCount | None = None) -> RelaxedCount:
        new = self._get_checked_instance(RelaxedCount, _instance)
        new.base = self.base.expand(batch_shape)
        new.base._validate_args = False
        new.temperature, new.max_count = self.temperature, self.max_count
        new.straight_through = self.straight_through
        super(RelaxedCount, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self.base.mean

    @property
    def variance(self) -> Tensor:
        return self.base.variance

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of exact counts under ``base``."""
        if self._validate_args:
            self._validate_sample(value)
        return self.base.log_prob(value)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Relaxed counts ``(*sample_shape, *batch_shape)``."""
        if self.temperature == 0:
            return self.base.sample(sample_shape)
        like = self.base.mean
        counts = torch.arange(self.max_count + 1, dtype=like.dtype, device=like.device)
        column = counts.view(-1, *[1] * len(self.batch_shape))
        logits = self.base.log_prob(column)
        logits = logits.masked_fill(~self.base.support.check(column).expand_as(logits), -math.inf)
        logits = logits.view(len(counts), *[1] * len(sample_shape), *self.batch_shape)
        shape = (len(counts), *self._extended_shape(sample_shape))
        perturbed = logits + _gumbel(shape, like)
        weights = (perturbed / max(self.temperature, torch.finfo(like.dtype).eps)).softmax(0)
        relaxed = torch.tensordot(counts, weights, dims=1)
        if not self.straight_through:
            return relaxed
        return perturbed.argmax(0).to(relaxed.dtype) + (relaxed - relaxed.detach())

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """:meth:`rsample` without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)


class RelaxedOneHot(dist.OneHotCategorical):
    """A one-hot vector with a pathwise gradient: samples are points of the simplex, near its corners at low τ.

    It is a ``OneHotCategorical`` of the same logits: :meth:`log_prob` (of exact one-hot vectors), ``mean``,
    ``variance`` and the closed-form KL divergence are its own. At temperature 0 samples are exact and have
    no gradient.

    Arguments:
        logits: Unnormalized log-probabilities, batch shape then ``(K,)``.
        temperature: τ ≥ 0, one number; positive ones are raised to the dtype's machine epsilon.
        straight_through: Whether samples are the one-hot vectors of the largest entries, with the relaxed
            gradient.

    Raises:
        ValueError: for a bad temperature.
    """

    has_rsample = True
    support = constraints.simplex

    def __init__(self, logits: Tensor, temperature: float, straight_through: bool = False,
                 validate_args: bool | None = None) -> None:
        self.temperature = checked(temperature)
        self.straight_through = straight_through
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: RelaxedOneHot | None = None) -> RelaxedOneHot:
        new = self._get_checked_instance(RelaxedOneHot, _instance)
        new.temperature, new.straight_through = self.temperature, self.straight_through
        return super().expand(batch_shape, _instance=new)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Relaxed one-hot vectors ``(*sample_shape, *batch_shape, K)``."""
        logits = self.logits
        if self.temperature == 0:
            return super().sample(sample_shape).to(logits.dtype)
        temperature = logits.new_tensor(max(self.temperature, torch.finfo(logits.dtype).eps))
        relaxed = dist.RelaxedOneHotCategorical(temperature, logits=logits, validate_args=False)
        relaxed = relaxed.rsample(sample_shape)
        if not self.straight_through:
            return relaxed
        hard = torch.zeros_like(relaxed).scatter_(-1, relaxed.argmax(-1, keepdim=True), 1.0)
        return hard + (relaxed - relaxed.detach())

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """:meth:`rsample` without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)


def _default_max(base: Distribution) -> int:
    mean, variance = base.mean.detach(), base.variance.detach()
    if mean.numel() == 0:
        return 1
    highest = float((mean + 6 * variance.sqrt() + 10).max())
    if not highest <= MOST_COUNTS:
        raise ValueError(f"counts up to {highest:.3g} are too many to relax, {MOST_COUNTS} is the most; "
                         "bound the means of base, or give max_count")
    return math.ceil(highest)


def _gumbel(shape: tuple[int, ...], like: Tensor) -> Tensor:
    exponential = torch.empty(shape, dtype=like.dtype, device=like.device).exponential_()
    return exponential.clamp_min_(torch.finfo(like.dtype).tiny).log_().neg_()


@register_kl(RelaxedCount, RelaxedCount)
def _kl_relaxed_relaxed(q: RelaxedCount, p: RelaxedCount) -> Tensor:
    return kl_divergence(q.base, p.base)


@register_kl(RelaxedCount, Distribution)
def _kl_relaxed_any(q: RelaxedCount, p: Distribution) -> Tensor:
    return kl_divergence(q.base, p)
