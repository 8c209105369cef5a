r"""Whitening in closed form: matrices W with :math:`W \Sigma W^\top = I`, told apart by a rotation, and what a row of one looks like.

Any of them gives a Gaussian the same density; ZCA's is the symmetric one, the whitening that stays closest to the image and whose rows are
centre–surround filters (Bell & Sejnowski 1997; Kessy, Lewin & Strimmer 2018); Cholesky's is lower triangular, so that each pixel is
predicted from those before it; PCA's rows are the principal axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["KINDS", "cholesky_matrix", "moments", "pca_matrix", "row_statistics", "zca_matrix"]


def moments(x: Tensor, event_dims: int, ridge: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mean ``(D,)`` and covariance ``(D, D)`` of flattened images, in float64.

    Arguments:
        x: ``(…, *event_shape)``, with ``event_dims`` dimensions on the right that are an image's.
        ridge: Added to the diagonal, as a fraction of the mean variance.

    Raises:
        ValueError: for fewer than two images or a negative ridge.
    """
    flat = x.detach().flatten(x.dim() - event_dims).flatten(0, -2).double() if x.dim() > event_dims else x.new_zeros(0, 1)
    if len(flat) < 2 or ridge < 0:
        raise ValueError(f"a covariance takes at least 2 images and a ridge of 0 or more, not {len(flat)} and {ridge}")
    mean = flat.mean(0)
    centred = flat - mean
    covariance = centred.T @ centred / len(flat)
    return mean, covariance + ridge * covariance.diagonal().mean() * torch.eye(len(mean), dtype=flat.dtype, device=flat.device)


def zca_matrix(covariance: Tensor) -> Tensor:
    r""":math:`\Sigma^{-1/2}`, symmetric and positive definite, ``(D, D)``.

    Raises:
        ValueError: for a covariance that is not positive definite.
    """
    values, axes = _spectrum(covariance)
    return (axes * values.rsqrt()) @ axes.T


def cholesky_matrix(covariance: Tensor) -> Tensor:
    r""":math:`L^{-1}` of :math:`\Sigma = L L^\top`, lower triangular: row i predicts pixel i from those before it, ``(D, D)``.

    Raises:
        ValueError: for a covariance that is not positive definite.
    """
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        raise ValueError("the covariance is not positive definite: give more images, or a larger ridge")
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, identity, upper=False)


def pca_matrix(covariance: Tensor) -> Tensor:
    r""":math:`\Lambda^{-1/2} U^\top` of :math:`\Sigma = U \Lambda U^\top`, the axis of largest variance first, ``(D, D)``.

    Raises:
        ValueError: for a covariance that is not positive definite.
    """
    values, axes = _spectrum(covariance)
    return (axes * values.rsqrt()).T.flip(0)


KINDS = {"zca": zca_matrix, "cholesky": cholesky_matrix, "pca": pca_matrix}


def _spectrum(covariance: Tensor) -> tuple[Tensor, Tensor]:
    values, axes = torch.linalg.eigh(covariance)
    if not values[0] > 0:
        raise ValueError(f"the covariance is not positive definite (smallest eigenvalue {values[0]:.3g}): give more images, or a larger "
                         "ridge")
    return values, axes


def row_statistics(row: Tensor, event_shape: tuple[int, ...], pixel: tuple[int, int]) -> dict[str, float]:
    """What one whitening filter looks like around its own pixel, whose weight is taken as 1.

    Arguments:
        row: ``(D,)``, of one channel: D = height · width, ``event_shape`` ``(1, height, width)``.
        pixel: Row and column of the filter's own pixel, not on the image's border.

    Returns:
        ``neighbour`` (mean of the four), ``left`` and ``up``, ``diagonal`` (mean of four), ``energy_3x3`` (share of the squared weights),
        ``sum`` (of all weights: what the filter says of a uniform field), ``participation`` (1 if all weights are of one size, 1 / D if
        there is only one).

    Raises:
        ValueError: for several channels or a pixel on the border.
    """
    channels, height, width = event_shape
    i, j = pixel
    if channels != 1 or not (0 < i < height - 1 and 0 < j < width - 1):
        raise ValueError(f"a filter's surround is told of one channel, inside the border; got {event_shape} and pixel {pixel}")
    image = row.detach().double().reshape(height, width)
    image = image / image[i, j]
    square = image[i - 1: i + 2, j - 1: j + 2]
    numbers = {
        "neighbour": (square[0, 1] + square[1, 0] + square[1, 2] + square[2, 1]) / 4, "left": square[1, 0], "up": square[0, 1],
        "diagonal": (square[0, 0] + square[0, 2] + square[2, 0] + square[2, 2]) / 4,
        "energy_3x3": square.square().sum() / image.square().sum(), "sum": image.sum(),
        "participation": image.square().sum().square() / image.pow(4).sum() / image.numel()}
    return {name: value.item() for name, value in numbers.items()}
