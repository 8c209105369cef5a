"""The laws of the causes before any frame is rejected, drawn for a whole batch at once (Vafaii, Yates & Butts 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo.data.rofl.retina import angles
from zoo.data.rofl.world import World

__all__ = ["HEADING", "TERRAIN_FIXATION", "sample"]

TERRAIN_FIXATION = 0.75  # least |X₀| + |Y₀| of terrain frames: gaze well away from straight ahead
HEADING = math.radians(80.0)  # greatest angle between the eye's heading and its gaze, in terrain frames


def sample(world: World, n: int, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32,
           device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Draws causes ``{name: (n, …)}`` (see :func:`~zoo.data.rofl.cause_shapes`), all independent of each other.

    Fixation points are uniform on the diamond |X₀| + |Y₀| < 1 (in ``terrain`` on its rim from 0.75 outwards); velocities have an isotropic
    direction and a uniform speed; discs a uniform depth, and angles uniform over the field or, with ``grid``, over the pixels strictly
    inside it. In ``terrain`` the eye's velocity is parallel to the wall, its azimuth that of the gaze plus arcsin U(−sin 80°, sin 80°).
    In ``pursuit`` disc 0 is on the line of gaze.

    Arguments:
        generator: Source of randomness, on ``device``; PyTorch's own if None.
    """

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device).uniform_(low, high, generator=generator)

    causes = {"fixation": _fixation(world, uniform, n)}
    if world.kind == "terrain":
        causes["self_velocity"] = _parallel(world, uniform, causes["fixation"])
    elif world.self_moves:
        causes["self_velocity"] = _isotropic(world, uniform, n)
    if world.objects:
        causes["object_position"] = _position(world, uniform, n, generator)
    if world.objects_move:
        causes["object_velocity"] = _isotropic(world, uniform, n, world.objects)
    return causes


def _fixation(world: World, uniform, n: int) -> Tensor:
    square = uniform(n, 2, low=-1.0)
    if world.kind == "terrain":
        # The rim of the square [−1, 1]²: a distance from the centre with density ∝ itself, a side, a place along it.
        least = TERRAIN_FIXATION**2
        distance = (least + (1.0 - least) * uniform(n)).sqrt()
        side = uniform(n)
        along, sign = distance * square[:, 0], torch.where(side % 0.5 < 0.25, distance, -distance)
        square = torch.where((side < 0.5).unsqueeze(-1), torch.stack([sign, along], -1), torch.stack([along, sign], -1))
    u, v = square.unbind(-1)
    return torch.stack([0.5 * (u + v), 0.5 * (u - v)], -1)  # the square, turned by 45° and shrunk, is the diamond


def _isotropic(world: World, uniform, *shape: int) -> Tensor:
    low, high = world.speed
    height, azimuth, speed = uniform(*shape, low=-1.0), uniform(*shape, high=2.0 * math.pi), uniform(*shape, low=low, high=high)
    across = speed * (1.0 - height * height).sqrt()
    return torch.stack([across * azimuth.cos(), across * azimuth.sin(), speed * height], -1)


def _parallel(world: World, uniform, fixation: Tensor) -> Tensor:
    n = len(fixation)
    limit = math.sin(HEADING)
    azimuth = torch.atan2(fixation[:, 1], fixation[:, 0]) + uniform(n, low=-limit, high=limit).asin()
    speed = uniform(n, low=world.speed[0], high=world.speed[1])
    return torch.stack([speed * azimuth.cos(), speed * azimuth.sin(), torch.zeros_like(speed)], -1)


def _position(world: World, uniform, n: int, generator: torch.Generator | None) -> Tensor:
    shape = (n, world.objects)
    depth = uniform(*shape, low=world.depth[0], high=world.depth[1])
    if world.grid:
        pixel = torch.randint(1, world.resolution - 1, (*shape, 2), generator=generator, device=depth.device)
        alpha = angles(world.resolution, world.fov).to(depth.device, depth.dtype)[pixel]
    else:
        alpha = uniform(*shape, 2, low=-1.0) * math.radians(world.fov)
    if world.kind == "pursuit":
        alpha[:, 0] = 0.0
    return torch.cat([alpha, depth.unsqueeze(-1)], -1)
