"""Corner plots: densities and contours hold what they say, and every draw, truth, unit and posterior is where it belongs."""

from __future__ import annotations

import math

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.contour import ContourSet

from inference.plots.corner import plot_corner
from inference.plots.decodability import factor_symbol
from inference.plots.densities import highest, smooth_density
from inference.posterior import Posterior

RNG = np.random.default_rng


@pytest.fixture(autouse=True)
def settings_left_as_found():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def normal(count=2000, seed=0):
    """Draws (2, D) of a correlated normal law, and its covariance."""
    covariance = np.array([[0.04, 0.03], [0.03, 0.09]])
    return RNG(seed).multivariate_normal([1.0, -2.0], covariance, count).T, covariance


def draws(seed=0, count=500, names=("a", "b", "c")):
    """Draws (2, count / 2, 3 images) of each name, other images far away."""
    g = torch.Generator().manual_seed(seed)
    away = torch.tensor([-100.0, 0.0, 100.0])
    return {name: 0.1 * torch.randn(2, count // 2, 3, generator=g) + away + i for i, name in enumerate(names)}


def panel(figure, row, column):
    return figure.axes[row * (row + 1) // 2 + column]


def spread(at, density):
    """Standard deviation of a density on a grid."""
    return np.average((at - np.average(at, weights=density)) ** 2, weights=density) ** 0.5


def vertical(ax):
    return [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--" and line.get_xdata()[0] == line.get_xdata()[1]]


def horizontal(ax):
    return [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--" and line.get_ydata()[0] == line.get_ydata()[1]]


# Densities


def test_a_density_is_that_of_the_law_its_draws_come_from():
    z = RNG(0).standard_normal(5000)
    at, density = smooth_density(z[None], np.full(5000, 1 / 5000), [(-5.0, 5.0)])
    assert density.sum() * (at[0][1] - at[0][0]) == pytest.approx(1.0)
    assert np.abs(density - np.exp(-0.5 * at[0] ** 2) / math.sqrt(2 * math.pi)).max() < 0.03
    both, covariance = normal(5000)
    ends = [(0.0, 2.0), (-3.5, -0.5)]
    at, density = smooth_density(both, np.full(5000, 1 / 5000), ends)
    assert density.sum() * np.prod([a[1] - a[0] for a in at]) == pytest.approx(1.0)
    peak = 1 / (2 * math.pi * math.sqrt(np.linalg.det(covariance)))
    row, column = np.unravel_index(density.argmax(), density.shape)
    assert abs(at[0][row] - 1.0) < 0.15 and abs(at[1][column] + 2.0) < 0.2 and 0.75 * peak < density.max() < 1.1 * peak


def test_summits_apart_from_each_other_stay_narrow():
    z = np.concatenate([0.02 * RNG(0).standard_normal(500) - 1, 0.02 * RNG(1).standard_normal(400) + 1])
    at, density = smooth_density(z[None], np.full(900, 1 / 900), [(-1.2, 1.2)])
    assert density[np.abs(at[0]) < 0.8].max() < 1e-3 * density.max()
    assert density.max() > 0.75 * 5 / 9 / (0.02 * math.sqrt(2 * math.pi))


def test_weights_count():
    z = RNG(0).uniform(-4, 4, 20000)
    weights = np.exp(-0.5 * (z - 1) ** 2)
    at, density = smooth_density(z[None], weights / weights.sum(), [(-4.0, 4.0)])
    assert np.abs(density - np.exp(-0.5 * (at[0] - 1) ** 2) / math.sqrt(2 * math.pi)).max() < 0.04


@pytest.mark.parametrize("mass", [0.3, 0.5, 0.9, 0.99])
def test_regions_of_highest_density_hold_their_mass(mass):
    x, y = np.meshgrid(*[np.linspace(-6, 6, 400)] * 2)
    level, = highest(np.exp(-0.5 * (x**2 + y**2)), [mass])
    assert level == pytest.approx(1 - mass, rel=0.02)  # of a round normal density, relative to its summit


def test_contours_in_the_figure_hold_the_share_of_fresh_draws_they_say():
    def bent(seed, count):
        (a, b), _ = normal(count, seed)
        return np.stack([a, b + 6 * (a - 1) ** 2])  # not the same with its axes exchanged

    a, b = (torch.tensor(each)[None, :, None] for each in bent(0, 3000))
    figure = plot_corner({"a": a, "b": b}, masses=(0.9, 0.4))
    fresh = bent(7, 4000)
    lines = [each for each in panel(figure, 1, 0).collections if isinstance(each, ContourSet) and not each.filled][0]
    assert len(lines.levels) == 2
    for path, mass in zip(lines.get_paths(), (0.9, 0.4), strict=True):
        assert path.contains_points(fresh.T).mean() == pytest.approx(mass, abs=0.04)


# The figure


def test_panels_lines_and_labels_are_those_of_the_image():
    samples, truth = draws(), {"a": torch.tensor([0.0, 0.05, 0.0]), "c": torch.tensor([0.0, 2.4, 0.0])}
    figure = plot_corner(samples, 1, truth=truth, units={"a": "m", "b": "m/s"}, title="three")
    assert len(figure.axes) == 6 and figure.get_suptitle() == "three"
    assert [panel(figure, 2, i).get_xlabel() for i in range(3)] == ["a (m)", "b (m/s)", "c"]
    assert [panel(figure, i, 0).get_ylabel() for i in range(3)] == ["", "b (m/s)", "c"]
    assert panel(figure, 1, 0).get_xlabel() == ""
    assert vertical(panel(figure, 0, 0)) == pytest.approx([0.05]) and horizontal(panel(figure, 0, 0)) == []
    assert vertical(panel(figure, 2, 0)) == pytest.approx([0.05]) and horizontal(panel(figure, 2, 0)) == pytest.approx([2.4])
    assert vertical(panel(figure, 1, 1)) == [] and horizontal(panel(figure, 2, 1)) == pytest.approx([2.4])
    for k, name in enumerate(samples):
        low, high = panel(figure, k, k).get_xlim()
        z = samples[name][:, :, 1]
        assert low < z.min() and z.max() < high and low < float(truth.get(name, z)[1:2].reshape(-1)[0]) < high and high - low < 1.2
    assert panel(figure, 2, 1).get_ylim() == panel(figure, 2, 2).get_xlim()
    dots = next(line for line in panel(figure, 1, 0).lines if line.get_marker() == ".")
    np.testing.assert_allclose(np.sort(dots.get_xdata()), np.sort(samples["a"][:, :, 1].flatten().numpy()), rtol=1e-6)
    assert dots.get_ydata().mean() == pytest.approx(1.0, abs=0.05)


def test_names_choose_and_vectors_come_apart():
    both = {"z": torch.stack([*draws().values()], -1)}
    figure = plot_corner(Posterior("mcmc", both), 1, names=["z[2]", "z[0]"], truth={"z": torch.full((3, 3), 0.1)})
    assert [panel(figure, 1, i).get_xlabel() for i in range(2)] == ["z[2]", "z[0]"] and len(figure.axes) == 3
    assert panel(figure, 1, 1).get_xlim()[1] < 1 < panel(figure, 0, 0).get_xlim()[1]
    assert vertical(panel(figure, 1, 1)) == pytest.approx([0.1])
    flow = {"fix_x": draws()["a"], "slf_v_z": draws()["b"], "slf_v_theta": draws()["c"], "obj0_z": draws()["c"]}
    labels = [ax.get_xlabel() for ax in plot_corner(flow, 1).axes[-4:]]
    assert [label.split()[-1] for label in labels] == ["(m)", "(m/s)", "(rad)", "(m)"] and all("$" in label for label in labels)
    assert plot_corner(draws(names=("fix_x",)), 1, units={}).axes[0].get_xlabel() == factor_symbol("fix_x")


def test_overlays_are_outlines_within_the_axes_and_points_are_points():
    samples, wide = draws(), {name: 3.0 * (value - value.mean((0, 1))) + value.mean((0, 1)) for name, value in draws(seed=1).items()}
    summit = {name: value[:1, :1] + 1.5 for name, value in samples.items()}
    figure = plot_corner(samples, 1, overlays={"guide": wide, "map": summit}, label="chains")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["chains", "guide", "map"]
    ax = panel(figure, 1, 0)
    low, high = ax.get_xlim()
    assert low < wide["a"][:, :, 1].min() and summit["a"][0, 0, 1] < high
    sets = [each for each in ax.collections if isinstance(each, ContourSet)]
    assert [each.filled for each in sets] == [True, False, False]
    colors = [to_hex(each.get_edgecolor()[0]) for each in sets[1:]]
    assert colors == ["#0072b2", "#d55e00"]
    diamonds = [line for line in ax.lines if line.get_marker() == "D"]
    assert len(diamonds) == 1 and diamonds[0].get_xdata() == pytest.approx(summit["a"][0, :1, 1].numpy())
    marginal = panel(figure, 0, 0)
    curves = [line for line in marginal.lines if len(line.get_xdata()) > 50]
    assert len(curves) == 2 and len(marginal.collections) == 1, "the first alone is filled"
    assert [spread(*curve.get_data()) for curve in curves] == pytest.approx([0.1, 0.3], rel=0.15)


def test_weighted_draws_are_drawn_with_their_weights():
    z = 2.0 * torch.randn(1, 20000, 1, generator=torch.Generator().manual_seed(0))
    log_weights = torch.distributions.Normal(1.0, 0.5).log_prob(z) - torch.distributions.Normal(0.0, 2.0).log_prob(z)
    curve, = [line for line in plot_corner(Posterior("iwae", {"z": z}, log_weights)).axes[0].lines if len(line.get_xdata()) > 50]
    assert np.average(curve.get_xdata(), weights=curve.get_ydata()) == pytest.approx(1.0, abs=0.03)


def test_eleven_causes_fit_on_a_slide_and_a_scalar_that_does_not_move_is_a_point():
    names = tuple(f"z{i}" for i in range(11))
    samples = draws(names=names, count=60)
    samples["z3"] = torch.full_like(samples["z3"], 3.0)
    figure = plot_corner(samples, 1, units=dict.fromkeys(names, "m"))
    assert len(figure.axes) == 66 and max(figure.get_size_inches()) < 13
    assert all(len(ax.get_xticks()) <= 4 for ax in figure.axes)
    assert {line.get_marker() for line in panel(figure, 4, 3).lines} == {"D"}
    figure.draw_without_rendering()


@pytest.mark.parametrize(("change", "words"), [
    ({"names": ["a", "y"]}, "no draws of y; it has: a, b, c"), ({"names": []}, "from 1 to 16"), ({"image": 3}, "from 0 to 2"),
    ({"image": -1}, "from 0 to 2"), ({"masses": (0.5, 1.0)}, "between 0 and 1"), ({"masses": ()}, "one at least"),
    ({"truth": {"y": torch.zeros(3)}}, "truth has none of a, b, c"), ({"truth": {"a": torch.zeros(1)}, "image": 1}, "truth must tell a"),
    ({"overlays": {"posterior": draws()}}, "names other than 'posterior'"),
    ({"overlays": {"guide": {"a": draws()["a"]}}}, "'guide' has no draws of b"),
    ({"samples": {"a": torch.full((1, 30, 1), math.nan)}}, "all finite"), ({"samples": {"a": torch.zeros(5)}}, "at least 3 dim"),
    ({"samples": {"a": torch.zeros(1, 30, 2), "b": torch.zeros(1, 20, 2)}}, "as many draws")])
def test_what_cannot_be_drawn_is_refused(change, words):
    settings = {"samples": draws(), "image": 0} | change
    with pytest.raises(ValueError, match=words):
        plot_corner(settings.pop("samples"), settings.pop("image"), **settings)
