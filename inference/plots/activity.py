"""Which latents are used, at every threshold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from inference.metrics.activity import ACTIVE_KL, active_curve
from inference.plots.arrays import array
from inference.plots.style import MUTED, line_styles, new_figure, styled

__all__ = ["plot_active_curve"]


@styled
def plot_active_curve(unit_kls: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Draws the fraction of latents whose KL exceeds a threshold, against the threshold.

    Arguments:
        unit_kls: ``{label: KL of each latent in nats (K,)}``; a label is ``"model"`` or ``"model · anything"``.
        ax: Where to draw; a new figure by default (``ax.figure``).

    The dashed line is the table's threshold ``ACTIVE_KL``; the legend gives the fraction there.

    Raises:
        ValueError: if there is nothing to draw, or a KL is not a vector of finite numbers.
    """
    if not unit_kls:
        raise ValueError("there is no unit KL to plot")
    curves = {label: _check(label, unit_kl) for label, unit_kl in unit_kls.items()}
    if ax is None:
        ax = new_figure(6.4, 4.2).subplots()
    styles = line_styles(curves)
    top = max(10.0, *(float(unit_kl.max()) for unit_kl in curves.values()))
    thresholds = torch.logspace(-5, float(np.ceil(np.log10(top))), 241, dtype=torch.float64)
    for label, unit_kl in curves.items():
        at, fraction = active_curve(unit_kl, thresholds)
        active = (unit_kl > ACTIVE_KL).double().mean()
        ax.plot(at.numpy(), fraction.numpy(), label=f"{label}: {100 * active:.0f} %", **styles[label])
    ax.axvline(ACTIVE_KL, color=MUTED, linestyle="--", linewidth=1.2, zorder=0)
    ax.set_xscale("log")
    ax.set_ylim(-0.02, 1.04)
    ax.set_xlabel("threshold on a latent's KL (nats per image)")
    ax.set_ylabel("fraction of latents above it")
    ax.legend(title=f"above {ACTIVE_KL:g} nats", alignment="left", loc="best")
    return ax


def _check(label: str, unit_kl: Any) -> torch.Tensor:
    unit_kl = torch.from_numpy(array(unit_kl, f"unit KL of {label!r}"))
    if unit_kl.dim() != 1 or len(unit_kl) == 0 or not torch.isfinite(unit_kl).all():
        raise ValueError(f"the unit KL of {label!r} must be finite numbers (K,), K ≥ 1; got shape {tuple(unit_kl.shape)}")
    return unit_kl
