"""Draws of one image as figures need them: chosen scalars side by side, weighted, checked, with the true values beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from inference.metrics.coverage import scalars
from inference.plots.arrays import array
from inference.posterior import Posterior

__all__ = ["Cloud", "Draws", "cloud_of", "ends_of", "names_of", "true_values"]

FEWEST = 20  # draws of which a density is estimated; fewer are marked one by one
MARGIN = 0.05  # of an axis beyond the outermost draw

Draws = Posterior | Mapping[str, Any]


class Cloud(NamedTuple):
    """Draws of each shown scalar ``(K, D)``, their weights ``(D,)`` which sum to 1, and a colour."""

    draws: np.ndarray
    weights: np.ndarray
    color: str

    def few(self, k: int) -> bool:
        """Whether the k-th scalar's draws are too few, or too much alike, for a density."""
        return self.draws.shape[1] < FEWEST or self.draws[k].max() == self.draws[k].min()


def names_of(draws: Draws) -> dict[str, Any]:
    """Draws of every scalar, ``{name: (chain, draw, image)}``."""
    return scalars(draws.samples if isinstance(draws, Posterior) else draws, 3)


def cloud_of(draws: Draws, names: list[str], image: int, color: str, label: str) -> Cloud:
    """Draws of the named scalars of one image.

    Raises:
        ValueError: for names without draws, an image that is not there, shapes that differ, or draws that are not finite.
    """
    values = names_of(draws)
    if missing := [name for name in names if name not in values]:
        raise ValueError(f"{label!r} has no draws of {', '.join(missing)}; it has: {', '.join(values)}")
    count = values[names[0]].shape[2]
    if not 0 <= image < count:
        raise ValueError(f"image must be from 0 to {count - 1}, of which there are draws of {label!r}; not {image}")
    if len({tuple(values[name].shape) for name in names}) > 1:
        raise ValueError(f"all scalars of {label!r} must have as many draws of as many images")
    columns = np.stack([array(values[name][:, :, image], name).ravel() for name in names])
    if columns.size == 0 or not np.isfinite(columns).all():
        raise ValueError(f"{label!r} must have draws, all finite")
    log_weights = draws.log_weights if isinstance(draws, Posterior) else None
    weights = np.zeros(columns.shape[1]) if log_weights is None else array(log_weights[..., image], "weights").ravel()
    weights = np.exp(weights - weights.max())
    return Cloud(columns, weights / weights.sum(), color)


def true_values(truth: Mapping[str, Any] | None, names: list[str], image: int) -> np.ndarray:
    """True values ``(K,)`` of the named scalars, NaN where they are not told.

    Raises:
        ValueError: if none is told, or not of this image.
    """
    if truth is None:
        return np.full(len(names), np.nan)
    values = scalars(truth, 1)
    if not any(name in values for name in names):
        raise ValueError(f"truth has none of {', '.join(names)}; it has: {', '.join(values)}")
    if short := [name for name in names if name in values and len(values[name]) <= image]:
        raise ValueError(f"truth must tell {', '.join(short)} of image {image}")
    return np.array([float(values[name][image]) if name in values else np.nan for name in names])


def ends_of(draws: list[np.ndarray], true: float) -> tuple[float, float]:
    """Ends of an axis that holds all draws, and the truth."""
    every = np.concatenate([*draws, [true] if math.isfinite(true) else []])
    low, high = every.min(), every.max()
    room = MARGIN * (high - low) if high > low else 0.5 * max(abs(low), 1e-3)
    return low - room, high + room
