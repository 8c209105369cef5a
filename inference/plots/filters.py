"""What whitening flows have learned: filters over space, and what they leave of correlations over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from inference.plots.arrays import array
from inference.plots.style import COLOR_CYCLE, MUTED, new_figure, styled

__all__ = ["plot_autocorrelation", "plot_filters"]

AXES = "pca"  # the one kind whose rows belong to principal axes, not to pixels
NAMES = {"zca": "ZCA", "cholesky": "Cholesky", "pca": "PCA"}
DIVERGING = "RdBu_r"


@styled
def plot_filters(matrices: Mapping[str, Any], event_shape: Sequence[int], pixels: Sequence[tuple[int, int]] | None = None, *,
                 title: str | None = None) -> Figure:
    """Draws rows of whitening matrices as images, one row of panels for each matrix.

    Arguments:
        matrices: ``{kind: W}`` with W ``(D, D)``, y = W x: row i makes pixel i of y. Under the kind ``"pca"`` rows are taken to belong to
            principal axes, that of largest variance first: drawn are the first, others between, and the last.
        event_shape: ``(channels, height, width)``; several channels are drawn side by side.
        pixels: Whose filters, as (row, column), of the first channel; by default the middle, a place on the left border, and a corner.
        title: Title of the figure.

    A pixel's filter is divided by its own weight, marked by a dot, so that this is 1; a principal axis by its largest weight. Below stand
    the mean weight of the pixel's direct neighbours and the share of the squared weights within 3 × 3 pixels. The colours span −1 to 1.

    Raises:
        ValueError: for no matrices, shapes that do not fit, pixels outside the image, or numbers that are not finite.
    """
    channels, height, width = _shape(event_shape)
    pixels = [(height // 2, width // 2), (height // 2, 0), (0, 0)] if pixels is None else [tuple(pixel) for pixel in pixels]
    if not matrices or not pixels or not all(0 <= i < height and 0 <= j < width for i, j in pixels):
        raise ValueError(f"give at least one matrix, and pixels within {height} × {width}; got {len(matrices)} and {pixels}")
    checked = {kind: _matrix(kind, matrix, channels * height * width) for kind, matrix in matrices.items()}
    side = 2.15
    wide, high = side * len(pixels) * max(1.0, 0.75 * channels), (side + 0.75) * len(checked)
    figure = new_figure(1.5 + wide, 0.55 + high + 0.3 * bool(title), title)
    panels = figure.subplots(len(checked), len(pixels), squeeze=False)
    for row, (kind, matrix) in zip(panels, checked.items(), strict=True):
        for ax, pixel, index in zip(row, pixels, _rows(kind, pixels, width, len(matrix)), strict=True):
            picture = _draw_filter(ax, matrix[index].reshape(channels, height, width), kind, pixel, index)
        row[0].set_ylabel(NAMES.get(kind, kind), fontweight="bold")
    bar = figure.colorbar(picture, ax=panels, shrink=0.6, aspect=30, pad=0.02, ticks=[-1, -0.5, 0, 0.5, 1])
    bar.set_label("weight (own pixel 1; of an axis, the largest 1)" if AXES in checked else "weight (own pixel 1)")
    bar.outline.set_visible(False)
    return figure


@styled
def plot_autocorrelation(correlations: Mapping[str, Any], pairs: Sequence[int] | int, *, title: str | None = None) -> Figure:
    """Draws correlations over time with the band in which 95 % of those of independent numbers fall.

    Arguments:
        correlations: ``{label: r}``, ``(lags + 1,)`` or, of several pixels, ``(lags + 1, *frame_shape)``, from lag 0 on
            (:func:`zoo.flows.correlation.autocorrelation`). Of several pixels the line is their mean, and shaded are their 5 to 95 %.
        pairs: Pairs of frames that each lag's correlation of one pixel is taken over, for all lags or one for each.
        title: Title of the figure.

    The legend says how many of all (pixel, lag) from lag 1 on are outside the band; by chance it is one in twenty.

    Raises:
        ValueError: for no correlations, different numbers of lags, or values that are not finite.
    """
    curves = {label: _curve(label, values) for label, values in correlations.items()}
    lengths = {len(values) for values in curves.values()}
    if len(lengths) != 1 or min(lengths) < 2:
        raise ValueError(f"correlations must be of the same lags, at least lag 1; got {sorted(lengths) or 'none'} values")
    lags = np.arange(lengths.pop())
    band = 1.96 / np.sqrt(np.broadcast_to(np.asarray(pairs, dtype=float), lags.shape))
    figure = new_figure(7.2, 4.6 + 0.3 * bool(title), title)
    ax = figure.subplots()
    ax.fill_between(lags[1:], -band[1:], band[1:], color="#D9D9D9", linewidth=0, label="95 % band of noise, one pixel")
    ax.axhline(0.0, color=MUTED, linewidth=0.8)
    for i, (label, values) in enumerate(curves.items()):
        color = COLOR_CYCLE[i % len(COLOR_CYCLE)]
        outside = np.abs(values[1:]) > band[1:, None]
        if values.shape[1] > 1:
            ax.fill_between(lags, *np.quantile(values, (0.05, 0.95), axis=1), color=color, alpha=0.2, linewidth=0)
        ax.plot(lags, values.mean(1), "o-", color=color, markeredgecolor="white", clip_on=False,
                label=f"{label}: {outside.sum()} of {outside.size} outside")
    ax.set_xlabel("lag (frames)")
    ax.set_ylabel("correlation of a pixel with itself")
    ax.set_xticks(lags if len(lags) < 16 else lags[:: math.ceil(len(lags) / 12)])
    ax.set_xlim(0, lags[-1])
    ax.set_ylim(top=1.05)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _shape(event_shape: Sequence[int]) -> tuple[int, int, int]:
    if len(event_shape) != 3:
        raise ValueError(f"event_shape must be (channels, height, width), not {tuple(event_shape)}")
    return tuple(event_shape)


def _matrix(kind: str, matrix: Any, size: int) -> np.ndarray:
    matrix = array(matrix, f"the matrix {kind!r}")
    if matrix.shape != (size, size) or not np.isfinite(matrix).all():
        raise ValueError(f"the matrix {kind!r} must be ({size}, {size}) and finite; its shape is {matrix.shape}")
    return matrix


def _curve(label: str, values: Any) -> np.ndarray:
    values = array(values, f"the correlations {label!r}")
    if values.ndim < 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"the correlations {label!r} must be (lags + 1, …) and finite; their shape is {values.shape}")
    return values.reshape(len(values), -1)


def _rows(kind: str, pixels: Sequence[tuple[int, int]], width: int, size: int) -> list[int]:
    """Rows of the matrix: the pixels' own, or principal axes, geometrically from the first to the last."""
    if kind != AXES:
        return [i * width + j for i, j in pixels]
    return [round(size ** (k / max(1, len(pixels) - 1))) - 1 for k in range(len(pixels))] if len(pixels) > 1 else [0]


def _draw_filter(ax: Axes, image: np.ndarray, kind: str, pixel: tuple[int, int], index: int) -> Any:
    i, j = pixel
    image = image / (np.abs(image).max() if kind == AXES else image[0, i, j])
    strip = np.pad(image, ((0, 0), (0, 0), (0, 1)), constant_values=np.nan).transpose(1, 0, 2).reshape(image.shape[1], -1)[:, :-1]
    picture = ax.imshow(strip, cmap=DIVERGING, norm=TwoSlopeNorm(0.0, -1.0, 1.0))
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(visible=True, color="#BBBBBB", linewidth=0.6)
    if kind == AXES:
        ax.set_title(f"principal axis {index + 1}", fontweight="normal", fontsize=10.5, loc="center")
    else:
        ax.plot(j, i, ".", color="white", markersize=5)
        ax.set_title(f"pixel ({i}, {j})", fontweight="normal", fontsize=10.5, loc="center")
        neighbour, energy = _surround(image[0], i, j)
        energy *= np.square(image[0]).sum() / np.square(image).sum()
        weight = f"{round(neighbour, 2) + 0.0:.2f}".replace("-", "−")
        ax.set_xlabel(f"neighbours {weight}\n{100 * energy:.0f} % in 3 × 3", fontsize=9.5, color=MUTED)
    return picture


def _surround(image: np.ndarray, i: int, j: int) -> tuple[float, float]:
    """Mean weight of the direct neighbours that there are, and the share of the squared weights within 3 × 3."""
    height, width = image.shape
    around = [image[a, b] for a, b in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)) if 0 <= a < height and 0 <= b < width]
    square = image[max(0, i - 1): i + 2, max(0, j - 1): j + 2]
    return float(np.mean(around)) if around else 0.0, float(np.square(square).sum() / np.square(image).sum())
