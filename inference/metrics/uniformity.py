r"""Are ranks uniform? The empirical distribution function against its simultaneous confidence band (Säilynoja, Bürkner & Vehtari 2022).

Of N uniform ranks on M levels, the number below i is Binomial(N, i / M) at every i. How far a whole distribution function is from uniform
is told by its most extreme point, :math:`\gamma = \min_i 2 \min(P(R_i \le r_i), P(R_i \ge r_i))`; its law under uniformity follows exactly
from the Markov chain :math:`R_{i+1} - R_i \mid R_i \sim \mathrm{Binomial}(N - R_i, \cdot)`, for all γ in one pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ecdf_band", "ecdf_p_values", "holm", "two_sided_tails"]

POINTS = 128  # at most so many levels are looked at, evenly spaced
NEGLIGIBLE = 1e-18  # probability of a count at one level below which it is not followed
ROUNDING = 1e-9  # relative, of tails that are equal


def ecdf_p_values(ranks: Tensor, levels: int) -> Tensor:
    """p-value of the hypothesis that ranks are uniform, for each column of ``(N, K)``: ``(K,)``, double precision.

    Exact for independent ranks: at most α with probability at most α (it is discrete, so not with probability α itself).

    Arguments:
        ranks: Whole numbers from 0 to ``levels`` − 1.

    Raises:
        ValueError: if ranks are not that, or there are none, or fewer levels than 2.
    """
    if levels < 2:
        raise ValueError(f"there must be at least 2 levels, not {levels}")
    if ranks.dim() != 2 or len(ranks) < 1 or ranks.is_floating_point() or ranks.min() < 0 or ranks.max() >= levels:
        raise ValueError(f"ranks must be whole numbers (N, K) from 0 to {levels - 1}, not {tuple(ranks.shape)} of {ranks.dtype}")
    ranks = ranks.cpu()
    points = _points(levels)
    histogram = torch.zeros(levels, ranks.shape[1], dtype=torch.long).scatter_add_(0, ranks, torch.ones_like(ranks))
    below = histogram.cumsum(0)[points.long() - 1]  # how many ranks are below each point
    extremes = two_sided_tails(len(ranks), points / levels).gather(1, below).amin(0)
    return torch.maximum(_chance_of_leaving(len(ranks), points / levels, extremes), extremes / 2).clamp(max=1.0)


def ecdf_band(images: int, levels: int, level: float = 0.95) -> tuple[Tensor, Tensor, Tensor]:
    """Band that the distribution function of so many uniform ranks does not leave anywhere, with probability ``level`` or more.

    Returns:
        Points i / M ``(P,)`` and the band's lower and upper ends there, as fractions of ranks below i.

    Raises:
        ValueError: if ``level`` is not between 0 and 1, or there are no images, or fewer levels than 2.
    """
    if not 0.0 < level < 1.0 or images < 1 or levels < 2:
        raise ValueError(f"a band needs a level between 0 and 1, images and at least 2 levels, not {level}, {images} and {levels}")
    at = _points(levels) / levels
    low, high = (1.0 - level) / (2 * len(at)), 1.0  # what leaves at any point leaves with at most the sum over points
    for _ in range(4):
        gammas = torch.logspace(torch.tensor(low).log10().item(), torch.tensor(high).log10().item(), 33, dtype=torch.float64)
        within = int((_chance_of_leaving(images, at, gammas) <= 1.0 - level).sum())
        low, high = gammas[max(within - 1, 0)].item(), gammas[min(within, 32)].item()
    inside = two_sided_tails(images, at) > low * (1.0 + ROUNDING)
    first = inside.int().argmax(1)
    last = images - inside.flip(1).int().argmax(1)
    return at, first.double() / images, last.double() / images


def holm(p_values: Tensor) -> Tensor:
    """Holm's (1979) adjusted p-values of ``(K,)`` tests, whatever their dependence."""
    order = p_values.argsort()
    steps = (p_values[order] * torch.arange(len(p_values), 0, -1, device=p_values.device)).cummax(0).values.clamp(max=1.0)
    return torch.empty_like(steps).scatter_(0, order, steps)


def two_sided_tails(images: int, at: Tensor) -> Tensor:
    """Twice the smaller tail of a binomial count 0 … N of each probability ``(P,)``, that of the count itself included: ``(P, N + 1)``."""
    probabilities = _log_binomial(torch.tensor(images), torch.arange(images + 1), at[:, None]).exp()
    upper = probabilities.flip(1).cumsum(1).flip(1)
    return 2.0 * torch.minimum(probabilities.cumsum(1), upper)


def _points(levels: int) -> Tensor:
    count = min(levels - 1, POINTS)
    return ((torch.arange(count, dtype=torch.float64) + 1) * levels / (count + 1)).round()


def _chance_of_leaving(images: int, at: Tensor, gammas: Tensor) -> Tensor:
    """Probability that N uniform ranks are at some point as extreme as γ or more, for each γ ``(G,)``."""
    tails = two_sided_tails(images, at)
    state, counts, before = torch.ones(len(gammas), 1, dtype=torch.float64), torch.zeros(1, dtype=torch.long), 0.0
    left = torch.zeros_like(gammas)
    for point, tail in zip(at.tolist(), tails, strict=True):
        reached = (tail > NEGLIGIBLE).nonzero()[:, 0]
        step = torch.tensor((point - before) / (1.0 - before), dtype=torch.float64)
        state = state @ _log_binomial(images - counts[:, None], reached - counts[:, None], step).exp()
        outside = torch.where(tail[reached] <= gammas[:, None] * (1.0 + ROUNDING), state, 0.0)
        left, state = left + outside.sum(1), state - outside
        counts, before = reached, point
    return left


def _log_binomial(n: Tensor, k: Tensor, p: Tensor) -> Tensor:
    """Log probability of k successes among n, −∞ where k is negative or above n."""
    n, k = n.double(), k.double()
    some = k.clamp(min=torch.zeros_like(k), max=n.expand_as(k) if n.dim() == 0 else n)
    value = torch.lgamma(n + 1) - torch.lgamma(some + 1) - torch.lgamma(n - some + 1) + some * p.log() + (n - some) * torch.log1p(-p)
    return torch.where(some == k, value, -torch.inf)
