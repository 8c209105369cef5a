r"""Affine flows over an image, :math:`x = \mu + A y`: lateral inhibition as a change of variables (Marino 2022).

What is learned is the whitening matrix :math:`W = A^{-1}`, so that a density costs one product with an image, D² operations, and the
determinant is read off a diagonal. Three parametrizations, which reach the same Gaussian densities through different filters:

* ``"zca"``: :math:`W = L L^\top`, symmetric and positive definite whatever the lower triangular L with its positive diagonal;
* ``"cholesky"``: :math:`W = L`, causal: each pixel less its prediction from those before it in reading order;
* ``"pca"``: :math:`W = \mathrm{diag}(e^{-s})\,U^\top`; the rotation U is found in closed form and stays, scales and mean are learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from zoo.flows.base import Flow
from zoo.flows.matrices import KINDS, moments

__all__ = ["Spatial", "spatial"]


class Spatial(Flow):
    """An affine flow with the mean ``loc`` ``(D,)`` and a whitening matrix; it starts as the identity.

    Arguments:
        event_shape: Shape of one image, of D numbers in all.
    """

    closed_form = True
    kind = ""

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self.size = prod(self.event_shape)
        self.loc = nn.Parameter(torch.zeros(self.size))

    def matrix(self) -> Tensor:
        """W, ``(D, D)``: row i is the filter whose output is pixel i of y."""
        return self.apply_matrix(torch.eye(self.size, dtype=self.loc.dtype, device=self.loc.device)).T

    def apply_matrix(self, x: Tensor) -> Tensor:
        """W x for centred, flattened images ``(…, D)``."""
        raise NotImplementedError

    def solve_matrix(self, y: Tensor) -> Tensor:
        """W⁻¹ y for ``(…, D)``."""
        raise NotImplementedError

    def log_det(self) -> Tensor:
        """log|det W|, nats, ``()``."""
        raise NotImplementedError

    def set_matrix(self, matrix: Tensor) -> None:
        """Takes over a whitening matrix of the flow's own kind."""
        raise NotImplementedError

    def whiten(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = self.check(x).flatten(-len(self.event_shape))
        return self.apply_matrix(flat - self.loc).unflatten(-1, self.event_shape), self.log_det()

    def _call(self, y: Tensor) -> Tensor:
        flat = self.check(y).flatten(-len(self.event_shape))
        return (self.solve_matrix(flat) + self.loc).unflatten(-1, self.event_shape)

    @torch.no_grad()
    def fit(self, x: Tensor, ridge: float = 1e-5) -> Spatial:
        mean, covariance = moments(self.check(x), len(self.event_shape), ridge)
        self.loc.copy_(mean)
        self.set_matrix(KINDS[self.kind](covariance))
        return self


class _Triangular(Spatial):
    """What zca and cholesky share: L, stored as the logarithm of its diagonal and the numbers below it."""

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self.log_diagonal = nn.Parameter(torch.zeros(self.size))
        self.lower = nn.Parameter(torch.zeros(self.size * (self.size - 1) // 2))
        self.register_buffer("places", torch.tril_indices(self.size, self.size, -1), persistent=False)

    def factor(self) -> Tensor:
        """L, ``(D, D)``."""
        return self.log_diagonal.exp().diag().index_put(tuple(self.places), self.lower)

    def set_factor(self, factor: Tensor) -> None:
        self.log_diagonal.copy_(factor.diagonal().log())
        self.lower.copy_(factor[tuple(self.places)])


class Cholesky(_Triangular):
    """W is lower triangular."""

    kind = "cholesky"

    def apply_matrix(self, x: Tensor) -> Tensor:
        return x @ self.factor().T

    def solve_matrix(self, y: Tensor) -> Tensor:
        return _solve(self.factor(), y)

    def log_det(self) -> Tensor:
        return self.log_diagonal.sum()

    def set_matrix(self, matrix: Tensor) -> None:
        self.set_factor(matrix)


class ZCA(_Triangular):
    """W is symmetric and positive definite, L Lᵀ."""

    kind = "zca"

    def apply_matrix(self, x: Tensor) -> Tensor:
        factor = self.factor()
        return x @ factor @ factor.T

    def solve_matrix(self, y: Tensor) -> Tensor:
        factor = self.factor()
        return _solve(factor.T, _solve(factor, y), upper=True)

    def log_det(self) -> Tensor:
        return 2.0 * self.log_diagonal.sum()

    def set_matrix(self, matrix: Tensor) -> None:
        self.set_factor(torch.linalg.cholesky(matrix))


class PCA(Spatial):
    """W is a rotation, then scales."""

    kind = "pca"

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self.log_scale = nn.Parameter(torch.zeros(self.size))
        self.register_buffer("axes", torch.eye(self.size))

    def apply_matrix(self, x: Tensor) -> Tensor:
        return x @ self.axes * (-self.log_scale).exp()

    def solve_matrix(self, y: Tensor) -> Tensor:
        return (y * self.log_scale.exp()) @ self.axes.T

    def log_det(self) -> Tensor:
        return -self.log_scale.sum()

    def set_matrix(self, matrix: Tensor) -> None:
        lengths = matrix.norm(dim=1)
        self.log_scale.copy_(-lengths.log())
        self.axes.copy_((matrix / lengths[:, None]).T)


def _solve(factor: Tensor, y: Tensor, upper: bool = False) -> Tensor:
    return torch.linalg.solve_triangular(factor.T, y.reshape(-1, y.shape[-1]), upper=not upper, left=False).reshape(y.shape)


def spatial(kind: str, event_shape: Sequence[int]) -> Spatial:
    """The affine flow of a kind (``"zca"``, ``"cholesky"`` or ``"pca"``) over images of that shape.

    Raises:
        ValueError: for an unknown kind.
    """
    known = {"zca": ZCA, "cholesky": Cholesky, "pca": PCA}
    if kind not in known:
        raise ValueError(f"unknown spatial flow {kind!r}; known are: {', '.join(known)}")
    return known[kind](event_shape)
