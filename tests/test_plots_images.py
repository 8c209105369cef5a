"""Dictionaries and reconstructions: every tile is where it should be and shows what was given."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from inference import plots
from inference.metrics.activity import ACTIVE_KL
from inference.plots.flow_key import draw_wheel
from inference.plots.images import tiles

LEVEL = 2.5 / 255  # of grey levels from -1 to 1, 256 of them


@pytest.fixture(autouse=True)
def settings_left_as_found():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def tiles_of(figure: Figure, height: int, width: int) -> list[np.ndarray]:
    """The tiles ``(height, width, 4)`` in reading order, found in the picture by the pixels that are not blank."""
    picture = np.asarray(figure.axes[0].images[0].get_array())
    blank = picture[..., 3] == 0
    found, row = [], 0
    while row < picture.shape[0]:
        if blank[row].all():
            row += 1
            continue
        column = 0
        while column < picture.shape[1] and not blank[row, column]:
            found.append(picture[row:row + height, column:column + width])
            column += width
            while column < picture.shape[1] and blank[row, column]:
                column += 1
        row += height
    return found


def level(tile: np.ndarray) -> np.ndarray:
    """Grey colours as numbers from -1, black, to 1, white."""
    assert np.ptp(tile[..., :3], axis=-1).max() == 0
    return 2 * tile[..., 0] - 1


def flow_picture(field: np.ndarray, limit: float) -> np.ndarray:
    """Colours of a field ``(2, height, width)`` one vector at a time, upwards motion's rows from the bottom of the page."""
    rows = [[plots.flow_colors(field[:, row, column, None, None], limit)[0, 0] for column in range(field.shape[2])]
            for row in range(field.shape[1])]
    return np.array(rows[::-1])


@pytest.mark.parametrize("units", [1, 2, 3, 7, 30])
def test_dictionary_tiles_follow_the_kl(units):
    generator = torch.Generator().manual_seed(units)
    weight = torch.randn(12, units, generator=generator, requires_grad=True)
    kl = torch.rand(units, generator=generator).mul(10).sub(6).exp()
    figure = plots.plot_dictionary(weight, (1, 3, 4), kl, title="features")
    drawn = tiles_of(figure, 3, 4)
    order = np.argsort(-kl.numpy())
    assert len(drawn) == units
    for tile, unit in zip(drawn, order, strict=True):
        column = weight.detach()[:, unit].numpy()
        np.testing.assert_allclose(level(tile).ravel(), column / np.abs(column).max(), atol=LEVEL)
    heights = figure.axes[1].collections[0].get_offsets()[:, 1]
    np.testing.assert_allclose(heights, kl.numpy()[order].clip(min=1e-6), rtol=1e-5)


def test_dictionary_dims_and_counts_the_unused():
    kl = torch.tensor([0.5, 0.0, 2.0, ACTIVE_KL, 1e-9, 0.1])
    figure = plots.plot_dictionary(torch.eye(6) + 0.1, (1, 2, 3), kl, title="features")
    drawn = tiles_of(figure, 2, 3)
    assert len(drawn) == 6
    assert all((tile[..., 3] == 1.0).all() for tile in drawn[:3]) and all((tile[..., 3] < 0.5).all() for tile in drawn[3:])
    assert "3 not used (KL ≤ 0.01 nats)" in texts(figure)
    assert figure.axes[1].get_title(loc="left") == "3 of 6 used"


@pytest.mark.parametrize(("active", "units", "count"), [(0, 400, None), (3, 400, None), (100, 400, None), (395, 400, None),
                                                        (100, 400, 104), (100, 400, 50)])
def test_dictionary_draws_two_rows_of_the_unused_at_most(active, units, count):
    kl = torch.cat([torch.linspace(3.0, 0.02, active), torch.linspace(0.01, 0.0, units - active)])
    weight = torch.randn(4, units, generator=torch.Generator().manual_seed(0))
    figure = plots.plot_dictionary(weight, (1, 2, 2), kl, title="features", count=count)
    drawn = tiles_of(figure, 2, 2)
    faint = [tile for tile in drawn if (tile[..., 3] < 0.5).all()]
    picture = np.asarray(figure.axes[0].images[0].get_array())
    assert picture[-1, 0, 3] > 0  # no empty rows below
    columns = (picture.shape[1] + 1) // 3
    for tile, column in zip(drawn, weight.T.numpy(), strict=False):  # the latents were in order
        np.testing.assert_allclose(level(tile).ravel(), column / np.abs(column).max(), atol=LEVEL)
    if count is None:
        assert len(drawn) - len(faint) == active and min(columns, units - active) <= len(faint) <= 2 * columns
    else:
        assert len(drawn) == count and len(faint) == max(count - active, 0)
    named = [f"{units - active} not used (KL ≤ 0.01 nats)" + (f", {units - len(drawn)} of them not drawn" if len(drawn) < units else "")]
    assert [text for text in texts(figure) if "not used" in text] == (named if faint else [])
    assert len(figure.axes[1].collections[0].get_offsets()) == units
    assert figure.axes[1].get_title(loc="left") == f"{active} of {units} used"
    assert figure.axes[1].get_ylim()[1] > 2 * ACTIVE_KL  # so that no text lies on the line of the threshold
    assert [patch.get_x() for patch in figure.axes[1].patches] == ([len(drawn) + 0.5] if len(drawn) < units else [])


def test_dictionary_without_kl_keeps_the_order_and_count_cuts_it():
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    figure = plots.plot_dictionary(weight, (1, 2, 2), title="features", count=5)
    assert len(figure.axes) == 1
    drawn = tiles_of(figure, 2, 2)
    assert len(drawn) == 5
    np.testing.assert_allclose(level(drawn[3]).ravel(), weight[:, 3] / weight[:, 3].abs().max(), atol=LEVEL)


def test_dictionary_three_channels_side_by_side():
    weight = torch.randn(3 * 6 * 2, 5, generator=torch.Generator().manual_seed(0))
    figure = plots.plot_dictionary(weight, (3, 6, 2), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), title="colour")
    picture = np.asarray(figure.axes[0].images[0].get_array())
    first = weight[:, 4].reshape(3, 6, 2) / weight[:, 4].abs().max()
    for channel in range(3):
        left = 3 * channel
        np.testing.assert_allclose(level(picture[:6, left:left + 2]), first[channel], atol=LEVEL)
        assert (picture[:6, left + 2, 3] == 0).all()
    assert (picture[:6, 8:11, 3] == 0).all() and (picture[:6, 11, 3] == 1).all()  # tiles stand further apart than channels


@pytest.mark.parametrize("kl", [None, torch.tensor([1.0, 2.0, 0.0, 4.0, 5.0])])
def test_dictionary_of_flow_has_one_upright_coloured_tile_a_feature_and_a_key(kl):
    weight = torch.randn(2 * 3 * 4, 5, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 5)
    weight[:, 1] = 0.0
    figure = plots.plot_dictionary(weight, (2, 3, 4), kl, title="flow")
    drawn = tiles_of(figure, 3, 4)
    order = range(5) if kl is None else (4, 3, 1, 0, 2)
    for place, (tile, unit) in enumerate(zip(drawn, order, strict=True)):
        field = weight[:, unit].reshape(2, 3, 4).double().numpy()
        fastest = np.sqrt((field ** 2).sum(0)).max()
        np.testing.assert_allclose(tile[..., :3], flow_picture(field, fastest or 1.0), atol=1e-6)
        assert np.unique(tile[..., 3]).tolist() == [1.0 if kl is None or place < 4 else 0.3]
    (frames,) = figure.axes[0].collections
    boxes = [path.get_extents() for path in frames.get_paths()]
    picture = np.asarray(figure.axes[0].images[0].get_array())
    for box, tile in zip(boxes, drawn, strict=True):  # imshow's pixels reach half a pixel beyond their centres
        left, top = round(box.x0 + 0.5), round(box.y0 + 0.5)
        assert (box.width, box.height) == (4, 3)
        np.testing.assert_array_equal(picture[top:top + 3, left:left + 4], tile)
    assert len(figure.axes) == (2 if kl is None else 3)
    assert any("fastest" in text.get_text() for text in figure.axes[-1].texts)


def test_one_vector_field_is_upright():
    """Only the lowest row of the visual field moves, and it moves to the right: the lowest pixels are red, the rest white."""
    field = np.zeros((1, 2, 3, 3))
    field[0, 0, 0] = 0.7
    (tile,) = tiles(field, (2, 3, 3), 0.7)
    assert tile.shape == (3, 3, 4) and (tile[..., 3] == 1).all()
    np.testing.assert_allclose(tile[:2, :, :3], 1.0, atol=1e-6)
    red, green, blue = tile[2, 0, :3]
    assert red > 0.8 and max(green, blue) < 0.6


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_pixels_that_are_not_finite_are_transparent(channels):
    images = np.zeros((2, channels, 3, 3))
    images[1, channels - 1, 0, 2], images[0, 0, 1, 1] = np.nan, np.inf
    pictures = tiles(images.reshape(2, -1), (channels, 3, 3), 1.0)
    hidden = np.argwhere(pictures[..., 3] == 0).tolist()
    between = [[i, row, column] for i in range(2) for row in range(3) for column in (3, 7) if channels == 3]
    at = [1, 2, 2] if channels == 2 else [1, 0, 4 * (channels - 1) + 2]
    assert sorted(hidden) == sorted([[0, 1, 1], at, *between])
    assert np.isfinite(pictures).all()


def test_wheel_says_what_the_colours_mean():
    ax = Figure().subplots()
    draw_wheel(ax, "rim: fast")
    (wheel,), picture = ax.images, np.asarray(ax.images[0].get_array())
    assert wheel.origin == "lower" and wheel.get_extent() == [-1, 1, -1, 1] and len(picture) == 301
    for across, along in ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0), (0.3, -0.4)):
        color = picture[round(150 + 150 * along), round(150 + 150 * across)]
        np.testing.assert_allclose(color, plots.flow_colors(np.array([across, along])[:, None, None], 1.0)[0, 0], atol=1e-6)
    (arrows,) = [artist for artist in ax.collections if hasattr(artist, "U")]
    np.testing.assert_allclose(np.arctan2(arrows.V, arrows.U), np.arctan2(*np.asarray(arrows.get_offsets()).T[::-1]), atol=1e-9)
    assert len(arrows.U) == 8 and np.hypot(*np.asarray(arrows.get_offsets()).T).max() + np.hypot(arrows.U, arrows.V).max() < 1
    assert [text.get_text() for text in ax.texts] == ["rim: fast"]


@pytest.mark.parametrize(("weight", "shape", "kl", "count", "what"), [
    (torch.ones(5, 3), (1, 2, 2), None, None, "weight must be"), (torch.ones(4), (1, 2, 2), None, None, "weight must be"),
    (torch.ones(4, 0), (1, 2, 2), None, None, "weight must be"), (torch.ones(4, 3), (2, 2), None, None, "weight must be"),
    (torch.full((4, 3), torch.nan), (1, 2, 2), None, None, "not finite"), (torch.ones(4, 3), (1, 2, 2), torch.ones(4), None, "unit_kl"),
    (torch.ones(4, 3), (1, 2, 2), torch.tensor([1.0, torch.nan, 1.0]), None, "unit_kl"), (torch.ones(4, 3), (1, 2, 2), None, 0, "count"),
    (torch.ones(4, 3), (1, 2, 2), None, -1, "count")])
def test_dictionary_refuses(weight, shape, kl, count, what):
    with pytest.raises(ValueError, match=what):
        plots.plot_dictionary(weight, shape, kl, title="features", count=count)


@pytest.mark.parametrize(("n", "channels"), [(1, 1), (3, 3), (1, 2), (3, 2)])
def test_reconstructions_are_drawn_in_their_cells(n, channels):
    generator = torch.Generator().manual_seed(0)
    x, near, far = torch.randn(3, n, channels, 3, 4, generator=generator)
    squares = {"near": (near - x).flatten(1).square().sum(1), "far": (far - x).flatten(1).square().sum(1)}
    figure = plots.plot_reconstructions(x, {"poisson · local": (near, squares["near"]), "mine": (far, squares["far"])}, title="images")
    ax = figure.axes[0]
    assert ax.yaxis_inverted()
    cells = sorted(ax.images, key=lambda image: (image.get_extent()[0], image.get_extent()[3]))  # by column, then row
    assert len(cells) == 3 * n and all(cell.origin == "upper" for cell in cells)
    speed = x.double().square().sum(1).sqrt().numpy()
    limit = np.quantile(speed, 0.95) if channels == 2 else np.quantile(x.abs().double().numpy(), 0.99)
    for picture, (images, row) in zip(cells, [(images, row) for images in (x, near, far) for row in range(n)], strict=True):
        drawn = np.asarray(picture.get_array())
        if channels == 2:
            np.testing.assert_allclose(drawn[..., :3], flow_picture(images[row].double().numpy(), limit), atol=1e-6)
            continue
        for channel in range(channels):
            shade = (images[row, channel].numpy() / limit).clip(-1, 1)
            np.testing.assert_allclose(level(drawn[:, 5 * channel:5 * channel + 4]), shade, atol=LEVEL)
    said = [text.get_text() for text in ax.texts]
    assert {"data", "poisson", "local", "mine"} <= set(said)
    for row in range(n):
        assert f"{squares['near'][row]:.1f}" in said and f"{squares['far'][row]:.1f}" in said
    if channels == 2:
        frames = [path.get_extents().extents for path in ax.collections[0].get_paths()]
        extents = [cell.get_extent() for cell in cells]
        np.testing.assert_allclose(sorted(frame.tolist() for frame in frames), sorted([e[0], e[3], e[1], e[2]] for e in extents))
        assert f"rim: {np.degrees(limit):.3g} deg/s" in figure.axes[1].texts[0].get_text()
    else:
        assert len(figure.axes) == 1 and not ax.collections


def test_reconstructions_name_a_model_once_over_its_methods():
    x = torch.zeros(2, 1, 2, 2)
    columns = {f"poisson · {method}": (x, torch.zeros(2)) for method in ("amortized", "local")} | {"laplace·map": (x, torch.zeros(2))}
    said = texts(plots.plot_reconstructions(x, columns, title="images"))
    assert [said.count(name) for name in ("poisson", "laplace", "amortized", "local", "map")] == [1, 1, 1, 1, 1]


@pytest.mark.parametrize(("x", "images", "squares", "what"), [
    (torch.ones(2, 4), torch.ones(2, 4), torch.ones(2), "x must be"),
    (torch.ones(0, 1, 2, 2), torch.ones(0, 1, 2, 2), torch.ones(0), "x must be"),
    (torch.full((1, 1, 2, 2), torch.inf), torch.ones(1, 1, 2, 2), torch.ones(1), "finite"),
    (torch.ones(2, 1, 2, 2), torch.ones(2, 1, 2, 3), torch.ones(2), "column 'mine'"),
    (torch.ones(2, 1, 2, 2), torch.ones(2, 1, 2, 2), torch.ones(3), "column 'mine'")])
def test_reconstructions_refuse(x, images, squares, what):
    with pytest.raises(ValueError, match=what):
        plots.plot_reconstructions(x, {"mine": (images, squares)}, title="images")
