r"""Which pixels see which disc.

A pixel's ray γ meets a disc's plane at :math:`z\,\gamma/\gamma_z` and belongs to the disc where
:math:`z^2 |\gamma_{xy}/\gamma_z - w|^2 < r^2`, w being that ratio for the disc's centre. Times :math:`\gamma_z^2/z^2`, the margin by which
it does is a quadratic form in the tangents of the pixel's angles.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zoo.data.rofl.retina import Gaze, tables
from zoo.data.rofl.world import World

__all__ = ["Discs", "at_fovea", "discs_of", "inside", "visible"]


class Discs(NamedTuple):
    """Discs as the eye sees them.

    Attributes:
        form: The quadratic form of the margin over the retina's table, ``(…, n, 6)``.
        ray: γ_z / z over the table ``1, tan a, tan b``, ``(…, n, 3)``.
    """

    form: Tensor
    ray: Tensor


def discs_of(position: Tensor, gaze: Gaze, world: World) -> Discs:
    """Discs at ``position`` ``(…, n, 3)`` for an eye with a gaze of parts ``(…, 1)``."""
    p, q, c = gaze
    (xx, xy, _), (_, yy, _), _ = gaze.rows()
    alpha_x, alpha_y, depth = position.unbind(-1)
    a, b = alpha_x.tan(), alpha_y.tan()
    x, y, z = gaze.to_world((a, b, torch.ones_like(a)))
    x, y = x / z, y / z
    u = (p - x * c, xx + x * p, xy + x * q)  # γ_x − w_x γ_z
    v = (q - y * c, xy + y * p, yy + y * q)
    ray = (c / depth, -p / depth, -q / depth)
    scale = world.radius**2
    pairs = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
    form = [(1.0 if i == j else 2.0) * (scale * ray[i] * ray[j] - u[i] * u[j] - v[i] * v[j]) for i, j in pairs]
    return Discs(torch.stack(form).movedim(0, -1), torch.stack(ray).movedim(0, -1))


def inside(discs: Discs, world: World, edge: float) -> Tensor:
    """How far each pixel belongs to each disc, ``(…, n, N²)``: 0 or 1, or between for a soft edge."""
    table = tables(world.resolution, world.fov, discs.form.dtype, discs.form.device)
    margin = discs.form @ table.quadratic
    if edge == 0.0:
        return margin.sign().clamp(min=0.0)
    # At a corner pixel of an eye turned as far as it goes, rounding may make γ_z 0.
    ray = (discs.ray @ table.linear).clamp(min=torch.finfo(margin.dtype).eps)
    return (margin / ray.square() / (2.0 * world.radius * edge)).sigmoid()


def at_fovea(discs: Discs, world: World, edge: float) -> Tensor:
    """The same for the pixel straight ahead, ``(…, n)``."""
    margin = discs.form[..., 0]
    if edge == 0.0:
        return margin.sign().clamp(min=0.0)
    return (margin / discs.ray[..., 0].square() / (2.0 * world.radius * edge)).sigmoid()


def visible(covering: Tensor) -> list[Tensor]:
    """What can be seen of each disc, n of ``(…, N²)``, given what each covers, ``(…, n, N²)``, from far to near."""
    parts = list(covering.unbind(-2))
    free = None  # of nearer discs
    for i in reversed(range(len(parts))):
        covers = parts[i]
        if free is not None:
            parts[i] = covers * free
        free = 1.0 - covers if free is None else free * (1.0 - covers)
    return parts
