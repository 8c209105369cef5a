r"""Hamiltonian Monte Carlo for a batch of images, in lock-step: every image has its own step size, metric and acceptance.

A trajectory is L leapfrog steps; L is drawn anew in each iteration, between 1 and twice its mean (a Halton sequence, so that trajectories
resonate with nothing), and its mean is tuned during warm-up. With one step it is the Metropolis-adjusted Langevin algorithm. (Neal 2011;
Hoffman, Radul & Sountsov 2021.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from inference.mcmc.adaptation import DualAveraging, Moments, TrajectoryLength, halton, windows
from inference.mcmc.chains import collect

__all__ = ["Chains", "Hamiltonian", "State", "Trajectory", "first_step", "hmc", "leapfrog", "transition"]

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


class State(NamedTuple):
    """Where chains are: states ``(C, N, K)``, their log density ``(C, N)`` and its gradient ``(C, N, K)``."""

    u: Tensor
    value: Tensor
    gradient: Tensor


class Trajectory(NamedTuple):
    """How a transition came about: the proposal and its velocity ``(C, N, K)``, its acceptance probability and energy error ``(C, N)``,
    and whether it was taken, ``(C, N)``."""

    end: Tensor
    velocity: Tensor
    chance: Tensor
    error: Tensor
    taken: Tensor


class Hamiltonian:
    """Transitions of C chains for each of N images, tuned while they warm up.

    Arguments:
        density: Log density and gradient of states ``(C, N, K)``.
        start: Initial states ``(C, N, K)``.
        warmup: Transitions of tuning.
        steps: Mean number of leapfrog steps; tuned by ChEES if None.
        most_steps: Its upper bound.
        accept: Mean acceptance probability that step sizes aim at.
        step_size: Step sizes, a number or ``(N,)``, in units of the coordinates: neither they nor a metric are then tuned.
        adjusted: Whether proposals are accepted or rejected after the warm-up too; if not, all that are finite are taken (the unadjusted
            Langevin algorithm, if ``steps`` is 1).

    Raises:
        ValueError: if an initial density is not finite (says of which image), or a setting is out of range.
    """

    def __init__(self, density: Density, start: Tensor, warmup: int, *, steps: float | None = None, most_steps: int = 64,
                 accept: float = 0.8, step_size: float | Tensor | None = None, adjusted: bool = True) -> None:
        if most_steps < 1 or not 0.0 < accept < 1.0 or (steps is not None and not steps >= 1):
            raise ValueError(f"most_steps and steps must be at least 1 and accept between 0 and 1; got {most_steps}, {steps}, {accept}")
        self.density, self.warmup, self.adjusted = density, warmup, adjusted
        u = start.detach()
        self.state = State(u, *density(u))
        _check_start(self.state)
        _, images, size = u.shape
        self.scale, self.made = u.new_ones(images, size), 0
        if step_size is None:
            first = first_step(density, self.state, self.scale)
        else:
            first = torch.as_tensor(step_size, dtype=u.dtype, device=u.device).expand(images)
            if not (first > 0).all():
                raise ValueError(f"step_size must be positive, not {step_size}")
        self.tuned = step_size is None
        self.tuner, self.moments = DualAveraging(first, accept), Moments()
        self.length = None if steps is not None else TrajectoryLength(min(FIRST_STEPS, most_steps), most_steps, u)
        self.steps = float(steps or self.length.steps)
        self.ends = set(windows(warmup)) if self.tuned else set()
        self.accepted, self.taken, self.divergences = u.new_zeros(images), u.new_zeros(images), u.new_zeros(images)

    @property
    def step(self) -> Tensor:
        """Step sizes ``(N,)`` of the next transition."""
        return self.tuner.step if self.made < self.warmup or self.warmup == 0 else self.tuner.average

    def renew(self) -> None:
        """Looks at the density again where the chains are, after it has changed."""
        self.state = State(self.state.u, *self.density(self.state.u))

    def move(self) -> Tensor:
        """One transition of all chains; returns the mean acceptance probability of each image's, ``(N,)``."""
        warm, step = self.made < self.warmup, self.step
        count = max(math.ceil(2.0 * self.steps * halton(self.made + 1)), 1) if self.steps > 1 else 1
        before = self.state.u
        self.state, path = transition(self.density, self.state, step, self.scale, count, self.adjusted or warm)
        self.made += 1
        if not warm:
            self.accepted += path.chance.mean(0)
            self.taken += path.taken.sum(0)
            self.divergences += (path.error < -DIVERGENCE).sum(0)
        elif self.tuned:
            self._learn(before, path, count * step)
        return path.chance.mean(0)

    def _learn(self, before: Tensor, path: Trajectory, travelled: Tensor) -> None:
        self.tuner.update(path.chance.mean(0))
        self.moments.update(self.state.u)
        metric = self.made > min(self.ends, default=0) or not self.ends
        if self.length is not None and self.moments.count > 10 * len(before) and metric:
            end = torch.where(torch.isfinite(path.end), path.end, before)
            self.length.update(before / self.scale, end / self.scale, torch.nan_to_num(path.velocity), self.moments.mean / self.scale,
                               travelled, path.chance)
            self.steps = self.length.steps
        if self.made in self.ends:
            self.scale = self.moments.variance.sqrt()
            self.moments = Moments()
            self.tuner.restart(self.tuner.average)


def transition(density: Density, state: State, step: Tensor, scale: Tensor, count: int, adjusted: bool = True) -> tuple[State, Trajectory]:
    """A trajectory of ``count`` leapfrog steps with fresh momenta, accepted or rejected.

    Arguments:
        step: Step sizes ``(N,)``.
        scale: Standard deviations of the metric, ``(N, K)``.
        adjusted: Whether to reject by the energy error; otherwise every proposal with a density is taken.
    """
    momentum = torch.randn_like(state.u)
    end, velocity, value, gradient = leapfrog(density, state.u, momentum, state.gradient, step[:, None], scale, count)
    error = ((value - state.value).double() - 0.5 * (velocity.double().square() - momentum.double().square()).sum(-1)).to(value.dtype)
    error = torch.where(torch.isfinite(error), error, -torch.inf)
    chance = error.clamp(max=0.0).exp()
    taken = torch.rand_like(chance) < chance if adjusted else error > -torch.inf
    new = State(torch.where(taken[..., None], end, state.u), torch.where(taken, value, state.value),
                torch.where(taken[..., None], gradient, state.gradient))
    return new, Trajectory(end, velocity, chance, error, taken)


def hmc(density: Density, start: Tensor, draws: int, *, warmup: int = 300, steps: float | None = None, most_steps: int = 64,
        accept: float = 0.8, thin: int = 1, report: Callable[[int, int, Tensor], None] | None = None) -> Chains:
    """Runs C chains for each of N images.

    Arguments:
        density, start, warmup, steps, most_steps, accept: As of :class:`Hamiltonian`.
        draws: States kept of each chain, S.
        thin: Transitions for each state that is kept.
        report: Called with (transition, transitions, acceptance probabilities ``(N,)``) after each transition.

    Raises:
        ValueError: as :class:`Hamiltonian`.
    """
    kernel = Hamiltonian(density, start, warmup, steps=steps, most_steps=most_steps, accept=accept)
    run = collect(kernel.move, lambda: {"u": kernel.state.u, "log_prob": kernel.state.value}, draws, warmup=warmup, thin=thin,
                  report=None if report is None else lambda done, total, chance, _: report(done, total, chance))
    return Chains(run.kept["u"], kernel.state.u, run.kept["log_prob"], kernel.accepted / (draws * thin), kernel.divergences,
                  kernel.tuner.average, kernel.scale, kernel.steps)


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


def first_step(density: Density, state: State, scale: Tensor) -> Tensor:
    """Doubles or halves each image's step until a single leapfrog step is accepted about half of the time (Hoffman & Gelman 2014)."""
    step = torch.full_like(scale[:, 0], 0.1)
    momentum = torch.randn_like(state.u)
    direction = None
    for _ in range(30):
        _, after, new, _ = leapfrog(density, state.u, momentum, state.gradient, step[:, None], scale, 1)
        change = new - state.value - 0.5 * (after.square() - momentum.square()).sum(-1)
        easy = torch.where(torch.isfinite(change), change, -torch.inf).clamp(max=0.0).exp().mean(0) > 0.5
        direction = torch.where(easy, 1.0, -1.0) if direction is None else torch.where(easy == (direction > 0), direction, 0.0)
        if not direction.any():
            break
        step = step * 2.0**direction
    return step


def _check_start(state: State) -> None:
    fine = (torch.isfinite(state.value) & torch.isfinite(state.gradient).all(-1)).all(0)
    if not fine.all():
        raise ValueError(f"the log density or its gradient at the start of image {int((~fine).nonzero()[0])} is not finite "
                         f"({int((~fine).sum())} of {len(fine)} images); start elsewhere")
