"""Frames in files: images ``x`` and all factors as two tensors of a safetensors file, the factors' names in its metadata."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from zoo.data.base import Data
from zoo.data.rofl.world import World
from zoo.files import atomic_file

__all__ = ["read", "write"]


def write(path: str | Path, data: Data, world: World, *, seed: int) -> Path:
    """Writes ``x`` ``(n, 2, N, N)`` and ``factors`` ``(n, F)``; metadata ``names`` (a JSON list of the F names), ``world`` and ``seed``.

    Raises:
        ValueError: for frames without factors.
        OSError: if it cannot be written; then nothing is left half-written.
    """
    if data.factors is None:
        raise ValueError("frames without factors are not written: they could not be read again")
    path = Path(path)
    x, columns = data.x.cpu().contiguous(), torch.stack(list(data.factors.values()), 1).cpu()
    metadata = {"names": json.dumps(list(data.factors)), "world": json.dumps(asdict(world)), "seed": str(seed)}
    needed = 4 * (x.numel() + columns.numel())
    try:
        with atomic_file(path) as temporary:
            save_file({"x": x, "factors": columns}, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise OSError(f"could not write {path}, which takes {needed:,} bytes: {error}") from error
    return path


def read(path: str | Path) -> Data:
    """The frames and named factors of a file that :func:`write` wrote.

    Raises:
        OSError: if it is missing, damaged, or not such a file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            names = json.loads(file.metadata()["names"])
            x, columns = file.get_tensor("x"), file.get_tensor("factors")
        if columns.dim() != 2:
            raise ValueError(f"the factors have the shape {tuple(columns.shape)}")
        return Data(x, factors=dict(zip(names, columns.unbind(1), strict=True)))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise OSError(f"{path} is damaged or not a file of flow frames: {error}") from error
