"""All that one image's posterior says of a few scalars, as astronomers draw it: each alone, and every pair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from inference.plots.clouds import Cloud, Draws, cloud_of, ends_of, names_of, true_values
from inference.plots.decodability import factor_symbol
from inference.plots.densities import highest, smooth_density
from inference.plots.style import COLOR_CYCLE, new_figure, styled
from inference.posterior import Posterior

__all__ = ["plot_corner"]

MAIN, OVERLAYS = "#0072B2", ("#D55E00", "#009E73", "#CC79A7", *COLOR_CYCLE)
TRUTH = {"color": "#1A1A1A", "linewidth": 1.4, "linestyle": (0, (4, 2))}
MOST = 16  # scalars that a figure can hold
DOTS = 1000  # draws shown in a panel


@styled
def plot_corner(samples: Draws, image: int = 0, *, truth: Mapping[str, Any] | None = None, names: Sequence[str] | None = None,
                units: Mapping[str, str] | None = None, overlays: Mapping[str, Draws] | None = None, label: str | None = None,
                masses: Sequence[float] = (0.5, 0.9), title: str | None = None) -> Figure:
    """Marginal densities of scalars on the diagonal, those of pairs below it, of one image.

    Arguments:
        samples: A posterior, or draws ``{name: (chain, draw, image, *event)}``; drawn filled, with its draws as dots. Vectors are taken
            apart as by :func:`inference.metrics.coverage.scalars`.
        image: Which image.
        truth: True values ``{name: (image, *event)}``, marked by dashed lines.
        names: The scalars to be shown, in order; all if None.
        units: ``{scalar: unit}`` for the labels; causes of optic flow are in m, m/s and radians, others without unit, if None.
        overlays: Other posteriors of the same images, by the name in the legend: drawn as outlines, those of fewer than 20 draws, as a
            point estimate is, as points.
        label: Name of ``samples`` in the legend; a posterior's method if None.
        masses: Probabilities that the contours of pairs hold, regions of highest density of draws that are smoothed a little.
        title: Title of the figure.

    The axes hold every draw of all posteriors, and the truth.

    Raises:
        ValueError: for no or too many scalars, names without draws, an image that is not there, shapes that do not fit, draws that are not
            finite, or masses that are not between 0 and 1.
    """
    overlays = dict(overlays or {})
    if not masses or not all(0.0 < mass < 1.0 for mass in masses):
        raise ValueError(f"masses must be between 0 and 1, and one at least; not {tuple(masses)}")
    label = label or (samples.method if isinstance(samples, Posterior) else "posterior")
    if len(overlays) > len(OVERLAYS) or label in overlays:
        raise ValueError(f"overlays must be at most {len(OVERLAYS)}, with names other than {label!r}; got {', '.join(overlays)}")
    names = list(names_of(samples)) if names is None else list(names)
    if not 1 <= len(names) <= MOST:
        raise ValueError(f"a corner plot has from 1 to {MOST} scalars, not {len(names)}: choose some by names=[…]")
    every = {label: samples} | overlays
    clouds = {key: cloud_of(draws, names, image, color, key) for (key, draws), color in zip(every.items(), (MAIN, *OVERLAYS), strict=False)}
    true = true_values(truth, names, image)
    ends = [ends_of([cloud.draws[k] for cloud in clouds.values()], true[k]) for k in range(len(names))]

    figure, axes = _layout(len(names), title)
    for (row, column), ax in axes.items():
        for i, cloud in enumerate(clouds.values()):
            if row == column:
                _marginal(ax, cloud, column, ends[column], filled=i == 0)
            else:
                _pair(ax, cloud, (column, row), (ends[column], ends[row]), sorted(masses, reverse=True), filled=i == 0)
        _mark(ax, true[column], true[row], row == column)
        _axes(ax, row, column, ends, len(names))
        if row == len(names) - 1:
            ax.set_xlabel(_label(names[column], units, names))
        if column == 0 and row > 0:
            ax.set_ylabel(_label(names[row], units, names))
    figure.align_labels()
    _legend(figure, clouds, masses, np.isfinite(true).any())
    return figure


def _layout(count: int, title: str | None) -> tuple[Figure, dict[tuple[int, int], Axes]]:
    """Panels of the lower triangle, ``{(row, column): axes}``, at fixed places: all labels are of one size."""
    side = 2.0 if count <= 3 else 1.75 if count <= 6 else 0.98
    left, bottom, right, top = 1.1, 1.0, 0.2, 0.55 if title else 0.2
    width, height = max(left + count * side + right, 5.0), bottom + count * side + top
    figure = new_figure(width, height, title)
    figure.set_layout_engine("none")
    grid = figure.add_gridspec(count, count, left=left / width, right=(left + count * side) / width, bottom=bottom / height,
                               top=1 - top / height, wspace=0.09, hspace=0.09)
    return figure, {(i, j): figure.add_subplot(grid[i, j]) for i in range(count) for j in range(i + 1)}


def _marginal(ax: Axes, cloud: Cloud, k: int, ends: tuple[float, float], filled: bool) -> None:
    values = cloud.draws[k]
    if cloud.few(k):
        ax.plot(values, np.full(len(values), 0.06), "D", color=cloud.color, transform=ax.get_xaxis_transform(), markersize=7)
        return
    at, density = smooth_density(values[None], cloud.weights, [ends])
    if filled:
        ax.fill_between(at[0], density, color=cloud.color, alpha=0.45, linewidth=0)
    ax.plot(at[0], density, color=cloud.color, linewidth=1.4 if filled else 2.0)


def _pair(ax: Axes, cloud: Cloud, pair: tuple[int, int], ends: tuple[tuple[float, float], tuple[float, float]], masses: Sequence[float],
          filled: bool) -> None:
    values = cloud.draws[list(pair)]
    if any(cloud.few(k) for k in pair):
        ax.plot(*values, "D", color=cloud.color, markersize=7, markeredgecolor="white")
        return
    at, density = smooth_density(values, cloud.weights, ends)
    levels = [level * (1 + 1e-9 * i) for i, level in enumerate(highest(density, masses))]  # strictly rising, as contours must
    if filled:
        shown = np.linspace(0, values.shape[1] - 1, min(DOTS, values.shape[1])).round().astype(int)
        ax.plot(*values[:, shown], ".", color=cloud.color, alpha=0.35, markersize=2.5, markeredgewidth=0, rasterized=True)
        shades = [_shade(cloud.color, (i + 1) / (len(levels) + 0.5)) for i in range(len(levels))]
        ax.contourf(*at, density.T, levels=[*levels, max(density.max(), levels[-1]) * 1.01], colors=shades)
    ax.contour(*at, density.T, levels=levels, colors=cloud.color, linewidths=0.8 if filled else 1.6)


def _shade(color: str, strength: float) -> tuple[float, float, float]:
    rgb = [int(color[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    return tuple(1 - (1 - part) * 0.75 * strength for part in rgb)


def _mark(ax: Axes, across: float, along: float, diagonal: bool) -> None:
    if math.isfinite(across):
        ax.axvline(across, **TRUTH)
    if math.isfinite(along) and not diagonal:
        ax.axhline(along, **TRUTH)


def _axes(ax: Axes, row: int, column: int, ends: list[tuple[float, float]], count: int) -> None:
    ax.set_xlim(ends[column])
    ax.set_xticks(_ticks(*ends[column], 2 if count > 6 else 3))
    ax.tick_params(axis="x", labelbottom=row == count - 1, rotation=45 if count > 3 else 0)
    if row == column:
        ax.set_ylim(bottom=0)
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        return
    ax.set_ylim(ends[row])
    ax.set_yticks(_ticks(*ends[row], 2 if count > 6 else 3))
    ax.tick_params(axis="y", labelleft=column == 0)
    ax.spines[["top", "right"]].set_visible(True)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """A few round numbers, none near an end, where the next panel's would be in the way."""
    room, ticks = 0.08 * (high - low), []
    while len(ticks) < 2 <= count < 9:
        every = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        ticks, count = [tick for tick in every if low + room <= tick <= high - room], count + 1
    return ticks


def _label(name: str, units: Mapping[str, str] | None, names: list[str]) -> str:
    symbol = factor_symbol(name, several=any(other.startswith("obj1_") for other in names))
    unit = units.get(name) if units is not None else _unit(name) if symbol != name else None
    return symbol + ("\n" if len(names) > 6 else " ") + f"({unit})" if unit else symbol


def _unit(name: str) -> str:
    """Unit of a cause of optic flow."""
    if name.endswith(("theta", "phi")) or "_alpha_" in name:
        return "rad"
    return "m/s" if "_v_" in name else "m"


def _legend(figure: Figure, clouds: Mapping[str, Cloud], masses: Sequence[float], true: bool) -> None:
    held = ", ".join(f"{100 * mass:g} %" for mass in sorted(masses))
    handles: list[Any] = [Line2D([], [], label="true", **TRUTH)] * bool(true)
    for i, (label, cloud) in enumerate(clouds.items()):
        look = {"marker": "D", "linestyle": "none"} if cloud.few(0) else {}
        handles.append(Line2D([], [], color=cloud.color, label=label, **look) if i or look else
                       Patch(facecolor=_shade(cloud.color, 0.7), edgecolor=cloud.color, label=label))
    below = 0.55 / figure.get_figheight() if figure.get_suptitle() else 0.01
    figure.legend(handles=handles, title=f"contours hold {held}" if len(figure.axes) > 1 else None, loc="upper right", alignment="left",
                  bbox_to_anchor=(0.99, 1 - below), fontsize=14, title_fontsize=14)
