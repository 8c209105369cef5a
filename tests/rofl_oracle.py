"""Optic flow of one ROFL frame, written out in float64 NumPy from the equations of Vafaii, Yates & Butts (NeurIPS 2023), without shortcuts.

An eye at the origin looks at a wall, the plane z = 1, with discs parallel to it in between. World coordinates: x, y along the wall,
z towards it. Self coordinates: z along the gaze. Lengths in m, speeds in m/s, angles in rad, flow in rad/s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RADIUS = 0.25
FOV = np.pi / 4


@dataclass(frozen=True)
class Frame:
    """What is seen in one frame of N x N pixels and n discs.

    Attributes:
        flow: Retinal angular velocity (2, N, N), channel 0 horizontal, 1 vertical; rows are vertical angles.
        depth: World depth z at each pixel (N, N).
        distance: Distance (n, N, N) from each disc's centre to where the pixel's ray crosses the disc's plane.
        size: Fraction of the field that each disc would cover alone (n,).
        size_eff: Fraction of the field in which each disc is seen (n,).
    """

    flow: np.ndarray
    depth: np.ndarray
    distance: np.ndarray
    size: np.ndarray
    size_eff: np.ndarray

    def near_a_rim(self, margin: float, radius: float = RADIUS) -> np.ndarray:
        """Pixels (N, N) whose ray passes a disc's rim within ``margin`` metres, so that rounding may put them on either side."""
        return (np.abs(self.distance - radius) < margin).any(0)


def turn(axis: np.ndarray, angle: float) -> np.ndarray:
    """Matrix (3, 3) that rotates by ``angle`` about the unit vector ``axis`` (Rodrigues)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * np.outer(axis, axis)


def gaze_rotation(fixation: np.ndarray) -> np.ndarray:
    """Matrix R (3, 3) from self to world coordinates: the rotation without torsion that takes z to the gaze on (X0, Y0, 1)."""
    gaze = np.array([*fixation, 1.0])
    theta = np.arccos(gaze[2] / np.linalg.norm(gaze))
    phi = np.arctan2(gaze[1], gaze[0])
    return turn(np.array([-np.sin(phi), np.cos(phi), 0.0]), theta)


def rotate(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """``matrix`` (3, 3) applied to each of ``vectors`` (..., 3)."""
    return np.einsum("ij,...j->...i", matrix, vectors)


def rays(resolution: int, fov: float = FOV) -> np.ndarray:
    """Each pixel's ray (N, N, 3) in self coordinates, at unit depth; rows are vertical angles b, columns horizontal angles a."""
    angles = np.linspace(-fov, fov, resolution)
    return np.array([[(np.tan(a), np.tan(b), 1.0) for a in angles] for b in angles])


def at_depth(ray: np.ndarray, z: float | np.ndarray) -> np.ndarray:
    """Where each world ray (..., 3) crosses its plane of world depth z."""
    return ray * (z / ray[..., 2])[..., None]


def disc_centre(fixation: np.ndarray, position: np.ndarray) -> np.ndarray:
    """World coordinates (3,) of a disc that the eye sees at the angles (alpha_x, alpha_y) from its gaze and at world depth z."""
    alpha_x, alpha_y, z = position
    return at_depth(rotate(gaze_rotation(fixation), np.array([np.tan(alpha_x), np.tan(alpha_y), 1.0])), z)


def tracking(point: np.ndarray, velocity: np.ndarray) -> np.ndarray:
    """Angular velocity (3,) of an eye that keeps its gaze on ``point``, which moves at ``velocity`` relative to the eye."""
    across = velocity - (velocity @ point) / (point @ point) * point
    return np.cross(point, across) / (point @ point)


def frame(kind: str, causes: dict, resolution: int = 17, *, residual: bool = False, radius: float = RADIUS, fov: float = FOV) -> Frame:
    """One frame of a category: fixate, transl, obj, terrain or pursuit.

    Arguments:
        causes: ``fixation`` (2,), ``self_velocity`` (3,), ``object_position`` and ``object_velocity`` (n, 3); an absent velocity is zero.
        residual: Object velocities are relative to the observer, not to the world (in terrain all discs rest in the world).
    """
    fixation = causes["fixation"]
    positions = causes.get("object_position", np.zeros((0, 3)))
    v_self = causes.get("self_velocity", np.zeros(3))
    v_object = causes.get("object_velocity", np.zeros_like(positions))
    relative = v_object if residual and kind != "terrain" else v_object - v_self

    rotation = gaze_rotation(fixation)
    gamma = rotate(rotation, rays(resolution, fov))
    centres = [disc_centre(fixation, position) for position in positions]
    distance = np.empty((len(centres), resolution, resolution))
    for k, centre in enumerate(centres):
        distance[k] = np.linalg.norm((at_depth(gamma, centre[2]) - centre)[..., :2], axis=-1)

    depth = np.ones((resolution, resolution))
    velocity = np.tile(-v_self, (resolution, resolution, 1))
    seen = np.full((resolution, resolution), -1)
    for k in sorted(range(len(centres)), key=lambda k: -centres[k][2]):
        inside = distance[k] < radius
        depth[inside] = centres[k][2]
        velocity[inside] = relative[k]
        seen[inside] = k

    wall_point = np.array([*fixation, 1.0])
    middle = resolution // 2
    if kind == "fixate":
        omega = tracking(wall_point, -v_self)
    elif kind == "terrain":
        omega = tracking(wall_point * depth[middle, middle], -v_self)
    elif kind == "pursuit":
        omega = tracking(wall_point * centres[0][2], relative[0])
    elif kind in ("transl", "obj"):
        omega = np.zeros(3)
    else:
        raise ValueError(f"no category {kind!r}")

    x = rotate(rotation.T, at_depth(gamma, depth))
    v = rotate(rotation.T, velocity) - np.cross(rotate(rotation.T, omega), x)
    horizontal = (v[..., 0] * x[..., 2] - v[..., 2] * x[..., 0]) / (x[..., 0] ** 2 + x[..., 2] ** 2)
    vertical = (v[..., 1] * x[..., 2] - v[..., 2] * x[..., 1]) / (x[..., 1] ** 2 + x[..., 2] ** 2)

    size = np.array([(one < radius).mean() for one in distance])
    size_eff = np.array([(seen == k).mean() for k in range(len(centres))])
    return Frame(np.stack([horizontal, vertical]), depth, distance, size, size_eff)
