"""What single latents mean: images as each of them is swept, all else equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from inference.plots.grid import image_grid
from inference.plots.style import styled
from inference.traversals import Traversal

__all__ = ["plot_traversals"]


@styled
def plot_traversals(traversals: Sequence[Traversal], *, levels: Mapping[str, Sequence[str]] | None = None,
                    kl: Mapping[str, Tensor] | None = None, limit: float | None = None, title: str = "") -> Figure:
    """One row for each latent, one tile for each of its values, all under one scale of colours or of grey.

    Arguments:
        traversals: From :func:`~inference.traversals.traverse`. Flow is drawn with colours, arrows and a key.
        levels: ``{name: sites}``: rows stand in the order that they are given in, those of a level under its name.
        kl: KL divergence of each unit, ``{site: (K,)}`` in nats, to be written beside it; not of one-hots.
        limit: Speed in rad/s of the fullest colour, or value of white; a high quantile by default.
        title: Title of the figure.

    Raises:
        ValueError: if there is nothing to draw, or images differ in shape.
    """
    level_of = {site: name for name, sites in (levels or {}).items() for site in sites}
    names = []
    for row in traversals:
        costs = None if kl is None else kl.get(row.site)
        told = costs is not None and row.unit < len(costs) and not row.values[0].startswith("category")
        names.append(f"{row.site} · {row.unit}" + (f"\n{_nats(costs[row.unit].item())}" if told else ""))
    return image_grid([row.images for row in traversals], names=names, blocks=[level_of.get(row.site, "") for row in traversals],
                      captions=[row.values for row in traversals], limit=limit, title=title)


def _nats(value: float) -> str:
    return f"{value:.2f} nats" if value >= 0.005 else "unused"
