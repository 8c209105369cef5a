"""Images as tiles: grey levels symmetric around zero, or, with two channels, the colours of optic flow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle

from inference.plots.flow_key import flow_colors

__all__ = ["draw_frames", "is_flow", "magnitude", "tiles"]

FRAMES = 4  # of a sequence that are drawn
FRAME = {"facecolor": "none", "edgecolor": "#A0A0A0", "linewidth": 0.7}  # around flow, which is as white as the page where nothing moves


def is_flow(event_shape: Sequence[int]) -> bool:
    """Whether images of that shape, or the frames of sequences, are vector fields: they have two channels, rightwards and upwards."""
    return event_shape[-3] == 2


def magnitude(images: np.ndarray, event_shape: Sequence[int]) -> np.ndarray:
    """What a limit bounds: absolute values ``(n, [frames,] channels, height, width)``, or the speeds ``(n, [frames,] 1, height, width)``
    of flow."""
    images = images.reshape(len(images), *event_shape)
    return np.hypot(images[..., :1, :, :], images[..., 1:, :, :]) if is_flow(event_shape) else np.abs(images)


def tiles(images: np.ndarray, event_shape: Sequence[int], limit: float) -> np.ndarray:
    """Images as the eye should see them: their first row is to be drawn at the top.

    Arguments:
        images: ``(n, D)`` or ``(n, *event_shape)``. Pixels that are not finite become transparent.
        event_shape: ``(channels, height, width)``, or ``(frames, channels, height, width)`` of sequences, of which up to four frames,
            evenly spaced from the first to the last, are drawn side by side. Two channels are optic flow, row 0 at the bottom of the
            visual field, drawn in the
            colours of :func:`inference.plots.flow_key.flow_colors`; any other number of them is drawn side by side in grey, a
            transparent column between two channels.
        limit: Magnitude of the fullest colour, or of white and (negative) black; grey is 0. What is beyond it is drawn at it.

    Returns:
        sRGB colours and opacity ``(n, height, width', 4)`` in [0, 1]; ``width'`` is the width of flow, and
        ``channels · (width + 1) − 1`` of grey images.
    """
    if len(event_shape) == 4:
        images = images.reshape(len(images), *event_shape)
        drawn = np.linspace(0, event_shape[0] - 1, min(FRAMES, event_shape[0])).astype(int)
        frames = [tiles(images[:, at], event_shape[1:], limit) for at in drawn]
        gap = np.zeros((*frames[0].shape[:2], 1, 4))
        return np.concatenate([part for frame in frames for part in (frame, gap)][:-1], axis=2)
    channels, height, width = event_shape
    images = images.reshape(len(images), channels, height, width)
    if is_flow(event_shape):
        finite = np.isfinite(images).all(axis=1)
        colors = flow_colors(np.where(finite[:, None], images, 0.0), limit)
        return np.concatenate([colors, finite[..., None]], axis=-1)[:, ::-1]
    padded = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=np.nan)
    row = padded.transpose(0, 2, 1, 3).reshape(len(images), height, -1)[:, :, :-1]
    return matplotlib.colormaps["gray"](np.ma.masked_invalid(0.5 + 0.5 * row / limit))


def draw_frames(ax: Axes, corners: Iterable[tuple[float, float]], width: float, height: float) -> None:
    """Draws a thin frame around tiles of one size, given the smaller coordinates ``(x, y)`` of each."""
    frames = PatchCollection([Rectangle(corner, width, height) for corner in corners], clip_on=False, **FRAME)
    ax.add_collection(frames, autolim=False)
