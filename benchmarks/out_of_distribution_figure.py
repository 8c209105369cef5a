"""The figure of ``out_of_distribution.py``: what each way of inferring loses, in nats and in accuracy, on images unlike its training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inference.plots.style import COLOR_CYCLE, MODEL_COLORS, new_figure, styled

__all__ = ["plot_shift"]

COLORS = (*MODEL_COLORS.values(), *COLOR_CYCLE)


@styled
def plot_shift(rows: list[dict[str, Any]], title: str) -> Figure:
    """Above: NELBO over the best way's, logarithmic; below: accuracy of a classifier on the codes, where images have classes."""
    ways, kinds = list(dict.fromkeys(row["way"] for row in rows)), list(dict.fromkeys(row["images"] for row in rows))
    found = {(row["way"], row["images"]): row for row in rows}
    best = {kind: min(found[way, kind]["nelbo"] for way in ways) for kind in kinds}
    classed = [kind for kind in kinds if "accuracy" in found[ways[0], kind]]
    figure = new_figure(13.0, 8.5, title)
    loss, accuracy = figure.subplots(2, 1)
    width = 0.8 / len(ways)

    def bars(ax: Axes, shown: list[str], value: Callable[[str, str], float]) -> None:
        at = np.arange(len(shown))
        for i, way in enumerate(ways):
            ax.bar(at + (i - (len(ways) - 1) / 2) * width, [value(way, kind) for kind in shown], width, color=COLORS[i], label=way)
        ax.set_xticks(at, shown, rotation=20, ha="right")

    bars(loss, kinds, lambda way, kind: max(found[way, kind]["nelbo"] - best[kind], 1e-3))
    bars(accuracy, classed, lambda way, kind: found[way, kind]["accuracy"])
    loss.set_yscale("log")
    loss.set_ylabel("NELBO above the best way's\n(nats per image)")
    loss.set_title("What inference loses (lower is better)")
    accuracy.set_ylabel("accuracy (held out)")
    accuracy.set_title("What its codes are good for (higher is better; line: chance)")
    accuracy.hlines([found[ways[0], kind].get("chance", np.nan) for kind in classed], np.arange(len(classed)) - 0.4,
                    np.arange(len(classed)) + 0.4, color="black", linewidth=1.0, linestyles="dotted")
    accuracy.set_ylim(0.0, 1.0)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=len(ways) // 2)
    return figure
