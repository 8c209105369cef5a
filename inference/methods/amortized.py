"""Draws from a trained guide's posterior: one pass of its encoder, whatever the number of draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

import guides
from guides.base import center, innermost
from guides.lesioned import Lesioned
from guides.stepwise import settled
from inference.posterior import Posterior
from zoo.density import sites

__all__ = ["Means", "amortized", "draw", "flow", "full", "lowrank", "means"]

PROPAGATED = ("draws", "means")


class Means(Posterior):
    """Posterior means in the place of draws: one chain of one "draw", which is no sample.

    Means of counts and one-hots are not counts and one-hots, and what is decoded from a mean is not a mean of what is decoded. Scores
    that are expectations over draws, all bounds among them, are NaN (:func:`inference.metrics.scores.score`).
    """


def amortized(model: Callable, x: Tensor, guide: nn.Module | None, draws: int, *, propagate: str = "draws",
              lesions: Mapping[str, str] | None = None) -> Posterior:
    """Samples a trained guide at temperature 0, or follows its means.

    Arguments:
        propagate: What is passed down to the latents below: ``"draws"``, or ``"means"`` for each latent's posterior mean given the means
            above, the representation that is read out of a hierarchy (Vafaii, Yates & Butts 2023). The result is :class:`Means` then, with
            one "draw" whatever ``draws`` says.
        lesions: ``{site: "bottom_up", "top_down" or "group"}``: what some latents do not hear, or that they say nothing
            (:class:`~guides.lesioned.Lesioned`).

    Raises:
        ValueError: if there is no guide, or for an unknown way of propagating, site or lesion.
    """
    if guide is None:
        raise ValueError("the method 'amortized' draws from a trained guide: give guide=…")
    if propagate not in PROPAGATED:
        raise ValueError(f"propagate must be {' or '.join(map(repr, PROPAGATED))}, not {propagate!r}")
    guide = Lesioned(guide, lesions) if lesions else guide
    return means(guide, x) if propagate == "means" else draw(guide, x, draws)


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
    params = _params(guide, x)
    enough = params is not None and len(params) == 1 and hasattr(guide.model, "observation")
    known = not enough and not any(isinstance(innermost(site["fn"]), dist.Delta) for site in drawn.values())
    return Posterior("amortized", samples, params=params, log_q=_log_q(drawn) if known else None)


@torch.no_grad()
def means(guide: nn.Module, x: Tensor) -> Means:
    """The mean of every latent's law under a guide, given the means of the latents above; with its parameters where it tells them.

    A law that tells no mean (a flow) gives the point that its base's mean is carried to: in one dimension its median.

    Raises:
        ValueError: if a law has neither.
    """
    guide = settled(guide, x)
    with pyro.validation_enabled(False), _MeansForDraws():
        trace = poutine.trace(guide).get_trace(x)
    samples = {name: site["value"][None, None] for name, site in sites(trace, observed=False).items()}
    return Means("amortized", samples, params=_params(guide, x))


class _MeansForDraws(Messenger):
    """Answers every latent sample site with the mean of its law."""

    def _pyro_sample(self, message: dict) -> None:
        if message["is_observed"] or poutine.util.site_is_subsample(message):
            return
        try:
            message["value"] = center(message["fn"])
        except (AttributeError, NotImplementedError):
            raise ValueError(f"the law of {message['name']!r}, {type(message['fn']).__name__}, tells no mean") from None
        message["done"] = True


def _params(guide: nn.Module, x: Tensor) -> dict[str, Tensor] | None:
    return (guide.posterior(x) or None) if hasattr(guide, "posterior") else None


def _log_q(drawn: dict[str, dict]) -> Tensor:
    """Log density of all sites together, ``(1, draws, N)``."""
    return sum(site["fn"].log_prob(site["value"]) for site in drawn.values()).unsqueeze(0)
