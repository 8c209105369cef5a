"""Patches of the ten natural images of Olshausen & Field (1996), from the unwhitened 8-bit pictures."""

from __future__ import annotations

import io

import numpy as np

from zoo.data.base import Dataset
from zoo.data.cutting import patch_dataset
from zoo.data.fetch import fetch
from zoo.data.sources import OLSHAUSEN

__all__ = ["olshausen"]

HELD_OUT = 2


def olshausen(n_train: int = 80_000, n_test: int = 20_000, size: int = 16, seed: int = 0, zscore: str | None = "patch",
              f0: float = 0.4, as_published: bool = False) -> Dataset:
    """Whitened patches ``(n, 1, size, size)``; arguments are those of :func:`zoo.data.cutting.patch_dataset`."""
    from skimage.io import imread

    images = [np.asarray(imread(io.BytesIO(fetch(source))), dtype=np.float64) for source in OLSHAUSEN]
    return patch_dataset(
        "olshausen", images[:-HELD_OUT], images[-HELD_OUT:], n_train=n_train, n_test=n_test, size=size, seed=seed, zscore=zscore,
        f0=f0, as_published=as_published, about=f"whitened patches; the last {HELD_OUT} of 10 images held out")
