"""Which levels of a hierarchy are alive: the KL divergence of every group and of every unit in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from inference.metrics.activity import ACTIVE_KL
from inference.plots.arrays import array
from inference.plots.style import MUTED, model_colors, new_figure, styled

__all__ = ["plot_group_kl"]

LEAST = 1e-5  # nats; units below are drawn there


@styled
def plot_group_kl(kl: Mapping[str, Any], *, levels: Mapping[str, Sequence[str]] | None = None, families: Mapping[str, str] | None = None,
                  title: str = "") -> Figure:
    """Bars of what each group costs, and below them every unit of it on a logarithmic scale, groups from the top of the hierarchy down.

    Arguments:
        kl: ``{site: (K,)}``, KL divergence of each unit in nats, mean over images (:func:`~inference.metrics.group_kl.group_kl`); NaN
            for groups that have none, which stay empty.
        levels: ``{name: sites}``, in the order of ``kl``.
        families: ``{site: name of its latent family}``, for colours.
        title: Title of the figure.

    Raises:
        ValueError: if there is nothing to draw, a divergence is below 0, or levels do not have the groups' order.
    """
    groups = {name: _units(name, value) for name, value in kl.items()}
    if not groups:
        raise ValueError("there is no KL divergence to plot")
    levels = {"": list(groups)} if levels is None else {name: list(sites) for name, sites in levels.items()}
    if [site for sites in levels.values() for site in sites] != list(groups):
        raise ValueError(f"levels must have the groups {', '.join(groups)} in this order; got {levels}")
    families = {name: (families or {}).get(name, "") for name in groups}
    colors = {"": "#4C6A92"} | model_colors({family for family in families.values() if family})
    figure = new_figure(min(12.0, max(5.0, 2.4 + 0.45 * len(groups))), 5.2 + 0.4 * bool(title), title)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.15])
    spread = np.random.default_rng(0)
    for i, (name, units) in enumerate(groups.items()):
        color = colors[families[name]]
        if np.isnan(units).any():
            above.text(i, 0.0, "silent", ha="center", va="bottom", color=MUTED, fontsize=9, rotation=90)
            continue
        above.bar(i, units.sum(), 0.74, color=color)
        below.scatter(i + spread.uniform(-0.26, 0.26, len(units)), np.maximum(units, LEAST), s=17 if len(units) < 60 else 6, color=color,
                      alpha=0.75, linewidths=0)
        active = int((units > ACTIVE_KL).sum())
        above.annotate(f"{active}/{len(units)}", (i, units.sum()), xytext=(0, 2), textcoords="offset points", ha="center", va="bottom",
                       fontsize=9 if len(groups) <= 12 else 7, color=MUTED)
    _finish(above, below, groups, levels)
    named = sorted({family for family in families.values() if family})
    if len(named) > 1:
        figure.legend(handles=[Patch(color=colors[name], label=name) for name in named], loc="outside right upper")
    return figure


def _finish(above: Axes, below: Axes, groups: Mapping[str, np.ndarray], levels: Mapping[str, list[str]]) -> None:
    top = max((units.sum() for units in groups.values() if not np.isnan(units).any()), default=0.0) or 1.0
    above.set(ylabel="KL of the group\n(nats per image)", ylim=(0, 1.16 * top))
    above.text(1.0, 1.02, f"numbers: units above {ACTIVE_KL:g} nats", transform=above.transAxes, ha="right", va="bottom", fontsize=9,
               color=MUTED)
    values = [units for units in groups.values() if not np.isnan(units).any()]
    highest = max((units.max() for units in values), default=1.0)
    below.set(yscale="log", ylim=(LEAST / 2, max(12.0 * highest, 1.0)), ylabel="KL of each unit\n(nats per image)",
              xlim=(-0.6, len(groups) - 0.4), xlabel="group, from the top down")
    below.axhline(ACTIVE_KL, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    below.set_xticks(range(len(groups)), list(groups), rotation=90 if len(groups) > 16 else 0)
    below.tick_params(axis="x", length=0)
    above.tick_params(axis="x", length=0)
    at = 0
    for name, members in groupby([name for name, sites in levels.items() for _ in sites]):
        count = len(list(members))
        for ax in (above, below):
            if at:
                ax.axvline(at - 0.5, color="#C8C8C8", linewidth=0.9)
        if name:
            below.text(at + (count - 1) / 2, 0.985, name, transform=below.get_xaxis_transform(), ha="center", va="top", fontsize=9.5,
                       fontweight="bold", color=MUTED)
        at += count


def _units(name: str, value: Any) -> np.ndarray:
    units = array(value, f"KL of {name!r}")
    if units.ndim != 1 or units.size == 0 or (units < -1e-4).any() or np.isinf(units).any():
        raise ValueError(f"KL of {name!r} must be at least 0 nats for each of its units (K,); got shape {units.shape}")
    return units
