"""What moves chains between two temperatures: Hamiltonian trajectories of all real-valued latents, lattice moves of each discrete site."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from inference.mcmc import hmc, lattice
from inference.mcmc.adaptation import halton
from inference.mcmc.target import Target
from zoo.density import drawn_latents, latent_sites
from zoo.latents.support import support_kind

__all__ = ["AnnealedBlock", "annealed_blocks", "move_all"]

PILOTS = 64  # draws of the initial law that tell its scale
MOST_STEPS = 16  # leapfrog steps between two temperatures
MOST_STEP = 100.0  # beyond, a step size no longer matters on a lattice, and would take long to come down again
LATTICE_MOVES = 4  # moves of a discrete site between two temperatures
RATE = 0.3  # of step sizes' changes, on the log scale


class AnnealedBlock(Protocol):
    """Some of the latents, moved at a temperature."""

    def first_step(self, values: dict[str, Tensor], beta: float | Tensor) -> Tensor:
        """Step sizes ``(N,)`` to begin with."""

    def move(self, values: dict[str, Tensor], beta: float | Tensor, step: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """New values of the block's latents, ``{site: (C, N, *event)}``, and acceptance probabilities ``(C, N)``.

        ``beta`` is the power of the joint density, one for all images or ``(N,)``; that of the initial law is ``1 - beta``.
        """

    def tuned(self, step: Tensor, chance: Tensor) -> Tensor:
        """Step sizes ``(N,)`` after those that were accepted with the probabilities ``(C, N)``."""

    def rescale(self, values: dict[str, Tensor]) -> None:
        """Takes the spread of values ``{site: (C, N, *event)}`` as the metric's."""


def annealed_blocks(model: Callable, initial: Callable | None, x: Tensor, values: dict[str, Tensor]) -> list[AnnealedBlock]:
    """The blocks of all latents of a program, on the way to its posteriors from an initial law (the prior if None)."""
    sites = latent_sites(model, x)
    discrete = {name: site for name, site in sites.items() if support_kind(site["fn"].support) != "real"}
    blocks: list[AnnealedBlock] = [RealMoves(model, initial, x, values, discrete)] if len(discrete) < len(sites) else []
    return blocks + [DiscreteMoves(model, initial, x, name, site, values) for name, site in discrete.items()]


def move_all(blocks: list[AnnealedBlock], values: dict[str, Tensor], beta: float | Tensor,
             steps: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Moves every block once, given the others; returns the new values and the step sizes to take next."""
    tuned = []
    for block, step in zip(blocks, steps, strict=True):
        moved, chance = block.move(values, beta, step)
        values = values | moved
        tuned.append(block.tuned(step, chance))
    return values, tuned


def _tuned(step: Tensor, chance: Tensor, wanted: float) -> Tensor:
    return (step * torch.exp(RATE * (chance.mean(0) - wanted))).clamp(max=MOST_STEP)


class RealMoves:
    """All real-valued latents, between two temperatures."""

    def __init__(self, model: Callable, initial: Callable | None, x: Tensor, values: dict[str, Tensor], discrete: dict[str, dict]) -> None:
        self.target = Target(model, x, {name: values[name] for name in discrete}, initial=initial)
        self.scale = self.target.unconstrain(drawn_latents(initial or model, x, PILOTS)).std(0).clamp(min=1e-6)
        self.moves = 0

    def first_step(self, values: dict[str, Tensor], beta: float | Tensor) -> Tensor:
        return hmc.first_step(self.target.value_and_grad, self._state(values, beta), self.scale)

    def _state(self, values: dict[str, Tensor], beta: float | Tensor) -> hmc.State:
        self.target.given, self.target.beta = {name: values[name] for name in self.target.given}, beta
        u = self.target.unconstrain(values)
        return hmc.State(u, *self.target.value_and_grad(u))

    def move(self, values: dict[str, Tensor], beta: float | Tensor, step: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        # About a quarter of the period of the initial law: its half would lead to the mirror image.
        self.moves += 1
        count = math.ceil((0.5 + halton(self.moves)) * 0.5 * math.pi / step.mean().item())
        state, path = hmc.transition(self.target.value_and_grad, self._state(values, beta), step, self.scale, min(count, MOST_STEPS))
        return self.target.constrain(state.u), path.chance

    def tuned(self, step: Tensor, chance: Tensor) -> Tensor:
        return _tuned(step, chance, 0.65)

    def rescale(self, values: dict[str, Tensor]) -> None:
        spread = self.target.unconstrain(values).std(0)
        self.scale = torch.where(spread > 0, spread, self.scale)


class DiscreteMoves:
    """One site of counts or one-hots, between two temperatures."""

    def __init__(self, model: Callable, initial: Callable | None, x: Tensor, name: str, site: dict, values: dict[str, Tensor]) -> None:
        given = {other: value for other, value in values.items() if other != name}
        self.landscape, self.name = lattice.Landscape(model, x, name, site["fn"], given, initial=initial), name

    def first_step(self, values: dict[str, Tensor], beta: float | Tensor) -> Tensor:
        return self.landscape.x.new_ones(len(self.landscape.x))

    def move(self, values: dict[str, Tensor], beta: float | Tensor, step: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        self.landscape.given, self.landscape.beta = {other: values[other] for other in self.landscape.given}, beta
        state, chance = self.landscape(values[self.name]), 0.0
        for _ in range(LATTICE_MOVES):
            state, accepted, _ = lattice.transition(self.landscape, state, step)
            chance = chance + accepted / LATTICE_MOVES
        return {self.name: state.z}, chance

    def tuned(self, step: Tensor, chance: Tensor) -> Tensor:
        return _tuned(step, chance, lattice.ACCEPT)

    def rescale(self, values: dict[str, Tensor]) -> None:
        pass  # a lattice has a scale of its own
