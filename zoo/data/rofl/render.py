r"""From causes to flow: a pure, differentiable function, all frames at once.

With the pixel's ray :math:`d`, :math:`\gamma = R d` in world coordinates, and :math:`w = R^\top(1_\mathrm{disc} U - V)` the relative
velocity in the eye's, a point seen at depth Z moves over the retina at

:math:`\dot\alpha_x = (w_x - w_z \tan a) \cos^2 a \; \gamma_z / Z - \Omega_y (1 + \tan^2 a)\cos^2 a + \Omega_x \tan a \tan b \cos^2 a`

(the vertical channel likewise), Ω being the rotation of the eye. Tracking a point at distance ρ without torsion that moves at u relative
to the eye takes :math:`\Omega = (-u_y, u_x, 0)/\rho` in the eye's own coordinates. :math:`\gamma_z` is linear in the tangents, so all of a
frame is linear in five fixed functions of the pixel for each channel (Vafaii, Yates & Butts 2023; Longuet-Higgins & Prazdny 1980).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.data.rofl.compiled import count, kernel, paint, pieces
from zoo.data.rofl.discs import Discs, at_fovea, discs_of, inside, visible
from zoo.data.rofl.retina import Gaze, gaze_at, tables
from zoo.data.rofl.world import World

__all__ = ["cause_shapes", "covered_pixels", "flow", "masks", "render", "sizes"]

CHUNK = 512 * 289  # pixels, times discs, that are worked on at once: their arrays stay in a CPU's cache
PLACES = ("fixation", "object_position")  # the causes that say which pixels see which disc
Vector = tuple[Tensor, ...]


class Scene(NamedTuple):
    """Frames before their pixels are painted: weights of the flow tables for the wall ``(2, …, 5)`` and for each disc ``(2, …, n, 5)``,
    and the discs, far to near."""

    wall: Tensor
    moving: Tensor | None
    discs: Discs | None


def cause_shapes(world: World) -> dict[str, tuple[int, ...]]:
    """The causes of a frame: ``fixation`` (X₀, Y₀), m on the wall; ``self_velocity`` V, m/s; ``object_position`` retinal angles
    α_x, α_y, radians, and world depth z, m; ``object_velocity`` U, m/s. What a category does not have is not there."""
    shapes: dict[str, tuple[int, ...]] = {"fixation": (2,)}
    if world.self_moves:
        shapes["self_velocity"] = (3,)
    if world.objects:
        shapes["object_position"] = (world.objects, 3)
    if world.objects_move:
        shapes["object_velocity"] = (world.objects, 3)
    return shapes


def flow(causes: Mapping[str, Tensor], world: World, edge: float = 0.0) -> Tensor:
    """Retinal angular velocity, rad/s, ``(…, 2, N, N)``: channel 0 horizontal, 1 vertical; rows by rising vertical, columns by rising
    horizontal angle.

    Arguments:
        causes: What :func:`cause_shapes` lists, with any leading dimensions, which broadcast.
        world: Settings.
        edge: Width of a disc's edge, m: a pixel d from the centre belongs to the disc by ``sigmoid((r² − d²) / (2 r edge))``; 0 for the
            hard edge d < r, whose place has no gradient.

    Raises:
        ValueError: if a cause is missing, unknown or of the wrong shape, or the edge is negative.
    """
    causes, _ = _checked(causes, world, edge)
    field = _paint(_scene(causes, world, edge), world, edge)
    return field.unflatten(-1, (world.resolution, world.resolution))


@torch.no_grad()
def render(causes: Mapping[str, Tensor], world: World, out: Tensor | None = None, compiled: bool = False) -> Tensor:
    """:func:`flow` with hard edges of many frames ``(n, …)``, without gradients, chunk by chunk on a CPU.

    Arguments:
        out: Where to write ``(n, 2, N, N)``, contiguous; new memory if None, which takes as long to get as the frames to compute.
        compiled: Whether to use kernels for a CPU that ``torch.compile`` makes when first asked for a world, in some seconds. They are for
            thousands of frames, fewer are rendered without. Frames differ by float32 rounding, and in a pixel within rounding of a rim.

    Raises:
        ValueError: as :func:`flow`; for an ``out`` of another kind; if ``compiled`` on another device.
        OSError: if ``compiled`` and there is no C++ compiler.
    """
    causes, (n,) = _checked(causes, world, 0.0)
    shape, dtype = (n, 2, world.resolution, world.resolution), reduce(torch.promote_types, (value.dtype for value in causes.values()))
    out = causes["fixation"].new_empty(shape, dtype=dtype) if out is None else out
    if out.shape != shape or out.dtype != dtype or not out.is_contiguous():
        raise ValueError(f"out must be contiguous, {dtype} and of shape {shape}, not {out.dtype} {tuple(out.shape)}")
    field = out.view(n, 2, -1)
    if compiled and (parts := pieces(n, world, out.device)):
        table = tables(world.resolution, world.fov, dtype, out.device)
        for part in parts:
            scene = _scene(_part(causes, part), world, 0.0)
            form = None if scene.discs is None else scene.discs.form
            kernel(paint, world)(scene.wall, scene.moving, form, table, field[part, 0], field[part, 1])
        return out
    scene = _scene(causes, world, 0.0)
    for part in _chunks(n, world, out.device):
        _paint(_slice(scene, part), world, 0.0, field[part])
    return out


def masks(causes: Mapping[str, Tensor], world: World, edge: float = 0.0) -> tuple[Tensor, Tensor]:
    """What each disc covers, ``(…, n, N, N)`` from 0 to 1: by itself, and what nearer discs leave visible of it.

    Only the causes ``fixation`` and ``object_position`` are looked at.

    Raises:
        ValueError: as :func:`flow`; or if the world has no discs.
    """
    if world.objects == 0:
        raise ValueError(f"there are no discs in {world.category}")
    causes, _ = _checked(causes, world, edge, PLACES)
    ordered = _far_to_near(causes)
    whole = inside(_discs(ordered, world), world, edge)
    parts, field = (whole, torch.stack(visible(whole), -2)), (world.resolution, world.resolution)
    back = ordered["places"].unsqueeze(-1)
    return tuple(part.take_along_dim(back, -2).unflatten(-1, field) for part in parts)


@torch.no_grad()
def covered_pixels(causes: Mapping[str, Tensor], world: World, *, compiled: bool = False) -> tuple[Tensor, Tensor]:
    """Pixels that each disc covers, ``(n, objects)``, by itself and where nothing is in front of it: :func:`masks`, summed, without
    gradients, of many frames ``(n, …)``, chunk by chunk on a CPU; ``compiled`` as :func:`render`."""
    causes, (n,) = _checked(causes, world, 0.0, PLACES)
    ordered = _far_to_near(causes)
    back = ordered["places"]
    if compiled and (parts := pieces(n, world, back.device)):
        counts = back.new_empty(2, n, world.objects, dtype=ordered["object_position"].dtype)
        for part in parts:
            form = _discs(_part(ordered, part), world).form
            counts[:, part] = kernel(count, world)(form, tables(world.resolution, world.fov, form.dtype, form.device))
        return tuple(pixels.take_along_dim(back, -1) for pixels in counts)
    discs, counts = _discs(ordered, world), []
    for part in _chunks(n, world, discs.form.device):
        whole = inside(Discs(discs.form[part], discs.ray[part]), world, 0.0)
        counts.append((whole.sum(-1), whole.sum(-1) if world.objects == 1 else torch.stack([seen.sum(-1) for seen in visible(whole)], -1)))
    return tuple(torch.cat(pixels).take_along_dim(back, -1) for pixels in zip(*counts, strict=True))


def sizes(causes: Mapping[str, Tensor], world: World, edge: float = 0.0) -> tuple[Tensor, Tensor]:
    """Fractions of the field that the discs cover, ``(…, n)``: before and after occlusion by nearer discs."""
    whole, seen = masks(causes, world, edge)
    return whole.mean((-2, -1)), seen.mean((-2, -1))


def _checked(causes: Mapping[str, Tensor], world: World, edge: float,
             needed: tuple[str, ...] | None = None) -> tuple[dict[str, Tensor], torch.Size]:
    """The causes (those that are ``needed``) with equal leading dimensions, which are returned as well."""
    if not 0.0 <= edge < math.inf:
        raise ValueError(f"edge must be 0 (hard) or a finite width in metres, not {edge}")
    shapes = cause_shapes(world)
    if not set(needed or shapes) <= set(causes) <= set(shapes):
        raise ValueError(f"the causes of {world.category} are {', '.join(shapes)}; got {', '.join(causes) or 'none'}")
    causes = {name: causes[name] for name in needed or shapes}
    for name, value in causes.items():
        if tuple(value.shape[-len(shapes[name]):]) != shapes[name] or not value.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor (…, {', '.join(map(str, shapes[name]))}), "
                             f"not {value.dtype} {tuple(value.shape)}")
    leading = [value.shape[:value.dim() - len(shapes[name])] for name, value in causes.items()]
    try:
        batch = torch.broadcast_shapes(*leading)
    except RuntimeError:
        raise ValueError(f"the causes' leading dimensions do not broadcast: {', '.join(str(tuple(shape)) for shape in leading)}") from None
    return {name: value.expand(*batch, *shapes[name]) for name, value in causes.items()}, batch


def _scene(causes: dict[str, Tensor], world: World, edge: float) -> Scene:
    gaze = gaze_at(causes["fixation"])
    still = torch.zeros_like(gaze.c)
    eye = gaze.to_eye(causes["self_velocity"].unbind(-1)) if world.self_moves else (still, still, still)
    wall = tuple(-part for part in eye)
    if world.objects == 0:
        return Scene(_weights(gaze, wall, 1.0, _turn(wall, gaze.c) if world.tracks else (still, still)), None, None)
    causes = _far_to_near(causes)
    depth = causes["object_position"][..., 2]
    seen_by = gaze.unsqueeze()
    discs = discs_of(causes["object_position"], seen_by, world)
    moving = _relative_velocities(causes, seen_by, wall, world)
    if world.kind == "pursuit":
        *tracked, distance = (part.gather(-1, causes["places"][..., :1]).squeeze(-1) for part in (*moving, depth))
        turn = _turn(tracked, gaze.c / distance)
    elif world.kind == "terrain":
        nearness = torch.ones_like(gaze.c)  # of what is seen straight ahead
        for covers, z in zip(at_fovea(discs, world, edge).unbind(-1), depth.unbind(-1), strict=True):
            nearness = torch.lerp(nearness, 1.0 / z, covers)
        turn = _turn(wall, gaze.c * nearness)
    else:
        turn = _turn(wall, gaze.c) if world.tracks else (still, still)
    return Scene(_weights(gaze, wall, 1.0, turn), _weights(seen_by, moving, 1.0 / depth, tuple(part.unsqueeze(-1) for part in turn)), discs)


def _paint(scene: Scene, world: World, edge: float, out: Tensor | None = None) -> Tensor:
    """The field ``(…, 2, N²)``: the wall, and over it the discs, from far to near."""
    field = _moving_plane(scene.wall, world)
    if scene.discs is None:
        return field if out is None else out.copy_(field)
    covers = inside(scene.discs, world, edge)
    for i in range(world.objects):
        field = torch.lerp(field, _moving_plane(scene.moving[..., i, :], world), covers[..., i, None, :], out=out)
    return field


def _moving_plane(weights: Tensor, world: World) -> Tensor:
    """The field ``(…, 2, N²)`` that weights ``(2, …, 5)`` stand for."""
    table = tables(world.resolution, world.fov, weights.dtype, weights.device).flow
    return torch.bmm(weights.reshape(2, -1, 5), table).view(*weights.shape[:-1], -1).movedim(0, -2)


def _chunks(n: int, world: World, device: torch.device) -> Iterator[slice]:
    size = n if device.type != "cpu" else max(CHUNK // (world.resolution**2 * max(world.objects, 1)), 8)
    return (slice(i, i + size) for i in range(0, n, size))


def _part(causes: dict[str, Tensor], part: slice) -> dict[str, Tensor]:
    return {name: value[part] for name, value in causes.items()}


def _discs(causes: dict[str, Tensor], world: World) -> Discs:
    return discs_of(causes["object_position"], gaze_at(causes["fixation"]).unsqueeze(), world)


def _slice(scene: Scene, part: slice) -> Scene:
    if scene.discs is None:
        return Scene(scene.wall[:, part], None, None)
    return Scene(scene.wall[:, part], scene.moving[:, part], Discs(scene.discs.form[part], scene.discs.ray[part]))


def _far_to_near(causes: dict[str, Tensor]) -> dict[str, Tensor]:
    """The causes with discs in the order in which they are painted; ``places`` says where each object went."""
    depth = causes["object_position"][..., 2].detach()
    if depth.shape[-1] == 1:
        return causes | {"places": torch.zeros_like(depth, dtype=torch.long)}
    order = torch.argsort(depth, dim=-1, descending=True, stable=True)
    moved = {name: value.take_along_dim(order.unsqueeze(-1), -2) for name, value in causes.items() if name.startswith("object_")}
    return causes | moved | {"places": order.argsort(dim=-1)}


def _relative_velocities(causes: dict[str, Tensor], gaze: Gaze, wall: Vector, world: World) -> Vector:
    """Velocity of each disc relative to the eye, in the eye's coordinates, three of ``(…, n)``."""
    wall = tuple(part.unsqueeze(-1) for part in wall)
    if not world.objects_move:
        return tuple(part.expand(causes["object_position"].shape[:-1]) for part in wall)
    own = gaze.to_eye(causes["object_velocity"].unbind(-1))
    return own if world.residual else tuple(u + w for u, w in zip(own, wall, strict=True))


def _turn(tracked: Vector, nearness: Tensor) -> Vector:
    """Ω_x and Ω_y of an eye that keeps a point at 1 / ``nearness`` m on its fovea, which moves as ``tracked`` relative to it."""
    return -tracked[1] * nearness, tracked[0] * nearness


def _weights(gaze: Gaze, velocity: Vector, nearness: Tensor | float, turn: Vector) -> Tensor:
    """Weights ``(2, …, 5)`` of the flow tables, for a plane at 1 / ``nearness`` m with that velocity relative to the eye."""
    p, q, c = gaze
    x, y, z = (part * nearness for part in velocity)
    turn_x, turn_y = turn
    return torch.stack([
        c * x - turn_y, -p * x - c * z, p * z - turn_y, -q * x, q * z + turn_x,
        c * y + turn_x, -q * y - c * z, q * z + turn_x, -p * y, p * z - turn_y]).unflatten(0, (2, 5)).movedim(1, -1)
