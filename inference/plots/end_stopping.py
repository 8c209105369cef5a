"""End-stopping: how errors of a level grow and fall with the length of a bar, with and without predictions from above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from inference.plots.arrays import array
from inference.plots.style import COLOR_CYCLE, MODEL_COLORS, MUTED, line_styles, new_figure, styled

__all__ = ["plot_end_stopping"]

COLORS = (MODEL_COLORS["poisson"], MODEL_COLORS["gaussian"], *COLOR_CYCLE)
RANGE = (0.25, 0.75)  # quantiles of repeats that are shaded


@styled
def plot_end_stopping(lengths: Sequence[int], errors: Mapping[str, Any], *, compare: tuple[int, int] = (6, 24), field: float | None = None,
                      repeats: str = "bars and seeds", ylabel: str = "error of the level", title: str | None = None) -> Figure:
    """Draws errors against the length of a bar, each relative to that of a short bar, and the ratio of a long bar's to it.

    Arguments:
        lengths: Of the bars, pixels, ``(L,)``, rising.
        errors: ``{condition: (R, L)}``, sizes of errors of R repeats, at least 0: of other units, bars or seeds. The line is the median
            over repeats of each one's error over its own at the short bar; shaded are the quartiles.
        compare: Short and long bar, two of the lengths.
        field: Width in pixels of what the units see themselves, marked on the axis.
        repeats: What the repeats are, for the axis.
        ylabel: What the errors are.
        title: Title of the figure.

    On the right is each repeat's ratio error(long) / error(short), and the median: below 1 units respond less to the longer bar. Repeats
    without any error at the short bar have no ratio; their number is written.

    Raises:
        ValueError: for no errors, lengths that do not rise or do not hold those to compare, or errors that are negative or not finite.
    """
    lengths, curves = _check(lengths, errors, compare)
    short, long = (int(np.flatnonzero(lengths == length)[0]) for length in compare)
    figure = new_figure(9.6, 4.5 + 0.4 * bool(title), title)
    ax, beside = figure.subplots(1, 2, width_ratios=[2.1, 1.0])
    colors = {label: COLORS[i] for i, label in enumerate(curves)} if len(curves) <= len(COLORS) else \
        {label: style["color"] for label, style in line_styles(curves).items()}
    spread = np.random.default_rng(0)
    for i, (label, rows) in enumerate(curves.items()):
        some = rows[:, short] > 0
        relative = rows[some] / rows[some, short:short + 1]
        ratio = relative[:, long]
        middle, low, high = (np.quantile(relative, q, axis=0) for q in (0.5, *RANGE)) if some.any() else [np.full(len(lengths), np.nan)] * 3
        ax.fill_between(lengths, low, high, color=colors[label], alpha=0.2, linewidth=0)
        ax.plot(lengths, middle, "o-", color=colors[label], markersize=6, markeredgecolor="white", label=label)
        if len(ratio):
            width = 0.0 if len(ratio) == 1 else 0.28
            beside.scatter(i + spread.uniform(-width, width, len(ratio)), ratio, s=22, color=colors[label], alpha=0.5, linewidths=0)
            beside.plot([i - 0.36, i + 0.36], 2 * [middle[long]], color=colors[label], linewidth=2.6)
            beside.text(i, 1.02, f"{middle[long]:.2f}", transform=beside.get_xaxis_transform(), ha="center", va="bottom", fontsize=12,
                        fontweight="bold", color=colors[label])
        if not some.all():
            beside.text(i, 0.01, f"{(~some).sum()} silent", transform=beside.get_xaxis_transform(), ha="center", va="bottom", fontsize=9,
                        color=MUTED)
    _finish(ax, beside, lengths, list(curves), compare, field, repeats, ylabel)
    return figure


def _check(lengths: Sequence[int], errors: Mapping[str, Any], compare: tuple[int, int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    lengths = array(lengths, "lengths")
    if lengths.ndim != 1 or len(lengths) < 2 or not (np.diff(lengths) > 0).all():
        raise ValueError(f"lengths must be two or more numbers of pixels that rise, not {lengths.tolist()}")
    if len(compare) != 2 or not compare[0] < compare[1] or not set(compare) <= set(lengths.tolist()):
        raise ValueError(f"compare must be a shorter and a longer one of the lengths {lengths.tolist()}, not {compare}")
    curves = {label: array(rows, f"the errors {label!r}") for label, rows in errors.items()}
    if not curves:
        raise ValueError("there are no errors to plot")
    for label, rows in curves.items():
        if rows.ndim != 2 or rows.shape[1] != len(lengths) or len(rows) == 0 or not (np.isfinite(rows) & (rows >= 0)).all():
            raise ValueError(f"the errors {label!r} must be finite sizes of at least 0, (repeats, {len(lengths)}); got shape {rows.shape}")
    return lengths, curves


def _finish(ax: Axes, beside: Axes, lengths: np.ndarray, labels: list[str], compare: tuple[int, int], field: float | None, repeats: str,
            ylabel: str) -> None:
    for panel in (ax, beside):
        panel.axhline(1.0, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)), zorder=0)
        panel.set_ylim(bottom=0.0)
    if field is not None:
        ax.axvline(field, color=MUTED, linewidth=1.0, linestyle=":", zorder=0)
        ax.text(field, 0.01, " own patch", transform=ax.get_xaxis_transform(), color=MUTED, fontsize=9.5, va="bottom")
    ax.xaxis.set_major_locator(FixedLocator(lengths[:: 1 + len(lengths) // 14]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="length of the bar (pixels)", ylabel=f"{ylabel}\nrelative to that at {compare[0]} pixels")
    ax.legend(loc="best")
    beside.set_xticks(range(len(labels)), [label.replace(" ", "\n") for label in labels])
    beside.tick_params(axis="x", length=0)
    beside.set(xlim=(-0.6, len(labels) - 0.4), ylabel=f"error({compare[1]} px) / error({compare[0]} px)")
    beside.set_xlabel(f"dots: {repeats}", fontsize=9.5, color=MUTED)
