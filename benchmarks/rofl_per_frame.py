r"""Retinal optic flow frame by frame in NumPy: what ``zoo.data.rofl`` is checked against and timed against.

The same laws and equations (Vafaii, Yates & Butts 2023), written as one writes them down for a single frame, with arrays over its pixels:
propose causes, cast the pixels' rays, see which disc each of them meets, propose again if too little of a disc can be seen, compute the
flow. The rays :math:`d = (\tan a, \tan b, 1)` are computed once. World coordinates have the wall at z = 1 m; m, m/s, rad/s.

Not a program: ``benchmarks/rofl.py`` runs it.
"""

from __future__ import annotations

import math

import numpy as np

from zoo.data.rofl import World

KINDS = ("fixate", "transl", "obj")
Causes = dict[str, np.ndarray]


def pixel_rays(world: World, dtype: type = np.float64) -> np.ndarray:
    """Rays of the N² pixels in the eye's coordinates, ``(3, N²)``: row by row, by vertical and then by horizontal angle."""
    tangent = np.tan(np.linspace(-1.0, 1.0, world.resolution) * math.radians(world.fov))
    b, a = np.meshgrid(tangent, tangent, indexing="ij")
    return np.stack([a.ravel(), b.ravel(), np.ones(a.size)]).astype(dtype)


def propose(world: World, rng: np.random.Generator) -> Causes:
    """Causes of one frame from the prior, named as in ``zoo.data.rofl``.

    Raises:
        ValueError: for the categories that are not written down here.
    """
    if world.kind not in KINDS:
        raise ValueError(f"frame by frame there are {', '.join(KINDS)}, not {world.category!r}")
    u, v = rng.uniform(-1.0, 1.0, 2)
    causes = {"fixation": np.array([0.5 * (u + v), 0.5 * (u - v)])}
    if world.kind != "obj":
        causes["self_velocity"] = velocity(world, rng)
    if world.objects:
        causes["object_position"] = np.array([position(world, rng) for _ in range(world.objects)])
        causes["object_velocity"] = np.array([velocity(world, rng) for _ in range(world.objects)])
    return causes


def velocity(world: World, rng: np.random.Generator) -> np.ndarray:
    """Uniform speed, isotropic direction, ``(3,)``."""
    height, azimuth, speed = rng.uniform(-1.0, 1.0), rng.uniform(0.0, 2.0 * math.pi), rng.uniform(*world.speed)
    across = speed * math.sqrt(1.0 - height * height)
    return np.array([across * math.cos(azimuth), across * math.sin(azimuth), speed * height])


def position(world: World, rng: np.random.Generator) -> tuple[float, float, float]:
    """Retinal angles, uniform over the field (or its inner pixels), and depth of a disc."""
    depth, limit = rng.uniform(*world.depth), math.radians(world.fov)
    if world.grid:
        x, y = rng.integers(1, world.resolution - 1, 2) * (2.0 * limit / (world.resolution - 1)) - limit
    else:
        x, y = rng.uniform(-limit, limit, 2)
    return x, y, depth


def eye_rotation(fixation: np.ndarray) -> np.ndarray:
    """R ``(3, 3)``: the rotation about an axis in the plane of the wall that takes the z axis to the gaze (X₀, Y₀, 1)."""
    x, y = fixation
    length = math.sqrt(1.0 + x * x + y * y)
    p, q, c = x / length, y / length, 1.0 / length
    k = 1.0 / (1.0 + c)
    return np.array([[1.0 - p * p * k, -p * q * k, p], [-p * q * k, 1.0 - q * q * k, q], [-p, -q, c]])


def look(causes: Causes, world: World, rays: np.ndarray, rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the rays end.

    Returns:
        world depth of what each pixel sees ``(N²,)``, the z component of its ray ``(N²,)``, and at which pixels each disc is seen
        ``(n, N²)``.
    """
    gamma_x, gamma_y, gamma_z = rotation.astype(rays.dtype) @ rays
    wall_x, wall_y = gamma_x / gamma_z, gamma_y / gamma_z
    depth, seen = np.ones_like(gamma_z), np.zeros((world.objects, gamma_z.size), bool)
    positions = causes.get("object_position", ())
    for i in sorted(range(world.objects), key=lambda i: -positions[i][2]):
        alpha_x, alpha_y, z = (float(part) for part in positions[i])
        x, y, away = rotation @ (math.tan(alpha_x), math.tan(alpha_y), 1.0)
        across, up = z * (wall_x - float(x / away)), z * (wall_y - float(y / away))
        inside = across * across + up * up < world.radius**2
        depth[inside] = z
        seen[:, inside] = False
        seen[i] = inside
    return depth, gamma_z, seen


def flow_of(causes: Causes, world: World, rays: np.ndarray, rotation: np.ndarray, depth: np.ndarray, gamma_z: np.ndarray,
            seen: np.ndarray) -> np.ndarray:
    r"""Angular velocity over the retina, ``(2, N, N)``: :math:`v = R^T(1_{disc} U - V) - \omega \\times X` of each point, projected."""
    eye = causes.get("self_velocity", np.zeros(3))
    points = rays * (depth / gamma_z)
    v = np.empty_like(points)
    v[:] = (rotation.T @ -eye)[:, None]
    for i, inside in enumerate(seen):
        moving = causes["object_velocity"][i] - (0.0 if world.residual else eye)
        v[:, inside] = (rotation.T @ moving).astype(v.dtype)[:, None]
    if world.kind == "fixate":
        x, y = (float(part) for part in causes["fixation"])
        vx, vy, vz = (-float(part) for part in eye)
        across = np.array([y * vz - vy, vx - x * vz, x * vy - y * vx])  # F × (−V)
        wx, wy, wz = rotation.T @ across / (1.0 + x * x + y * y)
        v -= np.array([[0.0, -wz, wy], [wz, 0.0, -wx], [-wy, wx, 0.0]], v.dtype) @ points
    x, y, z = points
    squared = z * z
    horizontal = (v[0] * z - v[2] * x) / (x * x + squared)
    vertical = (v[1] * z - v[2] * y) / (y * y + squared)
    return np.stack([horizontal, vertical]).reshape(2, world.resolution, world.resolution)


def passes(seen: np.ndarray, world: World) -> bool:
    """Whether enough of the discs can be seen."""
    return int((seen.sum(1) > world.min_size).sum()) >= world.min_objects


def one_frame(causes: Causes, world: World, rays: np.ndarray) -> tuple[np.ndarray, bool]:
    """Flow ``(2, N, N)`` of given causes, and whether the frame is accepted."""
    rotation = eye_rotation(causes["fixation"])
    depth, gamma_z, seen = look(causes, world, rays, rotation)
    return flow_of(causes, world, rays, rotation, depth, gamma_z, seen), passes(seen, world)


def accepted_frames(world: World, rng: np.random.Generator, rays: np.ndarray, out: np.ndarray) -> int:
    """Fills ``out`` ``(n, 2, N, N)`` with accepted frames; returns how many were proposed for that."""
    proposed = 0
    for frame in out:
        while True:
            causes = propose(world, rng)
            rotation = eye_rotation(causes["fixation"])
            depth, gamma_z, seen = look(causes, world, rays, rotation)
            proposed += 1
            if passes(seen, world):
                break
        frame[:] = flow_of(causes, world, rays, rotation, depth, gamma_z, seen)
    return proposed
