r"""Reweighted wake–sleep (Bornschein & Bengio 2015): no gradient passes through samples, so that counts and one-hots stay what they are.

Wake phase: with draws :math:`z_s \sim q(z | x)` and their normalized weights :math:`\tilde w_s \propto p(x, z_s) / q(z_s | x)`, the model
ascends :math:`\sum_s \tilde w_s \log p(x, z_s)`, and the guide :math:`\sum_s \tilde w_s \log q(z_s | x)`. Sleep phase: with latents and an
image dreamt by the model, :math:`z, x \sim p`, the guide ascends :math:`\log q(z | x)` (Hinton, Dayan, Frey & Neal 1995). Either way the
guide descends :math:`KL(p(z | x) \| q(z | x))`, from the posterior to q where the ELBO's is from q to the posterior: on the images with a
bias that vanishes as 1 / S, on the model's own images without bias. The model stands still in log q.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from pyro import poutine
from torch import Tensor

from guides.base import Fixed
from guides.objectives.base import Bound, cut_guide, exact_draws, log_mean_exp, replayed, without_kl
from zoo.density import count, log_sites, sites
from zoo.frozen import frozen

__all__ = ["dream", "log_posterior", "rws", "rws_sleep", "sleep"]


def rws(model: Callable, guide: Callable, x: Tensor, *, beta: float = 1.0, particles: int = 8) -> Bound:
    """Wake phases of model and guide, with ``particles`` exact draws per image. Its value is the importance-weighted bound.

    Raises:
        ValueError: for a ``beta`` other than 1, or fewer than 2 particles, of which each would have the weight 1.
    """
    value, for_model, for_guide = _wake(model, guide, x, beta, particles)
    return Bound(value, None, None, for_model + for_guide)


def rws_sleep(model: Callable, guide: Callable, x: Tensor, *, beta: float = 1.0, particles: int = 8) -> Bound:
    """Wake phase of the model; wake and sleep phase of the guide, half each (one dream for each image).

    Raises:
        ValueError: as :func:`rws` and :func:`sleep`.
    """
    value, for_model, for_guide = _wake(model, guide, x, beta, particles)
    return Bound(value, None, None, for_model + 0.5 * (for_guide + _asleep(model, guide, x, 1)))


def sleep(model: Callable, guide: Callable, x: Tensor, *, beta: float = 1.0, particles: int = 1) -> Bound:
    """Sleep phase of the guide, with ``particles`` dreams for each image of the batch, which says no more than how many.

    The model learns nothing. The value is an ELBO of the images ``x`` themselves, of one draw, which nothing ascends.

    Raises:
        ValueError: for a ``beta`` other than 1; a guide that infers the images that it was made for and no others; or a program that
            does not accept ``model(None, size=n)``.
    """
    without_kl("the sleep phase", beta, particles)
    surrogate = _asleep(model, guide, x, particles)
    with torch.no_grad():
        drawn = cut_guide(guide, x, 1, leaves=False)
        value = _log_joint(model, drawn, x, 1) - drawn.log_prob()
    count(value)
    return Bound(value, None, None, surrogate)


sleep.over_path = True  # it follows a guide that infers in steps through the images that are dreamt


def log_posterior(guide: Callable, latents: dict[str, Tensor], x: Tensor) -> Tensor:
    """Log q(z | x) of given latents ``{site: (…, N, *event)}`` under a guide's exact laws, ``(…, N)``; where it infers in steps, the mean
    over the steps that it is trained by."""
    with exact_draws(guide):
        if hasattr(guide, "path"):
            scored = set(guide.scored)
            programs = [guide.at(deltas) for step, deltas in enumerate(guide.path(x)) if step in scored]
        else:
            programs = [guide]
        return sum(site["log_prob"] for program in programs for site in log_sites(program, latents, x).values()) / len(programs)


@torch.no_grad()
def dream(model: Callable, size: int) -> tuple[dict[str, Tensor], Tensor]:
    """Latents ``{site: (size, *event)}`` and images ``(size, *event_shape)`` drawn from the model.

    Raises:
        ValueError: if the program does not accept ``model(None, size=size)``.
    """
    with pyro.validation_enabled(False):
        try:
            trace = poutine.trace(model).get_trace(None, size=size)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"images cannot be drawn from this program: model(None, size={size}) failed ({error})") from error
    values = {name: site["value"] for name, site in sites(trace, observed=False).items()}
    return values, values.pop("x")


def _wake(model: Callable, guide: Callable, x: Tensor, beta: float, particles: int) -> tuple[Tensor, Tensor, Tensor]:
    """The importance-weighted bound, and what model and guide ascend, each ``(N,)``."""
    without_kl("reweighted wake–sleep", beta, particles, least=2)
    with frozen(model):
        drawn = cut_guide(guide, x, particles, leaves=False)
        log_q = drawn.log_prob()
    log_p = _log_joint(model, drawn, x, particles)
    log_weight = (log_p - log_q).detach()
    count(log_weight, gradient=log_p.requires_grad or log_q.requires_grad)
    weight = log_weight.softmax(0)
    return log_mean_exp(log_weight), (weight * log_p).sum(0), (weight * log_q).sum(0)


def _asleep(model: Callable, guide: Callable, x: Tensor, dreams: int) -> Tensor:
    """Mean log q of ``dreams`` dreams for each image of the batch, ``(N,)``."""
    if isinstance(guide, Fixed) or getattr(guide, "per_image", False):
        raise ValueError("in the sleep phase the model dreams new images, of which a guide that keeps a posterior of given images knows "
                         "nothing; it takes one that infers any image ('amortized'), and 'rws_sleep' one without steps")
    latents, images = dream(model, dreams * len(x))
    with frozen(model):
        log_q = log_posterior(guide, latents, images)
    return log_q.unflatten(0, (dreams, len(x))).mean(0)


def _log_joint(model: Callable, drawn: object, x: Tensor, particles: int) -> Tensor:
    p_sites, log_likelihood = replayed(model, drawn.trace, x, particles)
    return log_likelihood + sum(site["fn"].log_prob(site["value"]) for site in p_sites.values())
