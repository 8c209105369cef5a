"""Draws from a trained guide's posterior: one pass of its encoder, whatever the number of draws."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import Distribution

import guides
from guides.stepwise import settled
from inference.posterior import Posterior
from zoo.density import sites

__all__ = ["amortized", "draw", "flow", "full", "lowrank"]


def amortized(model: Callable, x: Tensor, guide: nn.Module | None, draws: int) -> Posterior:
    """Samples a trained guide at temperature 0.

    Raises:
        ValueError: if there is no guide.
    """
    if guide is None:
        raise ValueError("the method 'amortized' draws from a trained guide: give guide=…")
    return draw(guide, x, draws)


def flow(model: Callable, x: Tensor, guide: nn.Module | None, draws: int) -> Posterior:
    """Samples a trained guide ``"flow"``. Raises ``ValueError`` for another guide, or none."""
    return _draw_from("flow", guide, x, draws)


def full(model: Callable, x: Tensor, guide: nn.Module | None, draws: int) -> Posterior:
    """Samples a trained guide ``"full"``. Raises ``ValueError`` for another guide, or none."""
    return _draw_from("full", guide, x, draws)


def lowrank(model: Callable, x: Tensor, guide: nn.Module | None, draws: int) -> Posterior:
    """Samples a trained guide ``"lowrank"``. Raises ``ValueError`` for another guide, or none."""
    return _draw_from("lowrank", guide, x, draws)


def _draw_from(kind: str, guide: nn.Module | None, x: Tensor, draws: int) -> Posterior:
    if not isinstance(guide, guides.registry[kind]):
        given = "none" if guide is None else getattr(guide, "built_with", {}).get("name", type(guide).__name__)
        raise ValueError(f"the method {kind!r} draws from a trained guide of that kind; given was {given}: "
                         f"give guide=guides.build({kind!r}, model), trained by inference.fit")
    return draw(guide, x, draws)


@torch.no_grad()
def draw(guide: nn.Module, x: Tensor, draws: int) -> Posterior:
    """``draws`` exact samples of a guide for every image, with its parameters where it tells them.

    Unless a posterior is scored from these parameters alone (one latent site, in a model of the zoo), the draws carry their log density;
    those of point masses have none.
    """
    guide = settled(guide, x)
    with pyro.validation_enabled(False), pyro.plate("draws", draws, dim=-2):
        trace = poutine.trace(guide).get_trace(x)
    drawn = sites(trace, observed=False)
    samples = {name: site["value"].unsqueeze(0) for name, site in drawn.items()}
    params = guide.posterior(x) if hasattr(guide, "posterior") else None
    enough = params is not None and len(params) == 1 and hasattr(guide.model, "observation")
    known = not enough and not any(_is_point(site["fn"]) for site in drawn.values())
    return Posterior("amortized", samples, params=params, log_q=_log_q(drawn) if known else None)


def _log_q(drawn: dict[str, dict]) -> Tensor:
    """Log density of all sites together, ``(1, draws, N)``."""
    return sum(site["fn"].log_prob(site["value"]) for site in drawn.values()).unsqueeze(0)


def _is_point(law: Distribution) -> bool:
    while hasattr(law, "base_dist"):
        law = law.base_dist
    return isinstance(law, dist.Delta)
