"""Colours of optic flow, hue for direction and saturation for speed, and the wheel that explains them."""

from __future__ import annotations

from math import isfinite, nan
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle

from inference.plots.arrays import array
from inference.plots.style import styled

__all__ = ["INK", "check_limit", "draw_key", "draw_wheel", "flow_colors", "positive"]

INK = "#1A1A1A"
RING = {"facecolor": "none", "edgecolor": "#444444", "linewidth": 0.9}

# From OKLab to the cone-like space whose cubes are linear in light, and from there to linear sRGB (B. Ottosson, "A perceptual color
# space for image processing", 2020).
LAB_TO_LMS = np.array([[1.0, 0.3963377774, 0.2158037573], [1.0, -0.1055613458, -0.0638541728], [1.0, -0.0894841775, -1.2914855480]])
LMS_TO_RGB = np.array([[4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965],
                       [-0.0041960863, -0.7034186147, 1.7076147010]])


def flow_colors(x: Any, limit: float | None = None) -> np.ndarray:
    """Colours of flow vectors: the hue is the direction of motion, the saturation its speed.

    Arguments:
        x: Angular velocity ``(..., 2, H, W)`` in rad/s, channel 0 rightwards, channel 1 upwards.
        limit: Speed in rad/s of the fullest colour, also given to what is faster; by default the 99th percentile of all speeds.

    Returns:
        sRGB colours ``(..., H, W, 3)`` in [0, 1]. Rightwards is red, upwards yellow, leftwards teal, downwards blue-violet: equal
        turns are equal steps of hue in OKLab (Ottosson 2020). Colours go in a straight line in OKLab from white at rest to the full
        colour at ``limit``, so that speed can be read in shades of grey, too.

    Raises:
        TypeError: if ``x`` is not made of numbers.
        ValueError: if ``x`` has another shape, is empty or not finite, or ``limit`` is not a positive number.
    """
    x = array(x, "x")
    limit = check_limit(x, limit)
    speed = np.hypot(x[..., 0, :, :], x[..., 1, :, :])
    fullness = np.minimum(speed / limit, 1.0)
    hue = np.arctan2(x[..., 1, :, :], x[..., 0, :, :]) + np.radians(20)
    # Lighter around yellow and paler around teal than a circle would be, so that every colour exists in sRGB.
    lightness = 1 - fullness * (0.34 - 0.08 * np.cos(hue - np.radians(110)))
    chroma = fullness * (0.134 - 0.024 * np.cos(hue - np.radians(200)))
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    light = ((lab @ LAB_TO_LMS.T) ** 3 @ LMS_TO_RGB.T).clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055).clip(0, 1)


@styled
def draw_key(ax: Axes, limit: float) -> None:
    """Draws the colour wheel of :func:`flow_colors` into ``ax``: directions of motion around it, speed from its centre to its rim.

    Arguments:
        limit: Speed in rad/s of the fullest colour, at the wheel's rim.

    Raises:
        ValueError: if ``limit`` is not a positive number.
    """
    rim = np.degrees(positive(limit, "limit"))
    _wheel(ax)
    ax.add_patch(Circle((0, 0), 0.5, linestyle=(0, (3, 3)), **RING))
    for name, across, along, horizontal, vertical in (("right", 1, 0, "left", "center"), ("left", -1, 0, "right", "center"),
                                                      ("up", 0, 1, "center", "bottom"), ("down", 0, -1, "center", "top")):
        ax.text(1.08 * across, 1.08 * along, name, ha=horizontal, va=vertical)
        ax.annotate("", (0.85 * across, 0.85 * along), (0.25 * across, 0.25 * along),
                    arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0})
    ax.text(0, -1.55, f"rim: {rim:.3g} deg/s\ndashed: {rim / 2:.3g} deg/s", ha="center", va="top", linespacing=1.4)
    ax.set(xlim=(-1.7, 1.75), ylim=(-2.3, 1.4), aspect="equal")
    ax.set_axis_off()


def draw_wheel(ax: Axes, rim: str) -> None:
    """Draws a compact key of the colours of flow into ``ax``: a wheel with arrows in the directions of motion.

    Arguments:
        rim: How fast the motion at the wheel's rim is, in words.
    """
    _wheel(ax)
    angle = np.arange(8) * np.pi / 4
    across, along = np.cos(angle), np.sin(angle)
    ax.quiver(0.3 * across, 0.3 * along, 0.5 * across, 0.5 * along, angles="xy", scale_units="xy", scale=1, color=INK, units="inches",
              width=0.014, headwidth=5, headlength=5.5, headaxislength=5)
    ax.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal", anchor="N")
    ax.set_title("motion", loc="center")
    ax.text(0, -1.15, rim, ha="center", va="top", linespacing=1.3)
    ax.set_axis_off()


def _wheel(ax: Axes) -> None:
    up, right = np.mgrid[-1:1:301j, -1:1:301j]
    wheel = ax.imshow(flow_colors(np.stack([right, up]), 1.0), origin="lower", extent=(-1, 1, -1, 1), interpolation="bilinear")
    wheel.set_clip_path(ax.add_patch(Circle((0, 0), 1.0, **RING)))


def check_limit(x: np.ndarray, limit: float | None) -> float:
    """The speed in rad/s of the fullest colour for flow ``(..., 2, H, W)``; by default the 99th percentile of its speeds.

    Raises:
        ValueError: if ``x`` has another shape, is empty or not finite, or ``limit`` is not a positive number.
    """
    if x.ndim < 3 or x.shape[-3] != 2 or x.size == 0:
        raise ValueError(f"x must be flow (..., 2, H, W), not empty; got {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("x must be finite flow; it holds NaN or inf")
    if limit is not None:
        return positive(limit, "limit")
    speed = np.hypot(x[..., 0, :, :], x[..., 1, :, :])
    return float(np.quantile(speed, 0.99) or speed.max() or 1.0)


def positive(value: Any, name: str) -> float:
    """A positive, finite number; ValueError for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = nan
    if not isfinite(number) or number <= 0:
        raise ValueError(f"{name} must be a positive, finite number, not {value!r}")
    return number
