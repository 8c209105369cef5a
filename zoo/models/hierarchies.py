r"""Hierarchies by name: those of Vafaii, Yates & Butts 2023, and small ones of the same kind that train on a CPU.

Their numbers of parameters are of model and guide together, for optic flow of 17 × 17 pixels. All take images of other sizes, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from zoo.latents.base import Family
from zoo.latents.deterministic import Deterministic
from zoo.models.hierarchy import Hierarchy, Plan
from zoo.models.image_model import UNIT_SCALE

__all__ = ["ae", "cnae", "cnvae", "cnvae_maps_s", "cnvae_s", "hierarchy", "nvae", "nvae_s", "vae", "vae_maps_s", "vae_s"]

Families = str | Family | Sequence[str | Family]

FLAT: dict[str, Any] = {"groups": (1,), "finest": 2, "up": (0, 0), "down": (0, 0), "start": False}
SMALL: dict[str, Any] = {"channels": 8, "groups": (2, 2, 2), "pre": (1, 1), "up": (1, 1), "down": (1, 1)}
ENDPOINT_SCALES = (0.15, 1.5)  # rad/s, of hierarchies and of flat models: the published β at which each untangles best. An endpoint
# error over b with the weight 1 on the KL is, but for the factor b, an endpoint error with the weight b.


def hierarchy(event_shape: tuple[int, ...] | None = None, family: Families = "gaussian", units: int | Sequence[int] = 20, *,
              cells: str = "conv", channels: int = 32, groups: Sequence[int] = (3, 6, 12), finest: int = 8, pre: tuple[int, int] = (3, 2),
              up: tuple[int, int] = (2, 2), down: tuple[int, int] = (2, 1), post: tuple[int, int] | None = None,
              residual: float = 1.0, coupling: str = "add", layer_norm: bool = False, spatial: bool = False, start: bool = True,
              learn_prior: bool | None = None, scale: float | None = None, learn_scale: bool | str = False,
              likelihood: str | None = None) -> Hierarchy:
    """A hierarchy of any size: see :class:`~zoo.models.hierarchy.Hierarchy` and :class:`~zoo.models.hierarchy.Plan`.

    Arguments:
        event_shape: Shape of one image.
        family: One latent family, one for each scale, or one for each group, top-down; a name, names with commas, or a list.
        units: Latents in a group: one number for all, one for each scale, or one for each group, top-down.
        coupling: ``"add"``, as published, or ``"gain"``: what is drawn above multiplies what is drawn below.
        layer_norm: Whether cells and gains are normalized: not published.
        residual: Weight of a cell's branch: 1 as when the paper was written; the code released later has .1.
        likelihood: ``"endpoint"`` for optic flow (two channels) and ``"normal"`` for other images, if None.
        scale: If None √½, or of the endpoint error .15 rad/s, with a single group 1.5.

    Raises:
        ValueError: if the shape of the images is missing, or a size makes no sense.
    """
    if event_shape is None:
        raise ValueError("a hierarchy needs data (or an event shape) to know the size of its images")
    flow = len(event_shape) == 3 and event_shape[0] == 2
    if likelihood is None:
        likelihood = "endpoint" if flow else "normal"
    if scale is None:
        scale = ENDPOINT_SCALES[sum(groups) == 1] if likelihood == "endpoint" else UNIT_SCALE
    plan = Plan(tuple(event_shape), cells, channels, tuple(groups), finest, tuple(pre), tuple(up), tuple(down),
                (pre[0], 1) if post is None else tuple(post), residual, coupling, layer_norm)
    family = [name.strip() for name in family.split(",")] if isinstance(family, str) else family
    return Hierarchy(plan, family, units, spatial=spatial, start=start, learn_prior=learn_prior, scale=scale, learn_scale=learn_scale,
                     likelihood=likelihood)


# As published: 21 groups of 20 latents, 3 at 2 × 2, 6 at 4 × 4, 12 at 8 × 8; 25,515,862 parameters.
cnvae = partial(hierarchy)
# The same with spatial latents, 20 at every place of a map: 17,520 of them, 21.6 million parameters.
nvae = partial(hierarchy, spatial=True)
# Flat: one group of 420 latents at 2 × 2, deep networks before and after it; 23.5 million parameters.
vae = partial(hierarchy, units=420, channels=40, pre=(13, 3), post=(12, 2), **FLAT)
# Codes for latents, no prior, no KL: 21.7 and 23.0 million parameters.
cnae = partial(cnvae, family=Deterministic())
ae = partial(vae, family=Deterministic())
# For a CPU: as many latents as published in three groups of vectors. Flow is linear in the velocities of eye and object, given where these
# look and are; so is what cnvae_s draws: a linear map of eight latents, each of its channels multiplied by what the two groups above make
# of theirs. And a flat VAE with as many latents and as many parameters. Optic flow is seen through Normal noise.
VECTORS: dict[str, Any] = {"cells": "mlp", "likelihood": "normal", "layer_norm": True}
cnvae_s = partial(hierarchy, units=(206, 8), channels=256, groups=(2, 1), pre=(2, 1), up=(1, 1), down=(2, 1), post=(0, 0),
                  coupling="gain", **VECTORS)
vae_s = partial(hierarchy, units=420, pre=(5, 1), post=(5, 1), channels=316, **FLAT, **VECTORS)
# Small ones of the published kind, on maps: 6 groups of 10 latents, two at each of three scales; the same with 2 spatial latents at every
# place; and a flat VAE with as many latents and about as many parameters as the first.
cnvae_maps_s = partial(hierarchy, units=10, **SMALL)
nvae_s = partial(hierarchy, units=2, spatial=True, **SMALL)
vae_maps_s = partial(hierarchy, units=60, channels=8, pre=(6, 2), post=(5, 2), **FLAT)
