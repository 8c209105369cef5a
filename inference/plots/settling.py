"""Inference in time: beliefs and prediction errors of every level of a model while an image's latents settle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from inference.plots.arrays import array
from inference.plots.flow_key import draw_wheel
from inference.plots.images import FRAME, is_flow, magnitude, tiles
from inference.plots.style import COLOR_CYCLE, MODEL_COLORS, MUTED, new_figure, styled
from inference.settling import Settling

__all__ = ["plot_settling"]

COLORS = ("#333333", *MODEL_COLORS.values(), *COLOR_CYCLE[:2], *COLOR_CYCLE[3:])  # of "x", z1, z2, …
DIVERGING = "RdBu_r"
QUANTILE = 0.99  # of absolute values: the end of a map's colours
WIDTH, TALLEST = 11.0, 1.15  # inches, of the figure and of a picture


@styled
def plot_settling(settling: Settling, image: int = 0, *, x: Any = None, steps: Sequence[int] | None = None, frames: Sequence[int] = (0, -1),
                  logits: bool = False, title: str | None = None) -> Figure:
    """Draws how one image is inferred: energies and lengths of errors, maps of beliefs and errors (units × steps), and pictures.

    Arguments:
        settling: What :func:`inference.settling.settling` tells, which kept this image.
        image: Which of the images.
        x: The images ``(N, *event_shape)``, to be drawn beside predictions; without them the image is left out.
        steps: Steps whose prediction and error of the image are drawn; by default the start, three on the way, and the last. Of each
            the nearest that was looked at is taken.
        frames: Which frames of a sequence ``(T, channels, height, width)`` are drawn; by default the first and the last.
        logits: Whether predictions are the logits of pixels in [0, 1]; they are drawn as probabilities then.
        title: Title of the figure.

    The step axis is linear up to 1 and logarithmic from there. Energies, −log p of a site given those above it in nats, may be below 0, as
    those of densities are. Beliefs and errors of a level have a scale each, symmetric around 0 up to the 99th percentile of absolute
    values. Images and predictions share one scale, error images another; two channels are optic flow, with a key for both.

    Raises:
        TypeError: if something else than a settling is given.
        ValueError: for an image that was not kept, steps or frames that there are not, or images of another shape.
    """
    x, picks, shape = _check(settling, image, x, steps)
    shown = _frames(shape, frames)
    latents = [name for name in settling.errors if name != "x"]  # top first, as the model walks
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(["x", *reversed(latents)])}
    pictures, names = _pictures(settling, image, x, picks, shape, shown, logits)
    ratio = pictures[0].shape[1] / pictures[0].shape[2]
    high = min(TALLEST, 0.85 * WIDTH / (len(picks) + (x is not None) + is_flow(shape[-3:])) * ratio)
    parts = [2.9, 1.7 * len(latents) + 0.45, len(pictures) * (high + 0.1) + 0.35]
    figure = new_figure(WIDTH, sum(parts) + 0.4 * bool(title), title)
    lines, middle, below = figure.subfigures(3, 1, height_ratios=parts)
    _draw_lines(lines, settling, image, colors)
    _draw_maps(middle, settling, image, latents, colors)
    _draw_pictures(below, pictures, names, [int(settling.step[i]) for i in picks], x is not None, is_flow(shape[-3:]))
    return figure


def _check(settling: Settling, image: int, x: Any, steps: Sequence[int] | None) -> tuple[np.ndarray | None, list[int], tuple[int, ...]]:
    """The image, places of the steps to draw, and the image's shape."""
    if not isinstance(settling, Settling):
        raise TypeError(f"settling must be what inference.settling.settling returns, not {type(settling).__name__}")
    kept, shape = settling.errors["x"].shape[1], tuple(settling.errors["x"].shape[2:])
    if not 0 <= image < kept:
        raise ValueError(f"image must be one of the {kept} that were kept, 0 to {kept - 1}; got {image}")
    if len(shape) not in (3, 4):
        raise ValueError(f"images must be (channels, height, width) or sequences (T, channels, height, width) to be drawn; got {shape}")
    if x is not None:
        x = array(x, "x")
        if x.ndim != len(shape) + 1 or x.shape[1:] != shape or len(x) <= image:
            raise ValueError(f"x must be images (N, {', '.join(map(str, shape))}) with image {image} among them; got {x.shape}")
        x = x[image]
    last = len(settling)
    wanted = sorted({0, 1, round(last**0.5), round(last**0.75), last} & set(range(last + 1))) if steps is None else sorted(set(steps))
    if not wanted or wanted[0] < 0 or wanted[-1] > last:
        raise ValueError(f"steps must be 0 to {last}, at least one; got {wanted}")
    looked = array(settling.step, "step")
    return x, sorted({int(np.abs(looked - step).argmin()) for step in wanted}), shape


def _frames(shape: tuple[int, ...], frames: Sequence[int]) -> list[int]:
    if len(shape) == 3:
        return [0]
    chosen = sorted({frame % shape[0] for frame in frames if -shape[0] <= frame < shape[0]})
    if not chosen or any(not -shape[0] <= frame < shape[0] for frame in frames):
        raise ValueError(f"frames must be of the sequence's {shape[0]}, at least one; got {list(frames)}")
    return chosen


def _draw_lines(part: Any, settling: Settling, image: int, colors: dict[str, str]) -> None:
    energy, length = part.subplots(1, 2)
    step = array(settling.step, "step")
    for name, color in colors.items():
        energy.plot(step, array(settling.energy[name], name)[:, image], color=color, label=name)
        sizes = array(settling.error[name], name)[:, image]
        length.plot(step, np.where(sizes > 0, sizes, np.nan), color=color)  # a level is silent until errors have come up to it
    total = -array(settling.log_joint, "log_joint")[:, image]
    energy.plot(step, total, color=MUTED, linestyle="--", linewidth=1.6, label="all")
    energy.set(ylabel="energy −log p (nats)")
    energy.set_title(f"Energy: {total[0]:.4g} → {total[-1]:.4g} nats".replace("-", "−"))
    length.set(ylabel="length of the error ‖ε‖", yscale="log")
    length.set_title("Precision-weighted errors")
    for ax in (energy, length):
        _step_axis(ax, len(settling))
        ax.set_xlabel("step of inference")
    part.legend(*energy.get_legend_handles_labels(), loc="outside right center")


def _step_axis(ax: Axes, last: int) -> None:
    ax.set_xscale("symlog", base=2, linthresh=1.0, linscale=0.8)
    ax.xaxis.set_major_locator(FixedLocator(_ticks(last)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlim(-0.05, max(last, 1) * 1.04)


def _ticks(last: int) -> list[int]:
    powers = [2**power for power in range(max(last, 1).bit_length())]
    return [0, *powers[:: 1 + len(powers) // 7]]


def _draw_maps(part: Any, settling: Settling, image: int, latents: list[str], colors: dict[str, str]) -> None:
    """Units × steps; columns are the steps that were looked at, each as wide as the next."""
    panels = part.subplots(len(latents), 2, squeeze=False)
    step = array(settling.step, "step")
    at: list[int] = []
    for tick in _ticks(len(settling)):
        place = int(np.abs(step - tick).argmin())
        if not at or place - at[-1] >= len(step) / 30:  # room for numbers
            at.append(place)
    for row, name in zip(panels, latents, strict=True):
        for ax, what, label in zip(row, (settling.beliefs, settling.errors), ("belief", "error ε"), strict=True):
            values = array(what[name], name)[:, image].reshape(len(step), -1).T
            limit = float(np.quantile(np.abs(values), QUANTILE)) or float(np.abs(values).max()) or 1.0
            picture = ax.imshow(values, cmap=DIVERGING, norm=Normalize(-limit, limit), aspect="auto", interpolation="nearest")
            bar = part.colorbar(picture, ax=ax, pad=0.02, aspect=12, extend="both" if np.abs(values).max() > limit else "neither")
            bar.set_label(f"{label} of {name}")
            bar.locator = MaxNLocator(4, symmetric=True)
            bar.update_ticks()
            bar.outline.set_visible(False)
            ax.set_xticks(at, [f"{step[i]:g}" for i in at] if name == latents[-1] else [])
            ax.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        row[0].set_ylabel(f"{name}\nunit", color=colors[name])
    for ax, head in zip(panels[0], ("Beliefs", "Their prediction errors"), strict=True):
        ax.set_title(head)
    for ax in panels[-1]:
        ax.set_xlabel("step of inference (those looked at)")


def _pictures(settling: Settling, image: int, x: np.ndarray | None, picks: list[int], shape: tuple[int, ...], frames: list[int],
              logits: bool) -> tuple[list[np.ndarray], list[str]]:
    """Rows of tiles, for each frame one of predictions (the image first, if there is one) and one of errors, and the rows' names."""
    predictions, errors = (array(what["x"], "x")[picks, image] for what in (settling.predictions, settling.errors))
    if logits:
        predictions = 1.0 / (1.0 + np.exp(-predictions))
    event = shape[-3:]
    views = [values.reshape(len(values), -1, *event) for values in (predictions, errors)]
    given = None if x is None else x.reshape(-1, *event)
    seen = views[0] if given is None else np.concatenate([views[0], given[None]])
    limits = [float(np.quantile(magnitude(values.reshape(-1, *event), event), QUANTILE)) or 1.0 for values in (seen, views[1])]
    rows, names = [], []
    for frame in frames:
        first = [] if given is None else [given[frame][None]]
        for what, images, limit in (("prediction", np.concatenate([*first, views[0][:, frame]]), limits[0]),
                                    ("error ε", views[1][:, frame], limits[1])):
            rows.append(tiles(images, event, limit))
            names.append((what if len(shape) == 3 else f"{what},\nframe {frame + 1}") + f"\n(±{limit:.2g})")
    return rows, names


def _draw_pictures(part: Any, rows: list[np.ndarray], names: list[str], steps: list[int], given: bool, flow: bool) -> None:
    heads = ["image"] * given + [f"step {step}" for step in steps]
    cells = part.add_gridspec(len(rows), len(heads) + flow)
    for i, (pictures, name) in enumerate(zip(rows, names, strict=True)):
        first = int(given and i % 2)  # no error beside the image itself
        for j, head in enumerate(heads):
            ax = part.add_subplot(cells[i, j])
            if j < first:
                ax.set_axis_off()
                ax.set_box_aspect(pictures.shape[1] / pictures.shape[2])
            else:
                ax.imshow(pictures[j - first], interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(visible=True, color=FRAME["edgecolor"], linewidth=FRAME["linewidth"])
            if i == 0:
                ax.set_title(head, loc="center", fontsize=10.5, fontweight="bold" if head == "image" else "normal")
            if j == 0:
                ax.text(-0.06, 0.5, name, transform=ax.transAxes, ha="right", va="center", fontsize=9.5)
    if flow:
        draw_wheel(part.add_subplot(cells[:, -1]), "rim: the limit\nof each row")
