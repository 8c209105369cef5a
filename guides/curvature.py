r"""Summits of each image's log density in unconstrained coordinates, and its curvature there.

Images are independent given the model, so the Hessians of all of them, ``(N, M, M)``, are the M rows of one batched gradient's derivative:
no derivative of one image by the latents of another is ever formed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from math import prod

import torch
from torch import Tensor, nn

from guides.coordinates import coordinates, sizes_of
from zoo.density import count, log_joint
from zoo.latents.base import Family

__all__ = ["Summit", "hessian", "summits"]

CHUNK = 2**24  # numbers held at once: images × coordinates × (coordinates + pixels)
HALVINGS = 20
LEAST_SHARE = 1e-3  # of what a step promised: where less is gained, the density is not smooth (a kink), and Newton steps lead nowhere


@dataclass(frozen=True)
class Summit:
    """Where an ascent ended, for each image.

    Attributes:
        loc: The point ``(N, M)``.
        scale_tril: Cholesky factor of the inverse of the (repaired) curvature, ``(N, M, M)``.
        log_density: Of ``u``, nats, ``(N,)``.
        promise: What the last Newton step that was looked at promised to gain, nats, ``(N,)``: about 0 at a smooth mode.
        replaced: Directions without curvature, ``(N,)``.
    """

    loc: Tensor
    scale_tril: Tensor
    log_density: Tensor
    promise: Tensor
    replaced: Tensor


def summits(model: nn.Module, x: Tensor, starts: Sequence[dict[str, Tensor]], *, newton: int, floor: float) -> Summit:
    """Climbs by Newton steps, each halved until it climbs, from the best of some starts ``{site: (N, *event)}`` for each image.

    Arguments:
        model: A model of the zoo, or an adopted program, with real-valued latents.
        newton: Largest number of steps.
        floor: Smallest curvature that counts, in units of the prior's scale; where it is not above, it is set to 1.

    Raises:
        ValueError: if a log density or a derivative of it is not finite; says of which image.
    """
    size = sum(sizes_of(model).values())
    width = max(1, CHUNK // (size * (size + prod(x.shape[1:]))))
    parts = [_climb(model, x[at:at + width], [{name: value[at:at + width] for name, value in start.items()} for start in starts],
                    newton, floor, at) for at in range(0, len(x), width)]
    return Summit(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Summit)))


def hessian(log_density: Callable[[Tensor], Tensor], u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value ``(N,)``, gradient ``(N, M)`` and Hessian ``(N, M, M)`` at ``u`` ``(N, M)``, of a function of each image alone."""
    u = u.detach().requires_grad_(True)
    with torch.enable_grad():
        value = log_density(u)
        gradient, = torch.autograd.grad(value.sum(), u, create_graph=True)
    rows = torch.zeros(u.shape[1], *u.shape).to(u)
    if gradient.requires_grad:
        directions = torch.eye(u.shape[1]).to(u).unsqueeze(1).expand_as(rows)
        rows, = torch.autograd.grad(gradient, u, directions, is_grads_batched=True, allow_unused=True, materialize_grads=True)
    count(value.detach().expand(u.shape[1], -1), gradient=True)
    return value.detach(), gradient.detach(), rows.movedim(0, 1)


def _climb(model: nn.Module, x: Tensor, starts: Sequence[dict[str, Tensor]], newton: int, floor: float, first: int) -> Summit:
    def log_density(u: Tensor) -> Tensor:
        placed, log_det = _placed(model, x, u)
        return log_joint(model, placed, x) + log_det

    (u, scale), *others = (_start(model, x, values) for values in starts)
    for other, other_scale in others:
        better = (log_density(other) > log_density(u)).unsqueeze(-1)
        u, scale = torch.where(better, other, u), torch.where(better, other_scale, scale)
    for step in range(newton + 1):
        value, gradient, curvature = hessian(log_density, u)
        _check(value, gradient, curvature, first)
        precision, replaced = _repaired(-curvature.double() * scale.unsqueeze(-1) * scale.unsqueeze(-2), floor)
        slope = gradient.double() * scale
        way = torch.cholesky_solve(slope.unsqueeze(-1), torch.linalg.cholesky(precision)).squeeze(-1)
        promise = 0.5 * (slope * way).sum(-1)
        if step == newton:
            break
        climbed, gain = _halving(log_density, u, (scale * way).to(u), value)
        u, value = climbed, value + gain
        rounding = 10.0 * torch.finfo(value.dtype).eps * (1.0 + value.abs())
        if ((gain <= rounding) | (gain < LEAST_SHARE * promise)).all():
            break  # the curvature is that of a point next to this one
    factor = scale.unsqueeze(-1) * _inverse_root(precision)
    return Summit(u, factor.to(u), value, promise.to(u), replaced)


@torch.no_grad()
def _halving(log_density: Callable[[Tensor], Tensor], u: Tensor, way: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The longest of the steps ``way``, ``way / 2``, … that climbs, for each image (none, if none does), and what it gains."""
    best, gain = u, torch.zeros_like(value)
    for halving in range(HALVINGS):
        waiting = gain <= 0.0
        if not waiting.any():
            break
        trial = u + 0.5**halving * way
        more = log_density(trial) - value
        better = waiting & (more > 0.0)
        best, gain = torch.where(better.unsqueeze(-1), trial, best), torch.where(better, more, gain)
    return best, gain


@torch.no_grad()
def _start(model: nn.Module, x: Tensor, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The values in unconstrained coordinates, ``(N, M)``, and the prior's scales in them, ``(N, M)``, float64."""
    sizes, found, scales = sizes_of(model), [], []

    def draw(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
        here = coordinates(family, prior, x.new_zeros(2, sizes[name]))
        found.append(values[name] if here.to_site is None else here.to_site.inv(values[name]))
        scales.append(here.scale.expand_as(found[-1]))
        return values[name]

    model.descend(draw, x)
    return torch.cat(found, dim=-1), torch.cat(scales, dim=-1).double()


def _placed(model: nn.Module, x: Tensor, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The sites' values at ``u``, and log|∂T/∂u| ``(N,)``."""
    sizes = sizes_of(model)
    parts, log_dets = dict(zip(sizes, u.split(list(sizes.values()), dim=-1), strict=True)), [u.new_zeros(len(u))]

    def draw(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
        to_site = coordinates(family, prior, u.new_zeros(2, sizes[name])).to_site
        if to_site is None:
            return parts[name]
        value = to_site(parts[name])
        log_dets.append(to_site.log_abs_det_jacobian(parts[name], value))
        return value

    return model.descend(draw, x), sum(log_dets)


def _repaired(precision: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Precisions ``(N, M, M)`` with eigenvalues not above ``floor`` set to 1, and how many these are, ``(N,)``."""
    eye = torch.eye(precision.shape[-1]).to(precision)
    replaced = torch.zeros(len(precision), dtype=torch.long, device=precision.device)
    bad = torch.linalg.cholesky_ex(precision - floor * eye).info > 0
    if bad.any():
        values, vectors = torch.linalg.eigh(precision[bad])
        low = values <= floor
        precision = precision.clone()
        precision[bad] = (vectors * torch.where(low, 1.0, values).unsqueeze(-2)) @ vectors.mT
        replaced[bad] = low.sum(-1)
    return precision, replaced


def _inverse_root(precision: Tensor) -> Tensor:
    """Lower triangular ``C`` with ``C Cᵀ`` the inverse of a precision: from the factor of the matrix turned upside down."""
    turned = torch.linalg.cholesky(precision.flip(-2, -1)).flip(-2, -1)
    return torch.linalg.solve_triangular(turned.mT, torch.eye(precision.shape[-1]).to(precision), upper=False)


def _check(value: Tensor, gradient: Tensor, curvature: Tensor, first: int) -> None:
    fine = value.isfinite() & gradient.isfinite().all(-1) & curvature.isfinite().flatten(1).all(1)
    if not fine.all():
        raise ValueError(f"the log density of image {first + int((~fine).nonzero()[0])} or a derivative of it is not finite at its mode; "
                         "start elsewhere")
