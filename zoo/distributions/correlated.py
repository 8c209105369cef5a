r"""Normal units that depend on one another: :math:`N(\mathrm{loc}, S R S)`, with own scales :math:`S` and correlations that all share.

Unlike ``MultivariateNormal`` it keeps no matrix for each element of a batch: a draw or a density costs one product with the shared factor.
"""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, register_kl
from torch.distributions.utils import _standard_normal

__all__ = ["CorrelatedNormal", "Structure"]


class Structure:
    r"""The matrix :math:`R`, positive definite: :math:`C C^\top` with a unit lower triangular ``C``, or :math:`I + U U^\top`.

    Arguments:
        tril: ``C``, ``(K, K)``; its diagonal is 1.
        factor: ``U``, ``(K, R)``. One of the two is given.
    """

    def __init__(self, tril: Tensor | None = None, factor: Tensor | None = None) -> None:
        if (tril is None) == (factor is None):
            raise ValueError("give a triangular matrix or a low-rank factor, one of them")
        self.tril, self.factor = tril, factor
        if factor is not None:
            inner = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device) + factor.mT @ factor
            self._inner = torch.linalg.cholesky(inner)

    def color(self, shape: torch.Size, like: Tensor) -> Tensor:
        """Draws of N(0, R), ``shape``, which ends in K."""
        if self.tril is not None:
            return _standard_normal(shape, like.dtype, like.device) @ self.tril.mT
        common = _standard_normal(torch.Size([*shape[:-1], self.factor.shape[-1]]), like.dtype, like.device)
        return _standard_normal(shape, like.dtype, like.device) + common @ self.factor.mT

    def squared_norm(self, error: Tensor) -> Tensor:
        """eᵀ R⁻¹ e of errors ``(…, K)``, ``(…)``."""
        if self.tril is not None:
            white = torch.linalg.solve_triangular(self.tril, error.reshape(-1, error.shape[-1]).mT, upper=False, unitriangular=True)
            return white.square().sum(0).reshape(error.shape[:-1])
        common = torch.linalg.solve_triangular(self._inner, (error @ self.factor).reshape(-1, self.factor.shape[-1]).mT, upper=False)
        return error.square().sum(-1) - common.square().sum(0).reshape(error.shape[:-1])

    def log_det(self) -> Tensor:
        """log det R, ``()``."""
        return self.tril.new_zeros(()) if self.tril is not None else 2.0 * self._inner.diagonal().log().sum()

    def matrix(self) -> Tensor:
        """R, ``(K, K)``."""
        if self.tril is not None:
            return self.tril @ self.tril.mT
        return torch.eye(len(self.factor), dtype=self.factor.dtype, device=self.factor.device) + self.factor @ self.factor.mT

    def coupling(self) -> Tensor:
        """R ∘ R⁻¹, ``(K, K)``: what a KL divergence and the Fisher information of the scales are made of."""
        matrix = self.matrix()
        return matrix * torch.linalg.inv(matrix)


class CorrelatedNormal(TorchDistribution):
    """Normal law with batch shape ``(…)`` and event shape ``(K,)``.

    Arguments:
        loc, scale: Mean, and the scale of each unit, ``(…, K)``; the covariance is scale · R · scale.
        structure: R.
    """

    arg_constraints = {"loc": constraints.real_vector, "scale": constraints.independent(constraints.positive, 1)}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, structure: Structure, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.structure = structure
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> CorrelatedNormal:
        shape = torch.Size(batch_shape) + self.event_shape
        return CorrelatedNormal(self.loc.expand(shape), self.scale.expand(shape), self.structure, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.scale.square() * self.structure.matrix().diagonal()

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        return self.loc + self.scale * self.structure.color(self._extended_shape(torch.Size(sample_shape)), self.loc)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        squares = self.structure.squared_norm((value - self.loc) / self.scale)
        constant = 0.5 * (math.log(2.0 * math.pi) * self.event_shape.numel() + self.structure.log_det())
        return -0.5 * squares - self.scale.log().sum(-1) - constant


@register_kl(CorrelatedNormal, CorrelatedNormal)
def _kl(q: CorrelatedNormal, p: CorrelatedNormal) -> Tensor:
    if q.structure is not p.structure:
        raise NotImplementedError("a closed form is known here for laws that share their correlations")
    ratio = q.scale / p.scale
    shift = q.structure.squared_norm((q.loc - p.loc) / p.scale)
    spread = ((ratio @ q.structure.coupling()) * ratio).sum(-1)
    return 0.5 * (spread + shift - ratio.shape[-1]) - ratio.log().sum(-1)
