r"""Convergence of many chains at once: rank-normalized split :math:`\hat R` and bulk effective sample size of every coordinate.

As in Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, and as ArviZ computes them one variable at a time; here coordinates are batched,
as many at once as memory should hold. A coordinate that never moves has no :math:`\hat R` and no effective sample size, nor has one with
values that are not finite: NaN. Chains that are stuck at different places have :math:`\hat R = \infty`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["diagnose", "ess", "rhat"]

AT_ONCE = 2**18  # draws of all chains and coordinates: they stay in the cache, and take few MB of float64


def rhat(draws: Tensor) -> Tensor:
    """Rank-normalized split R-hat, the greater of those of location and of scale, ``(…)`` for draws ``(C, S, …)``.

    Raises:
        ValueError: for fewer than 4 draws of each chain.
    """
    return _diagnosed(draws, True, False)[0]


def ess(draws: Tensor) -> Tensor:
    """Bulk effective sample size, ``(…)`` for draws ``(C, S, …)``: of rank-normalized split chains, by Geyer's initial monotone sequence.

    Raises:
        ValueError: for fewer than 4 draws of each chain.
    """
    return _diagnosed(draws, False, True)[1]


def diagnose(draws: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`rhat` and :func:`ess`, for little more than the cost of one of them."""
    return _diagnosed(draws, True, True)


def _diagnosed(draws: Tensor, want_rhat: bool, want_ess: bool) -> tuple[Tensor, Tensor]:
    """Those that are wanted, NaN for the other."""
    if draws.dim() < 2 or draws.shape[1] < 4:
        raise ValueError(f"diagnostics need draws (chain, draw, …) with at least 4 draws, not {tuple(draws.shape)}")
    shape, half = draws.shape[2:], draws.shape[1] // 2
    every = draws.reshape(*draws.shape[:2], -1)
    found = torch.full((2, every.shape[2]), torch.nan, dtype=torch.float64, device=draws.device)
    width = max(AT_ONCE // (every.shape[0] * every.shape[1]), 1)
    for at in range(0, every.shape[2], width):
        part = every[..., at: at + width]
        halves = torch.cat([part[:, :half], part[:, -half:]]).permute(2, 0, 1).contiguous()  # chains (M, 2C, S / 2)
        ordered, places = halves.flatten(1).sort(-1)
        scores = _normal_scores(ordered, places).view(halves.shape)
        if want_rhat:
            middle = 0.5 * (ordered[:, (ordered.shape[1] - 1) // 2].double() + ordered[:, ordered.shape[1] // 2].double())
            folded = (halves.double() - middle[:, None, None]).abs_()
            location, scale = _rhat(scores), _rhat(_normal_scores(*folded.flatten(1).sort(-1)).view(halves.shape))
            # Chains at two values alike far from the middle do not differ in scale, whatever they do in location.
            worst = torch.where(scale.isnan(), location, torch.maximum(location, scale))
            found[0, at: at + width] = torch.where(halves.isfinite().all(-1).all(-1), worst, torch.nan)
        if want_ess:
            low, high = part.amin((0, 1)), part.amax((0, 1))
            fine = (low < high) & low.isfinite() & high.isfinite()
            found[1, at: at + width] = torch.where(fine, _ess(scores), torch.nan)
    return found[0].view(shape), found[1].view(shape)


def _normal_scores(ordered: Tensor, places: Tensor) -> Tensor:
    """Normal quantiles of fractional ranks of numbers ``(M, n)``, ties sharing their average rank; the numbers sorted, and whence."""
    n = ordered.shape[-1]
    # Ranks are whole or half: there are 2n - 1 quantiles.
    table = torch.special.ndtri((torch.arange(2, 2 * n + 1, dtype=torch.float64, device=ordered.device) / 2 - 0.375) / (n + 0.25))
    index = torch.arange(n, device=ordered.device)
    other = ordered[:, 1:] != ordered[:, :-1]
    if other.all():
        scores = table[2 * index].expand(ordered.shape)
    else:
        edge = other.new_ones(len(ordered), 1)
        first = torch.where(torch.cat([edge, other], 1), index, 0).cummax(-1).values
        last = torch.where(torch.cat([other, edge], 1), index, n).flip(-1).cummin(-1).values.flip(-1)
        scores = table[first + last]
    return torch.empty(ordered.shape, dtype=torch.float64, device=ordered.device).scatter_(-1, places, scores)


def _rhat(z: Tensor) -> Tensor:
    """Of chains ``(M, C, S)``, ``(M,)``."""
    length = z.shape[2]
    within = z.var(2).mean(1)
    between = length * z.mean(2).var(1)
    ratio = ((between / within + length - 1) / length).sqrt()
    return torch.where(within > 0.0, ratio, torch.where(between > 0.0, torch.inf, torch.nan))


def _ess(z: Tensor) -> Tensor:
    """Of chains ``(M, C, S)``, ``(M,)``."""
    _, chains, length = z.shape
    total = chains * length
    means = z.mean(2, keepdim=True)
    covariance = _autocovariance(z - means)  # (M, S)
    within = covariance[:, :1] * length / (length - 1)
    pooled = within * (length - 1) / length + means.squeeze(2).var(1)[:, None]
    rho = 1.0 - (within - covariance) / pooled
    rho[:, 0] = 1.0
    # Sums of pairs, cut off where the first is negative (the last one at any rate), then made to fall.
    count = 1 + max(math.ceil((length - 4) / 2), 0)
    pairs = rho[:, : 2 * count].unflatten(1, (-1, 2)).sum(2)
    alive = (pairs > 0.0).cumprod(1)
    to_the_end, alive[:, -1] = alive[:, -1].bool(), 0
    rest = rho.gather(1, 2 * alive.sum(1, keepdim=True)).squeeze(1)
    rest = torch.where(to_the_end, rest, rest.clamp(min=0.0))
    tau = 2.0 * (pairs * alive).cummin(1).values.mul(alive).sum(1) - 1.0 + rest
    return total / tau.clamp(min=1.0 / math.log10(total))


def _autocovariance(centered: Tensor) -> Tensor:
    """Biased autocovariance, mean over chains ``(M, C, S)`` of mean 0, ``(M, S)``."""
    length = centered.shape[2]
    spectrum = torch.fft.rfft(centered, n=2 * length)
    power = (spectrum.real.square() + spectrum.imag.square()).mean(1)
    return torch.fft.irfft(power, n=2 * length)[:, :length] / length
