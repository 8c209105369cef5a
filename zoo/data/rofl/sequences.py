"""Optic flow in the course of time as a data set: sequences of frames along smooth motions, with every cause at every frame."""

from __future__ import annotations

import math
from numbers import Real

import torch

from zoo.data.base import Data, Dataset
from zoo.data.rofl.factors import factors
from zoo.data.rofl.render import render
from zoo.data.rofl.streaming import Stream, derived_seed
from zoo.data.rofl.trajectories import flat, trajectories, whole
from zoo.data.rofl.world import World

__all__ = ["rofl_sequences"]


def rofl_sequences(category: str = "fixate-0", *, frames: int = 16, dt: float = 0.02, time_constant: float = 50.0, noise: float = 0.0,
                   n_train: int = 5_000, n_validation: int = 1_000, n_test: int = 1_000, resolution: int = 17, seed: int = 0) -> Dataset:
    """Sequences of optic flow, rad/s, ``(n, frames, 2, N, N)``, along smooth motions (see :func:`trajectories`), all causes known.

    Every factor of :func:`zoo.data.rofl.factors` is there twice: ``name``, its value at the last frame ``(n,)``, and ``name_track``, at
    every frame ``(n, frames)``. Lengths are in units of the distance to the wall at that frame.

    Arguments:
        category: ``"fixate-n"``, ``"transl-n"`` or ``"obj-n"``: see :class:`~zoo.data.rofl.World`.
        frames, dt, time_constant: See :func:`trajectories`.
        noise: Standard deviation of Normal noise added to every pixel, rad/s; by default there is none, as in single frames.
        n_train, n_validation, n_test: Sequences of each part.
        resolution: Pixels N along each side of the field.
        seed: Seed of all three parts, which share no sequences.

    Raises:
        ValueError: for an unknown category or an impossible setting, or if hardly any motion stays in range for so long.
    """
    world = World(category, resolution)
    if not (isinstance(noise, Real) and 0.0 <= noise < math.inf):
        raise ValueError(f"noise must be a standard deviation of at least 0 (rad/s), not {noise!r}")
    for name, n in (("n_train", n_train), ("n_validation", n_validation), ("n_test", n_test)):
        if not whole(n, 1):
            raise ValueError(f"{name} must be a whole number of at least 1, not {n!r}")

    def part(name: str, n: int) -> Data:
        of_part = derived_seed("sequences", name, seed)
        causes = trajectories(world, n, frames=frames, dt=dt, time_constant=time_constant, seed=of_part)
        x = render(flat(causes, world), world).unflatten(0, (n, frames))
        if noise > 0.0:
            generator = torch.Generator().manual_seed(derived_seed("noise", name, seed))
            x += noise * torch.empty_like(x).normal_(generator=generator)
        tracks = factors(causes, world)
        return Data(x, factors={name: track[:, -1] for name, track in tracks.items()}
                    | {f"{name}_track": track for name, track in tracks.items()})

    about = (f"optic flow of the category {category} along smooth motions, {frames} frames of {resolution} × {resolution} pixels over "
             f"±{world.fov:g}°, one every {dt:g} s, in rad/s, not normalized; velocities keep for some {time_constant:g} frames; training, "
             "validation and test sequences are drawn independently")
    return Dataset(f"rofl_sequences/{category}", part("train", n_train), part("test", n_test), about, part("validation", n_validation),
                   world.cartesian_names, Stream.noise)
