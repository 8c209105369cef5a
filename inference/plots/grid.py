"""Rows of images under one scale, in blocks with names: pairs with reconstructions; traversals and prior samples are drawn so, too."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from inference.plots.arrays import array
from inference.plots.flow_key import INK, draw_wheel
from inference.plots.images import draw_frames, is_flow, magnitude, tiles
from inference.plots.style import MUTED, new_figure, styled

__all__ = ["image_grid", "plot_pairs"]

TILE = 0.95  # inches
SPACING = 1.08  # between the left edges of two tiles, in widths of a tile
BLOCK = 0.32  # before a new block, in widths of a tile
KEY = 1.35  # inches, of flow
ARROWS = 6  # across a tile
FLOW_QUANTILE, GREY_QUANTILE = 0.97, 0.995  # of speeds and of absolute values: the fullest colour, and white


def image_grid(rows: Sequence[Any], *, names: Sequence[str], blocks: Sequence[str], captions: Sequence[Sequence[str]] | None = None,
               heads: Sequence[str] | None = None, limit: float | None = None, title: str = "") -> Figure:
    """One row of tiles for each entry of ``rows``, under one scale of colours or of grey.

    Arguments:
        rows: Images ``(n, channels, height, width)``, each row with its own n. Two channels are optic flow in rad/s, drawn with colours
            and arrows and a key; other images are grey, symmetric around zero.
        names: Of the rows, to their left.
        blocks: Of the rows, too: rows in a row with the same one stand together under it.
        captions: What to write under each tile.
        heads: What to write over each column.
        limit: Speed in rad/s of the fullest colour, or value of white; a high quantile of all rows by default.
        title: Title of the figure.

    Raises:
        ValueError: if there are no rows, or they differ in the shape of their images, are not finite, or do not fit what is written.
    """
    images = [array(row, "images") for row in rows]
    _check(images, names, blocks, captions)
    shape = images[0].shape[1:]
    flow = is_flow(shape)
    size = np.concatenate([magnitude(row, shape).ravel() for row in images])
    limit = limit or float(np.quantile(size, FLOW_QUANTILE if flow else GREY_QUANTILE) or size.max() or 1.0)
    columns, ratio = max(map(len, images)), shape[1] / (shape[2] * (1 if flow else shape[0]))
    text = 0.19 / TILE if captions is not None else 0.0
    tops = _tops(blocks, ratio + text + 0.07)
    bottom, above = tops[-1] + ratio + text, 0.3 * (heads is not None)
    left = 0.083 * max(len(line) for name in names for line in name.split("\n")) / TILE + 0.15
    wide, tall = TILE * (left + SPACING * columns), TILE * (bottom + above) + 0.15
    figure = new_figure(wide + (KEY + 0.3 if flow else 0.2), max(tall, 2.3 if flow else 0.0) + 0.5 * bool(title), title)
    ax, key = figure.subplots(1, 2, width_ratios=[wide, KEY]) if flow else (figure.subplots(), None)
    if flow:
        draw_wheel(key, f"rim: {np.degrees(limit):.3g} deg/s\nor more")
    corners = []
    for i, (row, top) in enumerate(zip(images, tops, strict=True)):
        for j, tile in enumerate(tiles(row, shape, limit)):
            across = SPACING * j
            ax.imshow(tile, interpolation="nearest", extent=(across, across + 1, top + ratio, top), aspect="auto")
            corners.append((across, top))
            if captions is not None:
                ax.text(across + 0.5, top + ratio + 0.02, captions[i][j], ha="center", va="top", fontsize=8.5)
            if flow:
                _arrows(ax, row[j], across, top, ratio, limit)
        ax.text(-0.1, top + ratio / 2, names[i], ha="right", va="center", fontsize=9.5)
    _write_blocks(ax, blocks, tops, left)
    for j, head in enumerate(heads or ()):
        ax.text(SPACING * j + 0.5, tops[0] - 0.05, head, ha="center", va="bottom", fontsize=9.5)
    draw_frames(ax, corners, 1, ratio)
    ax.set_axis_off()
    ax.set(xlim=(-left, SPACING * columns), ylim=(bottom + 0.02, -above))
    ax.set_aspect("equal", anchor="NW")
    return figure


@styled
def plot_pairs(x: Any, reconstructions: Any, captions: Sequence[str], *, limit: float | None = None, title: str = "") -> Figure:
    """A row of images over a row of what a model makes of them.

    Arguments:
        x, reconstructions: Images ``(n, channels, height, width)``. Flow is drawn with colours, arrows and a key.
        captions: What to write under each reconstruction, its squared error for example.
        limit: Speed in rad/s of the fullest colour, or value of white; a high quantile by default.
        title: Title of the figure.

    Raises:
        ValueError: if there is nothing to draw, images differ in shape, or captions are not as many as images.
    """
    return image_grid([x, reconstructions], names=["data", "reconstruction"], blocks=["", ""], captions=[[""] * len(x), captions],
                      limit=limit, title=title)


def _tops(blocks: Sequence[str], step: float) -> list[float]:
    """Where each row begins; a named block leaves room for its name."""
    tops, at = [], 0.0
    for i, block in enumerate(blocks):
        if block and (i == 0 or block != blocks[i - 1]):
            at += BLOCK
        tops.append(at)
        at += step
    return tops


def _write_blocks(ax: Axes, blocks: Sequence[str], tops: Sequence[float], left: float) -> None:
    start = 0
    for block, members in groupby(blocks):
        if block:
            ax.text(-left, tops[start] - 0.06, block, ha="left", va="bottom", fontsize=10.5, fontweight="bold", color=MUTED)
        start += len(list(members))


def _arrows(ax: Axes, x: np.ndarray, left: float, top: float, ratio: float, limit: float) -> None:
    """Arrows on a centred, regular subset of a tile's pixels; none where nothing moves. Row 0 is at the tile's bottom."""
    height, width = x.shape[1:]
    step = max(1, round(width / ARROWS))
    down, across = (np.arange((n - 1) % step // 2, n, step) for n in (height, width))
    x = x[:, down][:, :, across]
    speed = np.hypot(*x)
    x = x * np.minimum(1.0, limit / np.maximum(speed, limit)) * 1.1 * step / width / limit
    vertical, horizontal = np.meshgrid(top + ratio * (1 - (down + 0.5) / height), left + (across + 0.5) / width, indexing="ij")
    moving = speed > 0.05 * limit
    # The vertical axis points down, so that upward motion is towards smaller coordinates.
    arrows = ax.quiver(horizontal[moving], vertical[moving], x[0][moving], -x[1][moving], angles="xy", scale_units="xy", scale=1,
                       pivot="mid", units="inches", width=0.009, headwidth=4, headlength=4.5, headaxislength=4, minlength=0.5, color=INK)
    arrows.set_clip_path(Rectangle((left, top), 1, ratio, transform=ax.transData))


def _check(images: list[np.ndarray], names: Sequence[str], blocks: Sequence[str], captions: Sequence[Sequence[str]] | None) -> None:
    if not images or any(row.ndim != 4 or row.size == 0 or not np.isfinite(row).all() for row in images):
        raise ValueError("rows must be finite images (n, channels, height, width), at least one row and n ≥ 1; "
                         f"got {', '.join(str(row.shape) for row in images) or 'none'}")
    if len({row.shape[1:] for row in images}) > 1:
        raise ValueError(f"all rows must have images of one shape; got {', '.join(str(row.shape[1:]) for row in images)}")
    if len(names) != len(images) or len(blocks) != len(images):
        raise ValueError(f"names and blocks must be as many as the rows, {len(images)}; got {len(names)} and {len(blocks)}")
    if captions is not None and [len(row) for row in captions] != [len(row) for row in images]:
        raise ValueError(f"captions must be as many as the images of each row; got {[len(row) for row in captions]}")
