r"""The parts of a natural-gradient step: slopes of the free energy in the posterior's parameters, and how far to go along them.

Everything is per image, batched over images, and waits for no device. Where the decoder is linear and KL divergences have a closed form,
the slope is the derivative of :math:`E_q[\log p(x|z)] - \beta\, KL(q \| p)` in the parameters of q; else it is the sampled bound's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from guides.base import Fixed, center
from guides.bounds import elbo
from guides.stepwise import enough_particles
from zoo.density import count
from zoo.latents.base import Family
from zoo.latents.categorical import Categorical

__all__ = ["closed_form_slope", "free_energy", "guarded_step", "moved", "params_at", "sampled_slope"]

Deltas = dict[str, Tensor]
ARMIJO = 1e-4  # the share of the promised rise that a guarded step must keep (Armijo 1966)
LIMIT = 30.0  # log-scales and log-rates stay this near to the prior's: exp of twice as much is still finite in float32
LOWEST = 60.0  # one-hots' logits, known up to a constant, fall this much below a group's greatest at most


def params_at(model: nn.Module, deltas: Deltas | None, x: Tensor) -> Deltas:
    """The posterior's parameters ``{site: (N, P, K)}`` at ``deltas``, the prior's if None; for priors that depend on no latent."""
    params: Deltas = {}

    def keep(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
        params[name] = prior if deltas is None else family.posterior(prior, deltas[name])
        with torch.no_grad():
            return center(family.distribution(params[name]))

    model.descend(keep, x)
    return params


def free_energy(model: nn.Module, x: Tensor, deltas: Deltas, before: Deltas | None, beta: float) -> Tensor:
    """Minus the free energy, ``(N,)``, in nats: E_q[log p(x | z)] − β KL(q ‖ p), with the posterior at ``before`` as p, or the prior."""
    value = _bound(model, x, params_at(model, deltas, x), before, beta, None)
    count(value)
    return value


def closed_form_slope(model: nn.Module, x: Tensor, deltas: Deltas, before: Deltas | None, beta: float, log_self_cost: Tensor | None,
                      graph: bool) -> tuple[Tensor, Deltas, Deltas]:
    """The bound at ``deltas`` ``(N,)``, its slope in the posterior's parameters, and the natural gradient, each ``{site: (N, P, K)}``.

    Arguments:
        before: Deltas of the posterior that the leak pulls to; the model's prior if None.
        beta: Weight of the leak; 0 for none.
        log_self_cost: Logarithm of what each unit's variance costs ``(K,)``; what the model says if None.
        graph: Whether slopes can be differentiated in the model's parameters, the deltas and the self-cost.
    """
    with torch.enable_grad():
        params = params_at(model, deltas, x)
        if not graph:
            params = {name: part.detach() for name, part in params.items()}
        # A leaf, or a step of a graph: either way slopes are of the parameters, not of what they were made from.
        params = {name: part if part.requires_grad else part.requires_grad_(True) for name, part in params.items()}
        value = _bound(model, x, params, before, beta, log_self_cost)
        slopes = dict(zip(params, torch.autograd.grad(value.sum(), list(params.values()), create_graph=graph), strict=True))
        count(value, gradient=True)
        direction = {name: model.latents[name][0].natural(params[name], slope) for name, slope in slopes.items()}
    return value.detach(), slopes, direction


def sampled_slope(model: nn.Module, x: Tensor, deltas: Deltas, before: Deltas | None, beta: float, particles: int,
                  temperature: float) -> Deltas:
    """The natural gradient ``{site: (N, P, K)}`` of the sampled bound, without a graph; arguments as :func:`closed_form_slope`."""
    particles = enough_particles(model, temperature, particles)
    with torch.enable_grad():
        here = {name: delta.detach().requires_grad_(True) for name, delta in deltas.items()}
        program = Fixed(model, here, temperature)
        bound = elbo(model, program, x, beta=beta if before is None else 0.0, particles=particles).surrogate
        if before is not None and beta > 0:
            q, p = program.posterior(x), Fixed(model, before).posterior(x)
            bound = bound - beta * sum(model.latents[name][0].unit_kl(q[name], p[name]).sum(-1) for name in q)
        slopes = torch.autograd.grad(bound.sum(), list(here.values()))
    with torch.no_grad():
        params = program.posterior(x)
        return {name: model.latents[name][0].natural(params[name], slope) for name, slope in zip(here, slopes, strict=True)}


def moved(model: nn.Module, x: Tensor, deltas: Deltas, direction: Deltas, gain: float | Tensor, step_bound: float | None,
          floor: float | None) -> Deltas:
    """``deltas + gain · direction`` within bounds, for a gain of all images or one for each ``(N,)``."""
    priors = params_at(model, None, x) if floor is not None else {}
    new = {}
    for name, delta in deltas.items():
        family = model.latents[name][0]
        step = (gain.view(-1, 1, 1) if isinstance(gain, Tensor) and gain.dim() else gain) * direction[name]
        if step_bound is not None:
            step = step_bound * torch.tanh(step / step_bound)
        delta = delta + step
        if family.parameters == ("log_rate",) and floor is not None:
            delta = delta.maximum((floor - priors[name]).clamp(max=0.0))
        new[name] = _within_limit(family, delta)
    return new


def guarded_step(candidate: Callable[[Tensor], Deltas], value_at: Callable[[Deltas], Tensor], value: Tensor, promise: Tensor,
                 start: Tensor | None, greatest: float, halvings: int) -> tuple[Deltas, Tensor]:
    """A step in which every image's gain is halved until its bound has risen enough, or the image stays.

    Arguments:
        candidate: Deltas for gains ``(N,)``.
        value_at: The bound ``(N,)`` at deltas.
        value, promise: The bound before the step, and its slope along the step's direction, each ``(N,)``.
        start: Gains of the step before it; the greatest one at the first step.
        greatest: Greatest gain.
        halvings: Most halvings.

    Returns:
        The deltas, and the gains that the next step starts from.
    """
    with torch.no_grad():
        gain = torch.full_like(value, greatest) if start is None else start
        rounding = 4 * torch.finfo(value.dtype).eps * (1.0 + value.abs())
        stay = torch.zeros_like(gain)
        for halving in range(halvings + 1):
            new = candidate(gain)
            risen = value_at(new) >= value + ARMIJO * gain * promise - rounding
            if halving == halvings or not value.is_cuda and risen.all():  # on a GPU the host does not wait to see it
                break
            gain = torch.where(risen, gain, 0.5 * gain)
        # A rise within rounding proves nothing: the gain that brought an image near its optimum is then kept.
        following = torch.where(gain * promise > 8 * rounding, (2.0 * gain).clamp(max=greatest), gain)
        return candidate(torch.where(risen, gain, stay)), torch.where(risen, following, 0.5 * gain)


def _within_limit(family: Family, delta: Tensor) -> Tensor:
    if isinstance(family, Categorical):
        groups = delta.unflatten(-1, (family.groups, -1))
        return (groups - groups.amax(-1, keepdim=True)).clamp(min=-LOWEST).flatten(-2)
    if "loc" not in family.parameters:
        return delta.clamp(-LIMIT, LIMIT)
    parts = zip(family.parameters, delta.unbind(-2), strict=True)
    return torch.stack([part if name == "loc" else part.clamp(-LIMIT, LIMIT) for name, part in parts], dim=-2)


def _bound(model: nn.Module, x: Tensor, params: Deltas, before: Deltas | None, beta: float, log_self_cost: Tensor | None) -> Tensor:
    if log_self_cost is None:
        value = model.expected_log_prob(x, params)
    else:
        mean, variance = model.family.moments(params["z"])
        value = model.observation(model.decoder(mean)).log_prob(x) - variance @ log_self_cost.exp()
    if beta > 0:
        anchors = params_at(model, before, x)
        divergences = [model.latents[name][0].unit_kl(q, anchors[name]).sum(-1) for name, q in params.items()]
        value = value - beta * sum(divergences)
    return value
