"""The figure of ``out_of_distribution.py``: what each way of inferring loses, in nats and in accuracy, on images unlike its training."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from inference.plots.style import COLOR_CYCLE, MODEL_COLORS, new_figure, styled

__all__ = ["plot_shift"]

COLORS = (*MODEL_COLORS.values(), *COLOR_CYCLE)


@styled
def plot_shift(rows: list[dict[str, Any]], title: str) -> Figure:
    """Above: NELBO over that of the last way (local optimization), logarithmic; below: accuracy of a classifier on the codes."""
    ways, kinds = list(dict.fromkeys(row["way"] for row in rows)), list(dict.fromkeys(row["images"] for row in rows))
    found = {(row["way"], row["images"]): row for row in rows}
    best = {kind: min(found[way, kind]["nelbo"] for way in ways) for kind in kinds}
    figure = new_figure(13.0, 8.5, title)
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    width, at = 0.8 / len(ways), np.arange(len(kinds))
    for i, way in enumerate(ways):
        x = at + (i - (len(ways) - 1) / 2) * width
        loss.bar(x, [max(found[way, kind]["nelbo"] - best[kind], 1e-3) for kind in kinds], width, color=COLORS[i], label=way)
        accuracy.bar(x, [found[way, kind]["accuracy"] for kind in kinds], width, color=COLORS[i])
    loss.set_yscale("log")
    loss.set_ylabel("NELBO above the best way's\n(nats per image)")
    loss.set_title("What inference loses (lower is better)")
    accuracy.set_ylabel("accuracy (held out)")
    accuracy.set_title("What its codes are good for (higher is better)")
    accuracy.set_xticks(at, kinds, rotation=20, ha="right")
    accuracy.set_ylim(0.0, 1.0)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=len(ways) // 2)
    return figure
