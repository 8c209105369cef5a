r"""Markov chains that are kept: of many images, a batch of which moves a little at each visit, under a model that may have changed since.

What such chains need beside a sampler's transitions: a place for each image's states and step sizes, and densities that are recorded once
for all batches of a size. Memory: C × n × K numbers for n images of K latents, and n step sizes for each block of latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from guides.objectives.base import exact_draws
from inference.mcmc.adaptation import halton
from inference.mcmc.gibbs import Sweeps, can_sweep
from inference.mcmc.lattice import ACCEPT, Landscape
from inference.mcmc.lattice import transition as lattice_transition
from inference.mcmc.target import Target
from inference.mcmc.trajectory import State, first_step, transition
from zoo.density import drawn_latents, latent_sites
from zoo.frozen import frozen
from zoo.latents.support import support_kind

__all__ = ["SAMPLERS", "PersistentChains"]

# Mean number of leapfrog steps of a transition of real-valued latents, and the acceptance rate that their step sizes are tuned to.
TRAJECTORIES = {"auto": (8, 0.8), "hmc": (8, 0.8), "mala": (1, 0.574)}
SAMPLERS = ("auto", "hmc", "mala", "gibbs", "lattice")


class PersistentChains(nn.Module):
    """Chains of the posteriors of all images; their state is the module's.

    Arguments:
        model: A model of the zoo, or any Pyro program ``model(x)``.
        x: All images ``(n, *event_shape)``.
        batch_size: Images of a visit.
        chains: Chains for each image, C.
        transitions: Transitions of each chain at every visit.
        sampler: ``"auto"``, which follows the supports (Gibbs sweeps where counts or one-hots have known conditionals; lattice moves for
            others; Hamiltonian trajectories of 8 leapfrog steps on average for real values), or ``"hmc"``, ``"mala"``, ``"gibbs"``,
            ``"lattice"``, as of the method ``mcmc``. Real-valued latents have the identity as their metric.

    Raises:
        ValueError: for settings out of range, or a sampler that does not move the model's latents.
    """

    def __init__(self, model: Callable, x: Tensor, *, batch_size: int, chains: int = 1, transitions: int = 2,
                 sampler: str = "auto") -> None:
        super().__init__()
        if chains < 1 or transitions < 1:
            raise ValueError(f"there must be at least 1 chain for each image and 1 transition at a visit, not {chains} and {transitions}")
        self._model, self.chains, self.transitions = (model,), chains, transitions  # in a tuple, which nn.Module does not register
        self._densities: dict[str, Target | Landscape] = {}
        self.register_buffer("x", x.detach(), persistent=False)
        self.register_buffer("batch", x[:batch_size].detach().clone(), persistent=False)  # one place: densities are recorded with it
        self.register_buffer("visits", torch.zeros((), dtype=torch.int64, device=x.device))
        sites = latent_sites(model, self.batch)
        self.kinds = {name: support_kind(site["fn"].support) for name, site in sites.items()}
        self.discrete = [name for name, kind in self.kinds.items() if kind != "real"]
        real = [name for name in self.kinds if name not in self.discrete]
        self.sweeps, self.leapfrogs, self.accept = _chosen(sampler, model, real, self.discrete)
        self.moved = ["real"] * bool(real) + self.discrete  # in turn: all real-valued latents together, each discrete one by itself
        for i, name in enumerate(self.discrete):
            self.register_buffer(f"values{i}", x.new_zeros(chains, len(x), *sites[name]["fn"].event_shape))
        if real:
            self.register_buffer("u", x.new_zeros(chains, len(x), self._target().size))
        self.register_buffer("log_steps", x.new_zeros(len(self.moved), len(x)))

    @property
    def model(self) -> Callable:
        """The model whose posteriors these are."""
        return self._model[0]

    def states(self, index: Tensor) -> dict[str, Tensor]:
        """Where the chains of images ``(B,)`` are, ``{site: (C, B, *event)}``."""
        values = {name: self._values(name)[:, index] for name in self.discrete}
        if "real" in self.moved:
            values |= self._target().constrain(self.u[:, index])
        return {name: values[name] for name in self.kinds}

    @torch.no_grad()
    def start(self, program: Callable, index: Tensor) -> None:
        """Starts all chains at draws of a program over the latents (the prior, or a guide), and step sizes of real-valued latents at what
        suits the median one of the images ``(B,)``, at the cost of at most 31 gradients."""
        with exact_draws(program):
            for part in torch.arange(len(self.x), device=self.x.device).split(len(index)):
                drawn = drawn_latents(program, self.x[part], self.chains)
                for name in self.discrete:
                    self._values(name)[:, part] = drawn[name]
                if "real" in self.moved:
                    self.u[:, part] = self._target().unconstrain(drawn)
        if "real" in self.moved:
            self.batch.copy_(self.x[index])
            density, u = self._conditioned(index).value_and_grad, self.u[:, index]
            self.log_steps[0] = first_step(density, State(u, *density(u)), torch.ones_like(u[0])).log().median()

    @torch.no_grad()
    def move(self, index: Tensor) -> Tensor:
        """A visit: moves the chains of images ``(B,)``, tunes their step sizes, and returns mean acceptance probabilities ``(B,)``, of
        several blocks the least."""
        self.batch.copy_(self.x[index])
        visits, turns = int(self.visits), self.transitions if len(self.moved) > 1 else 1
        chance = self.log_steps.new_zeros(len(self.moved), len(index))
        with frozen(self.model):
            for turn in range(turns):  # several blocks take turns
                for i, what in enumerate(self.moved):
                    step = self.log_steps[i, index].exp()
                    chance[i] += self._move(what, index, step, self.transitions // turns, visits * turns + turn) / turns
        self._tune(chance, index, visits)
        self.visits += 1
        return chance.amin(0)

    def _move(self, what: str, index: Tensor, step: Tensor, transitions: int, turn: int) -> Tensor:
        """Moves a block given the others by some transitions; returns mean acceptance probabilities ``(B,)``."""
        if what == "real":
            self.u[:, index], chance = _trajectories(self._conditioned(index), self.u[:, index], step, self.leapfrogs, transitions, turn)
            return chance
        values = self._values(what)
        if self.sweeps:
            kernel = Sweeps(self.model, self.batch, values[:, index])
            for _ in range(transitions):
                kernel.move()
            values[:, index] = kernel.z
            return torch.ones_like(step)
        values[:, index], chance = _lattice_moves(self._landscape(what, index), values[:, index], step, transitions)
        return chance

    def _tune(self, chance: Tensor, index: Tensor, visits: int) -> None:
        """Moves log step sizes (Robbins & Monro 1951): those of the batch by their own errors, all by the mean of these; less and less."""
        wanted = [self.accept if what == "real" else 1.0 if self.sweeps else ACCEPT for what in self.moved]
        error = chance - chance.new_tensor(wanted)[:, None]
        self.log_steps += error.mean(1, keepdim=True) / math.sqrt(1.0 + visits)
        self.log_steps[:, index] += error / math.sqrt(1.0 + visits * len(index) / len(self.x))

    def _values(self, name: str) -> Tensor:
        return getattr(self, f"values{self.discrete.index(name)}")

    def _target(self) -> Target:
        """The density of the real-valued latents of the batch."""
        if "real" not in self._densities:
            given = {name: self._values(name)[:, : len(self.batch)] for name in self.discrete}
            self._densities["real"] = Target(self.model, self.batch, given)
        return self._densities["real"]

    def _conditioned(self, index: Tensor) -> Target:
        target = self._target()
        target.given = {name: self._values(name)[:, index] for name in self.discrete}
        return target

    def _landscape(self, name: str, index: Tensor) -> Landscape:
        """The density of a discrete latent of the batch, given the others."""
        given = {other: value for other, value in self.states(index).items() if other != name}
        if name not in self._densities:
            law = latent_sites(self.model, self.batch)[name]["fn"]
            self._densities[name] = Landscape(self.model, self.batch, name, law, given)
        self._densities[name].given = given
        return self._densities[name]


def _chosen(sampler: str, model: Callable, real: list[str], discrete: list[str]) -> tuple[bool, int, float]:
    """Whether discrete latents move by Gibbs sweeps; leapfrog steps and acceptance rate of real-valued ones."""
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; chains that are kept know: {', '.join(SAMPLERS)}")
    wrong = {"hmc": discrete, "mala": discrete, "gibbs": real, "lattice": real}.get(sampler)
    if wrong:
        raise ValueError(f"the sampler {sampler!r} does not move the latents {', '.join(wrong)}; 'auto' moves all kinds")
    if sampler == "gibbs" and not can_sweep(model):
        raise ValueError("Gibbs sampling needs a one-layer model of counts or one-hots with a linear decoder; use 'lattice'")
    sweeps = bool(discrete) and sampler != "lattice" and can_sweep(model)
    return sweeps, *TRAJECTORIES.get(sampler, TRAJECTORIES["auto"])


def _trajectories(target: Target, u: Tensor, step: Tensor, leapfrogs: int, transitions: int, turn: int) -> tuple[Tensor, Tensor]:
    """New states ``(C, B, K)`` after some trajectories of ``leapfrogs`` steps on average, and mean acceptance ``(B,)``."""
    state, scale, chance = State(u, *target.value_and_grad(u)), torch.ones_like(u[0]), torch.zeros_like(step)
    for i in range(transitions):
        count = max(math.floor(leapfrogs * (0.5 + halton(turn * transitions + i + 1)) + 0.5), 1) if leapfrogs > 1 else 1
        state, path = transition(target.value_and_grad, state, step, scale, count)
        chance = chance + path.chance.mean(0) / transitions
    return state.u, chance


def _lattice_moves(landscape: Landscape, z: Tensor, alpha: Tensor, transitions: int) -> tuple[Tensor, Tensor]:
    """New values ``(C, B, *event)`` after some lattice moves, and mean acceptance ``(B,)``."""
    state, total = landscape(z), torch.zeros_like(alpha)
    for _ in range(transitions):
        state, chance, _ = lattice_transition(landscape, state, alpha)
        total = total + chance.mean(0) / transitions
    return state.z, total
