"""Densities of draws, smoothed a little, and the regions of highest density that hold a given probability."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["highest", "smooth_density"]

CELLS = 160  # of the grid, along each axis


def smooth_density(draws: np.ndarray, weights: np.ndarray, ends: Sequence[tuple[float, float]]) -> tuple[list[np.ndarray], np.ndarray]:
    """Kernel density estimate on a grid: the middles of its cells along each axis, and the density ``(CELLS, …)``, which integrates to 1.

    The kernel is Gaussian and its width Silverman's rule's (1986), with the spread read off the shortest interval that holds half of the
    draws: that of a normal law, and of one summit where there are several apart from each other, which so stay narrow.

    Arguments:
        draws: Draws ``(k, D)``.
        weights: Their weights ``(D,)``, which sum to 1.
        ends: Least and greatest value of each axis.
    """
    density, edges = np.histogramdd(draws.T, bins=CELLS, range=ends, weights=weights)
    effective = 1.0 / np.square(weights).sum()
    away = np.subtract.outer(np.arange(CELLS), np.arange(CELLS))
    for axis, (column, (low, high)) in enumerate(zip(draws, ends, strict=True)):
        width = 0.9 * min(_half(column), np.std(column)) * effective ** (-1 / (4 + len(draws)))
        kernel = np.exp(-0.5 * (away / max(width * CELLS / (high - low), 0.7)) ** 2)
        density = np.moveaxis(np.tensordot(kernel, density, (1, axis)), 0, axis)
    cell = math.prod((high - low) / CELLS for low, high in ends)
    return [0.5 * (edge[1:] + edge[:-1]) for edge in edges], density / (density.sum() * cell)


def highest(density: np.ndarray, masses: Sequence[float]) -> list[float]:
    """For each probability the density above which cells hold it: the contour of the region of highest density."""
    ordered = np.sort(density, axis=None)[::-1]
    held = np.cumsum(ordered) / ordered.sum()
    return [float(ordered[min(np.searchsorted(held, mass), len(held) - 1)]) for mass in masses]


def _half(column: np.ndarray) -> float:
    """Standard deviation of the normal law whose shortest interval that holds one half is as long as that of the draws."""
    ordered, half = np.sort(column), len(column) // 2
    return (ordered[half:] - ordered[: len(ordered) - half]).min() / 1.349
