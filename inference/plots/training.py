"""Training curves: the bound against steps and against time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from inference.plots.style import MUTED, line_styles, new_figure, styled

__all__ = ["gaussian_constant", "plot_training"]


def gaussian_constant(pixels: int, scale: float) -> float:
    """The constant ``(D/2) log 2πσ²`` in −log p(x | z) under Gaussian noise: without it, −ELBO is the NELBO of the table."""
    if pixels < 1 or not scale > 0.0:
        raise ValueError(f"pixels must be at least 1 and scale positive, not {pixels} and {scale}")
    return 0.5 * pixels * math.log(2.0 * math.pi * scale**2)


@styled
def plot_training(histories: Mapping[str, Sequence[Mapping[str, float]]], *, offset: float = 0.0,
                  title: str | None = None) -> Figure:
    """Draws −ELBO − ``offset`` in nats per image against steps (left) and seconds (right).

    Arguments:
        histories: ``{label: rows}`` with ``step``, ``seconds``, ``elbo`` and, for the warm-up, ``beta``, as in ``History.rows``.
        offset: Constant taken off; :func:`gaussian_constant` gives the literature's convention.
        title: Title of the figure.

    The steps in which the weight β of the KL still rises are shaded; on each curve a dot marks where it has reached its end. The
    vertical axis starts at the curves' highest value after a tenth of the rows, so that the end can be read.

    Raises:
        ValueError: if there is no history, one is empty, or a row lacks a column.
    """
    curves = {label: _curve(label, rows, offset) for label, rows in histories.items()}
    if not curves:
        raise ValueError("there is no history to plot")
    figure = new_figure(11.0, 4.4 + 0.4 * bool(title), title)
    left, right = figure.subplots(1, 2, sharey=True)
    styles = line_styles(curves)
    for label, (steps, seconds, nelbo, warm) in curves.items():
        for ax, across in ((left, steps), (right, seconds)):
            ax.plot(across, nelbo, label=label, linewidth=1.6, **styles[label])
            if 0 < warm < len(steps) - 1:
                ax.plot(across[warm], nelbo[warm], "o", color=styles[label]["color"], markeredgecolor="white", zorder=3)
    last = max((steps[warm] for steps, _, _, warm in curves.values() if warm), default=0)
    if last:
        left.axvspan(0, last, color="#EDEDED", zorder=0, linewidth=0)
        left.text(last / 2, 0.985, "β rises", transform=left.get_xaxis_transform(), ha="center", va="top", color=MUTED)
        right.plot([], [], "o", color=MUTED, label="β at its end")
    left.set_ylim(*_limits([nelbo for _, _, nelbo, _ in curves.values()]))
    left.set_xlabel("training step")
    right.set_xlabel("time (seconds)")
    left.set_ylabel(f"training −ELBO{f' − {offset:.1f}' if offset else ''} (nats per image)")
    for ax in (left, right):
        ax.set_xlim(left=0)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    return figure


def _curve(label: str, rows: Any, offset: float) -> tuple[list[float], list[float], list[float], int]:
    """Steps, seconds, −ELBO − offset, and the row at which β reaches its last value (the first: no warm-up; the last: not over)."""
    rows = list(getattr(rows, "rows", rows))
    missing = sorted({name for row in rows for name in ("step", "seconds", "elbo") if name not in row})
    if not rows or missing:
        raise ValueError(f"history {label!r} is empty" if not rows else f"rows of history {label!r} lack {', '.join(missing)}")
    beta = [row.get("beta", 1.0) for row in rows]
    warm = next(i for i, value in enumerate(beta) if value == beta[-1] or i == len(beta) - 1)
    return [row["step"] for row in rows], [row["seconds"] for row in rows], [-row["elbo"] - offset for row in rows], warm


def _limits(curves: list[list[float]]) -> tuple[float, float]:
    finite = [[value for value in curve if math.isfinite(value)] for curve in curves]
    finite = [curve for curve in finite if curve]
    if not finite:
        return 0.0, 1.0
    low = min(min(curve) for curve in finite)
    high = max(curve[len(curve) // 10] for curve in finite)
    high = max(high, max(curve[-1] for curve in finite))
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room
