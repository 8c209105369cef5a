r"""Tuning during warm-up: a step size for each image by dual averaging, a diagonal metric for each image, one trajectory length for all.

Dual averaging is Nesterov's as in Hoffman & Gelman 2014 (section 3.2), on the log step size of each image; with a few chains an image's
acceptance is noisy, so step sizes are held closer to where they were than there. The metric is the variance of
the chains' states since a window began, shrunk as in Stan. The number of steps follows the gradient of ChEES, the change in the estimator
of the expected square (Hoffman, Radul & Sountsov 2021), averaged over chains and images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["DualAveraging", "Moments", "TrajectoryLength", "halton", "windows"]


class DualAveraging:
    """Step sizes ``(N,)`` that come to give the wanted acceptance rate."""

    def __init__(self, start: Tensor, wanted: float, *, shrink: float = 0.25, delay: float = 10.0, decay: float = 0.75) -> None:
        self.wanted, self.shrink, self.delay, self.decay = wanted, shrink, delay, decay
        self.restart(start)

    def restart(self, start: Tensor) -> None:
        """Forgets what was learned, and goes on from the step sizes ``start``."""
        self.center = start.log()
        self.log_step, self.log_average, self.error, self.count = start.log(), torch.zeros_like(start), torch.zeros_like(start), 0

    def update(self, accepted: Tensor) -> None:
        """Takes in the mean acceptance probability of each image's chains in one iteration, ``(N,)``."""
        self.count += 1
        weight = 1.0 / (self.count + self.delay)
        self.error = (1.0 - weight) * self.error + weight * (self.wanted - accepted)
        self.log_step = self.center - math.sqrt(self.count) / self.shrink * self.error
        rate = self.count**-self.decay
        self.log_average = rate * self.log_step + (1.0 - rate) * self.log_average

    @property
    def step(self) -> Tensor:
        """The step sizes to try next."""
        return self.log_step.exp()

    @property
    def average(self) -> Tensor:
        """The step sizes to keep."""
        return (self.log_average if self.count else self.log_step).exp()


class Moments:
    """Running mean and variance ``(N, K)`` of states ``(C, N, K)``, over chains and iterations (Welford, Chan)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def update(self, u: Tensor) -> None:
        """Takes in the states of one iteration."""
        chains, total = len(u), self.count + len(u)
        mean = u.mean(0)
        change = mean - self.mean
        self.squares = self.squares + (u - mean).square().sum(0) + change.square() * (self.count * chains / total)
        self.mean, self.count = self.mean + change * (chains / total), total

    @property
    def variance(self) -> Tensor:
        """The variance, shrunk towards 0.001 while there are few states."""
        n = self.count
        return (n / (n + 5.0)) * self.squares / max(n - 1, 1) + 1e-3 * (5.0 / (n + 5.0))


class TrajectoryLength:
    """The mean number of steps of a trajectory, a scalar on the device, that climbs ChEES by Adam."""

    def __init__(self, start: float, most: int, like: Tensor, *, lr: float = 0.025) -> None:
        self.log_steps = like.new_tensor(math.log(start)).requires_grad_(True)
        self.most = most
        self.ascent = torch.optim.Adam([self.log_steps], lr=lr, betas=(0.0, 0.95))

    def update(self, before: Tensor, after: Tensor, velocity: Tensor, center: Tensor, travelled: Tensor, accepted: Tensor) -> None:
        """Takes in one iteration.

        Arguments:
            before, after: States at both ends of the trajectories, in units of the metric, ``(C, N, K)``.
            velocity: Velocity at the end, likewise.
            center: Mean state ``(N, K)``.
            travelled: Length of the trajectories, ``(N,)``.
            accepted: Acceptance probabilities ``(C, N)``, by which trajectories are weighted; 0 for divergent ones.
        """
        away = after - center
        change = away.square().sum(-1) - (before - center).square().sum(-1)
        slope = change * (away * velocity).sum(-1) * travelled
        slope = torch.where(accepted > 0, slope, 0.0)
        weight = accepted / accepted.sum().clamp(min=1e-6)
        self.log_steps.grad = -(weight * slope).sum()
        self.ascent.step()
        with torch.no_grad():
            self.log_steps.clamp_(0.0, math.log(self.most))

    @property
    def steps(self) -> float:
        """The mean number of steps; a host sync."""
        return self.log_steps.exp().item()


def windows(warmup: int) -> list[int]:
    """Iterations of the warm-up at whose end the metric is set: the slow windows double, after and before a fast one (as in Stan)."""
    if warmup < 20:
        return []
    first, last = max(round(0.15 * warmup), 1), max(round(0.1 * warmup), 1)
    ends, at, width = [], first, max(round(0.05 * warmup), 5)
    while at + width <= warmup - last:
        if at + 3 * width > warmup - last:
            width = warmup - last - at
        at += width
        ends.append(at)
        width *= 2
    return ends


def halton(i: int) -> float:
    """The i-th number of the van der Corput sequence, in (0, 1)."""
    number, weight = 0.0, 0.5
    while i:
        number += weight * (i & 1)
        i, weight = i >> 1, weight / 2
    return number
