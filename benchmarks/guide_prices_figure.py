"""The figure of ``guide_prices.py``: what a guide reaches against what an image costs, and against what its training costs."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from inference.plots.style import COLOR_CYCLE, MODEL_COLORS, MUTED, new_figure, styled

__all__ = ["plot_prices"]

COLORS = tuple(dict.fromkeys((*MODEL_COLORS.values(), *COLOR_CYCLE, "black", "0.55", "tab:pink", "tab:cyan")))
RANGE = 1.6  # of what the linear encoder loses: what is worse is told in words


@styled
def plot_prices(results: dict[str, Any], title: str) -> Figure:
    """NELBO against milliseconds per image, training steps and training seconds; lower left is better everywhere."""
    rows = results["rows"]
    groups = list(dict.fromkeys(row["guide"] for row in rows))
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(groups)}
    marks = {name: "os^vDPX"[i % 7] for i, name in enumerate(groups)}
    figure = new_figure(15.0, 5.8, title)
    price, steps, seconds = figure.subplots(1, 3, sharey=True)
    for name in groups:
        mine = sorted((row for row in rows if row["guide"] == name), key=lambda row: row.get("steps", 0))
        across, up = [row["ms_per_image"] for row in mine], [row["nelbo"] for row in mine]
        price.plot(across, up, marker=marks[name], color=colors[name], label=name, markeredgecolor="white")
        for row in (mine[0], mine[-1]) if len(mine) > 1 else ():
            price.annotate(f"{row['steps']}", (row["ms_per_image"], row["nelbo"]), textcoords="offset points", xytext=(4, 5), fontsize=9,
                           color=colors[name], annotation_clip=True)
        for row in mine:
            for ax, key in ((steps, "step"), (seconds, "seconds")):
                if "training" in row:
                    ax.plot([point[key] for point in row["training"]], [point["nelbo"] for point in row["training"]], color=colors[name])
    evidence = _floor(results)
    _evidence(evidence, (price, steps, seconds))
    low, start = min(row["nelbo"] for row in rows), next(row["nelbo"] for row in rows if row["guide"] == "amortized lin")
    floor = min(low, evidence)
    price.set_ylim(floor - 0.06 * (start - floor), start + (RANGE - 1.0) * (start - low) + 1e-3)
    _beyond(rows, price)
    for ax, label in ((price, "inference (ms per image, in a batch)"), (steps, "training steps"), (seconds, "training (s)")):
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel(label)
    price.set_ylabel("NELBO (nats per image, held out)")
    price.set_title("What inference costs (numbers: steps)")
    steps.set_title("What training buys, by steps")
    seconds.set_title("… and by the clock")
    handles, labels = price.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6)
    return figure


def _beyond(rows: list[dict[str, Any]], ax: Axes) -> None:
    """Names the guides all of whose points lie above the axis."""
    top, least = ax.get_ylim()[1], {}
    for row in rows:
        least[row["guide"]] = min(row["nelbo"], least.get(row["guide"], row["nelbo"]))
    above = [f"{name} {nelbo:.0f}" for name, nelbo in least.items() if nelbo > top]
    if above:
        ax.text(0.98, 0.97, "\n".join(["above:", *above]), transform=ax.transAxes, ha="right", va="top", color=MUTED, fontsize=10)


def _floor(results: dict[str, Any]) -> float:
    """−log p(x) of all images on the scale of NELBOs. Evidence is known of some of them, and images differ by more than ways of inferring:
    it is as far below the NELBO of ``natural`` as it is on those."""
    natural = max((row for row in results["rows"] if row["guide"] == "natural"), key=lambda row: row["steps"])
    return natural["nelbo"] - (results["evidence"]["log_evidence"] - results["evidence"]["elbo_of_natural"])


def _evidence(floor: float, axes: tuple[Axes, ...]) -> None:
    """−log p(x) on the same scale: no posterior gets below it."""
    for ax in axes:
        ax.axhline(floor, color=MUTED, linestyle="--", linewidth=1.4, zorder=1)
    axes[0].annotate("−log p(x), by AIS", (0.02, floor), xycoords=("axes fraction", "data"), textcoords="offset points", xytext=(0, 4),
                     color=MUTED, fontsize=10)
