r"""Convergence of many chains at once: rank-normalized split :math:`\hat R` and bulk effective sample size of every coordinate.

As in Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, and as ArviZ computes them one variable at a time; here all coordinates of all
images are one batch. A coordinate that never moves has no :math:`\hat R` and no effective sample size, nor has one with values that are
not finite: NaN. Chains that are stuck at different places have :math:`\hat R = \infty`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["ess", "rhat"]


def rhat(draws: Tensor) -> Tensor:
    """Rank-normalized split R-hat, the greater of those of location and of scale, ``(…)`` for draws ``(C, S, …)``.

    Raises:
        ValueError: for fewer than 4 draws of each chain.
    """
    _check(draws)
    halves = _split(draws)
    finite = torch.isfinite(halves).flatten(0, 1).all(0)
    ordered = halves.flatten(0, 1).sort(0).values
    middle = 0.5 * (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2])
    folded = (halves - middle).abs()
    location, scale = _rhat(_normal_scores(halves)), _rhat(_normal_scores(folded))
    # Chains at two values alike far from the middle do not differ in scale, whatever they do in location.
    return torch.where(finite, torch.where(scale.isnan(), location, torch.maximum(location, scale)), torch.nan)


def ess(draws: Tensor) -> Tensor:
    """Bulk effective sample size, ``(…)`` for draws ``(C, S, …)``: of rank-normalized split chains, by Geyer's initial monotone sequence.

    Raises:
        ValueError: for fewer than 4 draws of each chain.
    """
    _check(draws)
    z = _normal_scores(_split(draws))
    chains, length = z.shape[:2]
    total = chains * length
    covariance = _autocovariance(z).mean(0)  # (S, …)
    within = covariance[0] * length / (length - 1)
    pooled = within * (length - 1) / length + z.mean(1).var(0)
    rho = 1.0 - (within - covariance) / pooled
    rho[0] = 1.0
    # Sums of pairs, cut off where the first is negative (the last one at any rate), then made to fall.
    count = 1 + max(math.ceil((length - 4) / 2), 0)
    pairs = rho[: 2 * count].unflatten(0, (-1, 2)).sum(1)
    alive = (pairs > 0.0).cumprod(0)
    to_the_end, alive[-1] = alive[-1].bool(), 0
    rest = rho.gather(0, 2 * alive.sum(0, keepdim=True)).squeeze(0)
    rest = torch.where(to_the_end, rest, rest.clamp(min=0.0))
    tau = 2.0 * (pairs * alive).cummin(0).values.mul(alive).sum(0) - 1.0 + rest
    tau = tau.clamp(min=1.0 / math.log10(total))
    fine = _moves(draws) & torch.isfinite(draws).flatten(0, 1).all(0)
    return torch.where(fine, total / tau, torch.nan)


def _check(draws: Tensor) -> None:
    if draws.dim() < 2 or draws.shape[1] < 4:
        raise ValueError(f"diagnostics need draws (chain, draw, …) with at least 4 draws, not {tuple(draws.shape)}")


def _split(draws: Tensor) -> Tensor:
    """Halves of chains as chains, ``(2C, S/2, …)``."""
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, -half:]]).double()


def _moves(draws: Tensor) -> Tensor:
    flat = draws.flatten(0, 1)
    return flat.amin(0) < flat.amax(0)


def _normal_scores(draws: Tensor) -> Tensor:
    """Normal quantiles of fractional ranks over all draws, ties sharing their average rank."""
    flat = draws.flatten(0, 1).movedim(0, -1).contiguous()  # (…, n)
    ordered = flat.sort(-1).values
    low, high = torch.searchsorted(ordered, flat), torch.searchsorted(ordered, flat, right=True)
    rank = 0.5 * (low + high + 1).double()
    scores = torch.special.ndtri((rank - 0.375) / (flat.shape[-1] + 0.25))
    return scores.movedim(-1, 0).unflatten(0, draws.shape[:2])


def _rhat(z: Tensor) -> Tensor:
    length = z.shape[1]
    within = z.var(1).mean(0)
    between = length * z.mean(1).var(0)
    ratio = ((between / within + length - 1) / length).sqrt()
    return torch.where(within > 0.0, ratio, torch.where(between > 0.0, torch.inf, torch.nan))


def _autocovariance(z: Tensor) -> Tensor:
    """Biased autocovariance over dimension 1, of each chain ``(C, S, …)``."""
    length = z.shape[1]
    centered = z - z.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centered, n=2 * length, dim=1)
    return torch.fft.irfft(spectrum * spectrum.conj(), n=2 * length, dim=1)[:, :length] / length
