r"""The importance-weighted bound :math:`\log \frac1S \sum_s w_s` with :math:`w_s = p(x, z_s) / q(z_s)`, and two ways of climbing it.

``iwae``: by plain reparameterization (Burda, Grosse & Salakhutdinov 2016), with VIMCO's baselines (Mnih & Rezende 2016) where samples are
not reparameterized. ``dreg``: by doubly reparameterized gradients (Tucker, Lawson, Gu & Maddison 2019). The first one's gradient for the
posterior drowns in noise as S grows (Rainforth et al. 2018), the second one's does not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from guides.objectives.base import Bound, CutRun, cut_guide, log_mean_exp, replayed, run, without_kl
from zoo.density import count
from zoo.latents.support import support_kind

__all__ = ["dreg", "iwae"]

NAME = "the importance-weighted bound"


def iwae(model: Callable, guide: Callable, x: Tensor, *, beta: float = 1.0, particles: int = 8) -> Bound:
    """The importance-weighted bound of ``particles`` exact draws. ``beta`` must be 1: the bound has no KL term to weigh.

    Raises:
        ValueError: for another ``beta``, or fewer than 2 particles for latents without reparameterized samples.
    """
    without_kl(NAME, beta, particles)
    q_sites, p_sites, log_likelihood = run(model, guide, x, particles)
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


def dreg(model: Callable, guide: Callable, x: Tensor, *, beta: float = 1.0, particles: int = 8) -> Bound:
    r"""The bound of :func:`iwae`, with doubly reparameterized gradients.

    With :math:`\tilde w` the normalized weights, posteriors ascend :math:`\sum_s \tilde w_s^2 \nabla_z \log w_s \cdot dz_s`, in which
    the score of q has been reparameterized away, and the model :math:`\sum_s \tilde w_s \nabla \log p(x, z_s)`, as in :func:`iwae`. The
    expected gradient is that of :func:`iwae`; with one particle it is that of Roeder, Wu & Duvenaud 2017 ("sticking the landing").

    Raises:
        ValueError: for a ``beta`` other than 1, or latents that are not real-valued with reparameterized samples.
    """
    without_kl(NAME, beta, particles)
    drawn = cut_guide(guide, x, particles, leaves=True)
    p_sites, log_likelihood = replayed(model, drawn.trace, x, particles)
    for name, law in drawn.laws.items():
        if not law.has_rsample or support_kind(p_sites[name]["fn"].support) != "real":
            raise ValueError(f"the objective 'dreg' needs exact reparameterized samples, which the latent {name!r} does not have (its law "
                             f"is {type(getattr(law, 'base_dist', law)).__name__}): use 'iwae' or 'rws', which need none, or 'elbo'")
    log_p = log_likelihood + sum(site["fn"].log_prob(drawn.cut[name]) for name, site in p_sites.items())
    log_weight = log_p - drawn.log_prob()
    if particles == 1:
        log_p, log_weight = log_p.unsqueeze(0), log_weight.unsqueeze(0)
    bound, weight = log_mean_exp(log_weight).detach(), log_weight.detach().softmax(0)
    count(log_weight)
    surrogate = (weight * log_p).sum(0)
    if torch.is_grad_enabled():
        surrogate = surrogate + _along_samples((weight.square() * log_weight).sum(), drawn, x)
    return Bound(bound, None, None, surrogate)


def _along_samples(target: Tensor, run: CutRun, x: Tensor) -> Tensor:
    """Per image, what has the gradient of ``target`` through the samples: not through the densities' parameters, ``(N,)``."""
    names = list(run.cut)
    slopes = dict(zip(names, torch.autograd.grad(target, list(run.cut.values()), retain_graph=True), strict=True))
    total = x.new_zeros(len(x))
    for i, name in reversed(list(enumerate(names))):
        moved = slopes[name] * run.drawn[name]
        before = names[:i]  # a draw moves those after it along
        if before and moved.requires_grad:
            onward = torch.autograd.grad(moved.sum(), [run.cut[other] for other in before], retain_graph=True, allow_unused=True)
            for other, slope in zip(before, onward, strict=True):
                slopes[other] = slopes[other] if slope is None else slopes[other] + slope
        total = total + _per_image(moved, len(x), run.laws[name])
    return total


def _per_image(values: Tensor, images: int, law: torch.distributions.Distribution) -> Tensor:
    """Sums ``(particles, N, *event)`` or ``(N, *event)`` over all but the images."""
    return values.reshape(-1, images, law.event_shape.numel()).sum((0, 2))


def _vimco_signal(log_weight: Tensor) -> Tensor:
    """The bound minus the bound with each particle's weight replaced by the geometric mean of the others, ``(particles, N)``."""
    particles = len(log_weight)
    others = (log_weight.sum(0, keepdim=True) - log_weight) / (particles - 1)
    replaced = torch.where(torch.eye(particles, dtype=torch.bool, device=log_weight.device).unsqueeze(-1),
                           others.unsqueeze(1), log_weight.unsqueeze(0))
    return log_mean_exp(log_weight) - log_mean_exp(replaced.transpose(0, 1))
