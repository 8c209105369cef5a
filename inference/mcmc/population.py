r"""Sequential Monte Carlo: a population of particles for every image, led from the prior to the posterior through all of its modes.

A step raises the power β of the likelihood as far as the weights of the particles, :math:`p(x \mid z)^{\Delta\beta}`, keep half of their
effective number, draws particles anew by these weights, and moves them by a sampler for :math:`p(z)\, p(x \mid z)^\beta` (Del Moral,
Doucet & Jasra 2006). Every image has its own temperatures. Where a chain stays in the mode that it fell into, particles share the modes out
by their mass, which makes them the place to start chains from. Temperatures, step sizes and metric are adapted to the particles themselves:
what comes out is right in the limit of many particles (Beskos et al. 2016), but not unbiased, as :func:`~inference.mcmc.annealing.ais` is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.mcmc.annealed_moves import annealed_blocks, move_all
from inference.mcmc.traced import traced
from inference.resampling import resample
from zoo.density import count, drawn_latents, log_terms, uncounted

__all__ = ["Population", "population"]

AT_ONCE = 1 << 13  # particles of a block of images
MOST = 1000  # temperatures, after which an image is given up
HALVINGS = 40  # of the interval in which the next temperature lies


@dataclass(frozen=True)
class Population:
    """Particles of the posterior of each image.

    Attributes:
        values: ``{site: (P, N, *event)}``, equally weighted.
        log_evidence: An estimate of log p(x), ``(N,)``, nats; consistent in the number of particles, with few of them somewhat low.
        temperatures: Steps that each image took, ``(N,)``.
    """

    values: dict[str, Tensor]
    log_evidence: Tensor
    temperatures: Tensor


def population(model: Callable, x: Tensor, particles: int = 64, *, moves: int = 4, share: float = 0.5) -> Population:
    """Leads particles from a program's prior to the posterior of every image.

    Arguments:
        model: A Pyro program.
        x: Images ``(N, *event_shape)``.
        particles: For each image, P.
        moves: Of each particle at each temperature.
        share: Of the effective number of particles that is kept when the temperature is changed.

    Raises:
        ValueError: for settings out of range, latents that no sampler moves, or if no particle of an image has a finite likelihood, or a
            thousand temperatures do not lead to its posterior (names the image).
    """
    if particles < 2 or moves < 1 or not 0.0 < share < 1.0:
        raise ValueError(f"there must be at least 2 particles and 1 move, and share between 0 and 1; got {particles}, {moves}, {share}")
    parts = [_led(model, part, particles, moves, share) for part in x.split(max(AT_ONCE // particles, 1))]
    values = {name: torch.cat([part.values[name] for part in parts], 1) for name in parts[0].values}
    return Population(values, *(torch.cat([getattr(part, name) for part in parts]) for name in ("log_evidence", "temperatures")))


@torch.no_grad()
def _led(model: Callable, x: Tensor, particles: int, moves: int, share: float) -> Population:
    values = drawn_latents(model, x, particles)
    blocks = annealed_blocks(model, None, x, values)
    names = tuple(values)
    likelihood = traced(lambda *latents: (log_terms(model, dict(zip(names, latents, strict=True)), x)[1],))
    beta, log_evidence, taken = (torch.zeros(len(x), dtype=torch.float64, device=x.device) for _ in range(3))
    steps: list[Tensor] = []
    for _ in range(MOST):
        with uncounted():
            fit, = likelihood(*values.values())
        count(fit, gradient=False)
        fit = torch.where(fit.isnan(), -torch.inf, fit.double()).expand(particles, len(x))
        _check(fit)
        rise = _rise(fit, 1.0 - beta, share)
        log_weights = rise * fit.clamp(min=-1e300)
        log_evidence += log_weights.logsumexp(0) - math.log(particles)
        values = _resampled(values, log_weights)
        taken += beta < 1.0
        beta = torch.where(rise >= 1.0 - beta, 1.0, beta + rise)
        for block in blocks:
            block.rescale(values)
        steps = steps or [block.first_step(values, beta) for block in blocks]
        for _ in range(moves):
            values, steps = move_all(blocks, values, beta, steps)
        if (beta == 1.0).all():
            return Population(values, log_evidence, taken)
    raise ValueError(f"image {int((beta < 1.0).nonzero()[0])} did not reach its posterior within {MOST} temperatures")


def _rise(fit: Tensor, most: Tensor, share: float) -> Tensor:
    """How far β may rise, ``(N,)``, at most by ``most``, for weights ``exp(rise · fit)`` of an effective number of ``share`` times the
    particles that have a likelihood at all."""
    wanted, fit = share * fit.isfinite().sum(0), fit - fit.amax(0)

    def enough(rise: Tensor) -> Tensor:
        weights = (rise * fit.clamp(min=-1e300)).exp()
        return weights.sum(0).square() >= wanted * weights.square().sum(0)

    low, high = torch.zeros_like(most), most.clone()
    for _ in range(HALVINGS):  # on a log scale at first: likelihoods of the prior's draws may differ by millions of nats
        middle = torch.where(low > 0, 0.5 * (low + high), 1e-2 * high)
        fine = enough(middle)
        low, high = torch.where(fine, middle, low), torch.where(fine, high, middle)
    return torch.where(enough(most), most, low)


def _resampled(values: dict[str, Tensor], log_weights: Tensor) -> dict[str, Tensor]:
    """Particles drawn by log weights ``(P, N)``: each at least as often as the whole part of what it is due."""
    chosen = resample(log_weights, seed=None)
    return {name: value.gather(0, chosen.reshape(*chosen.shape, *[1] * (value.dim() - 2)).expand_as(value))
            for name, value in values.items()}


def _check(fit: Tensor) -> None:
    lost, without_end = fit.isneginf().all(0), fit.isposinf().any(0)
    if without_end.any():
        raise ValueError(f"a particle of image {int(without_end.nonzero()[0])} has a likelihood that is infinite")
    if lost.any():
        raise ValueError(f"no particle of image {int(lost.nonzero()[0])} ({int(lost.sum())} of {len(lost)} images) has a finite likelihood")
