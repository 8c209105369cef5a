r"""Tuning during warm-up: a step size for each image by dual averaging, a diagonal metric for each image, one trajectory length for all.

Dual averaging is Nesterov's as in Hoffman & Gelman 2014 (section 3.2), on the log step size of each image; with a few chains an image's
acceptance is noisy, so step sizes are held closer to where they were than there. The metric is the variance of the chains' states since a
window began, with images and latents borrowing strength from each other (:func:`pooled`). The length of trajectories, in units of the
metric, follows the gradient of ChEES, the change in the estimator of the expected square (Hoffman, Radul & Sountsov 2021), averaged over
chains and images, with a price on length (as in Sountsov & Hoffman 2021, but a lower one).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["DualAveraging", "Moments", "TrajectoryLength", "halton", "pooled", "windows"]

QUARTER = math.pi / 2  # of the period of a Normal: the flow has forgotten where it came from
PRICE = 0.25  # the power of length that ChEES is divided by: means would rather have 0, squares 1; heavy tails have no summit at 0


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
        """The unbiased variance."""
        return self.squares / max(self.count - 1, 1)


def pooled(variance: Tensor, draws: float) -> Tensor:
    """Variances ``(N, K)`` of the latents of images, estimated from few draws, shrunk towards what images and latents have in common.

    Log variances are taken apart into an effect of each image, one of each latent and the rest. Effects and rest are shrunk by as much as
    their spread can be the noise of the estimates (James & Stein 1961), and none by more than two standard errors, so that the few that
    stand out stay (limited translation; Efron & Morris 1972). With many draws nothing is left to shrink.

    Arguments:
        variance: Sample variances; 0 for latents that never moved.
        draws: Independent draws that they are worth: the noise of a log variance is 2 / draws.
    """
    least = torch.finfo(variance.dtype).tiny
    logs, noise = variance.clamp(min=least).log(), 2.0 / draws
    image = logs.mean(1, keepdim=True)
    latent = logs.mean(0) - image.mean()
    rest = logs - image - latent
    return (image + _shrunk(latent, noise / len(variance)) + _shrunk(rest, noise)).exp()


def _shrunk(effects: Tensor, noise: float) -> Tensor:
    weight = noise / effects.square().mean().clamp(min=noise)
    bound = 2.0 * math.sqrt(noise)
    return effects - (weight * effects).clamp(-bound, bound)


class TrajectoryLength:
    """The mean length of trajectories in units of the metric, one for all images, that climbs ChEES by Adam; a quarter period at first."""

    def __init__(self, like: Tensor, *, start: float = QUARTER, lr: float = 0.05) -> None:
        self.log_length = like.new_tensor(math.log(start)).requires_grad_(True)
        self.log_mean, self.count = self.log_length.detach().clone(), 0
        self.ascent = torch.optim.Adam([self.log_length], lr=lr, betas=(0.0, 0.95))

    @torch.no_grad()
    def update(self, before: Tensor, after: Tensor, velocity: Tensor, travelled: Tensor, accepted: Tensor,
               bounds: tuple[float, float]) -> None:
        """Takes in one iteration.

        Arguments:
            before, after: How far from their mean the states were at both ends of the trajectories, in units of the metric, ``(C, N, K)``.
            velocity: Velocity at the end, likewise.
            travelled: Length of the trajectories, ``(N,)``.
            accepted: Acceptance probabilities ``(C, N)``, by which trajectories are weighted; 0 for divergent ones.
            bounds: Least and greatest length that trajectories can have now.
        """
        change = after.square().sum(-1) - before.square().sum(-1)
        slope = change * (after * velocity).sum(-1) * travelled - 0.25 * PRICE * change.square()
        slope = torch.where((accepted > 0) & slope.isfinite(), slope, 0.0)
        weight = accepted / accepted.sum().clamp(min=1e-6)
        self.log_length.grad = -(weight * slope).sum()
        self.ascent.step()
        self.log_length.clamp_(*map(math.log, bounds))
        self.count += 1
        self.log_mean.lerp_(self.log_length, self.count**-0.5)

    @torch.no_grad()
    def rescale(self, old: Tensor, new: Tensor) -> None:
        """Goes on under a new metric, ``(N, K)``.

        The length followed the latents that the old metric had thought too narrow; by as much as the new one widens those, it falls, though
        not below a quarter period: well past its summit ChEES has no slope to come back by.
        """
        ratio = new / old
        weight = (ratio / ratio.amax()) ** 4  # as in ChEES
        widened = (weight * ratio).sum() / weight.sum()
        falls = torch.minimum(self.log_length, (self.log_length - widened.log()).clamp(min=math.log(QUARTER)))
        if falls < self.log_length:
            self.log_length.copy_(falls)
            self.log_mean, self.count = falls.clone(), 0

    @property
    def length(self) -> float:
        """The length to use: a mean of Adam's iterates, the last ones most. A host sync."""
        return math.exp(self.log_mean.item())


def windows(warmup: int) -> list[int]:
    """Iterations of the warm-up at which the first slow window begins, and at whose end each sets the metric; they double, and after and
    before them only step sizes are tuned (as in Stan)."""
    if warmup < 20:
        return []
    first, last = max(round(0.15 * warmup), 1), max(round(0.1 * warmup), 1)
    ends, at, width = [first], first, max(round(0.05 * warmup), 5)
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
