r"""Point estimates: the latents that maximize :math:`\log p(x, z)`, image by image, all images in one batch.

Real latents climb the gradient (in unconstrained coordinates; the density maximized is the one over ``z`` itself). Counts and
one-hots climb on their lattice: of all single moves (one spike more or less; another category) the most promising by a Taylor
expansion are tried, the best that truly raises the density is taken, until none does. That is a local maximum, as for gradients.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from guides.point import inside, start_values
from inference.gradient_dynamics import ascend
from inference.methods.amortized import means
from inference.posterior import Posterior
from inference.spaces import Space
from zoo.density import latent_sites, log_joint, sites
from zoo.frozen import frozen
from zoo.latents.support import support_kind
from zoo.program import adopt

__all__ = ["first_values", "point"]

STARTS = ("prior", "guide")


def point(model: Callable, x: Tensor, guide: nn.Module | None, draws: int, *, steps: int = 300, lr: float | None = None,
          optimizer: str = "adam", space: str = "states", start: str = "prior", starts: int = 1, candidates: int = 16,
          max_moves: int = 2000) -> Posterior:
    """Maximizes the joint density. ``draws`` is not used: there is one point.

    Arguments:
        guide: Where to start if ``start`` is ``"guide"``; else not used.
        steps, lr, optimizer: Gradient steps of real latents (:func:`inference.gradient_dynamics.ascend`): ``"adam"``, with a learning rate
            that falls to 0 from .1, or from ``lr``, and ``"gradient"``, plain gradient dynamics with the step ``lr``, or with what is
            stable for each image if None.
        space: What moves: the latents (``"states"``), or their standardized prediction ``"errors"``, in which depth does not slow the
            dynamics (:class:`zoo.error_space.ErrorSpace`). Where scales depend on other latents it has other modes.
        start: The mean of the ``"prior"``, level by level given the one above (the forward pass: all errors 0), or of the ``"guide"``.
        starts: Ascents for each image, all at once: the others start from draws of the prior, and the highest summit is taken.
        candidates: Moves tried at once for each image with discrete latents.
        max_moves: Largest number of moves of an image.

    The posterior's ``stats`` hold ``log_joint`` (nats, per image) and, of real latents alone, ``slope``, the length of the gradient that
    is left, in the coordinates that moved.

    Raises:
        ValueError: for settings out of range, a missing guide, or if no image's ascent is finite at its end. Of some that are not is
            warned.
    """
    if starts < 1:
        raise ValueError(f"starts must be at least 1, not {starts}")
    n, x = len(x), x.repeat(starts, *[1] * (x.dim() - 1))
    kinds = {name: support_kind(site["fn"].support) for name, site in latent_sites(model, x[:n]).items()}
    values = first_values(model, x, guide, start)
    if starts > 1:
        with torch.no_grad():
            drawn = sites(poutine.trace(model).get_trace(x[n:]), observed=False)
        values = {name: torch.cat([value[:n], drawn[name]["value"]]) for name, value in values.items()}
    real = [name for name, kind in kinds.items() if kind == "real"]
    discrete = [name for name, kind in kinds.items() if kind != "real"]
    rounds, slope = 1 if not (real and discrete) else 3, None
    for _ in range(rounds):
        if real:
            values, slope = _climb(model, x, values, discrete, space, steps=steps, lr=lr, optimizer=optimizer)
        if discrete:
            values = _hop(model, x, values, {name: kinds[name] for name in discrete}, candidates, max_moves)
    with torch.no_grad():
        best = log_joint(model, values, x)
    best, which = torch.where(best.isnan(), -torch.inf, best).unflatten(0, (starts, n)).max(0)
    lost = (~best.isfinite()).nonzero().flatten()
    if len(lost) == n:
        raise ValueError("no ascent is finite at its end; take smaller steps (lr)")
    if len(lost):
        warnings.warn(f"the ascents of {len(lost)} of {n} images, image {int(lost[0])} among them, are not finite at their end: their "
                      "points are none; take smaller steps (lr)", RuntimeWarning, stacklevel=4)
    index = which * n + torch.arange(n, device=x.device)
    samples = {name: value.detach()[index][None, None] for name, value in values.items()}
    return Posterior("map", samples, stats={"log_joint": best} | ({} if discrete else {"slope": slope[index]}))


def first_values(model: Callable, x: Tensor, guide: nn.Module | None, start: str = "prior") -> dict[str, Tensor]:
    """Where an ascent of each image starts, ``{site: (N, *event)}``: at the prior's mean, or at a guide's.

    Raises:
        ValueError: for another start, or no guide.
    """
    if start not in STARTS:
        raise ValueError(f"start must be {' or '.join(map(repr, STARTS))}, not {start!r}")
    if start == "prior":
        return start_values(adopt(model, x), x)
    if guide is None:
        raise ValueError("start='guide' needs a guide: give guide=…")
    laws = latent_sites(model, x)
    return {name: inside(value[0, 0], laws[name]["fn"]).clone() for name, value in means(guide, x).samples.items()}


def _climb(model: Callable, x: Tensor, values: dict[str, Tensor], held: list[str], space: str,
           **options: Any) -> tuple[dict[str, Tensor], Tensor]:
    """The values at the end of the ascent of those that are not held, and the slope that is left, ``(N,)``."""
    with frozen(model):
        place = Space(model, x, space, given={name: values[name] for name in held})
        for moment in ascend(place.target, place.enter(values), **options):
            last = moment
        moved = place.leave(last.u)
    return {name: moved[name] for name in values}, last.slope


def _hop(model: Callable, x: Tensor, values: dict[str, Tensor], kinds: dict[str, str], candidates: int,
         max_moves: int) -> dict[str, Tensor]:
    values = {name: value.clone() for name, value in values.items()}
    curvature = _curvature(model)
    active = torch.arange(len(x), device=x.device)  # images that still move
    for _ in range(max_moves):
        moved = torch.zeros(len(active), dtype=torch.bool, device=x.device)
        for name, kind in kinds.items():
            here = {key: value[active] for key, value in values.items()}
            better, value = _best_move(model, x[active], here, name, kind, curvature, candidates)
            values[name][active[better]] = value[better]
            moved |= better
        active = active[moved]
        if len(active) == 0:
            break
    return values


def _best_move(model: Callable, x: Tensor, values: dict[str, Tensor], name: str, kind: str, curvature: Tensor | None,
               candidates: int) -> tuple[Tensor, Tensor]:
    """Which images improve by the best of the candidate moves of one site, ``(N,)``, and the site's value after it."""
    z = values[name].detach().requires_grad_(True)
    with torch.enable_grad():
        now = log_joint(model, values | {name: z}, x)
        slope, = torch.autograd.grad(now.sum(), z)
    z, now = z.detach(), now.detach()
    flat, slope = z.flatten(1), slope.flatten(1)
    bend = torch.zeros_like(slope[0]) if curvature is None else curvature
    if kind == "count":
        gain = torch.cat([slope - 0.5 * bend, torch.where(flat > 0, -slope - 0.5 * bend, -torch.inf)], dim=1)
    else:
        off = (slope * z.flatten(1)).unflatten(1, z.shape[1:]).sum(-1, keepdim=True)
        gain = (slope.unflatten(1, z.shape[1:]) - off).flatten(1) - 0.5 * bend
        gain = torch.where(flat > 0, -torch.inf, gain)
    best = gain.topk(min(candidates, gain.shape[1]), dim=1).indices.T  # (m, N)
    trial = flat.expand(len(best), *flat.shape).clone()
    unit = best % flat.shape[1]
    if kind == "count":
        step = torch.where(best < flat.shape[1], 1.0, -1.0).to(flat.dtype)
        trial.scatter_add_(2, unit.unsqueeze(-1), step.unsqueeze(-1))
        trial = trial.clamp(min=0.0).unflatten(-1, z.shape[1:])
    else:
        categories = z.shape[-1]
        trial = trial.unflatten(-1, (-1, categories))  # (m, N, G, C)
        group = (unit // categories)[..., None, None].expand(-1, -1, 1, categories)
        hot = nn.functional.one_hot(unit % categories, categories).to(flat.dtype).unsqueeze(2)
        trial = trial.scatter(2, group, hot).reshape(len(best), *z.shape)
    with torch.no_grad():
        values = log_joint(model, values | {name: trial}, x)
    top, which = values.max(0)
    picked = trial[which, torch.arange(len(x), device=x.device)]
    return top > now + 1e-5 + 1e-6 * now.abs(), picked  # more than the rounding of single floats


def _curvature(model: Callable) -> Tensor | None:
    """Second derivative of −log p(x | z) along each unit where it is constant (linear decoder, one site), ``(K,)``."""
    if not getattr(model, "linear", False):
        return None
    return (model.decoder.weight.detach() / model.scale.detach().reshape(-1, 1)).square().sum(0)
