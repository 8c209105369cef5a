r"""What an objective gives, and the runs of a guide and a model that objectives are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution

from zoo.density import sites
from zoo.latents.base import Family

__all__ = ["Bound", "CutRun", "cut_guide", "exact_draws", "log_mean_exp", "replayed", "run", "walk", "without_kl"]


@dataclass(frozen=True)
class Bound:
    """A lower bound on log p(x) in nats, for each image.

    Attributes:
        value: The bound ``(N,)``; differentiate :attr:`surrogate` instead where samples are not reparameterized.
        log_likelihood: Its expected log-likelihood ``(N,)``; None for the importance-weighted bound, which has no such part.
        kl: Its KL divergence ``(N,)``, not multiplied by β; None likewise.
        surrogate: What gradient steps ascend ``(N,)``.
        told: Further numbers for the history, ``{name: scalar}``, or None.
    """

    value: Tensor
    log_likelihood: Tensor | None
    kl: Tensor | None
    surrogate: Tensor
    told: dict[str, Tensor] | None = None


def walk(model: Callable, guide: Callable, x: Tensor, particles: int) -> tuple[Distribution, list[Tensor], list[Tensor]]:
    """One walk of a zoo model together with its guide: the likelihood at the draws, batch shape ``(N,)`` or ``(particles, N)``, the KL
    divergence of each latent, in closed form where there is one, and log q of the latents that are not reparameterized."""
    conditional = guide.conditionals(x)
    divergences, scores = [], []

    def draw(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
        params = conditional(name, family, prior, above)
        q = guide.distribution(family, params)
        shape = (particles,) if particles > 1 and q.batch_shape[: -1] == () else ()
        z = q.rsample(shape) if q.has_rsample else q.sample(shape)
        unit_kl = family.unit_kl(params, prior)
        divergences.append(unit_kl.sum(-1) if unit_kl is not None else q.log_prob(z) - family.distribution(prior).log_prob(z))
        if not q.has_rsample:
            scores.append(q.log_prob(z))
        return z

    with pyro.validation_enabled(False):
        return model.observation(model.decode(model.descend(draw, x))), divergences, scores


def run(model: Callable, guide: Callable, x: Tensor, particles: int) -> tuple[dict, dict, Tensor]:
    """Traces the guide and the model replayed on it: latent sites of both, and log p(x | z), ``(N,)`` or ``(particles, N)``.

    Raises:
        ValueError: if guide and model disagree about their latent sites.
    """
    with pyro.validation_enabled(False):
        q_trace = poutine.trace(in_plate(guide, particles)).get_trace(x)
    return sites(q_trace, observed=False), *replayed(model, q_trace, x, particles)


def replayed(model: Callable, q_trace: poutine.Trace, x: Tensor, particles: int) -> tuple[dict, Tensor]:
    """The model's latent sites at the values of a guide's trace, and log p(x | z) there, ``(N,)`` or ``(particles, N)``.

    Raises:
        ValueError: if guide and model disagree about their latent sites.
    """
    with pyro.validation_enabled(False):
        p_trace = poutine.trace(poutine.replay(in_plate(model, particles), trace=q_trace)).get_trace(x)
    q_sites = sites(q_trace, observed=False)
    p_sites = sites(p_trace, observed=False)
    if set(q_sites) != set(p_sites):
        raise ValueError(f"the guide draws {', '.join(q_sites) or 'nothing'}, the model has {', '.join(p_sites) or 'no latents'}")
    return p_sites, sum(site["fn"].log_prob(site["value"]) for site in sites(p_trace, observed=True).values())


def in_plate(program: Callable, particles: int) -> Callable:
    """The program in a plate of particles to the left of its images; itself for one particle."""
    if particles == 1:
        return program

    def run(x: Tensor) -> object:
        with pyro.plate("particles", particles, dim=-2):
            return program(x)

    return run


@dataclass(frozen=True)
class CutRun:
    """A guide's run whose draws were cut out of the graph, so that no gradient passes through them.

    Attributes:
        trace: Pyro's trace; the values in it are the cut ones.
        drawn: What was drawn, still in the graph, ``{site: (…, N, *event)}`` in the guide's order. What is drawn later depends on the cut
            values of what was drawn before.
        cut: The same values as leaves of the graph.
    """

    trace: poutine.Trace
    drawn: dict[str, Tensor]
    cut: dict[str, Tensor]

    @property
    def laws(self) -> dict[str, torch.distributions.Distribution]:
        """The law of each latent, given those before it."""
        return {name: site["fn"] for name, site in sites(self.trace, observed=False).items()}

    def log_prob(self) -> Tensor:
        """Log q(z) at the cut values, ``(N,)`` or ``(particles, N)``."""
        return sum(law.log_prob(self.cut[name]) for name, law in self.laws.items())


def cut_guide(guide: Callable, x: Tensor, particles: int, *, leaves: bool) -> CutRun:
    """Runs a guide with exact draws, each cut out of the graph as soon as it is made.

    Arguments:
        leaves: Whether gradients with respect to the cut values will be asked for.
    """
    with exact_draws(guide), pyro.validation_enabled(False), _Cut(leaves) as cut:
        trace = poutine.trace(in_plate(guide, particles)).get_trace(x)
    return CutRun(trace, cut.drawn, cut.cut)


class _Cut(Messenger):
    """Puts a leaf in the place of each latent's value, before handlers inside it see it."""

    def __init__(self, leaves: bool) -> None:
        super().__init__()
        self.leaves, self.drawn, self.cut = leaves, {}, {}

    def _pyro_post_sample(self, message: dict) -> None:
        if not (message["is_observed"] or poutine.util.site_is_subsample(message)):
            name, value = message["name"], message["value"]
            self.drawn[name], self.cut[name] = value, value.detach().requires_grad_(self.leaves)
            message["value"] = self.cut[name]


@contextmanager
def exact_draws(guide: Callable) -> Iterator[None]:
    """Lets a guide draw exact samples inside the block, whatever its temperature: importance weights need exact densities."""
    held = getattr(guide, "temperature", 0.0)
    try:
        if held:
            guide.temperature = 0.0
        yield
    finally:
        if held:
            guide.temperature = held


def log_mean_exp(log_weight: Tensor) -> Tensor:
    """Log of the mean weight over dimension 0."""
    return log_weight.logsumexp(0) - torch.log(torch.tensor(float(len(log_weight)), dtype=log_weight.dtype))


def without_kl(what: str, beta: float, particles: int, least: int = 1) -> None:
    """Checks the options of what has no KL term.

    Raises:
        ValueError: for a ``beta`` other than 1, or fewer than ``least`` particles.
    """
    if beta != 1.0:
        raise ValueError(f"{what} has no KL term to weigh by beta = {beta}; use beta = 1")
    if particles < 1:
        raise ValueError(f"particles must be at least 1, not {particles}")
    if particles < least:
        raise ValueError(f"{what} needs at least {least} particles, not {particles}")
