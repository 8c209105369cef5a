r"""Disentanglement, completeness and informativeness (Eastwood & Williams 2018).

How much a linear readout of factor j leans on latent k is an importance :math:`W_{jk} \ge 0`. A latent is disentangled if its column of W
stands on one factor, a factor is completely coded if its row stands on one latent: 1 minus the entropy of the column (row) in units of the
greatest that it could have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.metrics.decodability import ROUNDING, linear_decodability

__all__ = ["DCI", "completeness", "dci", "disentanglement"]

IMPORTANCES = ("regression", "permutation")


@dataclass(frozen=True)
class DCI:
    """How a representation is laid out.

    Attributes:
        disentanglement: Mean of ``by_latent``, each latent weighted by its share of all importance; 0 to 1.
        completeness: Mean of ``by_factor``, each factor counted alike; 0 to 1.
        informativeness: Mean R² of the linear readout over the factors, negative values included.
        importances: ``(factors, K)``, at least 0, double precision.
        by_latent: Disentanglement of each latent ``(K,)``; 0, with weight 0, for latents that no readout uses.
        by_factor: Completeness of each factor ``(factors,)``; 0 for factors that are not read out at all.
        r2: R² of each factor.
        importance: How the importances were made: ``"regression"`` or ``"permutation"``.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    importances: Tensor
    by_latent: Tensor
    by_factor: Tensor
    r2: dict[str, float]
    importance: str


@torch.no_grad()
def dci(z_fit: Tensor, factors_fit: Mapping[str, Tensor], z_score: Tensor, factors_score: Mapping[str, Tensor],
        importance: str = "regression") -> DCI:
    r"""Disentanglement, completeness and informativeness of a linear readout, fitted on one set and scored on another.

    Arguments:
        z_fit, factors_fit, z_score, factors_score: Representations ``(n, K)`` and factors ``{name: (n,)}``, as
            :func:`~inference.metrics.decodability.linear_decodability` takes them.
        importance: ``"regression"``: the size of the standardized coefficient, :math:`|w_{jk}| \, \mathrm{sd}(z_k) / \mathrm{sd}(g_j)` on
            the fitted set. ``"permutation"``: by how much R² drops when latent k is shuffled over the scored images (Breiman 2001), in
            expectation over all shuffles, which is known in closed form; a drop below 0 counts as 0. Permutation weighs large
            coefficients more, by about their square, so the two give different numbers: compare like with like.

    Latents that are copies of each other share what they say, in equal parts (the readout of least norm).

    Raises:
        ValueError: for an unknown importance, or sets that cannot be read out.
    """
    if importance not in IMPORTANCES:
        raise ValueError(f"importance must be one of {', '.join(IMPORTANCES)}, not {importance!r}")
    r2 = linear_decodability(z_fit, factors_fit, z_score, factors_score)
    z, scored = z_fit.flatten(1).double().cpu(), z_score.flatten(1).double().cpu()
    g, truth = (torch.stack([factors[name] for name in factors_fit], 1).double().cpu() for factors in (factors_fit, factors_score))
    weights = _coefficients(z, g)
    if importance == "regression":
        spread = g.std(0)
        importances = weights.abs() * z.std(0)[:, None] / torch.where(spread > 0.0, spread, 1.0)
    else:
        importances = _expected_drop(weights, scored, truth)
    importances = importances.T.contiguous()
    by_latent, mean_disentanglement = disentanglement(importances)
    by_factor, mean_completeness = completeness(importances)
    return DCI(mean_disentanglement, mean_completeness, sum(r2.values()) / len(r2), importances, by_latent, by_factor, r2, importance)


def disentanglement(importances: Tensor) -> tuple[Tensor, float]:
    """How much each latent stands for one factor only, 0 to 1: of each latent ``(K,)``, and their mean weighted by importance.

    Arguments:
        importances: ``(factors, K)``. A latent without any importance has 0 and weight 0; if all are such, the mean is 0. Where there
            is one factor only, nothing can be entangled: 1 for every latent that counts.

    Raises:
        ValueError: if importances are not a matrix of finite numbers, at least 0.
    """
    _check(importances)
    by_latent, weights = _concentration(importances, 0), importances.double().sum(0)
    return by_latent, ((by_latent * weights).sum() / weights.sum().clamp(min=torch.finfo(torch.float64).tiny)).item()


def completeness(importances: Tensor) -> tuple[Tensor, float]:
    """How much each factor is coded by one latent only, 0 to 1: of each factor ``(factors,)``, and their plain mean.

    With neurons in place of factors this is how far each neuron is explained by one latent.

    Arguments:
        importances: ``(factors, K)``. A factor without any importance has 0 and counts in the mean. Where there is one latent only, it is
            1 for every factor that is coded at all.

    Raises:
        ValueError: if importances are not a matrix of finite numbers, at least 0.
    """
    _check(importances)
    by_factor = _concentration(importances, 1)
    return by_factor, by_factor.mean().item()


def _concentration(importances: Tensor, dim: int) -> Tensor:
    """1 − entropy along one dimension / log of its length; 0 where all is 0."""
    importances = importances.double()
    total = importances.sum(dim, keepdim=True)
    shares = importances / torch.where(total > 0.0, total, 1.0)
    entropy = -torch.special.xlogy(shares, shares).sum(dim)
    most = math.log(max(importances.shape[dim], 2))
    return torch.where(total.squeeze(dim) > 0.0, 1.0 - entropy / most, 0.0).clamp(0.0, 1.0)


def _coefficients(z: Tensor, g: Tensor) -> Tensor:
    """Coefficients ``(K, factors)`` of the least squares of :func:`linear_decodability`; exactly 0 for latents that are constant."""
    alive = z.amax(0) > z.amin(0)
    spread = torch.where(alive, z.std(0), 1.0)
    standard = torch.where(alive, (z - z.mean(0)) / spread, 0.0)
    solved = torch.linalg.lstsq(standard.T @ standard, standard.T @ (g - g.mean(0)), rcond=ROUNDING**2, driver="gelsd").solution
    return torch.where(alive[:, None], solved / spread[:, None], 0.0)


def _expected_drop(weights: Tensor, z: Tensor, g: Tensor) -> Tensor:
    r"""Drop of R² ``(K, factors)`` when one latent is shuffled over the images, in expectation over all shuffles; at least 0.

    A shuffle turns the error e into :math:`e - w (z' - z)`; with :math:`E[z'] = \bar z` the squared error grows on average by
    :math:`2 w (\mathrm{cov}(e, z) + w \, \mathrm{var}(z))`.
    """
    z, g = z - z.mean(0), g - g.mean(0)
    covariance = z.T @ (g - z @ weights) / len(z)
    grown = 2.0 * weights * (covariance + weights * z.square().mean(0)[:, None])
    return (grown / g.square().mean(0)).clamp(min=0.0)


def _check(importances: Tensor) -> None:
    if importances.dim() != 2 or importances.numel() == 0 or not torch.isfinite(importances).all() or (importances < 0.0).any():
        raise ValueError("importances must be a matrix (factors, K) of finite numbers, at least 0; "
                         f"got {tuple(importances.shape)} with the least {importances.min().item() if importances.numel() else None}")
