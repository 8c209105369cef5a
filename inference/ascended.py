"""What a training run ascends: an objective of a guide by its name, or that of Monte Carlo EM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor, nn

from guides.bounds import OBJECTIVES, WITHOUT_KL, Bound, over_steps
from inference.batches import Batches
from inference.expectation_maximization import MonteCarloEM
from zoo.data.base import images_of

__all__ = ["METHODS", "Ascended", "ascended", "means", "of_name"]

METHODS = ("variational", "mcmc")


@dataclass(frozen=True)
class Ascended:
    """What a step asks, and what it asks it of.

    Attributes:
        bound_of: The objective, ``bound_of(model, guide, batch, beta=…, particles=…)``.
        guide: The guide, or what stands in its place.
        batches: Images by step, or what the objective takes for them.
        particles: Draws, or chains, per image.
        exact: Whether draws are exact whatever the temperature, and there is no KL term to weigh.
    """

    bound_of: Callable[..., Bound]
    guide: nn.Module
    batches: Batches
    particles: int
    exact: bool


def ascended(method: str, objective: str, model: nn.Module, guide: nn.Module | None, data: object, batches: Batches, *,
             particles: int | None, freeze_model: bool, **em: object) -> Ascended:
    """Looks up what the method and the objective stand for, and checks that they fit each other.

    Arguments:
        method, objective, model, guide, data, particles, freeze_model: As of :func:`inference.fit`.
        batches: Minibatches of the data.
        em: Of :class:`~inference.expectation_maximization.MonteCarloEM`.

    Raises:
        ValueError: for unknown names, a missing guide, or what does not fit.
    """
    bound_of = of_name("objective", objective, OBJECTIVES)
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known are: {', '.join(METHODS)}")
    if method == "mcmc":
        if objective != "elbo" or batches.per_epoch is None:
            raise ValueError("the method 'mcmc' keeps chains of stored images, and has an objective of its own: give neither another "
                             "objective nor a stream, of which no image comes up twice")
        chains = 1 if particles is None else particles
        learner = MonteCarloEM(model, guide, images_of(data).to(batches.device), chains=chains, **em)
        return Ascended(learner.bound, learner, learner.batches, chains, exact=True)
    if guide is None:
        raise ValueError("there is no guide: build one (guides.build), or train with method='mcmc', which needs none")
    if objective == "sleep" and not freeze_model:
        raise ValueError("the objective 'sleep' teaches the guide alone: fit with freeze_model=True, or use 'rws_sleep' or 'rws'")
    particles = _own_particles(bound_of) if particles is None else particles
    return Ascended(over_steps(bound_of) if hasattr(guide, "path") else bound_of, guide, batches, particles, objective in WITHOUT_KL)


def of_name(kind: str, name: str, known: dict[str, Callable]) -> Callable:
    """What is known by a name.

    Raises:
        ValueError: for an unknown one; says which are known.
    """
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; known are: {', '.join(known)}")
    return known[name]


def means(bound: Bound) -> dict[str, Tensor]:
    """Means over images: of the bound (with the KL at full weight), of the KL, and of what else the bound tells."""
    if bound.kl is None:
        value = bound.value.detach().mean()
        every = {"elbo": value, "kl": torch.full_like(value, torch.nan)}
    else:
        kl = bound.kl.detach().mean()
        every = {"elbo": bound.log_likelihood.detach().mean() - kl, "kl": kl}
    return every | (bound.told or {})


def _own_particles(bound_of: Callable) -> int:
    """The objective's own number of draws, where it says one."""
    parameter = signature(bound_of).parameters.get("particles")
    return parameter.default if parameter is not None and isinstance(parameter.default, int) else 1
