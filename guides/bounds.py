r"""Evidence lower bounds per image: sampled, in closed form, and importance-weighted.

``elbo``: :math:`E_q[\log p(x|z)] - \beta\,KL(q \| p)`, one traced run of guide and model; the KL in closed form where one is
registered with PyTorch, else :math:`\log q(z) - \log p(z)`. Sites without a reparameterized sampler get the score-function
estimator with a leave-one-out baseline. ``exact``: the expectation itself, for linear decoders. ``iwae``:
:math:`\log \frac1S \sum_s p(x, z_s)/q(z_s)` (Burda et al. 2016), with VIMCO's baselines (Mnih & Rezende 2016) where samples
are not reparameterized.

Programs of the zoo are walked once, guide and model together, and scored from the families' own parameters; any other pair of Pyro
programs is traced and replayed. Both give what Pyro's ``TraceMeanField_ELBO`` gives (tests hold the three together), which
scores every latent under prior and posterior even where the closed form makes that useless.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from zoo.density import count, sites
from zoo.frozen import frozen
from zoo.latents.base import Family

__all__ = ["Bound", "OBJECTIVES", "elbo", "exact_elbo", "iwae", "over_steps"]


@dataclass(frozen=True)
class Bound:
    """A lower bound on log p(x) in nats, for each image.

    Attributes:
        value: The bound ``(N,)``; differentiate :attr:`surrogate` instead where samples are not reparameterized.
        log_likelihood: Its expected log-likelihood ``(N,)``; None for the importance-weighted bound, which has no such part.
        kl: Its KL divergence ``(N,)``, not multiplied by β; None likewise.
        surrogate: What gradient steps ascend ``(N,)``.
    """

    value: Tensor
    log_likelihood: Tensor | None
    kl: Tensor | None
    surrogate: Tensor


def elbo(model: Callable, guide: Callable, x: Tensor, *, beta: float = 1.0, particles: int = 1) -> Bound:
    """The sampled ELBO of every image, averaged over ``particles`` draws.

    Arguments:
        model: A Pyro program ``model(x)``.
        guide: A Pyro program ``guide(x)`` over its latents.
        x: Images ``(N, *event_shape)``.
        beta: Weight of the KL divergence.
        particles: Draws per image.

    Raises:
        ValueError: if guide and model disagree about their latent sites.
    """
    if particles < 1:
        raise ValueError(f"particles must be at least 1, not {particles}")
    parts = _walk if hasattr(guide, "delta") and hasattr(model, "observation") else _trace
    log_likelihood, kl, log_q_score = parts(model, guide, x, particles)
    bound = log_likelihood - beta * kl
    kl = kl.expand_as(bound)
    surrogate = bound
    if log_q_score is not None:
        surrogate = bound + log_q_score * (bound.detach() - _leave_one_out(bound.detach()))
    count(bound)
    if particles > 1:
        bound, log_likelihood, kl, surrogate = (part.mean(0) for part in (bound, log_likelihood, kl, surrogate))
    return Bound(bound, log_likelihood, kl, surrogate)


def exact_elbo(model: Callable, guide: Callable, x: Tensor, *, beta: float = 1.0, particles: int = 1) -> Bound:
    """The ELBO without sampling: closed-form expected log-likelihood (linear decoders) and KL. ``particles`` is ignored.

    Raises:
        ValueError: if the decoder is not linear, or a KL divergence has no closed form.
    """
    if not hasattr(model, "expected_log_prob"):
        raise ValueError("the objective 'exact' needs a model with a closed-form reconstruction; use 'elbo'")
    deltas, params = guide.delta(x), {}

    def keep(name: str, family: Family, prior: Tensor) -> Tensor:
        params[name] = family.posterior(prior, deltas[name])
        return params[name]  # of no use: where the reconstruction has a closed form, no latent is below another

    model.descend(keep)
    log_likelihood, kl = model.expected_log_prob(x, params), exact_kl(model, params)
    bound = log_likelihood - beta * kl
    count(bound)
    return Bound(bound, log_likelihood, kl, bound)


def exact_kl(model: Callable, params: dict[str, Tensor]) -> Tensor:
    """Closed-form KL divergence from the model's prior of posteriors with parameters ``{site: (N, P, K)}``, ``(N,)``.

    For models whose prior does not depend on other latents.

    Raises:
        ValueError: if a family has no closed-form KL divergence.
    """
    divergences = []

    def add(name: str, family: Family, prior: Tensor) -> Tensor:
        unit_kl = family.unit_kl(params[name], prior)
        if unit_kl is None:
            raise ValueError(f"the family of {name!r} has no closed-form KL divergence; use the objective 'elbo'")
        divergences.append(unit_kl.sum(-1))
        return params[name]

    model.descend(add)
    return sum(divergences)


def iwae(model: Callable, guide: Callable, x: Tensor, *, beta: float = 1.0, particles: int = 8) -> Bound:
    """The importance-weighted bound of ``particles`` exact draws. ``beta`` must be 1: the bound has no KL term to weigh.

    Raises:
        ValueError: for another ``beta``, or fewer than 2 particles for latents without reparameterized samples.
    """
    if beta != 1.0:
        raise ValueError(f"the importance-weighted bound has no KL term to weigh by beta = {beta}; use beta = 1")
    if particles < 1:
        raise ValueError(f"particles must be at least 1, not {particles}")
    q_sites, p_sites, log_likelihood = _run(model, guide, x, particles)
    log_weight, log_q_score = log_likelihood, None
    for name, q_site in q_sites.items():
        q, p, z = q_site["fn"], p_sites[name]["fn"], q_site["value"]
        log_q = q.log_prob(z)
        log_weight = log_weight + p.log_prob(z) - log_q
        if not q.has_rsample:
            log_q_score = log_q if log_q_score is None else log_q_score + log_q
    if log_weight.dim() == 1:
        log_weight = log_weight.unsqueeze(0)
    bound = log_mean_exp(log_weight)
    surrogate = bound
    if log_q_score is not None:
        if particles < 2:
            raise ValueError("the objective 'iwae' needs at least 2 particles for latents that are not reparameterized")
        surrogate = bound + (log_q_score * _vimco_signal(log_weight.detach())).sum(0)
    count(log_weight)
    return Bound(bound, None, None, surrogate)


OBJECTIVES: dict[str, Callable[..., Bound]] = {"elbo": elbo, "exact": exact_elbo, "iwae": iwae}


def over_steps(bound_of: Callable[..., Bound]) -> Callable[..., Bound]:
    """The mean of a bound over the steps of a guide that infers in steps, its start left out (Marino, Yue & Mandt 2018).

    The guide learns from every step. The model learns from the last one alone: earlier posteriors are on their way, and a model should not
    adapt to them.
    """

    def averaged(model: nn.Module, guide: nn.Module, x: Tensor, **options: object) -> Bound:
        bounds, last = [], guide.steps
        for step, deltas in enumerate(guide.path(x)):
            if step > 0:
                with nullcontext() if step == last else frozen(model):
                    bounds.append(bound_of(model, guide.at(deltas), x, **options))
        parts = {name: [getattr(bound, name) for bound in bounds] for name in ("value", "log_likelihood", "kl", "surrogate")}
        return Bound(**{name: None if part[0] is None else sum(part) / last for name, part in parts.items()})

    return averaged


def log_mean_exp(log_weight: Tensor) -> Tensor:
    """Log of the mean weight over dimension 0."""
    return log_weight.logsumexp(0) - torch.log(torch.tensor(float(len(log_weight)), dtype=log_weight.dtype))


def _walk(model: Callable, guide: Callable, x: Tensor, particles: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log p(x | z), KL and log q of the sites that are not reparameterized, in one walk of a zoo model with its guide."""
    deltas = guide.delta(x)
    divergences, scores = [], []

    def draw(name: str, family: Family, prior: Tensor) -> Tensor:
        params = family.posterior(prior, deltas[name])
        q = guide.distribution(family, params)
        shape = (particles,) if particles > 1 and q.batch_shape[: -1] == () else ()
        z = q.rsample(shape) if q.has_rsample else q.sample(shape)
        unit_kl = family.unit_kl(params, prior)
        divergences.append(unit_kl.sum(-1) if unit_kl is not None else q.log_prob(z) - family.distribution(prior).log_prob(z))
        if not q.has_rsample:
            scores.append(q.log_prob(z))
        return z

    with pyro.validation_enabled(False):
        latents = model.descend(draw, x)
        log_likelihood = model.observation(model.decode(latents)).log_prob(x)
    return log_likelihood, sum(divergences), sum(scores) if scores else None


def _trace(model: Callable, guide: Callable, x: Tensor, particles: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same from the traces of any two Pyro programs."""
    q_sites, p_sites, log_likelihood = _run(model, guide, x, particles)
    # The closed form is only right while each q depends on no latent drawn after it: a guide that walks in the model's order.
    same_order = list(q_sites) == [name for name in p_sites if name in q_sites]
    divergences, scores = [], []
    for name, q_site in q_sites.items():
        q, p, z = q_site["fn"], p_sites[name]["fn"], q_site["value"]
        divergence = _closed_form(q, p) if same_order else None
        divergences.append(q.log_prob(z) - p.log_prob(z) if divergence is None else divergence)
        if not q.has_rsample:
            scores.append(q.log_prob(z))
    return log_likelihood, sum(divergences), sum(scores) if scores else None


def _run(model: Callable, guide: Callable, x: Tensor, particles: int) -> tuple[dict, dict, Tensor]:
    """Traces the guide and the model replayed on it: latent sites of both, and log p(x | z), ``(N,)`` or ``(particles, N)``."""
    if particles > 1:
        model, guide = _in_plate(model, particles), _in_plate(guide, particles)
    with pyro.validation_enabled(False):
        q_trace = poutine.trace(guide).get_trace(x)
        p_trace = poutine.trace(poutine.replay(model, trace=q_trace)).get_trace(x)
    q_sites = sites(q_trace, observed=False)
    p_sites = sites(p_trace, observed=False)
    if set(q_sites) != set(p_sites):
        raise ValueError(f"the guide draws {', '.join(q_sites) or 'nothing'}, the model has {', '.join(p_sites) or 'no latents'}")
    log_likelihood = sum(site["fn"].log_prob(site["value"]) for site in sites(p_trace, observed=True).values())
    return q_sites, p_sites, log_likelihood


def _in_plate(program: Callable, particles: int) -> Callable:
    def run(x: Tensor) -> object:
        with pyro.plate("particles", particles, dim=-2):
            return program(x)

    return run


def _closed_form(q: Distribution, p: Distribution) -> Tensor | None:
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def _leave_one_out(bound: Tensor) -> Tensor:
    """Mean of the other particles of the same image; with one particle, of the other images: either way independent of the draw."""
    others = bound.shape[0] - 1
    if others == 0:
        return torch.zeros_like(bound)
    return (bound.sum(0, keepdim=True) - bound) / others


def _vimco_signal(log_weight: Tensor) -> Tensor:
    """The bound minus the bound with each particle's weight replaced by the geometric mean of the others, ``(particles, N)``."""
    particles = len(log_weight)
    others = (log_weight.sum(0, keepdim=True) - log_weight) / (particles - 1)
    replaced = torch.where(torch.eye(particles, dtype=torch.bool, device=log_weight.device).unsqueeze(-1),
                           others.unsqueeze(1), log_weight.unsqueeze(0))
    return log_mean_exp(log_weight) - log_mean_exp(replaced.transpose(0, 1))
