"""How a representation is laid out: factors against latents or the levels of a hierarchy, and summary scores of several models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from inference.metrics.levels import LevelContributions
from inference.plots.arrays import array
from inference.plots.decodability import factor_symbol
from inference.plots.style import MUTED, model_colors, new_figure, split_label, styled

__all__ = ["plot_factor_map", "plot_factor_scores", "plot_level_contributions"]

NATS = (0.0, 0.5)  # the usual range of colours for mutual information
NUMBERED = 30  # so many latents all have their numbers; of more, the first of each level and the last
LETTER, LINE = 0.085, 0.15  # inches that a letter of a level's name takes along its line, and the line across
ALL_GAP = 0.3  # before the column of all levels, in widths of a cell
ABREAST = 8  # levels up to which two heat maps stand side by side
HATCHES = ("", "///", "...", "xxx")


@styled
def plot_factor_map(values: Any, factors: Sequence[str], *, levels: Mapping[str, int] | None = None,
                    label: str = "mutual information (nats)", limits: tuple[float, float] | None = NATS, title: str = "") -> Figure:
    """Draws a heat map of what each latent has to do with each factor, with lines between the levels of a hierarchy.

    Arguments:
        values: ``(factors, K)``: mutual information, importances, ...
        factors: Names of the rows.
        levels: How many latents each level has, in the order of the columns; one level by default. Names are upright where one is
            wider than its level, and left out over levels that are too narrow for that.
        label: What the colours are, with its unit.
        limits: Values of the first and last colour; from 0 to the greatest value if None. What is beyond has the last colour, and the
            colour bar ends in a tip.
        title: Title of the figure.

    Raises:
        ValueError: if values are not a matrix of finite numbers with a row for each factor, levels do not add up to its columns, or limits
            do not go up.
    """
    values = _matrix(values, len(factors))
    levels = {"": values.shape[1]} if levels is None else dict(levels)
    if sum(levels.values()) != values.shape[1] or min(levels.values(), default=0) < 1:
        raise ValueError(f"levels must have sizes of at least 1 that add up to {values.shape[1]} latents; got {levels}")
    low, high = limits if limits is not None else (0.0, max(float(values.max()), 1e-12))
    if not low < high:
        raise ValueError(f"limits must go up, not {limits}")
    count, ends = values.shape[1], np.cumsum([0, *levels.values()])
    width = min(13.0, max(5.5, 1.8 + 0.32 * count))
    room = (width - 2.5) * np.diff(ends) / count  # inches over each level
    upright = any(LETTER * len(name) > space for name, space in zip(levels, room, strict=True))
    heads = LETTER * max(map(len, levels)) if upright else 0.2
    figure = new_figure(width, max(3.2, 1.8 + 0.3 * len(factors)) + heads, title)
    ax = figure.subplots()
    mesh = _heat(ax, values, factors, low, high)
    ax.vlines(ends[1:-1], 0, len(factors), color="#333333", linewidth=0.8)
    for name, middle, space in zip(levels, (ends[1:] + ends[:-1]) / 2, room, strict=True):
        if space >= LINE:
            ax.text(middle, -0.15, name, ha="center", va="bottom", fontsize=9.5, rotation=90 if upright else 0)
    starts = ends[:-1] if len(levels) > 1 else range(0, count, 20 * -(-count // 200))
    ticks = list(range(count)) if count <= NUMBERED else _apart([*starts, count - 1])
    ax.set_xticks([tick + 0.5 for tick in ticks], ticks, rotation=90 if len(ticks) > NUMBERED else 0, fontsize=9)
    ax.set_xlabel("latent")
    beyond = {(False, False): "neither", (False, True): "max", (True, False): "min", (True, True): "both"}
    bar = figure.colorbar(mesh, ax=ax, extend=beyond[bool(values.min() < low), bool(values.max() > high)], pad=0.015, aspect=14)
    bar.set_label(label)
    bar.outline.set_visible(False)
    return figure


@styled
def plot_level_contributions(contributions: LevelContributions, *, title: str = "") -> Figure:
    """Draws two heat maps of R², factors against levels: read out of the level alone, and lost without it.

    The first has all levels together as its last column. Colours go from 0 to 1; negative values have the colour of 0, and are written
    as they are where numbers fit.
    """
    factors, levels = contributions.factors, list(contributions.levels)
    count, rows, abreast = len(levels), len(factors), len(levels) <= ABREAST
    last = count + ALL_GAP + 1  # where the column of all levels ends
    width, height = (1.1 * count + 4.4, 0.34 * rows + 1.9) if abreast else (0.52 * count + 2.4, 0.62 * rows + 3.2)
    figure = new_figure(max(width, 7.0), height, title)
    left, right = figure.subplots(1, 2, width_ratios=[last, count]) if abreast else figure.subplots(2, 1)
    figure.get_layout_engine().set(wspace=0.06)
    _heat(left, contributions.alone.numpy(), factors, 0.0, 1.0, written=True)
    _heat(left, contributions.together.numpy()[:, None], factors, 0.0, 1.0, count + ALL_GAP, written=True)
    mesh = _heat(right, contributions.unique.numpy(), factors, 0.0, 1.0, written=True)
    upright = 45 if max(map(len, levels)) > 6 else 0
    for ax, head, names, end in ((left, "from the level alone", [*levels, "all"], last),
                                 (right, "lost without it", levels, count if abreast else last)):
        ax.set(xlim=(0, end), title=head)
        places = [i + 0.5 + ALL_GAP * (i == count) for i in range(len(names))]
        ax.set_xticks(places, names, rotation=upright, ha="right" if upright else "center")
    if abreast:
        right.set_yticks([])
    bar = figure.colorbar(mesh, ax=[left, right], aspect=26, pad=0.02)
    bar.set_label("R² of a linear readout")
    bar.outline.set_visible(False)
    return figure


@styled
def plot_factor_scores(scores: Mapping[str, Mapping[str, Sequence[float]]], *, title: str = "") -> Figure:
    """Draws bars that compare models by summary scores such as D, C, I, mean R² and MIG: the mean over seeds, and each seed as a point.

    Arguments:
        scores: ``{label: {score: one value for each seed}}``, the same scores for every label; scores that are 1 at best. A label is
            ``"model"`` or ``"model · anything"`` and has the model's colour.
        title: Title of the figure.

    Raises:
        ValueError: if there is nothing to draw, labels differ in their scores, or a value is not a finite number up to 1.
    """
    names = list(next(iter(scores.values()), ()))
    if not names or any(set(row) != set(names) for row in scores.values()):
        given = "; ".join(f"{label}: {', '.join(row)}" for label, row in scores.items())
        raise ValueError(f"every label must have the same scores, at least one; got {given or 'nothing'}")
    values = {label: [_seeds(label, name, row[name]) for name in names] for label, row in scores.items()}
    colors = model_colors(split_label(label)[0] for label in values)
    width = 0.84 / len(values)
    figure = new_figure(max(5.5, 1.6 + len(names) * (0.5 + 0.36 * len(values))), 4.2, title)
    ax = figure.subplots()
    seen: dict[str, int] = {}
    for i, (label, rows) in enumerate(values.items()):
        model = split_label(label)[0]
        seen[model] = seen.get(model, -1) + 1
        at = np.arange(len(names)) + (i - (len(values) - 1) / 2) * width
        means = np.array([row.mean() for row in rows])
        ax.bar(at, means, 0.92 * width, color=colors[model], alpha=0.75, hatch=HATCHES[seen[model] % len(HATCHES)], edgecolor="white",
               linewidth=0.0, label=label)
        for x, mean, row in zip(at, means, rows, strict=True):
            spread = width * 0.22 * (np.linspace(-1, 1, len(row)) if len(row) > 1 else np.zeros(1))
            if len(row) > 1:
                ax.plot(x + spread, row, "o", color="#1A1A1A", markersize=4, markeredgecolor="white", markeredgewidth=0.6)
            ax.text(x, max(row.max(), 0.0) + 0.02, _text(mean), ha="center", va="bottom", fontsize=8.5)
    least = min(row.min() for rows in values.values() for row in rows)
    ax.axhline(0.0, color="#444444", linewidth=0.9)
    ax.set_ylim(min(0.0, least - 0.05), 1.08)
    ax.set_xticks(np.arange(len(names)), names)
    ax.tick_params(axis="x", length=0)
    seeds = sorted({len(row) for rows in values.values() for row in rows})
    ax.set_ylabel("score (higher is better)")
    ax.set_xlabel("" if seeds == [1] else f"bars: mean over {'–'.join(map(str, sorted({seeds[0], seeds[-1]})))} seeds; points: each seed",
                  color=MUTED, fontsize=10)
    figure.legend(loc="outside lower center", ncols=min(4, len(values)))
    return figure


def _heat(ax: Axes, values: np.ndarray, factors: Sequence[str], low: float, high: float, start: float = 0.0,
          written: bool = False) -> QuadMesh:
    """Cells of a matrix from column ``start`` on, the first row on top, rows with the factors' symbols; numbers in them if ``written``."""
    several = any(name.startswith("obj1_") for name in factors)
    mesh = ax.pcolormesh(start + np.arange(values.shape[1] + 1), np.arange(len(factors) + 1), values, cmap="YlGnBu", vmin=low, vmax=high,
                         rasterized=True)
    ax.set(xlim=(0, start + values.shape[1]), ylim=(len(factors), 0))
    ax.set_yticks(np.arange(len(factors)) + 0.5, [factor_symbol(name, several) for name in factors])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.hlines(np.arange(1, len(factors)), start, start + values.shape[1], color="white", linewidth=0.8)
    if written:
        for (row, column), value in np.ndenumerate(values):
            ax.text(start + column + 0.5, row + 0.5, _text(value), ha="center", va="center", fontsize=8.5,
                    color="white" if value > 0.55 else "#1A1A1A")
    return mesh


def _text(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def _apart(ticks: list[int]) -> list[int]:
    """Those of the rising ticks that have room: the last always, of the others each that is not too near to the one before."""
    room, chosen = 0.015 * ticks[-1], []
    for tick in ticks[:-1]:
        if (not chosen or tick - chosen[-1] > room) and ticks[-1] - tick > room:
            chosen.append(int(tick))
    return [*chosen, int(ticks[-1])]


def _matrix(values: Any, rows: int) -> np.ndarray:
    values = array(values, "values")
    if values.ndim != 2 or values.shape[0] != rows or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"values must be a matrix of finite numbers with a row for each of {rows} factors; got shape {values.shape}")
    return values


def _seeds(label: str, name: str, values: Any) -> np.ndarray:
    values = array(values, f"{name} of {label!r}").reshape(-1)
    if values.size == 0 or not np.isfinite(values).all() or values.max() > 1.0 + 1e-6:
        raise ValueError(f"{name} of {label!r} must be finite numbers up to 1, one for each seed; got {values.tolist()}")
    return values
