"""One look for all figures: fonts, a colour for each model, a marker for each method, and how a figure is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from zoo.files import atomic_file

__all__ = ["MUTED", "POINT", "line_styles", "model_colors", "method_markers", "new_figure", "save", "split_label", "styled"]

# Okabe & Ito's palette, told apart under every common colour blindness.
MODEL_COLORS = {"gaussian": "#0072B2", "laplace": "#009E73", "categorical": "#CC79A7", "poisson": "#D55E00"}
COLOR_CYCLE = ("#E69F00", "#56B4E9", "#333333", "#8C6D31", "#7B52AB", "#999999")
METHOD_MARKERS = {"amortized": "o", "local": "s", "map": "D"}
MARKER_CYCLE = ("^", "v", "P", "X", "*", "<", ">", "p")
LINE_CYCLE = ("-", "--", ":", "-.")
MUTED = "#6E6E6E"
POINT = {"markersize": 9, "markeredgecolor": "white", "markeredgewidth": 0.8, "elinewidth": 1.5, "capsize": 3}

LOOK: dict[str, Any] = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 11, "axes.labelsize": 12, "axes.titlesize": 12,
    "xtick.labelsize": 10.5, "ytick.labelsize": 10.5, "legend.fontsize": 10.5, "figure.titlesize": 14, "figure.titleweight": "bold",
    "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#444444", "axes.linewidth": 0.9, "axes.axisbelow": True, "lines.linewidth": 2.0, "lines.markersize": 8,
    "legend.frameon": False, "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
    "savefig.bbox": None, "image.interpolation": "nearest", "image.cmap": "gray", "axes.unicode_minus": True, "text.usetex": False,
}


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a function draw in this look and leaves Matplotlib's settings as they were."""

    @wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with rc_context(LOOK):
            return draw(*args, **kwargs)

    return wrapper


def new_figure(width: float, height: float, title: str | None = None) -> Figure:
    """An empty figure of that size in inches, known to no window manager and no pyplot."""
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    return figure


@styled
def save(figure: Figure, path: str | Path) -> Path:
    """Saves the figure (format by the file's suffix, 150 dots per inch), whole or not at all; returns the path."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=150)
    return Path(path)


def model_colors(models: Iterable[str]) -> dict[str, str]:
    """A colour for each model: the four families always have their own, other names take the cycle's, in alphabetical order."""
    models = sorted(set(models))
    others = [name for name in models if name not in MODEL_COLORS]
    cycle = {name: COLOR_CYCLE[i % len(COLOR_CYCLE)] for i, name in enumerate(others)}
    return {name: MODEL_COLORS.get(name) or cycle[name] for name in models}


def method_markers(methods: Iterable[str]) -> dict[str, str]:
    """A marker for each method, chosen as :func:`model_colors` chooses."""
    methods = sorted(set(methods))
    others = [name for name in methods if name not in METHOD_MARKERS]
    cycle = {name: MARKER_CYCLE[i % len(MARKER_CYCLE)] for i, name in enumerate(others)}
    return {name: METHOD_MARKERS.get(name) or cycle[name] for name in methods}


def split_label(label: str) -> tuple[str, str]:
    """``"poisson · local"`` is the model ``"poisson"`` and the rest ``"local"`` (empty if there is no dot)."""
    model, _, rest = label.partition("·")
    return model.strip(), rest.strip()


def line_styles(labels: Iterable[str]) -> dict[str, dict[str, str]]:
    """Colour (by model) and dashes (telling apart several lines of one model) for labelled lines."""
    labels = list(labels)
    colors = model_colors(split_label(label)[0] for label in labels)
    seen: dict[str, int] = {}
    styles = {}
    for label in labels:
        model = split_label(label)[0]
        count = seen.get(model, 0)
        styles[label] = {"color": colors[model], "linestyle": LINE_CYCLE[count % len(LINE_CYCLE)]}
        seen[model] = count + 1
    return styles
