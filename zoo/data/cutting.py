"""From photographs to patches: contrast, whitening, random positions, z-scores; held-out photographs apart from the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from zoo.data.base import Data, Dataset
from zoo.data.whiten import whiten

__all__ = ["box_average", "patch_dataset"]

BORDER = 8  # pixels cut at the edge; beyond, what wraps around moves a patch, but for its mean, by less than 0.1 (unit as QUIET)
# Patches with less than this standard deviation, the photograph's being 1, are left out: a z-score would show mostly noise.
QUIET = 0.5


def box_average(image: np.ndarray, factor: int = 2) -> np.ndarray:
    """Means of ``factor`` × ``factor`` blocks of ``(height, width)``; an incomplete row or column of blocks is cut."""
    height, width = (n // factor * factor for n in image.shape)
    blocks = image[:height, :width].reshape(height // factor, factor, width // factor, factor)
    return blocks.mean((1, 3))


def patch_dataset(name: str, train: Sequence[np.ndarray], test: Sequence[np.ndarray], *, n_train: int, n_test: int, size: int,
                  seed: int, zscore: str | None, f0: float, as_published: bool, about: str) -> Dataset:
    """Whitens grey photographs and cuts patches at random positions; no photograph gives patches to both parts.

    Arguments:
        train, test: Photographs ``(height, width)``.
        n_train, n_test: Patches to cut, as many from each photograph (to within one), at positions drawn with replacement.
        size: Height and width of a patch.
        seed: Seed of the positions.
        zscore: ``"patch"``: every patch has mean 0 and variance 1 over its pixels, so ‖x‖² = D, and patches with less than half
            of their whitened photograph's standard deviation, which are mostly noise, are left out and replaced by others; ``"image"``:
            every whitened photograph has mean 0 and variance 1; None: whitened values of photographs of variance 1 as they are.
        f0, as_published: See :func:`zoo.data.whiten.whiten`.

    Raises:
        ValueError: for settings out of range, more patches than a photograph has positions, or photographs that are too small, not
            finite, of a single grey, or without enough patches of some contrast.
    """
    if zscore not in ("patch", "image", None):
        raise ValueError(f"zscore must be 'patch', 'image' or None, not {zscore!r}")
    if n_train < 1 or n_test < 1:
        raise ValueError(f"n_train and n_test must be at least 1, not {n_train} and {n_test}")
    generator = np.random.default_rng(seed)

    def cut(photographs: Sequence[np.ndarray], count: int) -> Data:
        shares = np.full(len(photographs), count // len(photographs))
        shares[: count % len(photographs)] += 1
        parts = [_patches(_prepare(photograph, f0, as_published, zscore), int(share), size, zscore, generator)
                 for photograph, share in zip(photographs, shares, strict=True) if share]
        patches = torch.cat(parts)
        return Data(patches[torch.from_numpy(generator.permutation(len(patches)))])

    return Dataset(name, cut(train, n_train), cut(test, n_test), about)


def _prepare(photograph: np.ndarray, f0: float, as_published: bool, zscore: str | None) -> np.ndarray:
    if photograph.ndim != 2 or min(photograph.shape) <= 2 * BORDER:
        raise ValueError(f"a photograph must be grey and more than {2 * BORDER} pixels high and wide, not {photograph.shape}")
    if not np.isfinite(photograph).all():
        raise ValueError(f"a photograph of {photograph.shape} has {np.sum(~np.isfinite(photograph))} values that are not finite")
    if photograph.min() == photograph.max():
        raise ValueError(f"a photograph of {photograph.shape} has the same grey everywhere")
    image = (photograph - photograph.mean()) / photograph.std()
    image = whiten(image, f0, as_published)[BORDER:-BORDER, BORDER:-BORDER]
    return image if zscore is None else (image - image.mean()) / image.std()


def _patches(image: np.ndarray, count: int, size: int, zscore: str | None, generator: np.random.Generator) -> Tensor:
    rows, columns = (n - size + 1 for n in image.shape)
    if size < 2 or rows < 1 or columns < 1:
        raise ValueError(f"patches must be 2 × 2 to {min(image.shape)} × {min(image.shape)} pixels here, not {size} × {size}")
    if count > rows * columns:
        raise ValueError(f"asked for {count} patches of {size} × {size} pixels in a photograph that has {rows * columns}")
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size))
    kept: list[np.ndarray] = []
    missing, tries = count, 0
    while missing > 0:
        tries += 1
        if tries > 100:
            raise ValueError(f"found only {count - missing} of {count} patches with some contrast in a photograph; "
                             "ask for fewer, or use zscore='image'")
        found = windows[generator.integers(rows, size=2 * missing), generator.integers(columns, size=2 * missing)]
        if zscore == "patch":
            spread = found.std((1, 2))
            found = found[spread > QUIET * image.std()]
        kept.append(found[:missing])
        missing -= len(kept[-1])
    patches = np.concatenate(kept)
    if zscore == "patch":
        patches = (patches - patches.mean((1, 2), keepdims=True)) / patches.std((1, 2), keepdims=True)
    return torch.from_numpy(patches[:, None].astype(np.float32))
