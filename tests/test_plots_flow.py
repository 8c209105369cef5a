"""Optic flow and decodability: colours, arrows, outlines and numbers say what the data say."""

from __future__ import annotations

from itertools import pairwise

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import rgb_to_hsv, to_rgb
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

from inference.plots.decodability import factor_symbol, plot_decodability
from inference.plots.flow import draw_key, flow_colors, plot_flow
from inference.plots.style import MODEL_COLORS, new_figure

FACTORS = ("fix_x", "fix_y", "slf_v_x", "slf_v_y", "slf_v_z", "obj0_x", "obj0_y", "obj0_z", "obj0_v_x", "obj0_v_y", "obj0_v_z")


@pytest.fixture(autouse=True)
def settings_left_as_found():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def vectors(angles, speeds=1.0) -> np.ndarray:
    """Flow (2, 1, n) of these directions (rad) and speeds."""
    return np.stack([speeds * np.cos(angles), speeds * np.sin(angles)])[:, None]


def oklab(rgb: np.ndarray) -> np.ndarray:
    """sRGB to OKLab by the published matrices of that direction (Ottosson 2020)."""
    light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    cones = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                      [0.0883024619, 0.2817188376, 0.6299787005]])
    lab = np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                    [0.0259040371, 0.7827717662, -0.8086757660]])
    return np.cbrt(light @ cones.T) @ lab.T


def motion(kind: str, n: int = 17, fov: float = 45.0) -> np.ndarray:
    """A flow field (2, n, n) over the visual field, rows from the bottom up."""
    y, x = np.meshgrid(*[np.tan(np.radians(np.linspace(-fov, fov, n)))] * 2, indexing="ij")
    return 0.3 * {"expansion": np.stack([x, y]), "roll": np.stack([-y, x]), "up": np.stack([0 * x, 0 * x + 1]),
                  "still": np.zeros((2, n, n))}[kind]


def panels(figure: Figure) -> list:
    return [ax for ax in figure.axes if ax.get_xlim()[1] > 10]


def arrows(ax) -> Quiver:
    return next(each for each in ax.collections if isinstance(each, Quiver))


def outlines(ax) -> list[np.ndarray]:
    sets = [each for each in ax.collections if isinstance(each, ContourSet)]
    return [path.vertices for each in sets for path in each.get_paths() if len(path.vertices)]


def marks(ax) -> dict[str, list[tuple[float, float]]]:
    """Where each kind of marker is; a marker and its halo count once."""
    found: dict[str, list] = {"+": [], "o": []}
    for line in ax.lines:
        place = (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        if place not in found[line.get_marker()]:
            found[line.get_marker()].append(place)
    return found


# Colours


@pytest.mark.parametrize(("degrees", "low", "high"), [(0, -30, 10), (90, 40, 75), (180, 170, 200), (270, 235, 275)],
                         ids=["right red", "up yellow", "left teal", "down blue-violet"])
def test_hue_of_the_four_directions(degrees, low, high):
    hue = rgb_to_hsv(flow_colors(vectors(np.radians([degrees])), 1.0))[0, 0, 0] * 360
    assert low <= (hue + 60) % 360 - 60 <= high


@pytest.mark.parametrize("speed", [0.3, 1.0])
def test_equal_turns_are_equal_steps_of_perceived_hue(speed):
    angles = np.radians(np.arange(0, 360, 5))
    lab = oklab(flow_colors(vectors(angles, speed), 1.0))[0]
    off = np.angle(np.exp(1j * (np.arctan2(lab[:, 2], lab[:, 1]) - angles - np.radians(20))))
    assert np.abs(np.degrees(off)).max() < 0.01  # also shows that no colour was cut off at the end of sRGB's range


def test_rest_is_white_and_speed_saturates_steadily_up_to_the_limit():
    angles, speeds = np.meshgrid(np.radians(np.arange(0, 360, 15)), np.linspace(0, 1, 21))
    x = np.stack([speeds * np.cos(angles), speeds * np.sin(angles)])
    colors = flow_colors(x, 1.0)
    np.testing.assert_allclose(colors[0], 1.0, atol=1e-5)
    assert (np.diff(rgb_to_hsv(colors)[..., 1], axis=0) > 0).all()
    assert (np.diff(oklab(colors)[..., 0], axis=0) < 0).all()  # darker, too: legible in grey
    assert colors.min() >= 0 and colors.max() <= 1
    np.testing.assert_allclose(flow_colors(7 * x[:, -1:], 1.0), colors[-1:], atol=1e-12)


def test_limit_is_the_99th_percentile_of_speed():
    x = torch.randn(5, 2, 8, 9, generator=torch.Generator().manual_seed(0))
    speeds = np.sort(x.norm(dim=1).numpy().ravel())
    low, high = (flow_colors(x, float(speeds[int(np.floor(0.99 * (len(speeds) - 1))) + i])) for i in (0, 1))
    middle = flow_colors(x)
    assert (low <= middle + 1e-9).mean() > 0.5 and middle.shape == (5, 8, 9, 3)
    assert not np.allclose(middle, flow_colors(x, float(speeds[-1])))
    between = np.minimum(low, high) - 1e-7 <= middle, middle <= np.maximum(low, high) + 1e-7
    assert np.logical_and(*between).all()
    np.testing.assert_allclose(flow_colors(x[2], 0.5), flow_colors(x, 0.5)[2])
    np.testing.assert_allclose(flow_colors(x[None, None, 2], 0.5)[0, 0], flow_colors(x, 0.5)[2])


def test_limit_of_fields_at_rest_or_nearly():
    np.testing.assert_allclose(flow_colors(np.zeros((2, 30, 30))), 1.0, atol=1e-5)
    x = np.zeros((2, 30, 30))
    x[0, 3, 4] = 0.02
    np.testing.assert_allclose(flow_colors(x)[3, 4], flow_colors(vectors(np.zeros(1)), 1.0)[0, 0])


@pytest.mark.parametrize(("x", "limit", "error", "what"), [
    (torch.ones(3, 4, 4), None, ValueError, "x must be flow"), (torch.ones(4, 4), None, ValueError, "x must be flow"),
    (torch.ones(2, 0, 4), None, ValueError, "not empty"), (torch.full((2, 2, 2), torch.nan), None, ValueError, "NaN or inf"),
    (torch.full((2, 2, 2), torch.inf), 1.0, ValueError, "NaN or inf"), (torch.ones(2, 2, 2), 0.0, ValueError, "limit must be"),
    (torch.ones(2, 2, 2), -1.0, ValueError, "limit must be"), (torch.ones(2, 2, 2), np.nan, ValueError, "limit must be"),
    (torch.ones(2, 2, 2), "fast", ValueError, "limit must be"), ("flow", None, TypeError, "x must be a tensor")])
def test_colors_refuse(x, limit, error, what):
    with pytest.raises(error, match=what):
        flow_colors(x, limit)


# Flow fields


@pytest.mark.parametrize(("n", "fov"), [(2, 45.0), (9, 45.0), (17, 45.0), (33, 20.0), (64, 30.0)])
def test_pixels_and_arrows_are_where_the_flow_is(n, fov):
    x = torch.randn(2, 2, n, n, generator=torch.Generator().manual_seed(n)).clamp(-1, 1) * 0.5
    figure = plot_flow(x, fov=fov, limit=2.0)
    angle = np.linspace(-fov, fov, n)
    for ax, field in zip(panels(figure), x.double().numpy(), strict=True):
        image = ax.images[0]
        np.testing.assert_allclose(np.asarray(image.get_array()), flow_colors(field, 2.0))
        left, right, bottom, top = image.get_extent()
        assert image.origin == "lower" and left == bottom and right == top
        np.testing.assert_allclose(np.linspace(left, right, 2 * n + 1)[1::2], angle, atol=1e-9)
        quiver = arrows(ax)
        assert 4 <= quiver.N <= 12 ** 2
        for (across, up), u, v in zip(quiver.XY, quiver.U, quiver.V, strict=True):
            row, column = np.abs(angle - up).argmin(), np.abs(angle - across).argmin()
            np.testing.assert_allclose([angle[column], angle[row], u, v], [across, up, *field[:, row, column]], atol=1e-6)
        np.testing.assert_allclose(quiver.XY.min(0), -quiver.XY.max(0), atol=1.01 * (angle[1] - angle[0]))  # centred


def test_arrows_for_upward_flow_point_up_on_the_page():
    figure = plot_flow(np.stack([motion("up"), -motion("up")]))
    figure.draw_without_rendering()
    for ax, sign in zip(panels(figure), (1, -1), strict=True):
        quiver = arrows(ax)
        assert quiver.angles == "xy" and quiver.N > 9
        ends = ax.transData.transform(np.stack([quiver.XY[0], quiver.XY[0] + np.array([quiver.U[0], quiver.V[0]])]))
        assert sign * (ends[1] - ends[0])[1] > 0
        low, high = (ax.transData.transform((0, angle))[1] for angle in (-45, 45))
        assert low < high


def test_arrows_share_one_scale_and_end_at_the_limit():
    x = np.stack([motion("expansion"), 0.1 * motion("expansion"), motion("still")])
    fast, slow, still = (arrows(ax) for ax in panels(plot_flow(x, limit=0.2)))
    assert fast.scale == slow.scale and still.N == 0
    assert np.hypot(fast.U, fast.V).max() == pytest.approx(0.2)
    assert np.hypot(slow.U, slow.V).max() <= 0.03 * np.sqrt(2)
    gap = np.diff(np.unique(fast.XY[:, 0].round(6)))[0]
    assert 0.8 * gap < 0.2 / fast.scale < 1.5 * gap
    np.testing.assert_allclose(np.arctan2(fast.V, fast.U), np.arctan2(*np.tan(np.radians(fast.XY.T[::-1]))), atol=1e-9)  # radial


@pytest.mark.parametrize("n", [17, 65])
def test_outline_of_a_soft_mask_is_the_disc(n):
    angle = np.linspace(-45, 45, n)
    squares = (angle[:, None] - 10) ** 2 + (angle[None] + 5) ** 2  # up 10, left 5 degrees
    soft = 1 / (1 + np.exp((squares - 400) / 200))
    figure = plot_flow(np.stack([motion("roll")] * 2), objects=[np.stack([soft, 0 * soft]), np.stack([0 * soft, 0 * soft])])
    first, second = panels(figure)
    (outline,) = outlines(first)
    np.testing.assert_allclose(np.hypot(outline[:, 0] + 5, outline[:, 1] - 10), 20.0, atol=0.6)
    assert not any(isinstance(each, ContourSet) for each in second.collections)  # older Matplotlib warns of contours without a line
    assert "object" in [text.get_text() for text in figure.legends[0].texts]


def test_outline_of_a_hard_mask_follows_its_pixels():
    mask = torch.zeros(1, 17, 17, dtype=torch.bool)
    mask[0, 12:15, 2:7] = True
    (outline,) = outlines(panels(plot_flow(motion("roll")[None], objects=mask))[0])
    step = 90 / 16
    np.testing.assert_allclose([outline[:, 0].min(), outline[:, 0].max()], [-45 + 1.5 * step, -45 + 6.5 * step], atol=1e-6)
    np.testing.assert_allclose([outline[:, 1].min(), outline[:, 1].max()], [-45 + 11.5 * step, -45 + 14.5 * step], atol=1e-6)
    corner = -45 + step * np.array([1.5, 11.5])
    assert np.abs(outline - corner).max(1).min() < 0.1 * step  # not cut across


def test_gaze_and_focus_of_expansion_are_marked_where_they_are():
    x = np.stack([motion("expansion")] * 3)
    figure = plot_flow(x, expansion=[[10.0, -20.0], [np.nan, np.nan], [60.0, 0.0]])
    found = [marks(ax) for ax in panels(figure)]
    assert [each["+"] for each in found] == [[(0.0, 0.0)]] * 3
    assert [each["o"] for each in found] == [[(10.0, -20.0)], [], []]
    assert [text.get_text() for text in figure.legends[0].texts] == ["fovea (gaze)", "focus of expansion"]
    bare = plot_flow(x, gaze=False)
    assert [marks(ax) for ax in panels(bare)] == [{"+": [], "o": []}] * 3 and not bare.legends


def test_titles_axes_and_rows():
    figure = plot_flow(np.stack([motion("roll")] * 7), titles=list("abcdefg"), title="seven", columns=3)
    figure.draw_without_rendering()
    axes = panels(figure)
    assert figure.get_suptitle() == "seven" and "".join(ax.get_title() for ax in axes) == "abcdefg"
    places = [ax.get_subplotspec() for ax in axes]
    assert [(place.rowspan.start, place.colspan.start) for place in places] == [divmod(i, 3) for i in range(7)]
    assert [bool(ax.get_xlabel()) for ax in axes] == [False] * 4 + [True] * 3
    assert [label.get_text() for label in axes[6].get_xticklabels()] == ["−45°", "0°", "45°"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["−45°", "0°", "45°"]
    boxes = [ax.get_window_extent() for ax in figure.axes]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_key_shows_direction_and_speed():
    ax = new_figure(2, 2).subplots()
    draw_key(ax, np.radians(30.0))
    wheel = np.asarray(ax.images[0].get_array())
    middle = len(wheel) // 2
    for row, column, degrees in ((middle, -1, 0), (-1, middle, 90), (middle, 0, 180), (0, middle, 270)):
        np.testing.assert_allclose(wheel[row, column], flow_colors(vectors(np.radians([degrees])), 1.0)[0, 0], atol=1e-6)
    places = {text.get_text(): text.get_position() for text in ax.texts}
    assert ax.images[0].origin == "lower" and ax.get_ylim()[0] < 0 < ax.get_ylim()[1]
    assert places["right"][0] > 1 and places["left"][0] < -1 and places["up"][1] > 1 and places["down"][1] < -1
    assert "rim: 30 deg/s\ndashed: 15 deg/s" in places
    with pytest.raises(ValueError, match="limit"):
        draw_key(ax, 0.0)


def test_figure_has_one_key_with_the_limit_of_all_panels():
    x = np.stack([motion("up"), 0.5 * motion("up")])  # 0.3 rad/s at the most, in half of the pixels
    figure = plot_flow(x)
    said = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert sum(text == "left" for text in said) == 1
    assert f"rim: {np.degrees(0.3):.3g} deg/s" in "\n".join(said)


FIELDS = np.stack([motion("roll")] * 2)


@pytest.mark.parametrize(("x", "options", "error", "what"), [
    (motion("roll"), {}, ValueError, "x must be flow fields"), (FIELDS[:0], {}, ValueError, "x must be flow fields"),
    (FIELDS[:, :, :4], {}, ValueError, "x must be flow fields"), (FIELDS[:, :, :1, :1], {}, ValueError, "x must be flow fields"),
    (FIELDS[:, :1], {}, ValueError, "x must be flow fields"), (FIELDS * np.nan, {}, ValueError, "NaN or inf"),
    (FIELDS, {"fov": 0.0}, ValueError, "fov must be"), (FIELDS, {"fov": None}, ValueError, "fov must be"),
    (FIELDS, {"limit": -1.0}, ValueError, "limit must be"), (FIELDS, {"titles": ["one"]}, ValueError, "titles must be"),
    (FIELDS, {"columns": 0}, ValueError, "columns must be"), (FIELDS, {"columns": 1.5}, ValueError, "columns must be"),
    (FIELDS, {"objects": np.ones((17, 17))}, ValueError, "objects must be"),
    (FIELDS, {"objects": [np.ones((2, 17, 16))]}, ValueError, "objects must be"),
    (FIELDS, {"objects": np.ones((1, 17, 17))}, ValueError, "objects must be"),
    (FIELDS, {"objects": np.full((2, 17, 17), np.nan)}, ValueError, "objects must be"),
    (FIELDS, {"objects": "disc"}, TypeError, "objects must be"), (FIELDS, {"expansion": [0.0, 0.0]}, ValueError, "expansion must be"),
    (None, {}, TypeError, "x must be a tensor")])
def test_flow_refuses(x, options, error, what):
    with pytest.raises(error, match=what):
        plot_flow(x, **options)


# Decodability


def table(labels, factors=FACTORS, seed=0) -> dict[str, dict[str, float]]:
    values = torch.rand(len(labels), len(factors), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    return {label: dict(zip(factors, row, strict=True)) for label, row in zip(labels, values, strict=True)}


def cells(figure: Figure) -> list[list]:
    """The numbers' texts by row, from left to right."""
    ax = figure.axes[0]
    rows: dict[float, list] = {}
    for text in ax.texts:
        if text.get_position()[1] > 0:
            rows.setdefault(text.get_position()[1], []).append(text)
    return [sorted(rows[y], key=lambda text: text.get_position()[0]) for y in sorted(rows)]


def test_every_number_is_in_its_cell_and_means_are_bold():
    scores = table(["poisson · local", "raw pixels", "gaussian · map"])
    scores["raw pixels"] = dict(reversed(scores["raw pixels"].items()))  # the order of the first row counts
    figure = plot_decodability(scores, references=["raw pixels"], title="readout")
    order = ["raw pixels", "poisson · local", "gaussian · map"]
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == order
    assert figure.get_suptitle() == "readout"
    shown, collection = cells(figure), ax.collections[0]
    corners = np.array([path.vertices[:4].mean(0) for path in collection.get_paths()])
    filled = {tuple(corner.round(6)): value for corner, value in zip(corners, collection.get_array(), strict=True)}
    for label, tick, row in zip(order, ax.get_yticks(), shown, strict=True):
        values = [scores[label][name] for name in FACTORS]
        assert [text.get_text() for text in row] == [f"{value:.2f}"[1:] for value in (*values, sum(values) / 11)]
        assert [text.get_fontweight() for text in row] == ["normal"] * 11 + ["bold"]
        assert {text.get_position()[1] for text in row} == {tick}
        np.testing.assert_allclose([filled[tuple(np.round(text.get_position(), 6))] for text in row], [*values, np.mean(values)])


def test_references_and_means_are_set_apart():
    figure = plot_decodability(table(["a · x", "raw", "pca", "b · x"]), references=["pca", "raw"], title="readout")
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["raw", "pca", "a · x", "b · x"]
    raw, pca, first, second = ax.get_yticks()
    assert pca - raw == second - first == 1 and first - pca > 1.2
    across = [text.get_position()[0] for text in cells(figure)[0]]
    steps = [right - left for left, right in pairwise(across)]
    assert steps[-1] > 1.3 and max(steps[:-1]) < steps[-1] and steps[0] == 1 and steps[1] > 1  # gaze | self motion
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # first row on top
    without = plot_decodability(table(["a · x", "b · x"]), title="readout").axes[0].get_yticks()
    np.testing.assert_allclose(without, [0.5, 1.5])


def test_labels_have_the_colours_of_their_models():
    figure = plot_decodability(table(["poisson · local", "gaussian · map", "raw"]), references=["raw"], title="readout")
    colors = {label.get_text(): label.get_color() for label in figure.axes[0].get_yticklabels()}
    assert colors["poisson · local"] == MODEL_COLORS["poisson"] and colors["gaussian · map"] == MODEL_COLORS["gaussian"]
    assert len(set(to_rgb(colors["raw"]))) == 1  # grey


def test_scale_is_zero_to_one_and_negative_values_are_written():
    scores = {"poisson · local": {"a": -0.4, "b": 0.0, "c": 0.5}}
    figure = plot_decodability(scores, title="readout")
    figure.draw_without_rendering()
    collection = figure.axes[0].collections[0]
    assert collection.get_clim() == (0, 1)
    negative, zero, half, _ = collection.get_facecolors()
    assert (negative == zero).all() and not (half == zero).all()
    assert [text.get_text() for text in cells(figure)[0]] == ["−.40", ".00", ".50", ".03"]
    assert figure.axes[1].get_xlabel() == "R² of a linear readout on held-out frames"


@pytest.mark.parametrize(("value", "text"), [(0.574, ".57"), (-0.12, "−.12"), (1.0, "1.0"), (0.9949, ".99"), (0.996, "1.0"), (0.0, ".00"),
                                             (-0.001, ".00"), (-3.14, "−3.1"), (-0.999, "−1.0"), (-9.99, "−10"), (-250.4, "−250")])
def test_numbers_are_short(value, text):
    (row,) = cells(plot_decodability({"model": {"factor": value}}, title="readout"))
    assert [each.get_text() for each in row] == [text, text]


@pytest.mark.parametrize(("name", "several", "symbol"), [
    ("fix_x", False, r"$X_{\mathrm{fix}}$"), ("slf_v_z", True, r"$V_z^{\,\mathrm{self}}$"), ("obj0_y", False, r"$Y_{\mathrm{obj}}$"),
    ("obj0_v_y", False, r"$V_y^{\,\mathrm{obj}}$"), ("obj1_v_x", True, r"$V_x^{\,\mathrm{obj}\,1}$"),
    ("obj12_z", True, r"$Z_{\mathrm{obj}\,12}$"), ("obj0_alpha_x", False, r"$\alpha_x^{\,\mathrm{obj}}$"),
    ("slf_v_norm", False, r"$|V^{\,\mathrm{self}}|$"), ("obj0_v_theta", False, r"$\theta_V^{\,\mathrm{obj}}$"),
    ("fix_z", False, "fix_z"), ("slf_x", False, "slf_x"), ("obj_x", False, "obj_x"), ("orientation", False, "orientation")])
def test_symbols(name, several, symbol):
    assert factor_symbol(name, several) == symbol


def test_two_objects_are_told_apart():
    factors = ("obj0_x", "obj0_v_x", "obj1_x", "obj1_v_x", "contrast")
    said = [text.get_text() for text in plot_decodability(table(["a"], factors), title="readout").axes[0].texts]
    assert {"object 0 position", "object 0 motion", "object 1 position", "object 1 motion", "contrast", "mean"} <= set(said)
    alone = [text.get_text() for text in plot_decodability(table(["a"]), title="readout").axes[0].texts]
    assert [alone.count(name) for name in ("gaze", "self motion", "object position", "object motion")] == [1] * 4


def test_large_table_is_readable():
    labels = ["raw pixels", "PCA 420", *(f"{model} · {way}" for model in MODEL_COLORS for way in ("amortized", "local", "map"))]
    scores = table(labels)
    scores["PCA 420"]["obj0_z"] = -12.3
    figure = plot_decodability(scores, references=labels[:2], title="readout")
    figure.draw_without_rendering()
    ax = figure.axes[0]
    cell = ax.transData.transform((1, 0)) - ax.transData.transform((0, 1))
    for row in cells(figure):
        assert all((text.get_window_extent().size < 0.9 * cell).all() for text in row)
    boxes = [text.get_window_extent() for text in ax.texts if text.get_position()[1] < 0]
    assert len(boxes) == 12 + 4
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    assert all(label.get_window_extent().x0 >= 0 for label in ax.get_yticklabels())


@pytest.mark.parametrize(("scores", "references", "what"), [
    ({}, (), "no R²"), ({"a": {}}, (), "no R²"), ({"a": {"x": 0.5}, "b": {"y": 0.5}}, (), "'b' must have the factors x"),
    ({"a": {"x": 0.5}}, ["raw"], "references must be"), ({"a": {"x": 0.5}}, "a", "references must be"),
    ({"a": {"x": float("nan")}}, (), "finite"), ({"a": {"x": -float("inf")}}, (), "finite"), ({"a": {"x": 1.2}}, (), "at most 1")])
def test_decodability_refuses(scores, references, what):
    with pytest.raises(ValueError, match=what):
        plot_decodability(scores, references=references, title="readout")
