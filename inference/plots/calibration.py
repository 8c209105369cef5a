"""Are the ranks of simulation-based calibration uniform? Their distribution functions in a simultaneous band, and the worst histogram."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from inference.metrics.uniformity import ecdf_band, two_sided_tails
from inference.plots.style import MODEL_COLORS, MUTED, new_figure, styled

if TYPE_CHECKING:  # inference by sampling is not needed to draw
    from inference.metrics.calibration import Calibration

__all__ = ["plot_calibration"]

GOOD, BAD, BAND = MODEL_COLORS["gaussian"], MODEL_COLORS["poisson"], "#DDDDDD"
HIGHEST = 5.0  # a histogram's bars are cut off at so many times their expected height


@styled
def plot_calibration(calibration: Calibration, *, level: float = 0.95, bins: int = 20, title: str | None = None) -> Figure:
    """Draws one row of two panels for each site and quantity.

    Arguments:
        calibration: What :func:`~inference.metrics.calibration.sbc` found.
        level: Of the bands; latents whose p-value, adjusted for their number, is below 1 − ``level`` are drawn in orange.
        bins: Bars of a histogram, at most; each has as many levels as the others, within one, and is drawn up to 5 times its height.
        title: Title of the figure.

    Left: share of ranks up to each level less what it would be if ranks were uniform, a line for each latent, and the band that the line of
    a calibrated latent leaves nowhere with probability ``level``; of many such lines a few do, which alone is no failure.
    Right: histogram of the latent with the lowest p-value, in units of the height expected, with the band that each bar by itself is in
    with that probability.

    Raises:
        ValueError: for no ranks, fewer bins than 2, or a level that is not between 0 and 1.
    """
    if not calibration.ranks:
        raise ValueError("there are no ranks to plot")
    if bins < 2:
        raise ValueError(f"bins must be at least 2, not {bins}")
    at, low, high = (end.numpy() for end in ecdf_band(len(next(iter(calibration.ranks.values()))), calibration.levels, level))
    passed = calibration.passed(1.0 - level)
    rows = len(calibration.ranks)
    figure = new_figure(10.5, 2.7 * rows + 0.9 + 0.4 * bool(title), title)
    axes = figure.subplots(rows, 2, squeeze=False, sharex=True)
    for (name, ranks), (left, right) in zip(calibration.ranks.items(), axes, strict=True):
        _functions(left, ranks.numpy(), passed[name].numpy(), at, low, high, calibration.levels)
        failed, latents = int((~passed[name]).sum()), len(passed[name])
        head = name.replace("_", " ")
        left.set_title(f"{head}: {failed} of {latents} fail" if latents > 1 else f"{head}: {'fails' if failed else 'passes'}")
        worst = int(calibration.p_values[name].argmin())
        _histogram(right, ranks[:, worst].numpy(), bool(passed[name][worst]), calibration.levels, bins, level)
        which = f"latent {worst}, the least uniform" if latents > 1 else head
        right.set_title(f"{which}: {_p_text(calibration.p_values[name][worst].item())}", fontweight="normal")
        left.set_ylabel("share of ranks below\n− uniform share")
        right.set_ylabel("images per bin,\n× expected")
    draws = calibration.levels - 1
    for ax in axes[-1]:
        ax.set_xlabel(f"rank of the truth among {draws} draws (fraction)")
    handles = [Line2D([], [], color=GOOD, label="calibrated"), Line2D([], [], color=BAD, label="not calibrated"),
               Patch(color=BAND, label=f"{100 * level:g} % band if calibrated")]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _functions(ax: Axes, ranks: np.ndarray, passed: np.ndarray, at: np.ndarray, low: np.ndarray, high: np.ndarray, levels: int) -> None:
    points = np.round(at * levels).astype(int)
    ends, zero = np.concatenate([[0.0], at, [1.0]]), np.zeros(1)
    band = [np.concatenate([zero, end - at, zero]) for end in (low, high)]
    ax.fill_between(ends, *band, color=BAND, linewidth=0, zorder=1)
    ax.axhline(0.0, color=MUTED, linewidth=0.9, zorder=1.5)
    below = np.stack([np.searchsorted(np.sort(column), points) / len(column) for column in ranks.T])
    for share, fine in zip(below, passed, strict=True):
        ax.plot(ends, np.concatenate([zero, share - at, zero]), color=GOOD if fine else BAD, linewidth=1.3,
                alpha=max(0.25, min(1.0, 3 / math.sqrt(len(below)))) if fine else 0.9, zorder=2 if fine else 3)
    ax.set_xlim(0, 1)
    reach = 1.15 * max(np.abs(below - at).max(), (high - at).max(), (at - low).max())
    ax.set_ylim(-reach, reach)


def _histogram(ax: Axes, ranks: np.ndarray, passed: bool, levels: int, bins: int, level: float) -> None:
    edges = np.round(np.linspace(0, levels, min(bins, levels) + 1)).astype(int)
    shares = np.diff(edges) / levels
    counts = np.diff(np.searchsorted(np.sort(ranks), edges))
    likely = two_sided_tails(len(ranks), torch.as_tensor(shares)).numpy() > 1.0 - level
    low, high = likely.argmax(1) / (len(ranks) * shares), (len(ranks) - likely[:, ::-1].argmax(1)) / (len(ranks) * shares)
    places = edges / levels
    ax.stairs(high, places, baseline=low, fill=True, color=BAND, linewidth=0, zorder=1)
    ax.axhline(1.0, color=MUTED, linewidth=0.9, zorder=1.5)
    heights = counts / (len(ranks) * shares)
    ax.bar(places[:-1], heights, np.diff(places), align="edge", color=GOOD if passed else BAD, alpha=0.55, edgecolor="white",
           linewidth=0.8, zorder=1.2)
    ax.set_ylim(0, min(max(1.15 * heights.max(), 1.05 * high.max()), HIGHEST))


def _p_text(p: float) -> str:
    return f"p = {p:.2f}" if p >= 0.095 else f"p = {p:.1g}" if p >= 1e-4 else "p < 0.0001"
