"""Images beside what models and methods make of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inference.plots.arrays import array
from inference.plots.flow_key import draw_wheel
from inference.plots.images import draw_frames, is_flow, magnitude, tiles
from inference.plots.style import model_colors, new_figure, split_label, styled

__all__ = ["plot_reconstructions"]

SPACING = 1.1  # between the left edges of two tiles, in widths of a tile
HEAD = 0.55  # inches above the tiles, for the names
KEY = 1.5  # inches to the right of the tiles, for the key of flow


@styled
def plot_reconstructions(x: Any, columns: Mapping[str, tuple[Any, Any]], *, title: str) -> Figure:
    """One row for each image: the data, then one column for each reconstruction, its squared error underneath.

    Arguments:
        x: Images ``(n, channels, height, width)``. Two channels are optic flow in rad/s, rightwards and upwards, row 0 at the bottom of
            the visual field: hue is direction, saturation speed, with a key. Otherwise channels are drawn side by side in grey.
        columns: ``{label: (reconstructions, squared errors)}`` with reconstructions ``(n, channels, height, width)`` and squared
            errors ``(n,)``, sums over pixels. A label ``"model · method"`` is written on two lines in the model's colour.
        title: Title of the figure.

    All tiles share one scale: grey levels, symmetric around zero, up to the 99th percentile of the data's absolute values; colours of
    flow up to the 95th of its speeds, so that small, fast objects leave some colour to the rest.

    Raises:
        ValueError: for shapes that do not fit the images, or images that are not finite.
    """
    x = array(x, "x")
    if x.ndim not in (4, 5) or x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"x must be finite images (n, channels, height, width), n ≥ 1, or sequences of them; got {x.shape}")
    shown = {label: _check(label, x, *column) for label, column in columns.items()}
    shape = x.shape[1:]
    size = magnitude(x, shape)
    limit = float(np.quantile(size, 0.95 if is_flow(shape) else 0.99) or size.max() or 1.0)
    pictures = [tiles(images, shape, limit) for images in (x, *(images for images, _ in shown.values()))]

    height, width = pictures[0].shape[1:3]
    tile = min(1.3, max(0.75, 10.6 / (SPACING * len(pictures))))  # inches; narrower ones have no room for their text
    across, down = SPACING, height / width + 0.24 / tile  # of a cell, in widths of a tile
    wide, tall = max(across * len(pictures) * tile + 0.2, 4.0), down * len(x) * tile + HEAD + 0.5
    if is_flow(shape):
        figure = new_figure(wide + KEY + 0.3, max(tall, HEAD + KEY + 0.9), title)
        ax, key = figure.subplots(1, 2, width_ratios=[wide, KEY])
        draw_wheel(key, f"rim: {np.degrees(limit):.3g} deg/s\nor more")
    else:
        figure = new_figure(wide, tall, title)
        ax = figure.subplots()
    _heads(ax, list(shown), across)
    corners = []
    for column, (picture, squares) in enumerate(zip(pictures, (None, *(squares for _, squares in shown.values())), strict=True)):
        for row, image in enumerate(picture):
            left, top = column * across, row * down
            ax.imshow(image, interpolation="nearest", extent=(left, left + 1, top + height / width, top), aspect="auto")
            corners.append((left, top))
            text = f"{squares[row]:.1f}" if column else ("sq. error" if row == 0 else "")
            ax.text(left + 0.5, top + height / width + 0.02, text, ha="center", va="top", fontsize=9.5)
    if is_flow(shape):
        draw_frames(ax, corners, 1, height / width)
    ax.set_axis_off()
    ax.set_xlim(0, across * len(pictures) - (across - 1))
    ax.set_ylim(down * len(x), -HEAD / tile)
    ax.set_aspect("equal", anchor="NW")
    return figure


def _heads(ax: Axes, labels: list[str], across: float) -> None:
    """Names of the columns; a model's name once over its neighbouring columns."""
    ax.text(0.5, -0.06, "data", ha="center", va="bottom", fontweight="bold")
    colors = model_colors(split_label(label)[0] for label in labels)
    start = 1
    for model, group in groupby(labels, key=lambda label: split_label(label)[0]):
        methods = [split_label(label)[1] for label in group]
        for i, method in enumerate(methods):
            ax.text((start + i) * across + 0.5, -0.06, method, ha="center", va="bottom", fontsize=9.5)
        middle = (start + (len(methods) - 1) / 2) * across + 0.5
        above = (0, 14 if any(methods) else 0)
        ax.annotate(model, (middle, -0.06), xytext=above, textcoords="offset points", ha="center", va="bottom", color=colors[model],
                    fontweight="bold")
        start += len(methods)


def _check(label: str, x: np.ndarray, images: Any, squares: Any) -> tuple[np.ndarray, np.ndarray]:
    images, squares = array(images, f"images of {label!r}"), array(squares, f"squared errors of {label!r}")
    if images.shape != x.shape or squares.shape != x.shape[:1]:
        raise ValueError(f"column {label!r} must hold images {x.shape} and squared errors {x.shape[:1]}; "
                         f"got {images.shape} and {squares.shape}")
    return images, squares
