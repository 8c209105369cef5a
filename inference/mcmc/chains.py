r"""Running chains: warm up, keep draws or only their summary, report, and stop by hand without losing what there is.

What can be said of a chain without keeping it: mean and variance of each half (so split R-hat; Gelman et al. 2013, section 11.4), and the
variance of batch means, whose ratio to the draws' own gives the effective sample size (Geyer 1992).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.mcmc.workspace import keep_pages

__all__ = ["Draws", "StoppedByHand", "Summary", "check_moved", "collect"]

ENOUGH = 50  # proposals for an image of which one should have been taken

Report = Callable[[int, int, Tensor, float], None]  # iteration, iterations, acceptance probabilities (N,), R-hat so far


class StoppedByHand(RuntimeWarning):
    """Chains were stopped by Ctrl-C and kept the draws they had."""


@dataclass(frozen=True)
class Draws:
    """What chains leave.

    Attributes:
        kept: Draws that were kept, ``{quantity: (C, S, N, …)}``.
        summary: Of all draws, ``{quantity: its Summary}``; empty where all are kept.
        made: Draws made of each chain.
    """

    kept: dict[str, Tensor]
    summary: dict[str, Summary]
    made: int


class Summary:
    """Moments of chains ``(C, N, …)``, draw after draw; memory does not grow.

    Arguments:
        like: A tensor of the chains' shape.
        draws: Draws that will come.
    """

    def __init__(self, like: Tensor, draws: int) -> None:
        self.count, self.half, self.size = [0, 0], max(draws // 2, 1), max(math.isqrt(draws), 1)
        self.means, self.squares = like.new_zeros(2, *like.shape), like.new_zeros(2, *like.shape)  # of each half
        self.batches, self.batch = 0, torch.zeros_like(like)
        self.batch_mean, self.batch_squares = torch.zeros_like(like), torch.zeros_like(like)

    def update(self, value: Tensor) -> None:
        """Takes in one draw of each chain."""
        which = int(sum(self.count) >= self.half)
        self.count[which] += 1
        _welford(self.means[which], self.squares[which], value, self.count[which])
        self.batch += value
        if sum(self.count) % self.size == 0:
            self.batches += 1
            _welford(self.batch_mean, self.batch_squares, self.batch / self.size, self.batches)
            self.batch.zero_()

    @property
    def mean(self) -> Tensor:
        """Mean of all draws of all chains, ``(N, …)``."""
        return self._chain_means().mean(0)

    @property
    def sd(self) -> Tensor:
        """Standard deviation of all draws of all chains, ``(N, …)``."""
        chains, n = self.means.shape[1], sum(self.count)
        within = self.squares.sum((0, 1))
        weights = self.means.new_tensor(self.count).view(2, *[1] * (self.means.dim() - 1))
        between = (weights * (self.means - self.mean).square()).sum((0, 1))
        return ((within + between) / max(n * chains - 1, 1)).sqrt()

    @property
    def rhat(self) -> Tensor:
        """Split R-hat of each number, ``(N, …)``; NaN where nothing varies or a half has fewer than two draws."""
        if self.count[0] < 2 or self.count[1] < max(self.half // 4, 2):
            return torch.full_like(self.mean, torch.nan)
        n = 2.0 / (1.0 / self.count[0] + 1.0 / self.count[1])  # of halves that are not full yet
        within = (self.squares[0] / (self.count[0] - 1) + self.squares[1] / (self.count[1] - 1)).mean(0) / 2
        between = self.means.flatten(0, 1).var(0)
        return ((n - 1) / n + between / within).sqrt()

    @property
    def ess(self) -> Tensor:
        """Effective sample size of the mean of each number, by batch means, ``(N, …)``; NaN where nothing varies."""
        if self.batches < 2:
            return torch.full_like(self.mean, torch.nan)
        chains, n = self.means.shape[1], sum(self.count)
        # About the mean of all chains (replicated batch means; Argon & Andradóttir 2006), so that chains stuck apart are seen.
        apart = self.batches * (self.batch_mean - self.batch_mean.mean(0)).square()
        long_run = self.size * (self.batch_squares + apart).sum(0) / (self.batches * chains - 1)
        return (self.sd.square() / long_run * n * chains).clamp(max=float(n * chains))

    def _chain_means(self) -> Tensor:
        (first, second), n = self.count, max(sum(self.count), 1)
        return (first * self.means[0] + second * self.means[1]) / n


def collect(move: Callable[[], Tensor], read: Callable[[], dict[str, Tensor]], draws: int, *, warmup: int, thin: int = 1,
            keep: int | None = None, report: Report | None = None) -> Draws:
    """Runs chains and gathers what they pass through.

    A run that is stopped by Ctrl-C after its warm-up keeps the draws it has, and warns of how many.

    Arguments:
        move: Moves all chains once; returns acceptance probabilities ``(N,)``.
        read: Quantities to gather, ``{name: (C, N, …)}``; ``"log_prob"``, if it is there, gives the R-hat that is reported.
        draws: Draws of each chain, S.
        warmup: Moves before those.
        thin: Moves for each draw.
        keep: Draws kept of each chain, evenly spaced, with a summary of all; if None, all are kept and nothing else.
        report: Called after each move with (move, moves, acceptance probabilities, R-hat of ``"log_prob"`` so far, its 90 % quantile).

    Raises:
        ValueError: for settings out of range.
        KeyboardInterrupt: if stopped before the first draw.
    """
    if draws < 1 or warmup < 0 or thin < 1 or (keep is not None and keep < 1):
        raise ValueError(f"draws, thin and keep must be at least 1 and warmup at least 0, not {draws}, {thin}, {keep} and {warmup}")
    places = draws if keep is None else min(keep, draws)
    kept: dict[str, Tensor] = {}
    summary: dict[str, Summary] = {}
    made, total, worst = 0, warmup + draws * thin, math.nan
    keep_pages()
    try:
        for i in range(total):
            chance = move()
            at, rest = divmod(i - warmup, thin)
            if i >= warmup and rest == thin - 1:
                for name, value in read().items():
                    if name not in kept:
                        kept[name] = value.new_empty(value.shape[0], places, *value.shape[1:])
                        if keep is not None or (report is not None and name == "log_prob"):
                            summary[name] = Summary(value, draws)
                    kept[name][:, at * places // draws] = value  # the last of its share of the draws stays
                    if name in summary:
                        summary[name].update(value)
                made = at + 1
                if report is not None and "log_prob" in summary and (made % max(draws // 20, 4) == 0):
                    worst = _quantile(summary["log_prob"].rhat)
            if report is not None:
                report(i + 1, total, chance, worst)
    except KeyboardInterrupt:
        if made == 0:
            raise
        warnings.warn(f"stopped by hand: {made} of {draws} draws of each chain were made and are kept", StoppedByHand, stacklevel=2)
        kept = {name: value[:, : (made - 1) * places // draws + 1] for name, value in kept.items()}
    return Draws(kept, {} if keep is None else summary, made)


def check_moved(taken: Tensor, made: int, names: Sequence[str]) -> None:
    """Looks for chains of which no proposal was taken, of a fair number made.

    Arguments:
        taken: Proposals taken of each chain, ``(C, N)``.
        made: Proposals made of each.
        names: The latents that they are of.

    Warns if there are such chains.

    Raises:
        ValueError: if an image has no others.
    """
    if made * len(taken) < ENOUGH:
        return
    still = taken == 0
    stuck = still.all(0).nonzero().flatten()
    if len(stuck):
        raise ValueError(f"no proposal was accepted for image {int(stuck[0])} ({len(stuck)} of {taken.shape[1]} images; "
                         f"latents {', '.join(names)}): warm up for longer, start elsewhere (start='map'), or take smaller steps")
    if made >= ENOUGH and still.any():
        warnings.warn(f"{int(still.sum())} of {still.numel()} chains, of {int(still.any(0).sum())} images, never moved (latents "
                      f"{', '.join(names)}): the draws are not of the posterior; start elsewhere (start='map') or run more chains",
                      RuntimeWarning, stacklevel=2)


def _welford(mean: Tensor, squares: Tensor, value: Tensor, count: int) -> None:
    change = value - mean
    mean += change / count
    squares += change * (value - mean)


def _quantile(values: Tensor) -> float:
    values = values[~values.isnan()]
    return values.sort().values[int(0.9 * (len(values) - 1))].item() if len(values) else math.nan
