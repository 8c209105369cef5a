r"""The per-image log density :math:`\log p(x, z)` of a Pyro program, and the count of how often it was asked for.

Everything but ELBO training goes through :func:`log_joint`; ELBO objectives report to the same :class:`Cost`, so that no method can
under-report what it spent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

__all__ = ["Cost", "count", "counting", "drawn_latents", "latent_sites", "log_joint", "log_sites", "log_terms", "observation",
           "sites", "uncounted"]


@dataclass(eq=False)  # two counts are the same only if they are one
class Cost:
    """Evaluations of the log density (or of an ELBO): one for each image and each draw or chain of it.

    Attributes:
        evaluations: Values that were computed.
        gradients: How many of them were computed with gradients on.
    """

    evaluations: int = 0
    gradients: int = 0


_open: list[Cost] = []


@contextmanager
def counting() -> Iterator[Cost]:
    """Counts the density evaluations made inside the block."""
    cost = Cost()
    _open.append(cost)
    try:
        yield cost
    finally:
        _open.remove(cost)


@contextmanager
def uncounted() -> Iterator[None]:
    """Lets no evaluation inside the block count: whoever opens it counts them."""
    held, _open[:] = list(_open), []
    try:
        yield
    finally:
        _open[:] = held


def count(values: Tensor, gradient: bool | None = None) -> None:
    """Adds per-image values to every open count.

    Arguments:
        gradient: Whether they were computed with a gradient; if None, as the values tell.
    """
    for cost in _open:
        cost.evaluations += values.numel()
        cost.gradients += values.numel() if (values.requires_grad if gradient is None else gradient) else 0


def log_joint(model: Callable, latents: dict[str, Tensor], x: Tensor) -> Tensor:
    """Log joint density of images and latents under a Pyro program.

    Arguments:
        model: ``model(x)`` with the plate ``"data"`` and the observation site ``"x"``.
        latents: Value of every latent site, ``{site: (…, N, *event)}``; dimensions to the left (chains, draws) broadcast.
        x: Images ``(N, *event_shape)``.

    Returns:
        Log densities in nats, ``(…, N)``, differentiable in latents, images and parameters.

    Raises:
        ValueError: if a site is missing, is not a latent of the model, or lies outside the plate ``"data"``.
    """
    prior, likelihood = log_terms(model, latents, x)
    return prior + likelihood


def log_terms(model: Callable, latents: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms of :func:`log_joint`, each ``(…, N)``: log p(z), of the latent sites, and log p(x | z), of the observed ones.

    One evaluation of the density. Raises as :func:`log_joint`.
    """
    terms: list[Tensor | float] = [0.0, 0.0]
    for name, site in log_sites(model, latents, x).items():
        observed = name not in latents  # conditioned latents count as observed, too
        terms[observed] = terms[observed] + site["log_prob"]
    return terms[0], terms[1]


def log_sites(model: Callable, latents: dict[str, Tensor], x: Tensor) -> dict[str, dict]:
    """Pyro's records of all sample sites, given all latents: each with its law ``fn`` and its ``log_prob`` ``(…, N)``.

    One evaluation of the density. Raises as :func:`log_joint`.
    """
    with pyro.validation_enabled(False):
        trace = poutine.trace(poutine.condition(model, data=latents)).get_trace(x)
        trace.compute_log_prob()
    found = {name: site for name, site in trace.nodes.items()
             if site["type"] == "sample" and not poutine.util.site_is_subsample(site)}
    for name, site in found.items():
        if name not in latents and not site["is_observed"]:
            raise ValueError(f"no value was given for the latent {name!r}; given were: {', '.join(latents) or 'none'}")
        if "data" not in {frame.name for frame in site["cond_indep_stack"]}:
            raise ValueError(f"the site {name!r} lies outside the plate 'data', so it has no per-image density")
    unknown = set(latents) - set(found)
    if unknown:
        raise ValueError(f"the model has no latent {', '.join(sorted(unknown))}; its sites are: {', '.join(sorted(found))}")
    count(sum(site["log_prob"] for site in found.values()))
    return found


def observation(model: Callable, latents: dict[str, Tensor], x: Tensor | None, size: int | None = None) -> Distribution:
    """The law of the site ``"x"`` given the latents, batch shape ``(…, N)``: its mean is the reconstruction.

    Arguments:
        x: Images, or None to run the program without them, for ``size`` images.
    """
    options = {} if size is None else {"size": size}
    with pyro.validation_enabled(False):
        trace = poutine.trace(poutine.condition(model, data=latents)).get_trace(x, **options)
    return trace.nodes["x"]["fn"]


def latent_sites(model: Callable, x: Tensor, seed: int | None = None) -> dict[str, dict]:
    """The latent sample sites of ``model(x)`` in order: ``{site: Pyro's record of it}``; the global generator is left alone.

    Arguments:
        seed: Seed of the latents' values; if None they follow the global generator.
    """
    with torch.random.fork_rng(), torch.no_grad():
        if seed is not None:
            torch.manual_seed(seed)
        trace = poutine.trace(model).get_trace(x)
    return sites(trace, observed=False)


@torch.no_grad()
def drawn_latents(program: Callable, x: Tensor, count: int) -> dict[str, Tensor]:
    """``count`` draws of a model's prior, or of a guide, for every image: ``{site: (count, N, *event)}``."""
    draws = [sites(poutine.trace(program).get_trace(x), observed=False) for _ in range(count)]
    return {name: torch.stack([draw[name]["value"] for draw in draws]) for name in draws[0]}


def sites(trace: poutine.Trace, observed: bool) -> dict[str, dict]:
    """The sample sites of a trace that are observed, or those that are not, without the subsampling of plates."""
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample"
            and site["is_observed"] == observed and not poutine.util.site_is_subsample(site)}
