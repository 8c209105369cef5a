r"""Smooth motions of the eye, its gaze and the discs: causes of frames in the course of time.

Velocities of eye and discs are Ornstein–Uhlenbeck processes, mapped so that at every frame they have the law of single frames: an isotropic
direction and a uniform speed. Places follow from them. A single frame's wall is at 1 m; here a frame's lengths are in units of its distance
to the wall, in which a point x of the world that moves at u, seen by an eye that moves at v, obeys

:math:`\dot x = u - v + v_z x` .

So an eye that tracks a point of the wall (``fixate``) turns as that point goes by; one that does not (``transl``, ``obj``) keeps its gaze.
Three things stay as they are in single frames: a disc's radius is the same in that unit at every frame, so a disc shrinks with the
distance to the wall; the flow of ``fixate`` is without the slow torsion of an eye that is turned by the least rotation at every frame; and
where the gaze, a disc's depth or its angle on the retina would leave the range of single frames, the motion is drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real

import torch
from torch import Tensor

from zoo.data.ornstein_uhlenbeck import ornstein_uhlenbeck
from zoo.data.rofl.acceptance import BLOCK, LEAST_RATE, accepted
from zoo.data.rofl.factors import world_position
from zoo.data.rofl.render import cause_shapes
from zoo.data.rofl.retina import gaze_at
from zoo.data.rofl.sampling import sample
from zoo.data.rofl.world import World

__all__ = ["flat", "trajectories", "whole"]

KINDS = ("fixate", "transl", "obj")


@torch.no_grad()
def trajectories(world: World, n: int, *, frames: int = 16, dt: float = 0.02, time_constant: float = 50.0, seed: int = 0,
                 dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Causes of ``n`` sequences in which every frame is accepted, ``{name: (n, frames, …)}``: see the module.

    The middle frame's gaze and places are drawn as those of a single frame (:func:`zoo.data.rofl.sample`) and followed from there both
    ways; a sequence that leaves their range, or in which a frame is not accepted, is drawn again as a whole. So frames have nearly the
    laws of single frames: of 16 frames of 0.02 s, 88 % of the sequences are kept in ``fixate-0``, all in ``transl-0``, 68 % in ``obj-1``
    and 57 % in ``fixate-1``; standard deviations are at most 12 % smaller than in single frames (of a disc's depth), of the gaze 6 %.

    Arguments:
        world: Settings of ``fixate``, ``transl`` or ``obj``, without ``grid`` and ``residual``.
        frames: Frames of a sequence.
        dt: Time from one to the next, s.
        time_constant: Of the velocities, in frames: before their map to uniform speeds they have autocorrelation exp(−k / time_constant).
        seed: Same seed, same device: same sequences.

    Raises:
        ValueError: for a setting out of range, or if hardly any sequence is accepted.
    """
    if world.kind not in KINDS or world.grid or world.residual:
        raise ValueError(f"there are sequences of fixate-n, transl-n and obj-n, without grid and residual; not of {world}")
    for name, value, least in (("the number of sequences", n, 1), ("frames", frames, 2)):
        if not whole(value, least):
            raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
    for name, value, unit in (("dt", dt, "seconds"), ("time_constant", time_constant, "frames")):
        if not (isinstance(value, Real) and 0.0 < value < math.inf):
            raise ValueError(f"{name} must be positive and finite ({unit}), not {value!r}")
    device = torch.device(device)
    generator = torch.Generator(device).manual_seed(seed)
    block = max(BLOCK // frames, 64)
    parts: list[dict[str, Tensor]] = []
    found = proposed = 0
    while found < n:
        size = min(block, int(1.2 * n) + 64 if not found else int(1.05 * (n - found) * proposed / found) + 64)
        causes = _proposed(world, size, frames, dt, time_constant, generator, dtype)
        for passes in (_in_range, _all_seen):
            kept = passes(causes, world).nonzero().squeeze(-1)
            causes = {name: value[kept] for name, value in causes.items()}
        parts.append(causes)
        found += len(causes["fixation"])
        proposed += size
        if found < min(n, LEAST_RATE * proposed):
            raise ValueError(f"only {found} of {proposed} motions of {world.category} stay in range for {frames} frames of {dt:g} s; "
                             "ask for fewer or shorter ones, or for fewer discs")
    return {name: torch.cat([part[name] for part in parts])[:n] for name in parts[0]}


def _proposed(world: World, n: int, frames: int, dt: float, time_constant: float, generator: torch.Generator,
              dtype: torch.dtype) -> dict[str, Tensor]:
    start = sample(world, n, generator=generator, dtype=dtype, device=generator.device)

    def velocities(*of: int) -> Tensor:
        path = ornstein_uhlenbeck(n, frames, (*of, 3), time_constant, generator=generator, dtype=dtype, device=generator.device)
        return _uniform_speed(path, world)

    gaze = start["fixation"].unsqueeze(1).expand(n, frames, 2)
    eye = velocities() if world.self_moves else gaze.new_zeros(n, frames, 3)
    causes = {"fixation": gaze}
    if world.tracks:
        wall_point = torch.cat([start["fixation"], torch.ones_like(gaze[:, 0, :1])], -1)
        causes["fixation"] = _followed(wall_point.unsqueeze(1), torch.zeros_like(eye).unsqueeze(2), eye, dt)[:, :, 0, :2]
    if world.self_moves:
        causes["self_velocity"] = eye
    if world.objects:
        causes["object_velocity"] = velocities(world.objects)
        places = _followed(world_position(start), causes["object_velocity"], eye, dt)
        causes["object_position"] = _seen_at(places, causes["fixation"])
    return {name: causes[name] for name in cause_shapes(world)}


def _uniform_speed(path: Tensor, world: World) -> Tensor:
    """Standard Normal vectors ``(…, 3)`` with their lengths, of which χ² has 3 degrees of freedom, mapped to a uniform speed."""
    low, high = world.speed
    square = path.square().sum(-1, keepdim=True)
    speed = low + (high - low) * torch.special.gammainc(torch.full_like(square, 1.5), 0.5 * square)
    return speed * path * square.rsqrt()


def _followed(middle: Tensor, velocity: Tensor, eye: Tensor, dt: float) -> Tensor:
    """Places ``(n, frames, m, 3)`` of points at ``middle`` ``(n, m, 3)`` at the middle frame, from their velocities ``(n, frames, m, 3)``
    and the eye's ``(n, frames, 3)``: exact for velocities that are constant between two frames, the mean of both.

    With :math:`A = \\int v_z\\,dt`, :math:`x(t) = e^{A(t)} (x_0 + \\int (u - v)\\, e^{-A} dt)`, both from the middle frame on.
    """
    at = eye.shape[1] // 2
    u, v = (0.5 * (moves[:, 1:] + moves[:, :-1]) for moves in (velocity, eye))
    nearer = (v[..., 2] * dt)[..., None, None]
    y = torch.where(nearer.abs() < 1e-4, 1.0, nearer)
    mean = torch.where(nearer.abs() < 1e-4, 1.0 - 0.5 * nearer, -torch.expm1(-y) / y)  # of exp(−A) over a step that starts with A = 0
    log_scale = _summed(nearer, at)
    steps = (u - v.unsqueeze(2)) * dt * mean * torch.exp(-log_scale[:, :-1])
    return torch.exp(log_scale) * (middle.unsqueeze(1) + _summed(steps, at))


def _summed(steps: Tensor, at: int) -> Tensor:
    """Sums of ``steps`` ``(n, frames − 1, …)`` from the frame ``at`` to each frame, ``(n, frames, …)``."""
    sums = torch.cat([torch.zeros_like(steps[:, :1]), steps.cumsum(1)], 1)
    return sums - sums[:, at:at + 1]


def _seen_at(places: Tensor, fixation: Tensor) -> Tensor:
    """Retinal angles and depths ``(…, m, 3)`` of places in the world: the inverse of :func:`~zoo.data.rofl.world_position`."""
    x, y, z = gaze_at(fixation).unsqueeze().to_eye(places.unbind(-1))
    return torch.stack([torch.atan2(x, z), torch.atan2(y, z), places[..., 2]], -1)


def _in_range(causes: Mapping[str, Tensor], world: World) -> Tensor:
    """Whether gaze, depths and angles are within the limits of single frames at every frame, ``(n,)``."""
    fine = causes["fixation"].abs().sum(-1) < 1.0
    if world.objects:
        (low, high), bound = world.depth, math.radians(world.fov)
        depth, angles = causes["object_position"][..., 2], causes["object_position"][..., :2].abs().amax(-1)
        fine = fine & ((depth >= low) & (depth <= high) & (angles <= bound)).all(-1)
    return fine.all(-1)


def _all_seen(causes: Mapping[str, Tensor], world: World) -> Tensor:
    n, frames = causes["fixation"].shape[:2]
    if n == 0 or world.min_objects == 0:
        return torch.ones(n, dtype=torch.bool, device=causes["fixation"].device)
    return accepted(flat(causes, world), world).unflatten(0, (n, frames)).all(-1)


def flat(causes: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Causes with any leading dimensions as causes of single frames, ``{name: (n, …)}``."""
    return {name: causes[name].reshape(-1, *shape) for name, shape in cause_shapes(world).items()}


def whole(number: object, least: int) -> bool:
    """Whether it is a whole number of at least ``least``."""
    return isinstance(number, Integral) and not isinstance(number, bool) and number >= least
