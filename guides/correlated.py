r"""Normal laws with correlations, :math:`u = \mathrm{loc} + \mathrm{scale} \cdot (F \varepsilon)` with :math:`F` unit lower triangular.

A triangular factor with a unit diagonal has determinant 1, so the scales alone make the density's constant, and the factor may be shared by
all images while scales are their own. The closed-form KL divergences from independent Normals are registered here, that of PyTorch's
low-rank Normal among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, Normal, constraints, register_kl

__all__ = ["CorrelatedNormal", "times", "unit_lower"]


class CorrelatedNormal(dist.TorchDistribution):
    """A Normal law of ``M`` numbers with covariance ``diag(scale) F Fᵀ diag(scale)``.

    Arguments:
        loc, scale: Mean and the factor's row scales, ``(…, M)``.
        factor: Unit lower triangular ``F``, ``(M, M)`` for all of a batch, or ``(…, M, M)``.
    """

    arg_constraints = {"loc": constraints.real_vector, "scale": constraints.independent(constraints.positive, 1)}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, factor: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.factor = factor
        batch = torch.broadcast_shapes(self.loc.shape[:-1], factor.shape[:-2])
        self.loc, self.scale = self.loc.expand(*batch, -1), self.scale.expand(*batch, -1)
        self._drawn: tuple[Tensor | None, Tensor | None] = None, None
        super().__init__(batch, self.loc.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.scale.square() * self.factor.square().sum(-1)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> CorrelatedNormal:
        return CorrelatedNormal(self.loc.expand(*batch_shape, -1), self.scale.expand(*batch_shape, -1), self.factor, validate_args=False)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        noise = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        value = self.loc + self.scale * times(self.factor, noise)
        self._drawn = value, noise
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        noise = self.noise(value)
        return -0.5 * (noise.square() + math.log(2.0 * math.pi)).sum(-1) - self.scale.log().sum(-1)

    def noise(self, value: Tensor) -> Tensor:
        """The ε of values ``(…, M)``; that of the last draw is remembered."""
        drawn, noise = self._drawn
        return noise if value is drawn else unit_lower(self.factor, (value - self.loc) / self.scale)


def unit_lower(factor: Tensor, value: Tensor) -> Tensor:
    """``F⁻¹ value`` for ``F`` unit lower triangular, ``(M, M)`` or ``(…, M, M)``, and values ``(…, M)``."""
    return _across(lambda f, columns: torch.linalg.solve_triangular(f, columns, upper=False, unitriangular=True), factor, value)


def times(factor: Tensor, value: Tensor) -> Tensor:
    """``factor · value`` of matrices ``(…, M, K)`` and values ``(…, K)``; matrices are not copied for draws to the left of their batch."""
    return _across(torch.matmul, factor, value)


def _across(operation: Callable[[Tensor, Tensor], Tensor], factor: Tensor, value: Tensor) -> Tensor:
    """Applies an operation on matrices and columns, with all dimensions to the left of the matrices' batch as columns."""
    batch = factor.shape[:-2]
    value = value.expand(*torch.broadcast_shapes(value.shape[:-1], batch), -1)
    left = value.shape[:value.dim() - 1 - len(batch)]
    columns = value.reshape(math.prod(left), *value.shape[len(left):]).movedim(0, -1)
    result = operation(factor, columns).movedim(-1, 0)
    return result.reshape(*left, *result.shape[1:])


def _from_units(mean: Tensor, variance: Tensor, log_det: Tensor, p: Independent) -> Tensor:
    """KL of a Normal with these means and variances ``(…, M)`` and half log-determinant ``(…)`` from independent Normals."""
    units = p.base_dist
    if not isinstance(units, Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError("there is a closed form only for independent Normals")
    terms = (variance + (mean - units.loc).square()) / units.scale.square() - 1.0
    return 0.5 * terms.sum(-1) + units.scale.log().sum(-1) - log_det


@register_kl(CorrelatedNormal, Independent)
def _correlated_from_units(q: CorrelatedNormal, p: Independent) -> Tensor:
    return _from_units(q.mean, q.variance, q.scale.log().sum(-1), p)


@register_kl(LowRankMultivariateNormal, Independent)
def _low_rank_from_units(q: LowRankMultivariateNormal, p: Independent) -> Tensor:
    diagonal = q.cov_diag
    weighted = q.cov_factor / diagonal.unsqueeze(-1)
    inner = torch.eye(q.cov_factor.shape[-1]).to(diagonal) + q.cov_factor.mT @ weighted
    log_det = 0.5 * diagonal.log().sum(-1) + torch.linalg.cholesky(inner).diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return _from_units(q.loc, q.variance, log_det, p)
