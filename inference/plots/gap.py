"""What inference leaves on the table: the bound each method reaches, and the approximation and amortization gaps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from inference.plots.records import Spread, cells, number, require, spread, unique
from inference.plots.style import MUTED, POINT, method_markers, model_colors, new_figure, styled

__all__ = ["amortization_gap", "approximation_gap", "plot_gap"]


@styled
def plot_gap(records: Sequence[Mapping[str, Any]], *, title: str | None = None) -> Figure:
    """Draws the NELBO of every method that has one and, where both are there, nelbo(amortized) − nelbo(local).

    Arguments:
        records: Rows of the comparison's table with ``data``, ``model``, ``method``, ``seed`` and ``nelbo`` (nats per image), and
            perhaps ``gap`` and ``gap_se`` (a paired difference and its standard error over images), ``inference_gap`` and
            ``inference_gap_se`` (log p(x) less the bound); one row of panels for each data set.
        title: Title of the figure.

    Left: mean over seeds, error bars ± one standard deviation over seeds; a line where −log p(x) is known, on the same scale. Right: the
    gaps of :func:`approximation_gap`, where known, and :func:`amortization_gap` with their standard errors.

    Raises:
        ValueError: if there are no records, one lacks a column, or none has a NELBO.
    """
    require(records, "data", "model", "method", "seed", "nelbo")
    records = [record for record in records if math.isfinite(number(record, "nelbo"))]
    if not records:
        raise ValueError("no record has a finite nelbo")
    data = unique(records, "data")
    counts = [len(unique([r for r in records if str(r["data"]) == name], "model")) for name in data]
    colors, markers = model_colors(unique(records, "model")), method_markers(unique(records, "method"))
    figure = new_figure(11.0, sum(1.3 + 0.6 * count for count in counts) + 0.4 * bool(title), title)
    axes = figure.subplots(len(data), 2, squeeze=False, sharey="row", width_ratios=[1.4, 1],
                           height_ratios=[count + 1 for count in counts])
    for name, (left, right) in zip(data, axes, strict=True):
        rows = [record for record in records if str(record["data"]) == name]
        models = unique(rows, "model")
        _bounds(left, rows, models, colors, markers)
        _gaps(right, rows, models, colors)
        left.set_title(name if len(data) > 1 else "Bound reached")
        evidence = any(math.isfinite(number(record, "inference_gap")) for record in rows)
        right.set_title("What inference loses" if evidence else "Amortization gap")
    methods = [Line2D([], [], linestyle="none", marker=markers[name], color=MUTED, markersize=9, label=name)
               for name in unique(records, "method")]
    figure.legend(handles=methods, loc="outside upper right", ncols=len(methods))
    return figure


def amortization_gap(records: Sequence[Mapping[str, Any]], model: str) -> Spread:
    """Amortization gap of a model in nats per image: mean, *standard error* (as ``sd``; NaN if unknown) and number of seeds.

    A seed's gap is its records' ``gap``, where there is one, else its nelbo(amortized) − nelbo(local). The standard error adds in
    quadrature that over images (``gap_se``, mean over seeds, where there is one) and that over seeds (from two seeds on).
    """
    gaps, errors = [], []
    rows = [record for record in records if str(record["model"]) == model]
    for seed in unique(rows, "seed"):
        mine = [record for record in rows if str(record["seed"]) == seed]
        paired = [record for record in mine if str(record["method"]) == "amortized" and math.isfinite(number(record, "gap"))]
        if paired:
            gaps.append(number(paired[0], "gap"))
            errors.append(number(paired[0], "gap_se"))
        else:
            nelbo = {str(record["method"]): number(record, "nelbo") for record in mine}
            gaps.append(nelbo.get("amortized", math.nan) - nelbo.get("local", math.nan))
    mean, sd, count = spread(gaps)
    over_images = spread(errors)
    parts = [sd / math.sqrt(count)] if count > 1 else []
    parts += [over_images.mean] if over_images.count else []
    return Spread(mean, math.hypot(*parts) if parts else math.nan, count)


def _bounds(ax: Axes, rows: Sequence[Mapping[str, Any]], models: list[str], colors: dict[str, str],
            markers: dict[str, str]) -> None:
    points = cells(rows, "nelbo")
    for model in models:
        y = models.index(model)
        means = [values["nelbo"].mean for (name, _), values in points.items() if name == model]
        ax.plot([min(means), max(means)], [y, y], color=colors[model], linewidth=5, alpha=0.3, solid_capstyle="butt", zorder=1)
    for (model, method), values in points.items():
        nelbo = values["nelbo"]
        ax.errorbar(nelbo.mean, models.index(model), xerr=nelbo.sd if nelbo.count > 1 else None, fmt=markers[method],
                    color=colors[model], label=f"{model} · {method}", **POINT)
    for model in models:  # on the same axis: what a perfect posterior would reach
        best = spread(number(row, "nelbo") - number(row, "inference_gap") for row in rows if str(row["model"]) == model)
        if best.count:
            y = models.index(model)
            ax.plot([best.mean] * 2, [y - 0.3, y + 0.3], color="black", linewidth=2, zorder=3)
            ax.annotate("−log p(x)", (best.mean, y - 0.3), xytext=(0, 2), textcoords="offset points", ha="center", fontsize="small")
    ax.set_yticks(range(len(models)), models)
    ax.set_ylim(len(models) - 0.4, -0.6)
    ax.margins(x=0.1)
    ax.set_xlabel("NELBO = distortion + KL (nats per image)")


def approximation_gap(records: Sequence[Mapping[str, Any]], model: str) -> Spread:
    """Approximation gap of a model in nats per image: mean, *standard error* (as ``sd``) and number of seeds.

    It is the ``inference_gap`` of the rows of ``local``; standard errors as in :func:`amortization_gap`.
    """
    rows = [record for record in records if str(record["model"]) == model and str(record["method"]) == "local"]
    mean, sd, count = spread(number(record, "inference_gap") for record in rows)
    over_images = spread(number(record, "inference_gap_se") for record in rows)
    parts = [sd / math.sqrt(count)] if count > 1 else []
    parts += [over_images.mean] if over_images.count else []
    return Spread(mean, math.hypot(*parts) if parts else math.nan, count)


def _gaps(ax: Axes, rows: Sequence[Mapping[str, Any]], models: list[str], colors: dict[str, str]) -> None:
    """Bars of the amortization gap, and before them those of the approximation gap where it is known."""
    tips = [0.0]
    for model in models:
        y, start = models.index(model), 0.0
        approximation, amortization = approximation_gap(rows, model), amortization_gap(rows, model)
        texts = []
        for gap, look in ((approximation, {"alpha": 0.35, "hatch": "//", "edgecolor": "white"}), (amortization, {})):
            if not math.isfinite(gap.mean):
                continue
            error = None if math.isnan(gap.sd) else gap.sd
            ax.barh(y, gap.mean, left=start, height=0.55, color=colors[model], xerr=error,
                    error_kw={"elinewidth": 1.5, "capsize": 4, "ecolor": "black"}, **look)
            texts.append(f"{gap.mean:.2f}" + ("" if error is None else f" ± {gap.sd:.2f}" if gap.sd >= 0.01 else f" ± {gap.sd:.1g}"))
            tips.append(max(start + gap.mean, 0.0) + (error or 0.0))
            start += gap.mean
        if texts:
            ax.annotate(" + ".join(texts), (max(tips[-len(texts):]), y), xytext=(6, 0), textcoords="offset points", va="center", ha="left")
    known = any(math.isfinite(approximation_gap(rows, model).mean) for model in models)
    if len(tips) == 1:
        ax.text(0.5, 0.5, "needs methods amortized and local", transform=ax.transAxes, ha="center", color=MUTED)
    ax.set_xlim(right=max(tips) * (2.4 if known else 1.6) or 1.0)
    ax.axvline(0.0, color="#444444", linewidth=0.9)
    ax.set_xlabel("approximation (hatched) + amortization (nats)" if known else "amortized − local (nats per image)")
