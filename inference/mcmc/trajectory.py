"""Hamiltonian transitions of all chains of all images in lock-step: leapfrog steps, then accepted or rejected (Neal 2011)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Density", "State", "Trajectory", "first_step", "leapfrog", "transition"]

Density = Callable[[Tensor], tuple[Tensor, Tensor]]  # states (C, N, K) to log densities (C, N) and gradients (C, N, K)


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


def transition(density: Density, state: State, step: Tensor, scale: Tensor, count: int, adjusted: bool = True) -> tuple[State, Trajectory]:
    """A trajectory of ``count`` leapfrog steps with fresh momenta, accepted or rejected.

    Arguments:
        step: Step sizes ``(N,)``.
        scale: Standard deviations of the metric, ``(N, K)``.
        adjusted: Whether to reject by the energy error; otherwise every proposal with a density is taken.
    """
    momentum = torch.randn_like(state.u)
    end, velocity, value, gradient = leapfrog(density, state.u, momentum, state.gradient, step[:, None], scale, count)
    kinetic = 0.5 * (velocity.square() - momentum.square()).sum(-1, dtype=torch.float64)
    error = ((value - state.value).double() - kinetic).to(value.dtype)
    error = torch.where(torch.isfinite(error), error, -torch.inf)
    chance = error.clamp(max=0.0).exp()
    taken = torch.rand_like(chance) < chance if adjusted else error > -torch.inf
    new = State(torch.where(taken[..., None], end, state.u), torch.where(taken, value, state.value),
                torch.where(taken[..., None], gradient, state.gradient))
    return new, Trajectory(end, velocity, chance, error, taken)


def leapfrog(density: Density, u: Tensor, momentum: Tensor, gradient: Tensor, step: Tensor, scale: Tensor,
             count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``count`` leapfrog steps of states ``(C, N, K)``; returns states, momenta, log densities and gradients.

    Momenta are in units of the metric (standard normal); ``step`` is ``(N, 1)`` and ``scale`` ``(N, K)``. The tensor that ``density`` is
    given is changed in place after it has returned.
    """
    stride = step * scale
    momentum = torch.addcmul(momentum, stride, gradient, value=0.5)
    u = torch.addcmul(u, stride, momentum)
    for i in range(count):
        if i:
            u.addcmul_(stride, momentum)
        value, gradient = density(u)
        momentum.addcmul_(stride, gradient, value=0.5 if i == count - 1 else 1.0)
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
