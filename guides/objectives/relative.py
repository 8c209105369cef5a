r"""The loss by which hierarchies learned optic flow as published (Vafaii, Yates & Butts 2023): relative errors and balanced groups.

.. math:: \sum_i w_i \frac{\mathrm{EPE}_i}{b} + \beta \sum_i \sum_l \gamma_l\, KL_{l,i}

Frame i's endpoint error counts in proportion to :math:`1 / \mathrm{norm}_i`, the summed length of its flow vectors; then all weights are
scaled so that the batch's summed error is what it was. While β is on its way up, group l's divergence counts in proportion to
:math:`|\overline{KL_l}| + 0.01`, with a mean of 1 over groups, so that no group is switched off early (Vahdat & Kautz 2020). All
weights are constants to the gradient.

This is no ELBO: a frame's weight depends on the others of its batch. What is climbed is :attr:`Bound.surrogate` alone; value,
log-likelihood and KL divergence are those of the plain ELBO.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from guides.objectives.base import Bound, walk
from zoo.density import count

__all__ = ["balance", "relative", "relative_weights"]

LEAST_KL = 0.01  # nats, added to every group's before the groups are balanced
LEAST_NORM = 1e-3  # of the batch's mean: a frame without flow would take all the weight


def relative(model: nn.Module, guide: nn.Module, x: Tensor, *, beta: float = 1.0, particles: int = 1, final_beta: float = 1.0,
             total: Callable[[Tensor], Tensor] = lambda sums: sums) -> Bound:
    """The plain ELBO of every frame, with the published weights in what gradients climb.

    Arguments:
        model: A model of the zoo with the likelihood ``"endpoint"``, whose scale is b.
        guide: A guide of the zoo.
        x: Optic flow ``(N, 2, H, W)``.
        beta: Weight of the KL divergence.
        particles: Draws per frame.
        final_beta: The weight at the end of training; groups are balanced while ``beta`` is below it.
        total: Adds sums ``(M,)`` up over the processes that share a batch; the frames here are the whole batch if not given.

    Raises:
        ValueError: for another likelihood or a program from outside the zoo, latents that cannot be relaxed, or no particle.
    """
    if getattr(model, "likelihood", None) != "endpoint" or not hasattr(guide, "conditionals"):
        raise ValueError("the objective 'relative' is of endpoint errors: it needs a model of the zoo with likelihood='endpoint' (optic "
                         f"flow), not {getattr(model, 'likelihood', type(model).__name__)!r}; use 'elbo'")
    if particles < 1:
        raise ValueError(f"particles must be at least 1, not {particles}")
    observation, divergences, scores = walk(model, guide, x, particles)
    if torch.is_grad_enabled() and scores:
        raise ValueError("the objective 'relative' needs relaxed samples, which not all latents have at this setting; use 'elbo'")
    log_likelihood, normalizer = observation.log_prob(x), observation.log_prob(observation.mean)
    error = normalizer - log_likelihood  # EPE / b
    kls = torch.stack([kl.expand_as(error) for kl in divergences], -1)
    weighted = relative_weights(x, error.detach(), total) * error
    kl = kls.sum(-1)
    balanced = (torch.where(torch.as_tensor(beta < final_beta), balance(kls.detach(), total), 1.0) * kls).sum(-1)
    parts = [log_likelihood - beta * kl, log_likelihood, kl, normalizer - weighted - beta * balanced]
    count(parts[0])
    return Bound(*(part.mean(0) for part in parts) if particles > 1 else parts)


def relative_weights(x: Tensor, error: Tensor, total: Callable[[Tensor], Tensor] = lambda sums: sums) -> Tensor:
    """Weights of frames ``(N,)``, in proportion to one over the summed length of a frame's vectors; they leave the summed error as it is.

    Arguments:
        x: Optic flow ``(N, 2, H, W)``.
        error: Endpoint errors ``(…, N)``.
        total: As of :func:`relative`.
    """
    norm = x.square().sum(-3).sqrt().sum((-2, -1))
    whole, frames = total(torch.stack([norm.sum(), norm.new_tensor(float(len(norm)))])).unbind()
    weight = 1.0 / norm.clamp(min=torch.finfo(norm.dtype).tiny).maximum(LEAST_NORM * whole / frames)
    plain, relative_sum = total(torch.stack([error.sum(), (weight * error).sum()])).unbind()
    return weight * (plain / relative_sum.clamp(min=torch.finfo(norm.dtype).tiny))


def balance(kls: Tensor, total: Callable[[Tensor], Tensor] = lambda sums: sums) -> Tensor:
    """Weights of groups ``(L,)``, in proportion to the batch's mean of |KL| plus .01 nats, 1 on average.

    Arguments:
        kls: Divergences ``(…, N, L)`` in nats.
        total: As of :func:`relative`.
    """
    sizes = kls.abs().reshape(-1, kls.shape[-1])
    sums = total(torch.cat([sizes.sum(0), sizes.new_tensor([float(len(sizes))])]))
    weight = sums[:-1] / sums[-1] + LEAST_KL
    return weight / weight.mean()
