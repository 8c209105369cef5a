"""Figures of whitening: tiles show the rows they say, lines the correlations, and the numbers beside them are right."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch

from inference.plots import plot_autocorrelation, plot_filters, save
from zoo.flows.correlation import autocorrelation, noise_band


@pytest.fixture(autouse=True)
def settings_left_as_found():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def matrix(size, seed=0):
    return np.random.default_rng(seed).normal(size=(size, size)) + 3.0 * np.eye(size)


def panels(figure):
    return [ax for ax in figure.axes if ax.images]


def test_tiles_are_rows_over_their_own_pixel(tmp_path):
    zca, pca = matrix(20), matrix(20, seed=1)
    figure = plot_filters({"zca": zca, "pca": pca}, (1, 4, 5), [(1, 2), (3, 4)], title="Filters")
    shown = [np.asarray(ax.images[0].get_array()) for ax in panels(figure)]
    np.testing.assert_allclose(shown[0], zca[7].reshape(4, 5) / zca[7, 7])
    np.testing.assert_allclose(shown[1], zca[19].reshape(4, 5) / zca[19, 19])
    for picture, row in zip(shown[2:], (0, 19), strict=True):
        np.testing.assert_allclose(picture, pca[row].reshape(4, 5) / np.abs(pca[row]).max())
    titles = [ax.get_title() for ax in panels(figure)]
    assert titles == ["pixel (1, 2)", "pixel (3, 4)", "principal axis 1", "principal axis 20"]
    assert {ax.images[0].get_clim() for ax in panels(figure)} == {(-1.0, 1.0)}
    assert [tuple(line.get_xydata()[0]) for ax in panels(figure)[:2] for line in ax.lines] == [(2, 1), (4, 3)]
    assert save(figure, tmp_path / "filters.png").stat().st_size > 10_000


def test_the_numbers_below_a_filter():
    zca = np.eye(25)
    zca[12, [7, 11, 13, 17]], zca[12, 0] = -0.25, 0.5
    zca[0, 1], zca[0, 5] = -0.4, -0.2
    labels = [ax.get_xlabel() for ax in panels(plot_filters({"zca": zca}, (1, 5, 5), [(2, 2), (0, 0), (4, 4)]))]
    assert labels == ["neighbours −0.25\n83 % in 3 × 3", "neighbours −0.30\n100 % in 3 × 3", "neighbours 0.00\n100 % in 3 × 3"]


def test_channels_stand_side_by_side():
    zca = matrix(18)
    (ax,) = panels(plot_filters({"zca": zca}, (2, 3, 3), [(1, 1)]))
    shown, row = ax.images[0].get_array(), zca[4].reshape(2, 3, 3) / zca[4, 4]
    assert shown.shape == (3, 7) and np.ma.getmaskarray(np.ma.masked_invalid(shown))[:, 3].all()
    np.testing.assert_allclose(shown[:, :3], row[0])
    np.testing.assert_allclose(shown[:, 4:], row[1])
    energy = np.square(row[0]).sum() / np.square(row).sum()
    assert f"{100 * energy:.0f} %" in ax.get_xlabel()


def test_autocorrelation_is_that_of_pairs():
    x = torch.randn(6, 9, 2, generator=torch.Generator().manual_seed(0)).cumsum(1) + 3.0
    found = autocorrelation(x, 3)
    values = x.double().numpy()
    for pixel in range(2):
        mean, variance = values[..., pixel].mean(), values[..., pixel].var()
        for lag in range(4):
            pairs = [(one[t] - mean) * (one[t + lag] - mean) for one in values[..., pixel] for t in range(9 - lag)]
            assert found[lag, pixel].item() == pytest.approx(np.mean(pairs) / variance)
    noise = autocorrelation(torch.randn(50, 40, 30, generator=torch.Generator().manual_seed(1)), 10)[1:]
    outside = (noise.abs() > noise_band(50 * 40)).double().mean()
    assert 0.02 < outside < 0.08
    with pytest.raises(ValueError, match="lags must be 0 to 8"):
        autocorrelation(x, 9)


def test_lines_and_band(tmp_path):
    before, after = np.array([1.0, 0.8, 0.5]), np.array([[1.0, 1.0], [0.3, 0.02], [0.01, -0.01]])
    figure = plot_autocorrelation({"x": before, "y": after}, [100, 100, 400], title="Time")
    ax = figure.axes[0]
    lines = {line.get_label(): line for line in ax.lines if line.get_marker() == "o"}
    assert list(lines) == ["x: 2 of 2 outside", "y: 1 of 4 outside"]
    np.testing.assert_allclose(lines["x: 2 of 2 outside"].get_ydata(), before)
    np.testing.assert_allclose(lines["y: 1 of 4 outside"].get_ydata(), [1.0, 0.16, 0.0], atol=1e-12)
    band = ax.collections[0].get_paths()[0].vertices
    assert {round(y, 6) for x, y in band if x == 1} == {0.196, -0.196} and {round(y, 6) for x, y in band if x == 2} == {0.098, -0.098}
    assert save(figure, tmp_path / "time.png").stat().st_size > 10_000


def test_bad_input_is_told():
    with pytest.raises(ValueError, match="at least one matrix"):
        plot_filters({}, (1, 2, 2))
    with pytest.raises(ValueError, match="pixels within 2 × 2"):
        plot_filters({"zca": np.eye(4)}, (1, 2, 2), [(2, 0)])
    with pytest.raises(ValueError, match=r"must be \(4, 4\) and finite"):
        plot_filters({"zca": np.full((4, 4), np.nan)}, (1, 2, 2))
    with pytest.raises(ValueError, match=r"\(channels, height, width\)"):
        plot_filters({"zca": np.eye(4)}, (4,))
    with pytest.raises(ValueError, match="same lags"):
        plot_autocorrelation({"x": np.ones(3), "y": np.ones(4)}, 10)
    with pytest.raises(ValueError, match="finite"):
        plot_autocorrelation({"x": np.array([1.0, np.nan])}, 10)
