r"""Inference as a process: guides that reach their :math:`\delta(x)` in steps, each of which can be looked at.

Between one pass of an encoder and a Markov chain: :math:`\delta_{i+1} = \mathrm{refine}(x, \delta_i)`, all images in one batch. The number
of steps is not part of what was learned, so that a guide can think for longer than it was trained to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from guides.base import Fixed, Guide
from guides.bounds import elbo, exact_elbo

__all__ = ["Stepwise", "elbo_slope", "enough_particles", "evaluating", "has_exact_elbo", "settled"]

Deltas = dict[str, Tensor]


class Stepwise(Guide):
    """A guide that infers in steps; subclasses give :meth:`refine`, and :meth:`start` where they do not start from the prior.

    Attributes:
        steps: How many steps a call takes; may be changed at any time.
        truncated: Whether a step's gradients stay within it, instead of flowing back through the steps before it.
        burn_in: How many steps come before those that training learns from; they are taken without gradients. 0 unless a subclass says
            otherwise, which must then check that some step is left.
    """

    truncated = True
    burn_in = 0

    def __init__(self, model: nn.Module, steps: int) -> None:
        super().__init__(model)
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        self.steps = steps

    @property
    def scored(self) -> Sequence[int]:
        """The steps, 0 for the start, whose bounds training climbs: all after ``burn_in``, unless a subclass says otherwise."""
        return range(self.burn_in + 1, self.steps + 1)

    def start(self, x: Tensor) -> Deltas:
        """Where inference begins, ``{site: (N, P, K)}``; at the prior unless a subclass says otherwise."""
        return {name: x.new_zeros(len(x), len(family.parameters), units) for name, (family, units) in self.model.latents.items()}

    def refine(self, x: Tensor, deltas: Deltas, memory: Deltas | None) -> tuple[Deltas, Deltas | None]:
        """One step: the next ``deltas``, and what the step after it shall remember (None at the first step)."""
        raise NotImplementedError(f"{type(self).__name__} must define refine(x, deltas, memory)")

    def path(self, x: Tensor, steps: int | None = None) -> Iterator[Deltas]:
        """The start and the ``deltas`` after each step, ``steps + 1`` dictionaries ``{site: (N, P, K)}``, one at a time.

        Gradients flow to the steps after ``burn_in`` alone: to none, if there are no more steps than that.
        """
        deltas, memory = self.start(x), None
        yield deltas
        for step in range(self.steps if steps is None else steps):
            if self.truncated:
                deltas = {name: delta.detach() for name, delta in deltas.items()}
                memory = None if memory is None else {name: part.detach() for name, part in memory.items()}
            with nullcontext() if step >= self.burn_in else torch.no_grad():
                deltas, memory = self.refine(x, deltas, memory)
            yield deltas

    def delta(self, x: Tensor) -> Deltas:
        return deque(self.path(x), maxlen=1).pop()

    def at(self, deltas: Deltas) -> Fixed:
        """The guide as it is after a step, at this guide's temperature."""
        return Fixed(self.model, deltas, self.temperature)


def settled(guide: Callable, x: Tensor) -> Callable:
    """A guide of the zoo as it is for these images: one run of its inference, of which draws and densities are then taken.

    Where slopes are sampled, a guide that infers in steps arrives elsewhere at every run. Other programs are given back as they are.
    """
    return guide.settle(x) if isinstance(guide, Guide) else guide


@contextmanager
def evaluating(guide: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every part of the guide, an encoder that it was given among them, as it was afterwards."""
    modes = {module: module.training for module in guide.modules()}
    try:
        guide.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def has_exact_elbo(model: nn.Module) -> bool:
    """Whether the ELBO of a posterior needs no sampling: a linear decoder, and a closed-form KL divergence for every site."""
    if not getattr(model, "linear", False):
        return False
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        priors = [(family, family.initial_prior(units)) for family, units in model.latents.values()]
        return all(family.unit_kl(prior, prior) is not None for family, prior in priors)


def enough_particles(model: nn.Module, temperature: float, particles: int) -> int:
    """At least 2 where samples are not reparameterized: the baseline is then of an image's other draws, not of other images."""
    for family, units in model.latents.values():
        if not family.relaxed(torch.zeros(len(family.parameters), units), temperature).has_rsample:
            return max(particles, 2)
    return particles


def elbo_slope(model: nn.Module, x: Tensor, deltas: Deltas, *, exact: bool, temperature: float = 0.1,
               particles: int = 4) -> tuple[Tensor, Deltas]:
    """The ELBO of every image ``(N,)`` at ``deltas``, and its gradient in them ``{site: (N, P, K)}``; both without a graph.

    Arguments:
        exact: Whether to take it in closed form (see :func:`has_exact_elbo`) instead of by sampling.
        temperature: Of relaxed samples; families that need no relaxing do not use it.
        particles: Draws per image.
    """
    particles = particles if exact else enough_particles(model, temperature, particles)
    with torch.enable_grad():
        here = {name: delta.detach().requires_grad_(True) for name, delta in deltas.items()}
        program = Fixed(model, here, 0.0 if exact else temperature)
        bound = exact_elbo(model, program, x) if exact else elbo(model, program, x, particles=particles)
        slopes = torch.autograd.grad(bound.surrogate.sum(), list(here.values()))
    return bound.value.detach(), dict(zip(here, slopes, strict=True))
