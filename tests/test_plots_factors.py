"""Figures of factors against latents and levels, and of summary scores: what is drawn is what was given."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from inference.metrics.levels import LevelContributions
from inference.plots.factors import plot_factor_map, plot_factor_scores, plot_level_contributions
from inference.plots.style import MODEL_COLORS

FACTORS = ("fix_x", "slf_v_x", "speed")


@pytest.fixture(autouse=True)
def settings_left_as_found():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def table(rows, columns, seed=0):
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def meshes(ax) -> list[QuadMesh]:
    return [each for each in ax.collections if isinstance(each, QuadMesh)]


def drawn(figure: Figure):
    """The figure's renderer, once everything has its place."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def overlap(renderer, things) -> bool:
    boxes = [thing.get_window_extent(renderer) for thing in things]
    return any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1:])


# Factors against latents


def test_map_shows_every_value_with_the_first_factor_on_top():
    values = table(3, 20)
    figure = plot_factor_map(values, FACTORS, title="What they know")
    ax, bar = figure.axes
    mesh, = meshes(ax)
    np.testing.assert_allclose(mesh.get_array().reshape(3, 20), values.numpy())
    assert mesh.get_clim() == (0.0, 0.5) and bar.get_ylabel() == "mutual information (nats)"
    assert ax.get_ylim() == (3.0, 0.0) and ax.get_xlim() == (0.0, 20.0) and ax.get_xlabel() == "latent"
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [r"$X_{\mathrm{fix}}$", r"$V_x^{\,\mathrm{self}}$", "speed"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [str(k) for k in range(20)]
    assert figure.get_suptitle() == "What they know"


def dividers(ax) -> list[float]:
    """Places of vertical lines that span all rows."""
    lines = [segment for each in ax.collections if not isinstance(each, QuadMesh) for segment in each.get_segments()]
    return [segment[0][0] for segment in lines if segment[0][0] == segment[1][0] and sorted(segment[:, 1]) == [0.0, 3.0]]


@pytest.mark.parametrize(("levels", "ticks"), [
    ({f"z{i}": 20 for i in range(1, 22)}, [*range(0, 401, 20), 419]), ({"2×2": 60, "4×4": 120, "8×8": 240}, [0, 60, 180, 419]),
    ({"a": 1, "b": 1, "a level of a long name": 28, "d": 390}, [0, 30, 419]),
    ({f"{i}": 7 for i in range(60)}, [*range(0, 412, 7), 419]), ({f"{i}": 10 for i in range(42)}, [*range(0, 411, 10), 419])])
def test_levels_are_divided_and_named_and_nothing_overlaps(levels, ticks):
    figure = plot_factor_map(table(3, 420), FACTORS, levels=levels, title="Levels")
    ax = figure.axes[0]
    renderer, ends = drawn(figure), np.cumsum([0, *levels.values()])
    assert dividers(ax) == ends[1:-1].tolist()
    middles = {name: middle for name, middle in zip(levels, (ends[1:] + ends[:-1]) / 2, strict=True) if levels[name] > 1}
    assert {text.get_text(): text.get_position()[0] for text in ax.texts} == pytest.approx(middles)  # no room for "a" and "b"
    assert [int(tick.get_text()) for tick in ax.get_xticklabels()] == ticks
    assert ax.get_xticks().tolist() == [tick + 0.5 for tick in ticks]
    assert not overlap(renderer, ax.get_xticklabels()) and not overlap(renderer, ax.texts) and figure.get_figwidth() <= 13.0
    assert ax.texts[0].get_rotation() == (90.0 if "a" in levels else 0.0)
    label = figure.axes[1].yaxis.label.get_window_extent(renderer)
    assert label.y0 > 0 and label.y1 < figure.bbox.y1 and not overlap(renderer, [*ax.texts, figure._suptitle])


def test_many_latents_without_levels_have_round_ticks():
    ax = plot_factor_map(table(3, 420), FACTORS).axes[0]
    assert [int(tick.get_text()) for tick in ax.get_xticklabels()] == [0, 60, 120, 180, 240, 300, 360, 419]
    assert dividers(ax) == [] and "".join(text.get_text() for text in ax.texts) == ""


@pytest.mark.parametrize(("scale", "limits", "clim", "extend"), [
    (0.5, (0.0, 0.5), (0.0, 0.5), "neither"), (0.6, (0.0, 0.5), (0.0, 0.5), "max"), (0.6, (0.2, 1.0), (0.2, 1.0), "min"),
    (0.6, (0.2, 0.5), (0.2, 0.5), "both"), (7.0, None, (0.0, 7.0), "neither"), (0.0, None, (0.0, 1e-12), "neither")])
def test_colours_end_where_the_limits_are_and_the_bar_says_so(scale, limits, clim, extend):
    values = scale * torch.tensor([[0.0, 1.0], [0.5, 0.4], [0.3, 0.9]])
    figure = plot_factor_map(values, FACTORS, limits=limits, label="importance")
    mesh, = meshes(figure.axes[0])
    assert mesh.get_clim() == pytest.approx(clim, rel=1e-6) and mesh.colorbar.extend == extend
    assert figure.axes[1].get_ylabel() == "importance"


@pytest.mark.parametrize(("values", "options", "words"), [
    (torch.ones(2, 4), {}, "each of 3 factors"), (torch.ones(3), {}, "matrix"), (torch.ones(3, 0), {}, "matrix"),
    (torch.full((3, 4), torch.nan), {}, "finite"), (torch.ones(3, 4), {"levels": {"a": 3}}, "add up to 4"),
    (torch.ones(3, 4), {"levels": {"a": 4, "b": 0}}, "at least 1"), (torch.ones(3, 4), {"levels": {}}, "add up"),
    (torch.ones(3, 4), {"limits": (0.5, 0.5)}, "limits must go up")])
def test_map_refuses(values, options, words):
    with pytest.raises(ValueError, match=words):
        plot_factor_map(values, FACTORS, **options)


def test_map_refuses_what_is_no_number():
    with pytest.raises(TypeError, match="values must be"):
        plot_factor_map("none", FACTORS)


# Factors against levels


def contributions(count):
    alone, without = table(3, count) * 0.8 - 0.1, table(3, count, 1) * 0.3
    return LevelContributions(FACTORS, tuple(f"z{i + 1}" for i in range(count)), alone, without, torch.tensor([0.9, 0.5, -0.004]).double())


@pytest.mark.parametrize("count", [1, 3, 8, 9, 21])
def test_both_maps_have_their_numbers_written_in_their_cells(count):
    given = contributions(count)
    figure = plot_level_contributions(given, title="Levels")
    left, right, bar = figure.axes
    renderer = drawn(figure)
    alone, together = meshes(left)
    unique, = meshes(right)
    np.testing.assert_allclose(alone.get_array().reshape(3, count), given.alone.numpy())
    np.testing.assert_allclose(together.get_array().reshape(3), given.together.numpy())
    np.testing.assert_allclose(unique.get_array().reshape(3, count), (given.together[:, None] - given.without).numpy())
    assert {mesh.get_clim() for mesh in (alone, together, unique)} == {(0.0, 1.0)} and "R²" in bar.get_ylabel()
    for ax, parts in ((left, ((given.alone, 0.0), (given.together[:, None], count + 0.3))), (right, ((given.unique, 0.0),))):
        truth = {}
        for values, start in parts:
            for (row, column), value in np.ndenumerate(values.numpy()):
                written = f"{value:.2f}"
                truth[round(start + column + 0.5, 3), row + 0.5] = "0.00" if written == "-0.00" else written.replace("-", "−")
        assert {(round(text.get_position()[0], 3), text.get_position()[1]): text.get_text() for text in ax.texts} == truth
        assert not overlap(renderer, [*ax.texts, ax.title]) and not overlap(renderer, ax.get_xticklabels())
    assert not overlap(renderer, [left.title, right.title]) and left.get_title("left") != right.get_title("left")
    assert [tick.get_text() for tick in left.get_xticklabels()] == [*given.levels, "all"]
    middles = [k + 0.5 for k in range(count)]
    assert left.get_xticks().tolist() == pytest.approx([*middles, count + 0.8]) and right.get_xticks().tolist() == middles
    assert [tick.get_text() for tick in right.get_xticklabels()] == list(given.levels)
    beside = left.get_position().y0 == pytest.approx(right.get_position().y0, abs=0.01)
    assert beside == (count <= 8)
    if not beside:  # columns stand under each other
        assert left.get_xlim() == right.get_xlim()


# Scores of models


SCORES = {"poisson · amortized": {"D": [0.4, 0.5, 0.7], "C": [0.2, 0.3, 0.1]},
          "poisson · local": {"D": [0.5, 0.5, 0.5], "C": [0.7, 0.8, 0.9]},
          "mine": {"C": [-0.2, -0.1, 0.0], "D": [0.9, 1.0, 0.95]}}


def test_bars_are_means_and_points_are_seeds():
    figure = plot_factor_scores(SCORES, title="Models")
    ax, = figure.axes
    labels = [container.get_label() for container in ax.containers]
    assert labels == list(SCORES) == [text.get_text() for text in figure.legends[0].get_texts()]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["D", "C"]
    points = [(line.get_xdata(), line.get_ydata()) for line in ax.lines if line.get_marker() == "o"]
    bars = [(label, name, bar) for label, container in zip(labels, ax.containers, strict=True)
            for name, bar in zip(("D", "C"), container, strict=True)]
    assert len(points) == len(bars) == 6
    for (label, name, bar), (x, y), text in zip(bars, points, ax.texts, strict=True):
        given = SCORES[label][name]
        assert bar.get_height() == pytest.approx(np.mean(given)) and y.tolist() == pytest.approx(given)
        assert bar.get_x() < x.min() and x.max() < bar.get_x() + bar.get_width()
        assert text.get_text() == f"{np.mean(given):.2f}".replace("-", "−") and text.get_position()[1] > max(given)
    assert not any(a.get_window_extent().overlaps(b.get_window_extent()) for i, (*_, a) in enumerate(bars) for *_, b in bars[i + 1:])
    low, high = ax.get_ylim()
    assert low < -0.22 and high > 1.0 and "3 seeds" in ax.get_xlabel()
    assert not overlap(drawn(figure), [figure.legends[0], figure._suptitle, ax.xaxis.label, *ax.get_xticklabels(), *ax.texts])


def test_labels_have_the_colours_of_their_models_and_are_told_apart():
    ax, = plot_factor_scores(SCORES).axes
    faces = [(container[0].get_facecolor()[:3], container[0].get_hatch()) for container in ax.containers]
    assert faces[0][0] == faces[1][0] == to_rgb(MODEL_COLORS["poisson"]) != faces[2][0]
    assert len(set(faces)) == 3


def test_one_seed_has_no_points():
    ax, = plot_factor_scores({"gaussian": {"MIG": [0.2]}, "poisson": {"MIG": torch.tensor([0.3])}}).axes
    assert not [line for line in ax.lines if line.get_marker() == "o"] and ax.get_xlabel() == "" and ax.get_ylim()[0] == 0.0
    ax, = plot_factor_scores({"gaussian": {"MIG": [0.2]}, "poisson": {"MIG": [0.3, 0.1, 0.2]}}).axes
    assert "1–3 seeds" in ax.get_xlabel()


@pytest.mark.parametrize(("scores", "words"), [
    ({}, "same scores, at least one; got nothing"), ({"a": {}}, "at least one"), ({"a": {"D": [0.1]}, "b": {"C": [0.1]}}, "a: D; b: C"),
    ({"a": {"D": []}}, "D of 'a' must be"), ({"a": {"D": [1.1]}}, "up to 1"), ({"a": {"D": [float("nan")]}}, "finite")])
def test_scores_refuse(scores, words):
    with pytest.raises(ValueError, match=words):
        plot_factor_scores(scores)
