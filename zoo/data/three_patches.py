r"""What the three modules of Rao & Ballard's network see: overlapping patches side by side, of natural photographs and of bars.

Rao & Ballard 1999 ("Predictive coding in the visual cortex", Nature Neuroscience 2) filter photographs by a difference of Gaussians, a
model of retina and LGN, and weight each 16 × 16 patch by a Gaussian window; neighbouring patches are 5 pixels apart, so that the three of
them cover 16 × 26 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

from zoo.data.base import Data, Dataset
from zoo.data.cutting import BORDER, QUIET
from zoo.data.patches import TEST, TRAIN, photograph
from zoo.data.whiten import whiten

__all__ = ["FILTERS", "bars", "difference_of_gaussians", "three_patches"]

FILTERS = ("whiten", "dog", "none")
MARGIN = 32  # pixels of grey around an area with a bar, so that what wraps around is far


def three_patches(n_train: int = 20_000, n_test: int = 2_000, *, size: int = 16, offset: int = 5, filtering: str = "whiten",
                  window: float | None = None, seed: int = 0) -> Dataset:
    """Triples of patches ``(n, 3, size, size)`` cut from areas of ``size`` × (``size`` + 2 ``offset``) pixels, left, middle, right.

    Every photograph is filtered; every area of it has mean 0 and variance 1 over its pixels, before the window, so that one with much
    contrast does not count more than others. Areas with less than half of their photograph's standard deviation are left out. Training
    and test part are of the photographs :data:`~zoo.data.patches.TRAIN` and :data:`~zoo.data.patches.TEST`, as many areas of each (to
    within one), at positions drawn with replacement.

    Arguments:
        n_train, n_test: Triples of each part.
        size: Height and width of a patch, pixels.
        offset: From a patch to its neighbour, pixels.
        filtering: ``"whiten"`` (:func:`zoo.data.whiten.whiten`), ``"dog"`` (:func:`difference_of_gaussians`), or ``"none"``.
        window: Standard deviation of the Gaussian window by which each patch is multiplied, in halves of its width (.4 in Rao &
            Ballard's network); no window if None.
        seed: Seed of the positions; neither part depends on how many triples the other has.

    Raises:
        ValueError: for a setting out of range, or a photograph with too few such areas.
    """
    for name, value in (("n_train", n_train), ("n_test", n_test)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    _check(size, offset, filtering, window)

    def part(names: Sequence[str], count: int, number: int) -> Data:
        generator = np.random.default_rng((seed, number))
        shares = [count // len(names) + (i < count % len(names)) for i in range(len(names))]
        areas = np.concatenate([_areas(photograph(name), share, size, offset, filtering, generator)
                                for name, share in zip(names, shares, strict=True) if share])
        return Data(_triples(areas[generator.permutation(count)], size, offset, window))

    about = (f"three overlapping patches of {size} × {size} pixels, {offset} pixels apart; filter: {filtering}; "
             f"window: {'none' if window is None else f'{window:g} of half a width'}; training pictures {', '.join(TRAIN)}; held-out "
             f"pictures {', '.join(TEST)}")
    return Dataset("three_patches", part(TRAIN, n_train, 0), part(TEST, n_test, 1), about)


def bars(lengths: Sequence[int], *, height: int = 2, shift: int = 0, contrast: float = 1.0, size: int = 16, offset: int = 5,
         filtering: str = "whiten", window: float | None = None) -> Tensor:
    """Horizontal bars on grey, filtered and cut as the photographs are, ``(len(lengths), 3, size, size)``; they lengthen to both sides.

    Arguments:
        lengths: Of the bars, pixels, each even (as the area's width), to be in its middle.
        height: Of the bars, pixels.
        shift: Of the bars downwards from the middle, pixels.
        contrast: Of all bars: at 1 the filtered bar that is as long as the area (and of this height, in its middle) has there, before the
            window, the root mean square of an area of photographs, 1; negative for a dark bar.
        size, offset, filtering, window: As in :func:`three_patches`.

    Raises:
        ValueError: for a setting out of range, or a bar that is no part of the area.
    """
    _check(size, offset, filtering, window)
    width = size + 2 * offset
    odd = [length for length in lengths if not (isinstance(length, Integral) and 1 <= length <= width and (width - length) % 2 == 0)]
    if not lengths or odd:
        raise ValueError(f"lengths must be of 1 to {width} pixels that leave as many on both sides, at least one; got {list(lengths)}")
    first = (size - height) // 2 + shift
    if height < 1 or first < 0 or first + height > size:
        raise ValueError(f"a bar of {height} pixels, shifted by {shift}, is no part of an area of {size}")
    if not (isinstance(contrast, Real) and math.isfinite(contrast) and contrast):
        raise ValueError(f"contrast must be finite and not 0, not {contrast!r}")

    def area(length: int, top: int) -> np.ndarray:
        canvas = np.zeros((size + 2 * MARGIN, width + 2 * MARGIN))
        left = MARGIN + (width - length) // 2
        canvas[MARGIN + top:MARGIN + top + height, left:left + length] = 1.0
        return _filtered(canvas, filtering)[MARGIN:-MARGIN, MARGIN:-MARGIN]

    unit = np.sqrt(np.square(area(width, (size - height) // 2)).mean())
    return _triples(np.stack([area(int(length), first) for length in lengths]) * (contrast / unit), size, offset, window)


def difference_of_gaussians(image: np.ndarray, center: float = 1.3, surround: float = 2.6) -> np.ndarray:
    """A grey image ``(height, width)`` smoothed by a Gaussian, minus itself smoothed by a wider one; its edges wrap around.

    Arguments:
        center, surround: Standard deviations of the two, pixels; the defaults are those of Rao & Ballard's network.

    Raises:
        ValueError: if the image is not two-dimensional, or the surround not wider than the center.
    """
    if image.ndim != 2:
        raise ValueError(f"expected a grey image (height, width), not an array of shape {image.shape}")
    if not 0.0 <= center < surround:
        raise ValueError(f"the surround must be wider than the center; got standard deviations of {surround} and {center}")
    square = sum(np.square(np.fft.fftfreq(n)).reshape(shape) for n, shape in zip(image.shape, ((-1, 1), (1, -1)), strict=True))
    gain = np.exp(-2.0 * np.pi**2 * center**2 * square) - np.exp(-2.0 * np.pi**2 * surround**2 * square)
    return np.fft.ifft2(np.fft.fft2(image) * gain).real


def _check(size: int, offset: int, filtering: str, window: float | None) -> None:
    if size < 2 or not 1 <= offset <= size:
        raise ValueError(f"patches must be at least 2 pixels wide, and neighbours 1 to that many apart; got {size} and {offset}")
    if filtering not in FILTERS:
        raise ValueError(f"filtering must be {', '.join(map(repr, FILTERS))}, not {filtering!r}")
    if window is not None and not (isinstance(window, Real) and 0.0 < window < math.inf):
        raise ValueError(f"window must be positive (halves of a patch's width) or None, not {window!r}")


def _filtered(image: np.ndarray, filtering: str) -> np.ndarray:
    return image if filtering == "none" else whiten(image) if filtering == "whiten" else difference_of_gaussians(image)


def _areas(picture: np.ndarray, count: int, size: int, offset: int, filtering: str, generator: np.random.Generator) -> np.ndarray:
    """Standardized areas ``(count, size, size + 2 offset)`` of a photograph."""
    shape = (size, size + 2 * offset)
    image = _filtered((picture - picture.mean()) / picture.std(), filtering)[BORDER:-BORDER, BORDER:-BORDER]
    if any(n < m for n, m in zip(image.shape, shape, strict=True)):
        raise ValueError(f"areas of {shape[0]} × {shape[1]} pixels do not fit into a photograph of {image.shape[0]} × {image.shape[1]}")
    windows = np.lib.stride_tricks.sliding_window_view(image, shape)
    image = image - image.mean()
    mean, square = (_sums(values, shape) / math.prod(shape) for values in (image, np.square(image)))
    rows, columns = np.nonzero(np.sqrt(np.maximum(square - np.square(mean), 0.0)) > QUIET * image.std())
    if len(rows) == 0:
        raise ValueError(f"a photograph of {picture.shape} has no area with some contrast")
    chosen = generator.integers(len(rows), size=count)
    found = windows[rows[chosen], columns[chosen]]
    return (found - found.mean((1, 2), keepdims=True)) / found.std((1, 2), keepdims=True)


def _sums(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Sums over all areas of that shape, each at its top left pixel."""
    for axis, length in enumerate(shape):
        total = np.insert(image.cumsum(axis), 0, 0.0, axis)
        image = np.take(total, range(length, total.shape[axis]), axis) - np.take(total, range(total.shape[axis] - length), axis)
    return image


def _triples(areas: np.ndarray, size: int, offset: int, window: float | None) -> Tensor:
    triples = np.stack([areas[..., i * offset:i * offset + size] for i in range(3)], 1)
    if window is not None:
        away = (np.arange(size) - 0.5 * (size - 1)) / (0.5 * size * window)
        profile = np.exp(-0.5 * np.square(away))
        triples = triples * profile[:, None] * profile
    return torch.from_numpy(triples.astype(np.float32))
