"""Frames of the optic-flow world as a vision scientist draws them."""

from __future__ import annotations

import math
from dataclasses import replace

from matplotlib.figure import Figure

from inference.plots.flow import plot_flow
from zoo.data.base import Data
from zoo.data.rofl import World, causes_of, masks

__all__ = ["plot_frames"]

OUTLINE = 129  # pixels along a side at which discs are outlined


def plot_frames(data: Data, world: World, *, count: int = 6, columns: int = 3, title: str | None = None) -> Figure:
    """The first ``count`` frames: direction as hue, speed as saturation, arrows, the fovea, the outlines of discs.

    Arguments:
        data: Frames with their factors.
        world: The settings they were made with.
        title: Title; the category and the mean speed if None.
    """
    shown = data[:count]
    outlines = None
    if world.objects:
        fine = replace(world, resolution=OUTLINE, min_size=0.0)
        outlines = masks(causes_of(shown.factors, world), fine)[1].unbind(-3)
    if title is None:
        title = f"{world.category}: {math.degrees(shown.x.norm(dim=1).mean()):.0f}°/s on average"
    return plot_flow(shown.x, fov=world.fov, objects=outlines, columns=columns, title=title)
