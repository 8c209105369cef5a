r"""Evidence lower bounds per image, sampled and in closed form; and every objective of training by its name.

``elbo``: :math:`E_q[\log p(x|z)] - \beta\,KL(q \| p)`, one traced run of guide and model; the KL in closed form where one is
registered with PyTorch, else :math:`\log q(z) - \log p(z)`. Sites without a reparameterized sampler get the score-function
estimator with a leave-one-out baseline. ``exact``: the expectation itself, for linear decoders. ``iwae`` and ``dreg``: the
importance-weighted bound (:mod:`guides.objectives.importance`). ``rws``, ``rws_sleep`` and ``sleep``: reweighted wake–sleep
(:mod:`guides.objectives.wake_sleep`).

Programs of the zoo are walked once, guide and model together, and scored from the families' own parameters; any other pair of Pyro
programs is traced and replayed. Both give what Pyro's ``TraceMeanField_ELBO`` gives (tests hold the three together), which
scores every latent under prior and posterior even where the closed form makes that useless.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from guides.objectives.base import Bound, run, walk
from guides.objectives.importance import dreg, iwae
from guides.objectives.online import online, online_exact
from guides.objectives.relative import relative
from guides.objectives.wake_sleep import rws, rws_sleep, sleep
from zoo.density import count
from zoo.frozen import frozen
from zoo.latents.base import Family

__all__ = ["Bound", "OBJECTIVES", "WITHOUT_KL", "dreg", "elbo", "exact_elbo", "exact_kl", "iwae", "over_steps", "rws", "rws_sleep", "sleep"]


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
    parts = _walk if hasattr(guide, "conditionals") and hasattr(model, "observation") else _trace
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
    conditional, params = guide.conditionals(x), {}

    def keep(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
        params[name] = conditional(name, family, prior, above)
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

    def add(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
        unit_kl = family.unit_kl(params[name], prior)
        if unit_kl is None:
            raise ValueError(f"the family of {name!r} has no closed-form KL divergence; use the objective 'elbo'")
        divergences.append(unit_kl.sum(-1))
        return params[name]

    model.descend(add)
    return sum(divergences)


OBJECTIVES: dict[str, Callable[..., Bound]] = {
    "elbo": elbo, "exact": exact_elbo, "iwae": iwae, "dreg": dreg, "rws": rws, "rws_sleep": rws_sleep, "sleep": sleep,
    "online": online, "online_exact": online_exact, "relative": relative}
# Those without a KL term, for which beta must be 1; their weights need exact draws.
WITHOUT_KL = frozenset({"iwae", "dreg", "rws", "rws_sleep", "sleep"})


def over_steps(bound_of: Callable[..., Bound]) -> Callable[..., Bound]:
    """The mean of a bound over the steps that a guide is trained by, as it says (:attr:`~guides.stepwise.Stepwise.scored`).

    The guide learns from every step. The model learns from the last one alone: earlier posteriors are on their way, and a model should not
    adapt to them.
    """

    if getattr(bound_of, "over_path", False):  # walks the steps itself
        return bound_of

    def averaged(model: nn.Module, guide: nn.Module, x: Tensor, **options: object) -> Bound:
        bounds, scored, last = [], set(guide.scored), guide.steps
        for step, deltas in enumerate(guide.path(x)):
            if step in scored:
                with nullcontext() if step == last else frozen(model):
                    bounds.append(bound_of(model, guide.at(deltas), x, **options))
        parts = {name: [getattr(bound, name) for bound in bounds] for name in ("value", "log_likelihood", "kl", "surrogate")}
        return Bound(**{name: None if part[0] is None else sum(part) / len(part) for name, part in parts.items()})

    return averaged


def _walk(model: Callable, guide: Callable, x: Tensor, particles: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log p(x | z), KL and log q of the sites that are not reparameterized, in one walk of a zoo model with its guide."""
    observation, divergences, scores = walk(model, guide, x, particles)
    return observation.log_prob(x), sum(divergences), sum(scores) if scores else None


def _trace(model: Callable, guide: Callable, x: Tensor, particles: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same from the traces of any two Pyro programs."""
    q_sites, p_sites, log_likelihood = run(model, guide, x, particles)
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
