"""What can be read out of a representation: factors of the scene against models and methods."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from inference.plots.style import MUTED, model_colors, new_figure, split_label, styled

__all__ = ["factor_symbol", "plot_decodability"]

CELL = (0.6, 0.36)  # width and height in inches; gaps are in widths or heights of a cell
GROUP_GAP, MEAN_GAP, REFERENCE_GAP = 0.15, 0.4, 0.4
HEAD = -1.0  # where the line over a group of columns is
# Names of factors of optic flow as (what, number of the object, quantity, component), and the group that each belongs to.
PATTERNS = {r"(fix)()_()([xy])": "gaze", r"(slf)()_(v)_(x|y|z|norm|theta|phi)": "self motion", r"(obj)(\d+)_()([xyz])": "object{} position",
            r"(obj)(\d+)_(alpha)_([xy])": "object{} position", r"(obj)(\d+)_(v)_(x|y|z|norm|theta|phi)": "object{} motion"}
VELOCITY = {"norm": "|V{}|", "theta": r"\theta_V{}", "phi": r"\varphi_V{}"}


@styled
def plot_decodability(scores: Mapping[str, Mapping[str, float]], *, references: Sequence[str] = (), title: str) -> Figure:
    """Draws a heat map of R²: one row for each representation, one column for each factor, and each row's mean in bold.

    Arguments:
        scores: ``{label: {factor: R²}}`` with R² of a linear readout on held-out frames: at most 1, negative where it does worse
            than the mean; the same factors for every label. A label is ``"model · method"``, written in the model's colour, or any
            other name.
        references: Labels that no model stands behind, as raw pixels or PCA: in grey, set apart above the models.
        title: Title of the figure.

    Columns come in the first label's order, labels and references in the order of ``scores``. Colours go from 0 to 1 in every
    figure; a negative R² has the colour of 0 and is written as it is.

    Raises:
        ValueError: if there is nothing to draw, labels differ in their factors, a reference is not among the labels, or an R² is not
            a finite number up to 1.
    """
    factors = _factors(scores, references)
    above = [label for label in scores if label in references]
    labels = [*above, *(label for label in scores if label not in references)]
    values = np.array([[_number(label, name, scores[label][name]) for name in factors] for label in labels])
    table = np.column_stack([values, values.mean(1)])

    several = any(name.startswith("obj1_") for name in factors)
    groups = [_group(name, several) for name in factors]
    steps = [1 + GROUP_GAP * (left != right) for left, right in pairwise(groups)]
    columns = np.cumsum([0.5, *steps, 1 + MEAN_GAP])  # middles of the cells
    rows = np.arange(len(labels)) + 0.5
    rows[len(above):] += REFERENCE_GAP * bool(above)
    width, height = columns[-1] + 0.5, rows[-1] + 0.5

    figure = new_figure(max(width * CELL[0], 4.2) + 0.09 * max(map(len, labels)) + 0.3, height * CELL[1] + 2.0, title)
    ax = figure.subplots()
    cells = _cells(ax, table, rows, columns)
    _labels(ax, labels, rows, above)
    _heads(ax, columns, [*(factor_symbol(name, several) for name in factors), "mean"])
    _group_heads(ax, columns, groups)
    ax.set(xlim=(0, width), ylim=(height, HEAD - 0.8))
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(cells, ax=ax, location="bottom", aspect=36, shrink=min(1.0, 7 / width), pad=0.15 / (height * CELL[1]))
    bar.set_label("R² of a linear readout on held-out frames")
    bar.outline.set_visible(False)
    return figure


def factor_symbol(name: str, several: bool = False) -> str:
    """A factor's symbol in Matplotlib's mathtext.

    Arguments:
        name: Name of a factor. Those of optic flow have symbols: ``fix_x``; ``slf_v_x``, ``slf_v_norm``, ``slf_v_theta``,
            ``slf_v_phi``; ``obj0_x``, ``obj0_alpha_x``, ``obj0_v_x``, ...
        several: Whether there are several objects, to be told apart by their numbers.

    Returns:
        The symbol; any other name as it is.
    """
    _, match = _parse(name)
    if match is None:
        return name
    what, number, quantity, component = match.groups()
    who = rf"\mathrm{{{'self' if what == 'slf' else what}}}" + rf"\,{number}" * (several and number != "")
    if quantity == "v":
        return "$" + VELOCITY.get(component, f"V_{component}{{}}").format(rf"^{{\,{who}}}") + "$"
    return rf"$\alpha_{component}^{{\,{who}}}$" if quantity == "alpha" else rf"${component.upper()}_{{{who}}}$"


def _parse(name: str) -> tuple[str, re.Match[str] | None]:
    matches = ((group, re.fullmatch(pattern, name)) for pattern, group in PATTERNS.items())
    return next(((group, match) for group, match in matches if match), ("", None))


def _group(name: str, several: bool) -> str:
    group, match = _parse(name)
    return group.format(f" {match[2]}" if several else "") if match else ""


def _cells(ax: Axes, table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> PolyCollection:
    middles = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    cells = PolyCollection(middles[:, None] + corners, array=table.ravel(), cmap="YlGnBu", norm=Normalize(0, 1, clip=True),
                           edgecolor="white", linewidth=1.5)
    ax.add_collection(cells, autolim=False)
    for i, ((across, down), value) in enumerate(zip(middles, table.ravel(), strict=True)):
        mean = i % table.shape[1] == table.shape[1] - 1
        ax.text(across, down, _text(value), ha="center", va="center", color="white" if value > 0.55 else "#1A1A1A",
                fontweight="bold" if mean else "normal")
    return cells


def _text(value: float) -> str:
    """Two digits that count: ``.57``, ``−.12``, ``1.0``, ``−3.1``, ``−250``."""
    size = abs(value)
    digits = f"{size:.2f}"[1:] if size < 0.995 else f"{size:.1f}" if size < 9.95 else f"{size:.0f}"
    return ("−" if value < 0 and digits != ".00" else "") + digits


def _labels(ax: Axes, labels: list[str], rows: np.ndarray, above: list[str]) -> None:
    colors = model_colors(split_label(label)[0] for label in labels if label not in above)
    ax.set_yticks(rows, labels)
    for tick, label in zip(ax.get_yticklabels(), labels, strict=True):
        tick.set_color(MUTED if label in above else colors[split_label(label)[0]])


def _heads(ax: Axes, columns: np.ndarray, heads: list[str]) -> None:
    for column, head in zip(columns, heads, strict=True):
        size = 12.5 if head.startswith("$") else min(12.0, max(6.0, 75 / max(len(head), 1)))  # a long name in small print
        weight = "bold" if column == columns[-1] else "normal"
        ax.text(column, HEAD + 0.75, head, ha="center", va="baseline", fontsize=size, fontweight=weight)


def _group_heads(ax: Axes, columns: np.ndarray, groups: list[str]) -> None:
    """The name of each group of factors over a line that spans its columns."""
    for group, members in groupby(range(len(groups)), key=lambda column: groups[column]):
        members = list(members)
        if group:
            ends = columns[members[0]] - 0.45, columns[members[-1]] + 0.45
            ax.plot(ends, (HEAD, HEAD), color=MUTED, linewidth=1.0)
            ax.text(sum(ends) / 2, HEAD - 0.1, group, ha="center", va="bottom", fontsize=10)


def _factors(scores: Mapping[str, Mapping[str, float]], references: Sequence[str]) -> list[str]:
    if not scores or not all(scores.values()):
        raise ValueError("there is no R² to plot")
    factors = list(next(iter(scores.values())))
    for label, row in scores.items():
        if set(row) != set(factors):
            raise ValueError(f"{label!r} must have the factors {', '.join(factors)}; it has {', '.join(row)}")
    unknown = [label for label in references if label not in scores]
    if isinstance(references, str) or unknown:
        raise ValueError(f"references must be labels among {', '.join(scores)}; not {references!r}")
    return factors


def _number(label: str, name: str, value: float) -> float:
    number = float(value)
    if not np.isfinite(number) or number > 1 + 1e-6:
        raise ValueError(f"R² must be a finite number, at most 1; {label!r} has {value!r} for {name!r}")
    return number
