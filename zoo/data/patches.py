"""Patches of the photographs that ship inside scikit-learn and scikit-image: natural images with nothing to fetch.

Few pictures, some of textures and of things people made: demonstration data, not the benchmark.
"""

from __future__ import annotations

import numpy as np

from zoo.data.base import Dataset
from zoo.data.cutting import box_average, patch_dataset

__all__ = ["TEST", "TRAIN", "patches", "photograph"]

TRAIN = ("china", "grass", "gravel", "brick", "camera", "coffee", "rocket", "motorcycle")
TEST = ("flower", "astronaut", "cat")  # whole pictures held out: a plant, a portrait, an animal
HALVED = ("camera",)  # grey, but with a grain that whitening would make the strongest thing in it; colour pictures are all halved

LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of red, green and blue (ITU-R BT.709)


def patches(n_train: int = 40_000, n_test: int = 4_000, size: int = 16, seed: int = 0, zscore: str | None = "patch",
            f0: float = 0.4, as_published: bool = False) -> Dataset:
    """Whitened patches ``(n, 1, size, size)``; colour pictures and those in :data:`HALVED` are averaged
    over 2 × 2 pixels first, which removes JPEG's blocks and grain.

    Arguments are those of :func:`zoo.data.cutting.patch_dataset`.
    """
    return patch_dataset(
        "patches", [photograph(name) for name in TRAIN], [photograph(name) for name in TEST], n_train=n_train, n_test=n_test,
        size=size, seed=seed, zscore=zscore, f0=f0, as_published=as_published,
        about=f"whitened patches with some contrast; training pictures {', '.join(TRAIN)}; held-out pictures {', '.join(TEST)}")


def photograph(name: str) -> np.ndarray:
    """Luminance of an embedded photograph, ``(height, width)``; those in colour or in :data:`HALVED` at half their resolution.

    Raises:
        ValueError: if the name is neither in :data:`TRAIN` nor in :data:`TEST`.
    """
    if name not in TRAIN + TEST:
        raise ValueError(f"unknown photograph {name!r}; known are: {', '.join(TRAIN + TEST)}")
    from skimage import data as skimage_data
    from sklearn.datasets import load_sample_image

    if name in ("china", "flower"):
        image = load_sample_image(f"{name}.jpg")
    elif name == "motorcycle":
        image = skimage_data.stereo_motorcycle()[0]
    else:
        image = getattr(skimage_data, name)()
    image = np.asarray(image, dtype=np.float64)
    if image.ndim == 3:
        return box_average(image @ LUMINANCE)
    return box_average(image) if name in HALVED else image
