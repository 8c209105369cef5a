"""What a training run ascends: an objective of a guide by its name, or that of Monte Carlo EM; and what holds its weights in check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature

import torch
from torch import Tensor, nn

from guides.bounds import OBJECTIVES, WITHOUT_KL, Bound, over_steps
from inference.batches import Batches
from inference.expectation_maximization import MonteCarloEM
from inference.map_learning import MapEM
from zoo.data.base import images_of
from zoo.networks.blocks import Conv, Expander

__all__ = ["METHODS", "Ascended", "ascended", "lognorms", "means", "of_name"]

METHODS = ("variational", "mcmc", "map")


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
             particles: int | None, freeze_model: bool, run: dict[str, object], chains: dict[str, object],
             dynamics: dict[str, object], **em: object) -> Ascended:
    """Looks up what the method and the objective stand for, and checks that they fit each other.

    Arguments:
        method, objective, model, guide, data, particles, freeze_model: As of :func:`inference.fit`.
        batches: Minibatches of the data.
        run: What an objective may want to know of the whole run: it is given those of these that it has a parameter for.
        chains: Of :class:`~inference.expectation_maximization.MonteCarloEM` alone.
        dynamics: Of :class:`~inference.map_learning.MapEM` alone.
        em: Of both.

    Raises:
        ValueError: for unknown names, a missing guide, or what does not fit.
    """
    bound_of = of_name("objective", objective, OBJECTIVES)
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known are: {', '.join(METHODS)}")
    if dynamics and method != "map":
        raise ValueError(f"{', '.join(dynamics)}: of the method 'map' alone, which infers by dynamics of the latents")
    if method in ("mcmc", "map"):
        if objective != "elbo" or batches.per_epoch is None:
            raise ValueError(f"the method {method!r} learns from stored images, and has an objective of its own: give neither another "
                             "objective nor a stream, of which no image comes up twice")
        x = images_of(data).to(batches.device)
        if method == "map":
            known = [name for name in signature(MapEM).parameters if name not in ("model", "guide", "x", "batch_size", "seed")]
            unknown = [name for name in dynamics if name not in known]
            if unknown or particles is not None:
                raise ValueError(f"the method 'map' has no {', '.join(unknown) or 'particles'}; its dynamics accept: {', '.join(known)}")
            learner = MapEM(model, guide, x, **dynamics, **em)
            return Ascended(learner.bound, learner, learner.batches, 1, exact=True)
        particles = 1 if particles is None else particles
        learner = MonteCarloEM(model, guide, x, chains=particles, **chains, **em)
        return Ascended(learner.bound, learner, learner.batches, particles, exact=True)
    if guide is None:
        raise ValueError("there is no guide: build one (guides.build), or train with method='mcmc' or 'map', which need none")
    if objective == "sleep" and not freeze_model:
        raise ValueError("the objective 'sleep' teaches the guide alone: fit with freeze_model=True, or use 'rws_sleep' or 'rws'")
    particles = _own_particles(bound_of) if particles is None else particles
    wanted = {name: value for name, value in run.items() if name in signature(bound_of).parameters}
    bound_of = partial(bound_of, **wanted) if wanted else bound_of
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


def lognorms(*modules: nn.Module) -> list[Tensor]:
    """Log-lengths of the filters of all weight-normalized convolutions that learn, each ``(channels,)``.

    Raises:
        ValueError: if there are none.
    """
    found = [part.lognorm for module in modules for part in module.modules() if isinstance(part, Conv | Expander)]
    found = [lognorm for lognorm in found if lognorm.requires_grad]
    if not found:
        raise ValueError("norm_penalty is of weight-normalized convolutions, and none that learns is here; use 0")
    return found


def _own_particles(bound_of: Callable) -> int:
    """The objective's own number of draws, where it says one."""
    parameter = signature(bound_of).parameters.get("particles")
    return parameter.default if parameter is not None and isinstance(parameter.default, int) else 1
