"""Patches of van Hateren's natural images (van Hateren & van der Schaaf 1998): logarithm of luminance, averaged over 2 × 2 pixels.

A selection of 16 images. The Poisson VAE's "vH16" patches come from another selection of the same database.
"""

from __future__ import annotations

import numpy as np

from zoo.data.base import Dataset
from zoo.data.cutting import box_average, patch_dataset
from zoo.data.fetch import fetch
from zoo.data.sources import VAN_HATEREN

__all__ = ["van_hateren"]

HELD_OUT = 3  # the last images in the order of their numbers


def van_hateren(n_train: int = 80_000, n_test: int = 20_000, size: int = 16, seed: int = 0, zscore: str | None = "patch",
                f0: float = 0.4, as_published: bool = False) -> Dataset:
    """Whitened patches ``(n, 1, size, size)``; arguments are those of :func:`zoo.data.cutting.patch_dataset`."""
    images = []
    for source in VAN_HATEREN:
        luminance = np.frombuffer(fetch(source), dtype=">u2").reshape(1024, 1536)
        images.append(box_average(np.log(luminance.astype(np.float64) + 1.0)))
    return patch_dataset(
        "van_hateren", images[:-HELD_OUT], images[-HELD_OUT:], n_train=n_train, n_test=n_test, size=size, seed=seed, zscore=zscore,
        f0=f0, as_published=as_published, about=f"whitened patches of log luminance; the last {HELD_OUT} of 16 images held out")
