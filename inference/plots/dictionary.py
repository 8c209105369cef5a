"""The features a linear decoder has learned, in order of how much the model uses them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inference.metrics.activity import ACTIVE_KL
from inference.plots.images import array, side_by_side
from inference.plots.style import MUTED, new_figure, styled

__all__ = ["plot_dictionary"]

FAINT = 0.3  # opacity of the tiles of unused latents
FLOOR = 1e-6  # nats; smaller values of the KL are drawn here, on the log axis


@styled
def plot_dictionary(weight: Any, event_shape: Sequence[int], unit_kl: Any = None, *, title: str,
                    count: int | None = None) -> Figure:
    """Draws the columns of a dictionary as images.

    Arguments:
        weight: Dictionary Φ, ``(D, K)``: one feature a column.
        event_shape: Shape of one image, ``(channels, height, width)``; channels are drawn side by side.
        unit_kl: KL divergence of each latent in nats, ``(K,)``. With it the tiles are sorted, highest KL first in reading order;
            those at or below the threshold ``ACTIVE_KL`` come last, faint, after a gap; and a panel shows the sorted KL.
        title: Title of the figure.
        count: How many tiles to draw at most, the first ones; all by default.

    Every tile has its own grey scale, symmetric around zero: grey is 0, black and white are ∓ the largest weight.

    Raises:
        ValueError: for shapes that do not fit, or numbers that are not finite.
    """
    weight, order, kl = _check(weight, event_shape, unit_kl)
    if count is not None and count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    shown = order[:count]
    tiles = side_by_side(weight.T[shown], event_shape)
    tiles = tiles / np.nanmax(np.abs(tiles), axis=(1, 2), keepdims=True).clip(min=np.finfo(float).tiny)
    active = len(shown) if kl is None else int((kl[shown] > ACTIVE_KL).sum())
    mosaic, opacity, gap = _mosaic(tiles, active, 1 if event_shape[0] == 1 else 3)

    side = 6.4 * min(1.0, 1.1 * mosaic.shape[1] / mosaic.shape[0])
    panels = [max(side, 3.2)] if kl is None else [max(side, 3.2), 3.6]
    tall = max(2.0 if kl is None else 3.2, side * mosaic.shape[0] / mosaic.shape[1])
    figure = new_figure(sum(panels) + 0.4 * len(panels), tall + 1.2, title)
    axes = figure.subplots(1, len(panels), width_ratios=panels, squeeze=False)[0]
    _draw_tiles(axes[0], mosaic, opacity)
    axes[0].set_title("Features, each on its own scale" if kl is None else "Features, highest KL first")
    if gap is not None:
        axes[0].text(0, gap, f"{len(shown) - active} not used (KL ≤ {ACTIVE_KL:g} nats)", va="center", ha="left", color=MUTED)
    if kl is not None:
        _draw_kl(axes[1], kl[order], len(shown))
    return figure


def _check(weight: Any, event_shape: Sequence[int], unit_kl: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The weights, the order of the columns, and the KL."""
    weight = array(weight, "weight")
    if len(event_shape) != 3 or weight.ndim != 2 or weight.shape[0] != math.prod(event_shape) or weight.shape[1] == 0:
        raise ValueError(f"weight must be (D, K) with D = channels · height · width of event_shape, K ≥ 1; got {weight.shape} "
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


def _mosaic(tiles: np.ndarray, active: int, space: int) -> tuple[np.ndarray, np.ndarray, float | None]:
    """All tiles as one picture ``space`` pixels apart, its opacity, and the row of pixels in which to name the unused, if any."""
    count, height, width = tiles.shape
    down, across = height + space, width + space
    columns = _columns(count, down, across)
    above, below = math.ceil(active / columns), math.ceil((count - active) / columns)
    gap = max(height, math.ceil(0.05 * columns * across)) if below else 0  # 5 % of the width: room for a line of text
    mosaic = np.full(((above + below) * down + gap - space, columns * across - space), np.nan)
    opacity = np.ones_like(mosaic)
    for i, tile in enumerate(tiles):
        used = i < active
        row, column = divmod(i if used else i - active, columns)
        top, left = row * down + (0 if used else above * down + gap), column * across
        mosaic[top:top + height, left:left + width] = tile
        opacity[top:top + height, left:left + width] = 1.0 if used else FAINT
    return mosaic, opacity, above * down + (gap - space) / 2 if below else None


def _draw_tiles(ax: Axes, mosaic: np.ndarray, opacity: np.ndarray) -> None:
    ax.imshow(np.ma.masked_invalid(mosaic), cmap="gray", vmin=-1, vmax=1, alpha=opacity, interpolation="nearest")
    ax.set_anchor("NW")
    ax.set_axis_off()


def _draw_kl(ax: Axes, kl: np.ndarray, shown: int) -> None:
    rank = np.arange(1, len(kl) + 1)
    height = kl.clip(min=FLOOR)
    ax.set_yscale("log")
    ax.plot(rank, height, color="#BBBBBB", linewidth=1.2, zorder=1)
    ax.scatter(rank, height, c=np.where(kl > ACTIVE_KL, "black", "#AAAAAA"), s=14, zorder=2)
    ax.axhline(ACTIVE_KL, color=MUTED, linestyle="--", linewidth=1.2, zorder=0)
    ax.set_ylim(bottom=min(height.min(), ACTIVE_KL) / 2)
    ax.set_xlabel("rank of the latent")
    ax.set_ylabel("KL (nats per image)" + (f", {FLOOR:g} if less" if kl.min() < FLOOR else ""))
    ax.set_title(f"{int((kl > ACTIVE_KL).sum())} of {len(kl)} used")
    if shown < len(kl):
        ax.axvspan(shown + 0.5, len(kl) + 0.5, color="#EEEEEE", zorder=-1, linewidth=0)
        middle = 0.5 * (shown + len(kl) + 1)
        ax.text(middle, 0.98, "not drawn", transform=ax.get_xaxis_transform(), color=MUTED, va="top", ha="center")
