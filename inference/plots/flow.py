"""Optic flow as vision scientists draw it: colour and arrows over the visual field, and one key."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from inference.plots.arrays import array
from inference.plots.flow_key import INK, check_limit, draw_key, flow_colors, positive
from inference.plots.style import new_figure, styled

__all__ = ["draw_key", "flow_colors", "plot_flow"]

PANEL = 2.35  # inches
ARROWS = 12  # at most so many across a panel
ARROW_LENGTH = 1.2  # of the fastest arrow, in distances between arrows
GAZE = {"marker": "+", "markersize": 11, "markeredgewidth": 2.4, "markeredgecolor": INK, "linestyle": "none"}
EXPANSION = {"marker": "o", "markersize": 9, "markeredgewidth": 2.0, "markeredgecolor": INK, "markerfacecolor": "none", "linestyle": "none"}
OUTLINE = {"color": INK, "linewidth": 1.8}


@styled
def plot_flow(x: Any, *, fov: float = 45.0, limit: float | None = None, gaze: bool = True, objects: Any = None, expansion: Any = None,
              titles: Sequence[str] | None = None, title: str | None = None, columns: int | None = None) -> Figure:
    """One panel for each flow field over the visual field, with one colour and one arrow scale, and one key.

    Arguments:
        x: Retinal angular velocity ``(n, 2, N, N)`` in rad/s; channel 0 rightwards, channel 1 upwards; row 0 is the bottom of the
            visual field, at the vertical angle ``-fov``; column 0 is at the horizontal angle ``-fov``.
        fov: Angle in degrees from the fovea to the centres of the outermost pixels.
        limit: Speed in rad/s of the fullest colour and of the longest arrow; by default the 99th percentile of all speeds. What is
            faster is drawn at the limit.
        gaze: Whether to mark the fovea, at (0, 0).
        objects: Masks ``(n, M, M)``, true or above one half inside an object, or a list of such masks, one for each object; each is
            drawn as its outline. They span the field as ``x`` does, in as many pixels or more: fine or soft masks have smooth outlines.
        expansion: Focus of expansion ``(n, 2)``, its horizontal and vertical angle in degrees; NaN where there is none to mark.
        titles: A title for each panel.
        title: Title of the figure.
        columns: Panels in a row; by default all in one row up to five, then rows of equal length.

    Raises:
        TypeError: if an argument is not made of numbers.
        ValueError: for shapes that do not fit, empty or not finite flow, or ``fov``, ``limit`` or ``columns`` that is not positive.
    """
    x = array(x, "x")
    if x.ndim != 4 or x.size == 0 or x.shape[1] != 2 or x.shape[2] != x.shape[3] or x.shape[3] < 2:
        raise ValueError(f"x must be flow fields (n, 2, N, N), n ≥ 1, N ≥ 2; got {x.shape}")
    fov, limit = positive(fov, "fov"), check_limit(x, limit)
    masks, foci = _masks(objects, x), _foci(expansion, len(x))
    if titles is not None and len(titles) != len(x):
        raise ValueError(f"titles must be as many as the flow fields, {len(x)}; got {len(titles)}")
    if columns is not None and (not isinstance(columns, int) or columns < 1):
        raise ValueError(f"columns must be a whole number, at least 1, not {columns!r}")
    columns = min(columns or ceil(len(x) / ceil(len(x) / 5)), len(x))
    rows = ceil(len(x) / columns)
    figure = new_figure(columns * PANEL + 3.0, rows * (PANEL + 0.2 * (titles is not None)) + 0.7 + 0.45 * bool(title), title)
    grid = figure.add_gridspec(rows, columns + 1, width_ratios=[PANEL] * columns + [2.1])
    colors = flow_colors(x, limit)
    for i in range(len(x)):
        row, column = divmod(i, columns)
        ax = figure.add_subplot(grid[row, column])
        _panel(ax, colors[i], fov)
        _arrows(ax, x[i], limit, fov)
        _outlines(ax, [mask[i] for mask in masks], fov)
        _marks(ax, gaze, foci[i], fov)
        ax.set_title(titles[i] if titles is not None else "", loc="center")
        ax.tick_params(labelleft=column == 0, labelbottom=i + columns >= len(x))
        ax.set_ylabel("vertical angle" if column == 0 else "")
        ax.set_xlabel("horizontal angle" if i + columns >= len(x) else "")
    draw_key(figure.add_subplot(grid[0, columns]), limit)
    marked = bool((np.abs(foci) <= fov).all(1).any())
    handles = _legend(gaze, bool(masks), marked)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _panel(ax: Axes, colors: np.ndarray, fov: float) -> None:
    half = fov / (len(colors) - 1)
    ends = (-fov - half, fov + half)
    ax.imshow(colors, origin="lower", extent=(*ends, *ends), interpolation="nearest")
    ax.set(xlim=ends, ylim=ends, xticks=(-fov, 0, fov), yticks=(-fov, 0, fov))
    ax.xaxis.set_major_formatter("{x:g}°")
    ax.yaxis.set_major_formatter("{x:g}°")
    ax.spines[["top", "right"]].set_visible(True)


def _arrows(ax: Axes, x: np.ndarray, limit: float, fov: float) -> None:
    """Arrows on a centred, regular subset of the pixels; no arrow where nothing moves."""
    count = x.shape[-1]
    step = ceil(count / ARROWS)
    span = (count // step - 1) * step + 1
    chosen = np.arange((count - span) // 2, count, step)[:count // step]
    angle = np.linspace(-fov, fov, count)[chosen]
    x = x[:, chosen][:, :, chosen]
    speed = np.hypot(*x)
    x = x * np.minimum(1.0, limit / np.maximum(speed, limit))
    vertical, horizontal = np.meshgrid(angle, angle, indexing="ij")
    moving = speed > 0.02 * limit
    scale = limit / (ARROW_LENGTH * step * 2 * fov / (count - 1))
    ax.quiver(horizontal[moving], vertical[moving], x[0][moving], x[1][moving], angles="xy", scale_units="xy", scale=scale, pivot="mid",
              units="inches", width=0.017, headwidth=4, headlength=4.5, headaxislength=4, minlength=0.5, color=INK)


def _outlines(ax: Axes, masks: list[np.ndarray], fov: float) -> None:
    """Hard masks along their pixels' edges, soft ones where they cross one half; nothing where a mask is all in or all out."""
    for mask in masks:
        if mask.min() < 0.5 < mask.max():
            fine = max(1, 128 // len(mask)) if np.isin(mask, (0, 1)).all() else 1
            half = fov / (len(mask) - 1) * (1 - 1 / fine)
            mask = mask.repeat(fine, axis=0).repeat(fine, axis=1)
            angle = np.linspace(-fov - half, fov + half, len(mask))
            ax.contour(angle, angle, mask, levels=[0.5], colors=OUTLINE["color"], linewidths=OUTLINE["linewidth"])


def _marks(ax: Axes, gaze: bool, focus: np.ndarray, fov: float) -> None:
    halo = {"markeredgecolor": "white", "markeredgewidth": 4.6}
    places = [(GAZE, (0.0, 0.0))] * bool(gaze) + [(EXPANSION, focus)] * bool((np.abs(focus) <= fov).all())
    for look, (across, along) in places:
        ax.plot(across, along, **(look | halo))
        ax.plot(across, along, **look)


def _legend(gaze: bool, objects: bool, expansion: bool) -> list[Line2D]:
    lines = [Line2D([], [], label="fovea (gaze)", **GAZE)] * bool(gaze)
    lines += [Line2D([], [], label="object", **OUTLINE)] * objects
    return lines + [Line2D([], [], label="focus of expansion", **EXPANSION)] * expansion


def _masks(objects: Any, x: np.ndarray) -> list[np.ndarray]:
    if objects is None:
        return []
    masks = [array(mask, "objects") for mask in (objects if isinstance(objects, list | tuple) else [objects])]
    for mask in masks:
        if mask.ndim != 3 or len(mask) != len(x) or mask.shape[1] != mask.shape[2] or mask.shape[2] < 2 or not np.isfinite(mask).all():
            raise ValueError(f"objects must be finite masks ({len(x)}, M, M), M ≥ 2, or a list of them; got {mask.shape}")
    return masks


def _foci(expansion: Any, n: int) -> np.ndarray:
    foci = np.full((n, 2), np.nan) if expansion is None else array(expansion, "expansion")
    if foci.shape != (n, 2):
        raise ValueError(f"expansion must be angles ({n}, 2) in degrees; got {foci.shape}")
    return foci
