"""The features a linear decoder has learned, in order of how much the model uses them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inference.metrics.activity import ACTIVE_KL
from inference.plots.arrays import array
from inference.plots.flow_key import draw_wheel
from inference.plots.images import draw_frames, is_flow, magnitude, tiles
from inference.plots.style import MUTED, new_figure, styled

__all__ = ["plot_dictionary"]

FAINT = 0.3  # opacity of the tiles of unused latents
UNUSED_ROWS = 2  # of tiles of unused latents, at most
KEY = 1.5  # inches for the key of flow
FLOOR = 1e-6  # nats; smaller values of the KL are drawn here, on the log axis


@styled
def plot_dictionary(weight: Any, event_shape: Sequence[int], unit_kl: Any = None, *, title: str,
                    count: int | None = None) -> Figure:
    """Draws the columns of a dictionary as images.

    Arguments:
        weight: Dictionary Φ, ``(D, K)``: one feature a column.
        event_shape: Shape of one image, ``(channels, height, width)``. Two channels are optic flow, rightwards and upwards, row 0 at
            the bottom of the visual field: hue is direction, saturation speed, with a key. Otherwise channels are drawn side by side
            in grey.
        unit_kl: KL divergence of each latent in nats, ``(K,)``. With it the tiles are sorted, highest KL first in reading order;
            those at or below the threshold ``ACTIVE_KL`` come last, faint, after a gap, two rows of them at most; and a panel shows
            the sorted KL.
        title: Title of the figure.
        count: How many tiles to draw at most, the first ones; all by default.

    Every tile has its own scale: of grey, symmetric around zero, where grey is 0, black and white are ∓ the largest weight; of flow, up
    to its largest speed.

    Raises:
        ValueError: for shapes that do not fit, or numbers that are not finite.
    """
    weight, order, kl = _check(weight, event_shape, unit_kl)
    if count is not None and count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    active = len(order) if kl is None else int((kl > ACTIVE_KL).sum())
    features = weight.T[order]
    largest = magnitude(features, event_shape).reshape(len(features), -1).max(axis=1).clip(min=np.finfo(float).tiny)
    pictures = tiles(features / largest[:, None], event_shape, 1.0)
    height, width = pictures.shape[1:3]
    space = min(event_shape[-3], 3) + 2 * (len(event_shape) == 4)  # pixels between tiles
    columns, drawn = _arrange(active, len(order) - active, count, height + space, width + space)
    mosaic, corners, gap = _mosaic(pictures[:drawn], active, columns, space)

    side = 6.4 * min(1.0, 1.1 * mosaic.shape[1] / mosaic.shape[0])
    figure, axes = _panels(max(side, 3.2), side * mosaic.shape[0] / mosaic.shape[1], kl is not None, is_flow(event_shape), title)
    axes["tiles"].imshow(mosaic, interpolation="nearest")
    axes["tiles"].set_anchor("NW")
    axes["tiles"].set_axis_off()
    axes["tiles"].set_title("Features, each on its own scale" if kl is None else "Features, highest KL first")
    if gap is not None:
        text = f"{len(order) - active} not used (KL ≤ {ACTIVE_KL:g} nats)"
        if drawn < len(order):
            text += f", {len(order) - drawn} of them not drawn"
        axes["tiles"].text(0, gap, text, va="center", ha="left", color=MUTED)
    if is_flow(event_shape):
        draw_frames(axes["tiles"], corners - 0.5, width, height)
        draw_wheel(axes["key"], "rim: the fastest\nof each feature")
    if kl is not None:
        _draw_kl(axes["kl"], kl[order], drawn)
    return figure


def _check(weight: Any, event_shape: Sequence[int], unit_kl: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The weights, the order of the columns, and the KL."""
    weight = array(weight, "weight")
    if len(event_shape) not in (3, 4) or weight.ndim != 2 or weight.shape[0] != math.prod(event_shape) or weight.shape[1] == 0:
        raise ValueError(f"weight must be (D, K) with D = [frames ·] channels · height · width of event_shape, K ≥ 1; got {weight.shape} "
                         f"and event_shape {tuple(event_shape)}")
    if not np.isfinite(weight).all():
        raise ValueError("weight has values that are not finite")
    if unit_kl is None:
        return weight, np.arange(weight.shape[1]), None
    kl = array(unit_kl, "unit_kl")
    if kl.shape != weight.shape[1:] or not np.isfinite(kl).all():
        raise ValueError(f"unit_kl must be {weight.shape[1:]}, one finite number for each column of weight; got {kl.shape}")
    return weight, np.argsort(-kl, kind="stable"), kl


def _columns(count: int, height: int, width: int) -> int:
    """Tiles in a row: about 3 : 2 in all, with few places left empty at the end."""
    ideal = math.sqrt(1.5 * count * height / width)
    near = range(max(1, math.floor(0.8 * ideal)), math.ceil(1.25 * ideal) + 1)
    return min(count, min(near, key=lambda columns: -count % columns / columns + abs(columns - ideal) / ideal))


def _arrange(active: int, unused: int, count: int | None, height: int, width: int) -> tuple[int, int]:
    """Tiles in a row, and tiles in all: as many unused ones as fit into their rows, ``count`` at most."""
    most = active + unused if count is None else min(count, active + unused)
    for drawn in range(most, 0, -1):
        columns = _columns(drawn, height, width)
        if drawn - active <= UNUSED_ROWS * columns:
            break
    return columns, drawn


def _mosaic(pictures: np.ndarray, active: int, columns: int, space: int) -> tuple[np.ndarray, np.ndarray, float | None]:
    """All tiles as one picture ``space`` pixels apart, their corners (x, y) in it, and the row in which to name the unused, if any."""
    count, height, width = pictures.shape[:3]
    down, across = height + space, width + space
    above, below = math.ceil(min(active, count) / columns), math.ceil(max(count - active, 0) / columns)
    low, high = (math.ceil(share * columns * across) for share in (0.05, 0.15))  # 5 % of the width: room for a line of text
    gap = min(max(height, low), high) if below else 0
    mosaic = np.zeros(((above + below) * down + gap - space, columns * across - space, 4))
    corners = []
    for i, picture in enumerate(pictures):
        used = i < active
        row, column = divmod(i if used else i - active, columns)
        top, left = row * down + (0 if used else above * down + gap), column * across
        mosaic[top:top + height, left:left + width] = picture * (1, 1, 1, 1.0 if used else FAINT)
        corners.append((left, top))
    return mosaic, np.array(corners), above * down + (gap - space) / 2 if below else None


def _panels(wide: float, tall: float, kl: bool, flow: bool, title: str) -> tuple[Figure, dict[str, Axes]]:
    """A figure with axes ``"tiles"`` of that size in inches, and ``"kl"`` and ``"key"`` if there are."""
    if kl and flow:
        panels, widths, heights = [["tiles", "kl"], ["tiles", "key"]], [wide, 3.6], [max(3.2, tall - KEY - 0.8), KEY]
    elif kl:
        panels, widths, heights = [["tiles", "kl"]], [wide, 3.6], [max(3.2, tall)]
    elif flow:
        panels, widths, heights = [["tiles", "key"]], [wide, KEY], [max(KEY + 0.8, tall)]
    else:
        panels, widths, heights = [["tiles"]], [wide], [max(2.0, tall)]
    between = 0.8 if len(heights) == 2 else 0.0
    figure = new_figure(sum(widths) + 0.4 * len(widths), sum(heights) + between + 1.2, title)
    return figure, figure.subplot_mosaic(panels, width_ratios=widths, height_ratios=heights, gridspec_kw={"hspace": 0.08})


def _draw_kl(ax: Axes, kl: np.ndarray, shown: int) -> None:
    rank = np.arange(1, len(kl) + 1)
    height = kl.clip(min=FLOOR)
    ax.set_yscale("log")
    ax.plot(rank, height, color="#BBBBBB", linewidth=1.2, zorder=1)
    ax.scatter(rank, height, c=np.where(kl > ACTIVE_KL, "black", "#AAAAAA"), s=14, zorder=2)
    ax.axhline(ACTIVE_KL, color=MUTED, linestyle="--", linewidth=1.2, zorder=0)
    ax.set_ylim(bottom=min(height.min(), ACTIVE_KL) / 2)
    if kl.max() <= ACTIVE_KL:
        ax.set_ylim(top=3 * ACTIVE_KL)  # the threshold not at the very top
    ax.set_xlabel("rank of the latent")
    ax.set_ylabel("KL (nats per image)" + (f", {FLOOR:g} if less" if kl.min() < FLOOR else ""))
    ax.set_title(f"{int((kl > ACTIVE_KL).sum())} of {len(kl)} used")
    if shown < len(kl):
        ax.axvspan(shown + 0.5, len(kl) + 0.5, color="#EEEEEE", zorder=-1, linewidth=0)
        middle = 0.5 * (shown + len(kl) + 1)
        ax.text(middle, 0.98, "not drawn", transform=ax.get_xaxis_transform(), color=MUTED, va="top", ha="center")
