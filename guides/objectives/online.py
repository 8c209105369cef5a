r"""The objective of inference whose every step takes the posterior before it for its prior (Vafaii, Galor & Yates 2025).

:math:`\frac1T \sum_{t=1}^T \big(E_{q_t}[\log p(x|z)] - \beta\, KL(q_t \| q_{t-1})\big)` over the ``T`` steps of a guide, with the
model's prior as :math:`q_0`; where the guide has a ``burn_in``, over those after it. Gradients flow back through all of them where the
guide is ``unrolled``; model and guide learn together from every one. Its KL divergences are between posteriors, so it is no bound on
log p(x) under one and the same prior: do not compare it with an ELBO.
"""

from __future__ import annotations

import pyro
import torch
from torch import Tensor, nn

from guides.objectives.base import Bound
from zoo.density import count
from zoo.latents.base import Family

__all__ = ["online", "online_exact"]

Deltas = dict[str, Tensor]


def online(model: nn.Module, guide: nn.Module, x: Tensor, *, beta: float = 1.0, particles: int = 1) -> Bound:
    """The objective of every image, from ``particles`` draws of each step's posterior, relaxed at the guide's temperature.

    Arguments:
        guide: One that infers in steps (has ``path``).
        x: Images ``(N, *event_shape)``.
        beta: Weight of the KL divergences.

    Raises:
        ValueError: for a guide without steps, latents whose KL divergence has no closed form or that cannot be relaxed, or no particle.
    """
    if particles < 1:
        raise ValueError(f"particles must be at least 1, not {particles}")
    return _over_path(model, guide, x, beta, particles)


def online_exact(model: nn.Module, guide: nn.Module, x: Tensor, *, beta: float = 1.0, particles: int = 1) -> Bound:
    """The same without sampling, for linear decoders. ``particles`` is ignored.

    Raises:
        ValueError: for a guide without steps, a decoder that is not linear, or latents whose KL divergence has no closed form.
    """
    if not getattr(model, "linear", False):
        raise ValueError("the objective 'online_exact' needs a linear decoder (decoder='lin'); use 'online'")
    return _over_path(model, guide, x, beta, 0)


# They walk the guide's path themselves: each step's prior is the step before it.
online.over_path = online_exact.over_path = True


def _over_path(model: nn.Module, guide: nn.Module, x: Tensor, beta: float, particles: int) -> Bound:
    if not hasattr(guide, "path"):
        raise ValueError("the objective 'online' is for guides that infer in steps, such as 'natural'")
    if not hasattr(model, "observation"):
        raise ValueError("the objective 'online' is for models of the zoo; use 'elbo' for other Pyro programs")
    burn_in, before, likelihoods, divergences = getattr(guide, "burn_in", 0), None, [], []
    for step, deltas in enumerate(guide.path(x)):
        if step > burn_in:
            likelihood, divergence = _step(model, guide, x, deltas, before, particles)
            likelihoods.append(likelihood)
            divergences.append(divergence)
        before = deltas
    if not likelihoods:
        raise ValueError(f"no step is left to learn from after a burn_in of {burn_in}")
    log_likelihood, kl = sum(likelihoods) / len(likelihoods), sum(divergences) / len(divergences)
    value = log_likelihood - beta * kl
    count(value.expand(len(likelihoods) * max(particles, 1), -1))
    return Bound(value, log_likelihood, kl, value)


def _step(model: nn.Module, guide: nn.Module, x: Tensor, deltas: Deltas, before: Deltas, particles: int) -> tuple[Tensor, Tensor]:
    """E_q[log p(x | z)] of the posterior at ``deltas``, by ``particles`` draws or (0) in closed form; its KL from that at ``before``."""
    params, divergences = {}, []

    def draw(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
        q, p = (family.posterior(prior, part[name]) for part in (deltas, before))
        unit_kl = family.unit_kl(q, p)
        if unit_kl is None:
            raise ValueError(f"the objective 'online' needs a closed-form KL divergence, which the latent {name!r} does not have")
        if getattr(guide, "kl_rate", "prior") == "posterior":
            unit_kl = unit_kl * (q - p).squeeze(-2).exp()
        divergences.append(unit_kl.sum(-1))
        if particles == 0:
            params[name] = q
            return q
        law = guide.distribution(family, q)
        if torch.is_grad_enabled() and not law.has_rsample:
            raise ValueError(f"the objective 'online' needs relaxed samples, which the latent {name!r} does not have at this setting")
        return law.rsample((particles,)) if law.has_rsample else law.sample((particles,))

    with pyro.validation_enabled(False):
        latents = model.descend(draw, x)
        if particles == 0:
            return model.expected_log_prob(x, params), sum(divergences)
        return model.observation(model.decode(latents)).log_prob(x).mean(0), sum(divergences)
