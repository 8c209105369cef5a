r"""Hamiltonian Monte Carlo for a batch of images, in lock-step: every image has its own step size, metric and acceptance.

A trajectory is L leapfrog steps; L is drawn anew in each iteration, between 1 and twice its mean (a Halton sequence, so that trajectories
resonate with nothing), and its mean is tuned during warm-up. With one step it is the Metropolis-adjusted Langevin algorithm. (Neal 2011;
Hoffman, Radul & Sountsov 2021.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.mcmc.adaptation import DualAveraging, Moments, TrajectoryLength, windows

__all__ = ["Chains", "hmc", "leapfrog"]

FIRST_STEPS = 4.0  # mean number of steps from which tuning sets out: where trajectories are too long, ChEES has no slope to go by
DIVERGENCE = 1000.0  # nats of energy error above which a trajectory counts as divergent, as in Stan

Density = Callable[[Tensor], tuple[Tensor, Tensor]]  # states (C, N, K) to log densities (C, N) and gradients (C, N, K)


@dataclass(frozen=True)
class Chains:
    """What a run of chains leaves.

    Attributes:
        states: Draws ``(C, S, N, K)``.
        last: The last states ``(C, N, K)``.
        log_prob: Log density of the draws ``(C, S, N)``.
        accepted: Mean acceptance probability of each image's chains, ``(N,)``, after warm-up.
        divergences: Divergent trajectories of each image, ``(N,)``, after warm-up.
        step: Step size of each image, ``(N,)``.
        scale: Standard deviations of the metric, ``(N, K)``.
        steps: Mean number of leapfrog steps.
    """

    states: Tensor
    last: Tensor
    log_prob: Tensor
    accepted: Tensor
    divergences: Tensor
    step: Tensor
    scale: Tensor
    steps: float


def hmc(density: Density, start: Tensor, draws: int, *, warmup: int = 300, steps: float | None = None, most_steps: int = 64,
        accept: float = 0.8, thin: int = 1, report: Callable[[int, int, Tensor], None] | None = None) -> Chains:
    """Runs C chains for each of N images.

    Arguments:
        density: Log density and gradient of states ``(C, N, K)``.
        start: Initial states ``(C, N, K)``.
        draws: States kept of each chain, S.
        warmup: Iterations of tuning, not kept.
        steps: Mean number of leapfrog steps; tuned by ChEES if None.
        most_steps: Its upper bound.
        accept: Mean acceptance probability that step sizes aim at.
        thin: Iterations for each state that is kept.
        report: Called with (iteration, iterations, acceptance probabilities ``(N,)``) after each iteration.

    Raises:
        ValueError: if an initial density is not finite (says of which image), or a setting is out of range.
    """
    if draws < 1 or warmup < 0 or thin < 1 or most_steps < 1 or not 0.0 < accept < 1.0 or (steps is not None and not steps >= 1):
        raise ValueError("draws, thin, most_steps and steps must be at least 1, warmup at least 0 and accept between 0 and 1; got "
                         f"{draws}, {thin}, {most_steps}, {steps}, {warmup}, {accept}")
    u = start.detach()
    value, gradient = density(u)
    _check_start(value, gradient)
    chains, images, size = u.shape
    scale = u.new_ones(images, size)
    tuner = DualAveraging(_first_step(density, u, value, gradient, scale), accept)
    moments = Moments()
    length = None if steps is not None else TrajectoryLength(min(FIRST_STEPS, most_steps), most_steps, u)
    mean_steps, ends = steps or length.steps, set(windows(warmup))
    first = min(ends, default=0)
    kept, log_probs = u.new_empty(chains, draws, images, size), u.new_empty(chains, draws, images)
    accepted, divergences = u.new_zeros(images), u.new_zeros(images)
    iterations = warmup + draws * thin
    for i in range(iterations):
        warm = i < warmup
        step = tuner.step if warm or warmup == 0 else tuner.average
        count = max(math.ceil(2.0 * mean_steps * _halton(i + 1)), 1) if mean_steps > 1 else 1
        before, momentum = u, torch.randn_like(u)
        proposal, velocity, new_value, new_gradient = leapfrog(density, u, momentum, gradient, step[:, None], scale, count)
        error = ((new_value - value).double() - 0.5 * (velocity.double().square() - momentum.double().square()).sum(-1)).to(value.dtype)
        error = torch.where(torch.isfinite(error), error, -torch.inf)
        chance = error.clamp(max=0.0).exp()
        take = torch.rand_like(chance) < chance
        u = torch.where(take[..., None], proposal, u)
        value = torch.where(take, new_value, value)
        gradient = torch.where(take[..., None], new_gradient, gradient)
        if warm:
            tuner.update(chance.mean(0))
            moments.update(u)
            if length is not None and moments.count > 10 * chains and (i >= first or not ends):  # with a metric
                end = torch.where(torch.isfinite(proposal), proposal, before)
                length.update(before / scale, end / scale, torch.nan_to_num(velocity), moments.mean / scale, count * step, chance)
                mean_steps = length.steps
            if i + 1 in ends:
                scale = moments.variance.sqrt()
                moments = Moments()
                tuner.restart(tuner.average)
        else:
            accepted += chance.mean(0)
            divergences += (error < -DIVERGENCE).sum(0)
            at, rest = divmod(i - warmup, thin)
            if rest == thin - 1:
                kept[:, at], log_probs[:, at] = u, value
        if report is not None:
            report(i + 1, iterations, chance.mean(0))
    return Chains(kept, u, log_probs, accepted / (draws * thin), divergences, tuner.average, scale, float(mean_steps))


def leapfrog(density: Density, u: Tensor, momentum: Tensor, gradient: Tensor, step: Tensor, scale: Tensor,
             count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``count`` leapfrog steps of states ``(C, N, K)``; returns states, momenta, log densities and gradients.

    Momenta are in units of the metric (standard normal); ``step`` is ``(N, 1)`` and ``scale`` ``(N, K)``.
    """
    stride = step * scale
    momentum = momentum + 0.5 * stride * gradient
    for i in range(count):
        u = u + stride * momentum
        value, gradient = density(u)
        momentum = momentum + (0.5 if i == count - 1 else 1.0) * stride * gradient
    return u, momentum, value, gradient


def _first_step(density: Density, u: Tensor, value: Tensor, gradient: Tensor, scale: Tensor) -> Tensor:
    """Doubles or halves each image's step until a single leapfrog step is accepted about half of the time (Hoffman & Gelman 2014)."""
    step = torch.full_like(scale[:, 0], 0.1)
    momentum = torch.randn_like(u)
    direction = None
    for _ in range(30):
        _, after, new, _ = leapfrog(density, u, momentum, gradient, step[:, None], scale, 1)
        change = new - value - 0.5 * (after.square() - momentum.square()).sum(-1)
        easy = torch.where(torch.isfinite(change), change, -torch.inf).clamp(max=0.0).exp().mean(0) > 0.5
        direction = torch.where(easy, 1.0, -1.0) if direction is None else torch.where(easy == (direction > 0), direction, 0.0)
        if not direction.any():
            break
        step = step * 2.0**direction
    return step


def _check_start(value: Tensor, gradient: Tensor) -> None:
    fine = (torch.isfinite(value) & torch.isfinite(gradient).all(-1)).all(0)
    if not fine.all():
        raise ValueError(f"the log density or its gradient at the start of image {int((~fine).nonzero()[0])} is not finite "
                         f"({int((~fine).sum())} of {len(fine)} images); start elsewhere")


def _halton(i: int) -> float:
    """The i-th number of the van der Corput sequence, in (0, 1)."""
    number, weight = 0.0, 0.5
    while i:
        number += weight * (i & 1)
        i, weight = i >> 1, weight / 2
    return number
