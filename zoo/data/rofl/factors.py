r"""Ground truth: every cause of a frame as a named scalar, polar and Cartesian."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from zoo.data.rofl.render import PLACES, cause_shapes, covered_pixels
from zoo.data.rofl.retina import gaze_at
from zoo.data.rofl.world import World

__all__ = ["causes_of", "factors", "world_position"]


def world_position(causes: Mapping[str, Tensor]) -> Tensor:
    """Where the discs' centres are in world coordinates, m, ``(…, n, 3)``."""
    alpha_x, alpha_y, depth = causes["object_position"].unbind(-1)
    x, y, z = gaze_at(causes["fixation"]).unsqueeze().to_world((alpha_x.tan(), alpha_y.tan(), torch.ones_like(alpha_x)))
    return torch.stack([x / z * depth, y / z * depth, depth], -1)


def factors(causes: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Named factors ``{name: (…)}``: those of ``world.factor_names`` first, then the others; m, m/s, radians.

    ``fix_x, fix_y``; the eye's ``slf_v_`` + ``norm, theta, phi, x, y, z``; for disc i (``obj0_`` …) ``alpha_x, alpha_y`` (angles on the
    retina), ``x, y, z`` (world), ``distance, theta, phi`` (world, polar), ``dx, dy, dz`` (from the fixation point), ``v_`` + ``norm, theta,
    phi, x, y, z``, ``dv_`` + the same (relative to the eye), ``size`` and ``size_eff`` (fraction of the field covered, before and after
    occlusion). θ is the angle from the z axis, φ in [0, 2π] that from the x axis in the plane of the wall.
    """
    named = {f"fix_{axis}": value for axis, value in zip("xy", causes["fixation"].unbind(-1), strict=True)}
    if world.self_moves:
        named |= _vector("slf_v_", causes["self_velocity"])
    if world.objects:
        places = world_position(causes)
        away = places - torch.cat([causes["fixation"], torch.ones_like(causes["fixation"][..., :1])], -1).unsqueeze(-2)
        covered = _sizes(causes, world)
    for i in range(world.objects):
        disc = f"obj{i}_"
        named |= {f"{disc}alpha_{axis}": causes["object_position"][..., i, j] for j, axis in enumerate("xy")}
        named |= {f"{disc}{axis}": places[..., i, j] for j, axis in enumerate("xyz")}
        named |= dict(zip((f"{disc}distance", f"{disc}theta", f"{disc}phi"), _polar(places[..., i, :]), strict=True))
        named |= {f"{disc}d{axis}": away[..., i, j] for j, axis in enumerate("xyz")}
        if world.objects_move:
            velocity = causes["object_velocity"][..., i, :]
            named |= _vector(f"{disc}v_", velocity)
            eye = causes["self_velocity"] if world.self_moves else torch.zeros_like(velocity)
            named |= _vector(f"{disc}dv_", velocity if world.residual else velocity - eye)
        named |= {f"{disc}{name}": value[..., i] for name, value in zip(("size", "size_eff"), covered, strict=False)}
    return {name: named[name] for name in (*world.factor_names, *(name for name in named if name not in world.factor_names))}


def causes_of(named: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """The causes that named factors stand for: the inverse of :func:`factors`.

    Raises:
        ValueError: if a factor is missing.
    """
    columns = {"fixation": ["fix_x", "fix_y"], "self_velocity": ["slf_v_x", "slf_v_y", "slf_v_z"]}
    parts = {"object_position": ("alpha_x", "alpha_y", "z"), "object_velocity": ("v_x", "v_y", "v_z")}
    wanted = {name: columns.get(name) or [f"obj{i}_{part}" for i in range(world.objects) for part in parts[name]]
              for name in cause_shapes(world)}
    missing = [factor for factors_ in wanted.values() for factor in factors_ if factor not in named]
    if missing:
        raise ValueError(f"the factors {', '.join(missing)} of {world.category} are missing")
    return {name: torch.stack([named[factor] for factor in wanted[name]], -1).unflatten(-1, shape)
            for name, shape in cause_shapes(world).items()}


def _sizes(causes: Mapping[str, Tensor], world: World) -> tuple[Tensor, ...]:
    """Fractions of the field, ``(…, n)``, before and after occlusion; chunk by chunk, as all pixels of all frames take much memory."""
    batch = causes["fixation"].shape[:-1]
    flat = {name: causes[name].reshape(-1, *shape) for name, shape in cause_shapes(world).items() if name in PLACES}
    return tuple((count / world.resolution**2).reshape(*batch, world.objects) for count in covered_pixels(flat, world))


def _vector(prefix: str, vector: Tensor) -> dict[str, Tensor]:
    polar = zip(("norm", "theta", "phi"), _polar(vector), strict=True)
    return {f"{prefix}{name}": value for name, value in (*polar, *zip("xyz", vector.unbind(-1), strict=True))}


def _polar(vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, y, z = vector.unbind(-1)
    norm = vector.norm(dim=-1)
    return norm, torch.atan2(torch.hypot(x, y), z), torch.atan2(y, x).remainder(2.0 * math.pi)
