"""Dictionaries and reconstructions: every tile is where it should be and shows what was given."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from inference import plots
from inference.metrics.activity import ACTIVE_KL


@pytest.fixture(autouse=True)
def settings_left_as_found():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def tiles_of(figure: Figure, height: int, width: int) -> list[np.ndarray]:
    """The tiles in reading order, found in the picture by the pixels that are not blank."""
    picture = figure.axes[0].images[0].get_array().filled(np.nan)
    found, row = [], 0
    while row < picture.shape[0]:
        if np.isnan(picture[row]).all():
            row += 1
            continue
        column = 0
        while column < picture.shape[1] and not np.isnan(picture[row, column]):
            found.append(picture[row:row + height, column:column + width])
            column += width
            while column < picture.shape[1] and np.isnan(picture[row, column]):
                column += 1
        row += height
    return found


@pytest.mark.parametrize("units", [1, 2, 3, 7, 30])
def test_dictionary_tiles_follow_the_kl(units):
    generator = torch.Generator().manual_seed(units)
    weight = torch.randn(12, units, generator=generator, requires_grad=True)
    kl = torch.rand(units, generator=generator).mul(10).sub(8).exp()
    figure = plots.plot_dictionary(weight, (1, 3, 4), kl, title="features")
    tiles = tiles_of(figure, 3, 4)
    order = np.argsort(-kl.numpy())
    assert len(tiles) == units
    for tile, unit in zip(tiles, order, strict=True):
        column = weight.detach()[:, unit].numpy()
        np.testing.assert_allclose(tile.ravel(), column / np.abs(column).max(), atol=1e-6)
    heights = figure.axes[1].collections[0].get_offsets()[:, 1]
    np.testing.assert_allclose(heights, kl.numpy()[order].clip(min=1e-6), rtol=1e-5)


def test_dictionary_dims_and_counts_the_unused():
    kl = torch.tensor([0.5, 0.0, 2.0, ACTIVE_KL, 1e-9, 0.1])
    figure = plots.plot_dictionary(torch.eye(6) + 0.1, (1, 2, 3), kl, title="features")
    image = figure.axes[0].images[0]
    opacity = image.get_alpha()[~np.ma.getmaskarray(image.get_array())]
    assert (opacity == 1.0).sum() == 3 * 6 and (opacity < 0.5).sum() == 3 * 6
    assert any(text.startswith("3 not used") for text in texts(figure))
    assert figure.axes[1].get_title(loc="left") == "3 of 6 used"


def test_dictionary_without_kl_keeps_the_order_and_count_cuts_it():
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    figure = plots.plot_dictionary(weight, (1, 2, 2), title="features", count=5)
    assert len(figure.axes) == 1
    tiles = tiles_of(figure, 2, 2)
    assert len(tiles) == 5
    np.testing.assert_allclose(tiles[3].ravel(), weight[:, 3] / weight[:, 3].abs().max(), atol=1e-6)


def test_dictionary_two_channels_side_by_side():
    weight = torch.randn(2 * 3 * 4, 5, generator=torch.Generator().manual_seed(0))
    figure = plots.plot_dictionary(weight, (2, 3, 4), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), title="flow")
    picture = figure.axes[0].images[0].get_array().filled(np.nan)
    first = weight[:, 4].reshape(2, 3, 4) / weight[:, 4].abs().max()
    np.testing.assert_allclose(picture[:3, :4], first[0], atol=1e-6)
    assert np.isnan(picture[:3, 4]).all()
    np.testing.assert_allclose(picture[:3, 5:9], first[1], atol=1e-6)
    assert np.isnan(picture[:3, 9:12]).all()  # tiles stand further apart than channels


@pytest.mark.parametrize(("weight", "shape", "kl", "count", "what"), [
    (torch.ones(5, 3), (1, 2, 2), None, None, "weight must be"), (torch.ones(4), (1, 2, 2), None, None, "weight must be"),
    (torch.ones(4, 0), (1, 2, 2), None, None, "weight must be"), (torch.ones(4, 3), (2, 2), None, None, "weight must be"),
    (torch.full((4, 3), torch.nan), (1, 2, 2), None, None, "not finite"), (torch.ones(4, 3), (1, 2, 2), torch.ones(4), None, "unit_kl"),
    (torch.ones(4, 3), (1, 2, 2), torch.tensor([1.0, torch.nan, 1.0]), None, "unit_kl"), (torch.ones(4, 3), (1, 2, 2), None, 0, "count"),
    (torch.ones(4, 3), (1, 2, 2), None, -1, "count")])
def test_dictionary_refuses(weight, shape, kl, count, what):
    with pytest.raises(ValueError, match=what):
        plots.plot_dictionary(weight, shape, kl, title="features", count=count)


@pytest.mark.parametrize(("n", "channels"), [(1, 1), (3, 2)])
def test_reconstructions_are_drawn_in_their_cells(n, channels):
    generator = torch.Generator().manual_seed(0)
    x, near, far = torch.randn(3, n, channels, 3, 4, generator=generator)
    squares = {"near": (near - x).flatten(1).square().sum(1), "far": (far - x).flatten(1).square().sum(1)}
    figure = plots.plot_reconstructions(x, {"poisson · local": (near, squares["near"]), "mine": (far, squares["far"])}, title="images")
    ax = figure.axes[0]
    cells = sorted(ax.images, key=lambda image: (image.get_extent()[0], image.get_extent()[3]))  # by column, then row
    assert len(cells) == 3 * n
    for picture, (images, row) in zip(cells, [(images, row) for images in (x, near, far) for row in range(n)], strict=True):
        drawn = picture.get_array().filled(np.nan)
        for channel in range(channels):
            np.testing.assert_allclose(drawn[:, 5 * channel:5 * channel + 4], images[row, channel], atol=1e-6)
    assert len({picture.get_clim() for picture in cells}) == 1
    low, high = cells[0].get_clim()
    assert low == -high and high == pytest.approx(np.quantile(x.abs().numpy(), 0.99))
    said = [text.get_text() for text in ax.texts]
    assert {"data", "poisson", "local", "mine"} <= set(said)
    for row in range(n):
        assert f"{squares['near'][row]:.1f}" in said and f"{squares['far'][row]:.1f}" in said


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
