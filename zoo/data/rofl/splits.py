"""Fixed splits: training, validation and test frames by seed, generated once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

from zoo.data.base import Data, Dataset
from zoo.data.fetch import cache_folder
from zoo.data.rofl.acceptance import generate
from zoo.data.rofl.factors import factors
from zoo.data.rofl.render import render
from zoo.data.rofl.storage import read, write
from zoo.data.rofl.streaming import Stream, derived_seed
from zoo.data.rofl.world import World

__all__ = ["frames", "rofl"]

BLOCK = 65536  # frames rendered between two reports of progress
GENERATION = 1  # to be raised when the same seed comes to give other frames


def rofl(category: str = "fixate-1", *, n_train: int = 50_000, n_validation: int = 10_000, n_test: int = 10_000, resolution: int = 17,
         grid: bool = False, residual: bool = False, seed: int = 0, cache: bool = True) -> Dataset:
    """Retinal optic flow, rad/s, ``(n, 2, N, N)``, with every cause of it as a named factor (Vafaii, Yates & Butts 2023).

    Arguments:
        category: ``"fixate-1"`` and others: see :class:`~zoo.data.rofl.World`, which has all settings.
        n_train, n_validation, n_test: Accepted frames of each part (published: 600,000, 75,000 and 75,000).
        resolution, grid, residual: See :class:`~zoo.data.rofl.World`.
        seed: Seed of all three parts, which share no frames.
        cache: Whether to keep the frames on disk (``ZOO_CACHE``, by default ``~/.cache/perception-zoo``) and read them there.

    Raises:
        ValueError: for an unknown category or an impossible setting.
        OSError: if the frames cannot be stored.
    """
    world = World(category, resolution, grid=grid, residual=residual)
    sizes = {"train": n_train, "validation": n_validation, "test": n_test}
    for part, n in sizes.items():
        if n < 1:
            raise ValueError(f"n_{part} must be at least 1, not {n}")
    make = _cached if cache else _made
    parts = {part: make(world, part, n, seed) for part, n in sizes.items()}
    about = (f"optic flow of the category {category}, {resolution} × {resolution} pixels over ±{world.fov:g}°, in rad/s, not normalized; "
             "training, validation and test frames are drawn independently")
    return Dataset(f"rofl/{category}", parts["train"], parts["test"], about, parts["validation"], world.cartesian_names, Stream.noise)


def frames(world: World, n: int, *, seed: int = 0, progress: Callable[[int, int], None] | None = None) -> Data:
    """``n`` accepted frames with their factors.

    Arguments:
        progress: Called with (frames so far, n).
    """
    causes = generate(world, n, seed=seed)
    x = torch.empty(n, 2, world.resolution, world.resolution)
    named: list[dict[str, Tensor]] = []
    for start in range(0, n, BLOCK):
        part = {name: value[start:start + BLOCK] for name, value in causes.items()}
        render(part, world, x[start:start + BLOCK])
        named.append(factors(part, world))
        if progress is not None:
            progress(min(start + BLOCK, n), n)
    return Data(x, factors={name: torch.cat([one[name] for one in named]) for name in named[0]})


def _made(world: World, part: str, n: int, seed: int) -> Data:
    return frames(world, n, seed=derived_seed("split", part, seed))


def _cached(world: World, part: str, n: int, seed: int) -> Data:
    text = json.dumps([GENERATION, asdict(world), part, n, seed])
    path = cache_folder() / "rofl" / f"{world.category}-{part}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
    if path.is_file():
        try:
            return read(path)
        except OSError:
            pass  # damaged: made anew
    data = _made(world, part, n, seed)
    try:
        write(path, data, world, seed=seed)
    except OSError as error:
        raise OSError(f"{error}; set ZOO_CACHE to another folder, or ask for cache=False") from error
    return data
