"""What a drifting eye sees: sequences of patches along smooth paths of gaze over the photographs that ship with the dependencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

from zoo.data.base import Data, Dataset
from zoo.data.cutting import BORDER
from zoo.data.gaze import gaze
from zoo.data.patches import TEST, TRAIN, photograph
from zoo.data.whiten import whiten

__all__ = ["bilinear", "moving_patches"]

CHUNK = 1 << 23  # pixels cut at once


def moving_patches(n_train: int = 10_000, n_test: int = 2_000, *, frames: int = 16, size: int = 12, speed: float = 0.5,
                   persistence: float = 8.0, saccades: float = 0.0, whitened: bool = False, noise: float = 0.1, seed: int = 0) -> Dataset:
    """Noisy patches ``(n, frames, 1, size, size)`` under a gaze that drifts over a photograph (see :func:`zoo.data.gaze.gaze`).

    Neighbouring frames of raw luminance are alike, and how they change is what drift makes of the photograph's spectrum (Kuang, Poletti,
    Victor & Rucci 2012, "Temporal encoding of spatial information during active visual fixation", Current Biology 22). The training and the
    test part are of the photographs :data:`~zoo.data.patches.TRAIN` and :data:`~zoo.data.patches.TEST`, as many sequences of each (to
    within one). Positions between pixels are interpolated (:func:`bilinear`), which takes contrast from the finest detail: of a whitened
    photograph's variance a fifth.

    Factors: ``vx`` and ``vy``, mean velocity of the gaze but for its saccades, pixels per frame to the right and downwards;
    ``photograph``, its place among the part's photographs; and, for every frame ``(n, frames)``, ``x_track`` and ``y_track``, column and
    row of the patch's top left pixel in the photograph (without the margin that is cut off a whitened one).

    Arguments:
        n_train, n_test: Sequences of each part.
        frames: Frames of a sequence.
        size: Height and width of a patch, pixels.
        speed: Root mean square speed of the drift, pixels per frame.
        persistence: Time constant of its velocity, frames.
        saccades: Probability of a saccade between two frames.
        whitened: Whether the photographs are whitened in space (:func:`zoo.data.whiten.whiten`). Either way each has mean 0 and variance 1.
        noise: Standard deviation of Normal noise added to every pixel of every frame, a photograph's being 1.
        seed: Seed of both parts; neither depends on how many sequences the other has.

    Raises:
        ValueError: for a setting out of range, or a patch that does not fit into a photograph.
    """
    for name, value, least in (("n_train", n_train, 1), ("n_test", n_test, 1), ("frames", frames, 2), ("size", size, 2)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
    if not (isinstance(noise, Real) and 0.0 <= noise < math.inf):
        raise ValueError(f"noise must be a standard deviation of at least 0, not {noise!r}")

    def part(names: Sequence[str], n: int, number: int) -> Data:
        generator = torch.Generator().manual_seed(2 * seed + number)
        pictures = [_prepared(photograph(name), whitened) for name in names]
        return _sequences(pictures, n, frames, size, speed, persistence, saccades, noise, generator)

    about = (f"sequences of {frames} {'whitened' if whitened else 'raw'} patches under a gaze that drifts by {speed:g} pixels per frame "
             f"(time constant {persistence:g} frames), with noise of {noise:g} standard deviations of a photograph; training pictures "
             f"{', '.join(TRAIN)}; held-out pictures {', '.join(TEST)}")
    return Dataset("moving_patches", part(TRAIN, n_train, 0), part(TEST, n_test, 1), about)


def bilinear(image: Tensor, places: Tensor, size: int) -> Tensor:
    """Patches ``(…, size, size)`` of an image ``(height, width)`` with their top left pixels at ``places`` ``(…, 2)``, x (column) and y
    (row), which need not be whole numbers: bilinear interpolation.

    Raises:
        ValueError: if the image is smaller than a patch, or a patch goes beyond its border.
    """
    height, width = image.shape
    if min(height, width) <= size:
        raise ValueError(f"patches of {size} × {size} pixels cannot move in an image of {width} × {height}")
    x, y = places.unbind(-1)
    if not ((x >= 0) & (x <= width - size) & (y >= 0) & (y <= height - size)).all():
        raise ValueError(f"patches of {size} × {size} pixels go beyond the border of an image of {width} × {height}")
    left, top = x.floor().clamp(max=width - size - 1), y.floor().clamp(max=height - size - 1)
    windows = image.unfold(0, size + 1, 1).unfold(1, size + 1, 1)[top.long(), left.long()]
    right, down = ((at - first).to(image.dtype)[..., None, None] for at, first in ((x, left), (y, top)))
    rows = torch.lerp(windows[..., :-1, :], windows[..., 1:, :], down)
    return torch.lerp(rows[..., :-1], rows[..., 1:], right)


def _prepared(picture: np.ndarray, whitened: bool) -> Tensor:
    picture = (picture - picture.mean()) / picture.std()
    if whitened:
        picture = whiten(picture)[BORDER:-BORDER, BORDER:-BORDER]
        picture = (picture - picture.mean()) / picture.std()
    return torch.from_numpy(picture)


def _sequences(pictures: Sequence[Tensor], n: int, frames: int, size: int, speed: float, persistence: float, saccades: float, noise: float,
               generator: torch.Generator) -> Data:
    x = torch.empty(n, frames, 1, size, size)
    order = torch.randperm(n, generator=generator)
    whose = torch.empty(n, dtype=torch.long)
    tracks, velocity = torch.empty(n, frames, 2), torch.empty(n, 2)
    for i, picture in enumerate(pictures):
        mine = order[i::len(pictures)]
        if len(mine) == 0:
            continue
        if min(picture.shape) <= size:
            raise ValueError(f"patches of {size} × {size} pixels cannot move in a photograph of {picture.shape[1]} × {picture.shape[0]}")
        room = (picture.shape[1] - size, picture.shape[0] - size)
        places, drift = gaze(len(mine), frames, room, speed=speed, persistence=persistence, saccades=saccades, generator=generator)
        whose[mine], tracks[mine] = i, places.float()
        steady = (drift != 0.0).any(-1).sum(1, keepdim=True).clamp(min=1)
        velocity[mine] = (drift.sum(1) / steady).float()
        step = max(CHUNK // (frames * (size + 1) ** 2), 1)
        for some, there in zip(mine.split(step), places.split(step), strict=True):
            x[some, :, 0] = bilinear(picture, there, size).float()
    if noise > 0.0:
        x += noise * torch.empty_like(x).normal_(generator=generator)
    named = {"vx": velocity[:, 0], "vy": velocity[:, 1], "photograph": whose, "x_track": tracks[..., 0], "y_track": tracks[..., 1]}
    return Data(x, factors=named)
