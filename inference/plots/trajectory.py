"""Inference as it goes: what every step buys, in nats, in squared error and in sparsity, and what the images look like on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from inference.plots.arrays import array
from inference.plots.flow_key import draw_wheel
from inference.plots.images import draw_frames, is_flow, magnitude, tiles
from inference.plots.style import COLOR_CYCLE, LINE_CYCLE, MODEL_COLORS, MUTED, line_styles, new_figure, split_label, styled
from inference.trajectory import Trajectory

__all__ = ["plot_steps", "plot_trajectory"]

FEW = 24  # points of a line; with more of them they get no marks
COLORS = (*MODEL_COLORS.values(), *COLOR_CYCLE)
SPACING, GAP = 1.08, 0.2  # between the left edges of two tiles, and between two images, in widths of a tile
HEAD, LETTER, KEY = 0.35, 0.097, 1.5  # inches above the tiles, of a letter beside them, and for the key of flow


@styled
def plot_trajectory(trajectories: Mapping[str, Trajectory], *, reference: Mapping[str, float] | None = None, top: float | None = None,
                    title: str | None = None) -> Figure:
    """Draws NELBO against steps and against time, and squared error and sparsity against steps; all are means over images.

    Arguments:
        trajectories: ``{label: trajectory}`` of the same images; a label may be ``"model · anything"``. The axis of steps grows like a
            logarithm, from 0 on. A single step (an encoder's) is drawn as a mark at its end, with a faint line from the start.
        reference: NELBO that are known otherwise, ``{label: nats per image}``, as horizontal lines: the best of the latents' family, or
            −log p(x) without its constant.
        top: Greatest NELBO shown, so that small differences near the end can be seen; all if None.
        title: Title of the figure.

    Sparsity is the fraction of exact zeros if every code has them (counts, one-hots), else population sparsity (Treves–Rolls).

    Raises:
        TypeError: if something else than a trajectory is given.
        ValueError: if there is none, or ``top`` or a reference is not a number.
    """
    _check(trajectories)
    reference = dict(reference or {})
    bad = [name for name, value in ({"top": 0.0 if top is None else top} | reference).items() if not math.isfinite(value)]
    if bad:
        raise ValueError(f"{', '.join(bad)} must be finite, in nats per image")
    styles = _styles(trajectories)
    figure = new_figure(11.0, 8.0 + 0.3 * math.ceil((len(styles) + len(reference)) / 4) + 0.4 * bool(title), title)
    bound, timed, error, sparse = figure.subplots(2, 2).flat
    discrete = all(float(t.zeros.max()) > 0 for t in trajectories.values())
    panels: tuple[tuple[Axes, Callable, Callable], ...] = (
        (bound, _steps, lambda t: _mean(t.nelbo)), (timed, _milliseconds, lambda t: _mean(t.nelbo)),
        (error, _steps, lambda t: _mean(t.mse)), (sparse, _steps, lambda t: array(t.zeros if discrete else t.sparsity, "sparsity")))
    for ax, across, up in panels:
        for label, trajectory in trajectories.items():
            _line(ax, across(trajectory), up(trajectory), label, styles[label])
    for ax in (bound, timed):
        for (name, value), dashes in zip(reference.items(), LINE_CYCLE[1:] * len(reference), strict=False):
            ax.axhline(value, color=MUTED, linewidth=1.4, linestyle=dashes, zorder=1, label=name)
        lowest = min([*reference.values(), *(_mean(t.nelbo).min() for t in trajectories.values())])
        if top is not None:
            ax.set_ylim(lowest - 0.05 * (top - lowest), top)
        ax.set_ylabel("NELBO = distortion + KL (nats per image)")
    for ax in (bound, error, sparse):
        _step_axis(ax, max(len(t) for t in trajectories.values()))
    _time_axis(timed, trajectories.values())
    error.set_ylabel("squared error (sum over pixels)")
    sparse.set_ylabel("exact zeros (fraction of the code)" if discrete else "population sparsity (0 dense, 1 sparse)")
    for ax, name in zip((bound, timed, error, sparse), ("Bound against steps", "Bound against time", "Reconstruction",
                                                        "Zeros" if discrete else "Sparsity"), strict=True):
        ax.set_title(name)
    handles, labels = bound.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    return figure


@styled
def plot_steps(x: Any, trajectories: Mapping[str, Trajectory], *, steps: Sequence[int] = (0, 1, 2, 4, 8, 16), images: int = 2,
               title: str | None = None) -> Figure:
    """Film strips: what an image looks like after chosen steps, beside the image itself; one strip for each way of inferring.

    Arguments:
        x: Images ``(N, channels, height, width)``, those of the trajectories; two channels are optic flow in rad/s.
        trajectories: ``{label: trajectory}`` that kept these images' reconstructions.
        steps: Steps to show; a place stays blank where a trajectory has ended, or has not been looked at.
        images: How many images, from the first on; as many as there are, if fewer.
        title: Title of the figure.

    Under each tile is the expected squared error, summed over pixels. All tiles share one scale: grey levels symmetric around zero up to
    the 99th percentile of the images' absolute values, colours of flow up to the 95th of their speeds.

    Raises:
        TypeError: if something else than a trajectory is given.
        ValueError: if there is nothing to show, or images and reconstructions have different shapes.
    """
    _check(trajectories)
    x = array(x, "x")
    if x.ndim not in (4, 5) or x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"x must be finite images (N, channels, height, width), N ≥ 1, or sequences of them; got {x.shape}")
    for label, trajectory in trajectories.items():
        if tuple(trajectory.reconstruction.shape[2:]) != x.shape[1:] or trajectory.mse.shape[1] != len(x):
            raise ValueError(f"the trajectory of {label!r} is of {trajectory.mse.shape[1]} images "
                             f"{tuple(trajectory.reconstruction.shape[2:])}, not of {len(x)} images {x.shape[1:]}")
    steps = sorted(set(steps))
    count = min(images, *(t.reconstruction.shape[1] for t in trajectories.values()))
    if count < 1 or not steps or steps[0] < 0:
        raise ValueError(f"steps must be at least 0 and images at least 1; given were steps {steps} and {images} images, "
                         f"and the trajectories kept {[t.reconstruction.shape[1] for t in trajectories.values()]}")
    shape, shown = x.shape[1:], x[:count]
    size = magnitude(shown, shape)
    limit = float(np.quantile(size, 0.95 if is_flow(shape) else 0.99) or size.max() or 1.0)

    height, width = tiles(shown[:1], shape, limit).shape[1:3]
    strips = count * len(trajectories)
    tile = max(0.62, min(1.2, 9.0 / (SPACING * (len(steps) + 1)), 6.4 / strips))  # inches; narrower ones have no room for their numbers
    down = height / width + 0.24 / tile  # of a strip, in widths of a tile
    block = down * len(trajectories) + GAP  # of an image
    names = 0.2 + LETTER * max(len(part) for label in trajectories for part in label.split(" · "))
    wide, tall = SPACING * (len(steps) + 1) * tile + names, (block * count - GAP) * tile + HEAD
    key = KEY + 0.3 if is_flow(shape) else 0.0
    figure = new_figure(wide + key + 0.2, max(tall, HEAD + key) + 0.4 * bool(title), title)
    ax = figure.subplots(1, 2, width_ratios=[wide, KEY])[0] if key else figure.subplots()
    if key:
        draw_wheel(figure.axes[1], f"rim: {np.degrees(limit):.3g} deg/s\nor more")
    styles, corners = _styles(trajectories), []

    def picture(image: np.ndarray, column: int, top: float, text: str) -> None:
        left = column * SPACING
        ax.imshow(tiles(image[None], shape, limit)[0], interpolation="nearest", extent=(left, left + 1, top + height / width, top),
                  aspect="auto")
        corners.append((left, top))
        ax.text(left + 0.5, top + height / width + 0.02, text, ha="center", va="top", fontsize=9.5)

    for row, image in enumerate(shown):
        picture(image, 0, row * block, "")
        for strip, (label, trajectory) in enumerate(trajectories.items()):
            top = row * block + strip * down
            for column, step in enumerate(steps, start=1):
                for at in (trajectory.step == step).nonzero().flatten().tolist():
                    picture(array(trajectory.reconstruction[at, row], label), column, top, f"{float(trajectory.mse[at, row]):.1f}")
            ax.text((len(steps) + 1) * SPACING, top + 0.5 * height / width, label.replace(" · ", "\n"), va="center", fontsize=10.5,
                    color=styles[label]["color"], fontweight="bold")
    first = next((step for step in steps if step), None)
    heads = ["start" if step == 0 else f"step {step}" if step == first else str(step) for step in steps]
    for column, name in enumerate(["image", *heads]):
        ax.text(column * SPACING + 0.5, -0.06, name, ha="center", va="bottom", fontweight="bold" if column == 0 else None)
    ax.text(0.5, height / width + 0.02, "sq. error:", ha="center", va="top", fontsize=9.5)
    if is_flow(shape):
        draw_frames(ax, corners, 1, height / width)
    ax.set_axis_off()
    ax.set_xlim(0, SPACING * (len(steps) + 1) + names / tile)
    ax.set_ylim(block * count - GAP, -HEAD / tile)
    ax.set_aspect("equal", anchor="NW")
    return figure


def _check(trajectories: Mapping[str, Trajectory]) -> None:
    if not trajectories:
        raise ValueError("there is no trajectory to plot")
    for label, trajectory in trajectories.items():
        if not isinstance(trajectory, Trajectory):
            raise TypeError(f"{label!r} must be a trajectory (inference.trajectory.trajectory), not {type(trajectory).__name__}")


def _styles(labels: Mapping[str, Trajectory]) -> dict[str, dict[str, str]]:
    """Of several models a colour for each model; of one, a colour for each way of inferring."""
    if len({split_label(label)[0] for label in labels if split_label(label)[1]}) > 1:
        return line_styles(labels)
    return {label: {"color": COLORS[i % len(COLORS)], "linestyle": LINE_CYCLE[i // len(COLORS) % len(LINE_CYCLE)]}
            for i, label in enumerate(labels)}


def _mean(per_image: Any) -> np.ndarray:
    return array(per_image, "a trajectory").mean(1)


def _steps(trajectory: Trajectory) -> np.ndarray:
    return array(trajectory.step, "steps")


def _milliseconds(trajectory: Trajectory) -> np.ndarray:
    """Since the start, so that a start that takes no time is at 0."""
    return 1e3 * array(trajectory.seconds, "seconds") / trajectory.mse.shape[1]


def _line(ax: Axes, across: np.ndarray, up: np.ndarray, label: str, style: dict[str, str]) -> None:
    if len(across) == 2:
        ax.plot(across, up, color=style["color"], linewidth=1.2, alpha=0.35, zorder=2)
        ax.plot(across[1:], up[1:], color=style["color"], linestyle="none", marker="D", markersize=9, markeredgecolor="white", label=label,
                zorder=4)
        return
    marks = {"marker": "o", "markersize": 4.5} if len(across) <= FEW else {}
    ax.plot(across, up, label=label, zorder=3, **marks, **style)


def _step_axis(ax: Axes, last: int) -> None:
    ax.set_xscale("symlog", base=2, linthresh=1.0, linscale=0.8)
    ticks = [0, *(2**power for power in range(math.ceil(math.log2(max(last, 1))) + 1))]
    ax.xaxis.set_major_locator(FixedLocator([0, *ticks[1::1 + len(ticks) // 12]]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlim(-0.05, last * 1.08)
    ax.set_xlabel("step (0: before the first)")


def _time_axis(ax: Axes, trajectories: Any) -> None:
    """From zero on, then like a logarithm from the shortest step on."""
    times = [_milliseconds(t) for t in trajectories]
    shortest = min((float(t[1]) for t in times if t[1] > 0), default=1.0)
    powers = range(math.ceil(math.log10(shortest)), math.ceil(math.log10(max(t[-1] for t in times) or 1.0)) + 1)
    ax.set_xscale("symlog", base=10, linthresh=shortest, linscale=0.4)
    ax.xaxis.set_major_locator(FixedLocator([0.0, *(10.0**power for power in powers)]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlim(-0.02 * shortest, 1.1 * max(t[-1] for t in times))
    ax.set_xlabel("time (ms per image, all images in one batch)")
