"""What each level of a hierarchy adds: the prior drawn again from some level down, the levels above held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from inference.plots.grid import image_grid
from inference.plots.style import styled

__all__ = ["plot_prior_samples"]


@styled
def plot_prior_samples(samples: Mapping[str, Any], *, limit: float | None = None, title: str = "") -> Figure:
    """One row for each level from which the latents were drawn again.

    Arguments:
        samples: ``{what was drawn: images (n, channels, height, width)}``, from :func:`~inference.traversals.resample`. Flow is drawn with
            colours, arrows and a key.
        limit: Speed in rad/s of the fullest colour, or value of white; a high quantile by default.
        title: Title of the figure.

    Raises:
        ValueError: if there is nothing to draw, or images differ in shape.
    """
    return image_grid(list(samples.values()), names=list(samples), blocks=[""] * len(samples), limit=limit, title=title)
