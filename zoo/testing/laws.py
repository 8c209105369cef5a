"""Exact probabilities of a family's latents by enumeration or quadrature: the truth that a family's own formulas are held to.

A law is a set of points with weights: every one-hot state, the counts of a unit, or a fine grid over a real unit. Units of an
``Independent`` distribution are looked at one by one; another joint distribution of real or count units only by sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, biject_to
from torch.nn.functional import one_hot

from zoo.latents.base import Family
from zoo.latents.support import support_kind

__all__ = ["Law", "covariance_of", "kind_of", "law_of", "log_prob_at", "one_by_one", "units_stand_alone"]

MOST_STATES = 4096
MOST_COUNTS = 4000
GRID = torch.linspace(-12.0, 12.0, 24_001, dtype=torch.float64)


@dataclass(frozen=True)
class Law:
    """Points of a latent with their probabilities under each of ``B`` parameters.

    Attributes:
        kind: ``"real"``, ``"count"`` or ``"one_hot"``.
        points: ``(M, B or 1, *event)``, in rising order for a single unit.
        mass: Probability of each point, ``(M, B)``, from the density as the family states it: not normalized here.
    """

    kind: str
    points: Tensor
    mass: Tensor

    def expect(self, values: Tensor) -> Tensor:
        """Sum of mass × values ``(M, B, *)``, ``(B, *)``; points without mass count as 0."""
        mass = self.mass.reshape(self.mass.shape + (1,) * (values.dim() - 2))
        return torch.where(mass > 0, mass * values, 0.0).sum(0)


def law_of(family: Family, params: Tensor) -> Law:
    """The law at parameters ``(B, P, 1)`` of single units, or at ``(B, P, K)`` of one-hot vectors.

    Raises:
        AssertionError: if the latent is of no accepted kind, or has too many states.
    """
    with pyro.validation_enabled(False):  # points off the support are asked for and masked
        distribution = family.distribution(params)
        kind = kind_of(distribution)
        if kind == "one_hot":
            points = _one_hots(distribution.event_shape)
            return Law(kind, points, _log_prob(distribution, points).exp())
        if kind == "count":
            points = torch.arange(MOST_COUNTS, dtype=torch.float64).reshape(-1, 1, 1)
            return Law(kind, points, _log_prob(distribution, points).exp())
        points, width = _grid(distribution)
        mass = _log_prob(distribution, points).exp() * width
        return Law(kind, points, torch.where(mass.isfinite(), mass, 0.0))


def kind_of(distribution: Distribution) -> str:
    """``"real"``, ``"count"`` or ``"one_hot"``.

    Raises:
        AssertionError: for any other support.
    """
    try:
        kind = support_kind(distribution.support)
    except ValueError as error:
        raise AssertionError(str(error)) from error
    if kind == "real" and _unit_support(distribution).event_dim > 0:
        raise AssertionError(f"a support that ties units together, {_unit_support(distribution)}, is not covered by this check")
    return kind


def log_prob_at(family: Family, params: Tensor, points: Tensor) -> Tensor:
    """Log-probability of points ``(M, B or 1, *event)`` at parameters ``(B, P, K)``, ``(M, B)``; −∞ off the support."""
    with pyro.validation_enabled(False):
        return _log_prob(family.distribution(params), points)


def one_by_one(params: Tensor) -> Tensor:
    """Parameters ``(B, P, K)`` as those of ``B K`` single units, ``(B K, P, 1)``."""
    return params.mT.flatten(0, 1).unsqueeze(-1)


def units_stand_alone(family: Family, params: Tensor) -> bool:
    """Whether units are independent by construction: an ``Independent`` of one event dimension over ``K`` units."""
    distribution = family.distribution(params)
    return isinstance(distribution, Independent) and not distribution.base_dist.event_shape and len(distribution.event_shape) == 1


def covariance_of(family: Family, params: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean ``(B, K)`` and covariance ``(B, K, K)`` of the code; None for joint distributions that can only be sampled."""
    count, units = len(params), params.shape[-1]
    if units_stand_alone(family, params):
        law = law_of(family, one_by_one(params))
        code = family.code(law.points)[..., 0].expand_as(law.mass)
        mean = law.expect(code)
        variance = law.expect((code - mean).square())
        return mean.reshape(count, units), torch.diag_embed(variance.reshape(count, units))
    if kind_of(family.distribution(params)) != "one_hot":
        return None
    law = law_of(family, params)
    code = family.code(law.points).expand(*law.mass.shape, units)
    mean = law.expect(code)
    centred = code - mean
    return mean, torch.einsum("mb,mbi,mbj->bij", law.mass, centred, centred)


def _grid(distribution: Distribution) -> tuple[Tensor, Tensor]:
    """Points of a real unit ``(M, 1, 1)`` and the width that each stands for, ``(M, 1)``."""
    # z = T(sinh t): even steps in t are fine near 0 and reach far out, where heavy tails are.
    t = GRID.clone().requires_grad_()
    with torch.enable_grad():
        z = biject_to(_unit_support(distribution))(t.sinh())
        slope, = torch.autograd.grad(z.sum(), t)
    return z.detach().reshape(-1, 1, 1), (slope * (GRID[1] - GRID[0])).unsqueeze(1)


def _log_prob(distribution: Distribution, points: Tensor) -> Tensor:
    """Log-probabilities ``(M, B)``, −∞ off the support."""
    log_prob = distribution.log_prob(points)
    return torch.where(distribution.support.check(points).expand_as(log_prob), log_prob, -torch.inf)


def _unit_support(distribution: Distribution) -> object:
    support = distribution.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def _one_hots(event_shape: torch.Size) -> Tensor:
    *groups, categories = event_shape
    number = 1
    for size in groups:
        number *= size
    if categories ** number > MOST_STATES:
        raise AssertionError(f"{categories ** number} one-hot states are too many to enumerate; check the family with fewer units")
    states = torch.tensor(list(product(range(categories), repeat=number)))
    return one_hot(states, categories).double().reshape(-1, 1, *event_shape)
