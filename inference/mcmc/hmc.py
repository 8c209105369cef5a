r"""Hamiltonian Monte Carlo for a batch of images, in lock-step: every image has its own step size, metric and acceptance.

A trajectory is L leapfrog steps; L varies between half and one and a half times its mean (by a Halton sequence, so that trajectories
resonate with nothing). The mean is what the step size of the median image takes to go a quarter farther than ChEES wants, which is found
during warm-up. With one step it is the Metropolis-adjusted Langevin algorithm. (Neal 2011; Hoffman, Radul & Sountsov 2021.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.mcmc.adaptation import DualAveraging, Moments, TrajectoryLength, halton, pooled, windows
from inference.mcmc.chains import collect
from inference.mcmc.trajectory import Density, State, Trajectory, first_step, leapfrog, transition

__all__ = ["Chains", "Hamiltonian", "State", "Trajectory", "first_step", "hmc", "leapfrog", "transition"]

FIRST_STEPS = 8.0  # most steps while there is no metric: where scales differ, a quarter period of the widest latent may be thousands
AUTOCORRELATED = 4.0  # draws of a window for each that is independent, in the variances of the metric: cautiously many
LONGER = 1.25  # than ChEES wants, which looks at squares: of 200 unit Normals, 1.6 times the effective draws of means, as many of squares
DIVERGENCE = 1000.0  # nats of energy error above which a trajectory counts as divergent, as in Stan


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
        steps: Mean number of leapfrog steps, after warm-up.
    """

    states: Tensor
    last: Tensor
    log_prob: Tensor
    accepted: Tensor
    divergences: Tensor
    step: Tensor
    scale: Tensor
    steps: float


class Hamiltonian:
    """Transitions of C chains for each of N images, tuned while they warm up.

    Arguments:
        density: Log density and gradient of states ``(C, N, K)``.
        start: Initial states ``(C, N, K)``.
        warmup: Transitions of tuning.
        steps: Mean number of leapfrog steps; tuned by ChEES if None (where no metric is tuned, a quarter of a standard Normal's period,
            but few steps).
        most_steps: Upper bound of a tuned mean.
        accept: Mean acceptance probability that step sizes aim at.
        step_size: Step sizes, a number or ``(N,)``, in units of the coordinates: neither they nor a metric are then tuned.
        adjusted: Whether proposals are accepted or rejected after the warm-up too; if not, all that are finite are taken (the unadjusted
            Langevin algorithm, if ``steps`` is 1).

    Raises:
        ValueError: if an initial density is not finite (says of which image), or a setting is out of range.
    """

    def __init__(self, density: Density, start: Tensor, warmup: int, *, steps: float | None = None, most_steps: int = 128,
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
        self.steps, self.most_steps = steps, most_steps
        self.length = TrajectoryLength(u) if steps is None else None
        self.start, *ends = (windows(warmup) if self.tuned else []) or [0]
        self.ends = set(ends)
        self.accepted, self.divergences, self.taken = u.new_zeros(images), u.new_zeros(images), torch.zeros_like(u[..., 0])
        self.leapfrogs = 0

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
        count = max(math.floor(self._mean_steps(step) * (0.5 + halton(self.made + 1)) + 0.5), 1)
        before = self.state.u
        self.state, path = transition(self.density, self.state, step, self.scale, count, self.adjusted or warm)
        self.made += 1
        chance = path.chance.mean(0)
        if not warm:
            self.accepted += chance
            self.taken += path.taken
            self.divergences += (path.error < -DIVERGENCE).sum(0)
            self.leapfrogs += count
        elif self.tuned:
            self._learn(before, path, count * step)
        return chance

    def _mean_steps(self, step: Tensor) -> float:
        if self.steps is not None:
            return self.steps
        steps, tuned = self.length.length / step.median().item(), self.made >= min(self.ends, default=math.inf)
        if tuned and self.made >= self.warmup:
            steps = LONGER * steps
        steps = min(max(steps, 1.0), self.most_steps if tuned else min(FIRST_STEPS, self.most_steps))
        if self.made >= self.warmup:  # nothing changes any more
            self.steps = steps
        return steps

    def _learn(self, before: Tensor, path: Trajectory, travelled: Tensor) -> None:
        self.tuner.update(path.chance.mean(0))
        self.moments.update(self.state.u)
        if self.length is not None and self.ends and self.made > min(self.ends) and self.moments.count > 10 * len(before):
            from_mean, to_mean = ((u - self.moments.mean) / self.scale for u in (before, path.end))
            least = self.tuner.step.median().item()
            self.length.update(from_mean, to_mean, path.velocity, travelled, path.chance, (least, least * self.most_steps))
        if self.made == self.start:
            self.moments = Moments()
        elif self.made in self.ends:
            old, variance = self.scale, self.moments.variance
            variance = torch.where(variance > 0, variance, old.square())
            self.scale = pooled(variance, self.moments.count / AUTOCORRELATED).sqrt()
            self.moments = Moments()
            self.tuner.restart(self.tuner.average * (old / self.scale).amax(-1))
            if self.length is not None:
                self.length.rescale(old, self.scale)


def hmc(density: Density, start: Tensor, draws: int, *, warmup: int = 300, steps: float | None = None, most_steps: int = 128,
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
                  kernel.tuner.average, kernel.scale, kernel.leapfrogs / (draws * thin))


def _check_start(state: State) -> None:
    fine = (torch.isfinite(state.value) & torch.isfinite(state.gradient).all(-1)).all(0)
    if not fine.all():
        raise ValueError(f"the log density or its gradient at the start of image {int((~fine).nonzero()[0])} is not finite "
                         f"({int((~fine).sum())} of {len(fine)} images); start elsewhere")
