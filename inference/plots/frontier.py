"""What a code costs and what it buys: rate against distortion, sparsity against distortion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from inference.plots.records import Spread, cells, require, unique
from inference.plots.style import MUTED, POINT, method_markers, model_colors, new_figure, styled

__all__ = ["plot_frontier"]


@styled
def plot_frontier(records: Sequence[Mapping[str, Any]], *, title: str | None = None) -> Figure:
    """Draws every (model, method) of a comparison as a point, mean over seeds, error bars ± one standard deviation over seeds.

    Arguments:
        records: Rows of the comparison's table with ``data``, ``model``, ``method``, ``distortion`` and ``kl`` (nats per
            image) and ``lifetime_sparsity``; one row of panels for each data set.
        title: Title of the figure.

    Left: rate (``kl``) against distortion with lines of equal NELBO = distortion + kl; methods without a KL are left out.
    Right: lifetime sparsity against the same distortion, for all methods. Colour is the model, marker the method; a faint line
    joins the methods of one model.

    Raises:
        ValueError: if there are no records or one lacks a column.
    """
    require(records, "data", "model", "method", "distortion", "kl", "lifetime_sparsity")
    data = unique(records, "data")
    colors, markers = model_colors(unique(records, "model")), method_markers(unique(records, "method"))
    figure = new_figure(11.0, 4.6 * len(data) + 0.4 * bool(title), title)
    axes = figure.subplots(len(data), 2, squeeze=False, sharey="row")
    for name, (left, right) in zip(data, axes, strict=True):
        rows = [record for record in records if str(record["data"]) == name]
        rated = cells(rows, "kl", "distortion")
        _points(left, rated, "kl", colors, markers)
        _points(right, cells(rows, "lifetime_sparsity", "distortion"), "lifetime_sparsity", colors, markers)
        left.set_xlabel("rate: KL (nats per image)")
        left.set_ylabel("distortion (nats per image)")
        right.set_xlabel("lifetime sparsity (0 dense, 1 sparse)")
        left.set_title(name if len(data) > 1 else "Rate and distortion")
        right.set_title("" if len(data) > 1 else "Sparsity and distortion")
        if rated:
            _equal_nelbo(left)
        else:
            left.set_xticks([])
            left.text(0.5, 0.5, "no method has a KL", transform=left.transAxes, ha="center", color=MUTED)
    figure.legend(handles=_legend(unique(records, "model"), unique(records, "method"), colors, markers), loc="outside right upper")
    return figure


def _points(ax: Axes, points: dict[tuple[str, str], dict[str, Spread]], across: str, colors: dict[str, str],
            markers: dict[str, str]) -> None:
    """One marker for each (model, method); a faint line joins the methods of a model."""
    for model in dict.fromkeys(model for model, _ in points):
        mine = [values for (name, _), values in points.items() if name == model]
        ax.plot([values[across].mean for values in mine], [values["distortion"].mean for values in mine], color=colors[model],
                linewidth=1.5, alpha=0.45, zorder=2)
    for (model, method), values in points.items():
        x, y = values[across], values["distortion"]
        bars = {"xerr": x.sd, "yerr": y.sd} if x.count > 1 else {}
        ax.errorbar(x.mean, y.mean, **bars, fmt=markers[method], color=colors[model], label=f"{model} · {method}",
                    zorder=3, **POINT)
    ax.margins(0.12)


def _equal_nelbo(ax: Axes) -> None:
    """Lines distortion + kl = constant across the panel, each labelled near its upper left end."""
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    levels = MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]).tick_values(x0 + y0, x1 + y1)
    for level in levels[(levels > x0 + y0) & (levels < x1 + y1)]:
        x = np.array([max(x0, level - y1), min(x1, level - y0)])
        ax.plot(x, level - x, color="#C4C4C4", linewidth=1, zorder=1, scalex=False, scaley=False)
        at = x[0] + 0.07 * (x1 - x0)
        if at < x[1]:
            ax.text(at, level - at, f"{level:g}", fontsize=9.5, color=MUTED, ha="center", va="center", zorder=1.5,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    ax.set_xlim(x0, x1)
    ax.set_ylim(y0, y1)


def _legend(models: list[str], methods: list[str], colors: dict[str, str], markers: dict[str, str]) -> list[Line2D]:
    blank = Line2D([], [], linestyle="none", label=" ")
    head = [Line2D([], [], color=colors[name], linewidth=6, label=name) for name in models]
    tail = [Line2D([], [], color=MUTED, marker=markers[name], linestyle="none", markersize=9, label=name) for name in methods]
    return [*head, blank, *tail, blank, Line2D([], [], color="#C4C4C4", linewidth=1, label="equal NELBO")]
