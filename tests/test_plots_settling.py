"""Figures of inference in time and of end-stopping: lines, maps and pictures show the numbers they are given, at the right steps."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch

import zoo
from inference.plots import plot_end_stopping, plot_settling, save
from inference.plots.images import tiles
from inference.settling import settling


@pytest.fixture(autouse=True)
def settings_left_as_found():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def told(shape=(1, 5, 6), levels=(4, 3), steps=20, n=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = zoo.build("predictive_coding", event_shape=shape, levels=levels, scale=0.3)
        x = model(None, size=n).detach()
    return settling(model, x, steps=steps), x


def panels(figure, part):
    return figure.subfigs[part].axes


def pictures(figure):
    return [ax for ax in panels(figure, 2) if ax.images and ax.get_title() != "motion"]


def test_lines_are_energies_and_lengths_of_errors(tmp_path):
    way, _ = told()
    figure = plot_settling(way, 1, title="Way")
    energy, length = panels(figure, 0)
    lines = {line.get_label(): line.get_xydata() for line in energy.lines}
    assert list(lines) == ["x", "z1", "z2", "all"]
    for name in ("x", "z1", "z2"):
        np.testing.assert_allclose(lines[name], np.stack([way.step, way.energy[name][:, 1]], 1), rtol=1e-6)
    np.testing.assert_allclose(lines["all"], np.stack([way.step, -way.log_joint[:, 1]], 1), rtol=1e-6)
    shown = length.lines[1].get_ydata()
    assert way.error["z1"][0, 1] == 0 and np.isnan(shown[0])
    np.testing.assert_allclose(shown[1:], way.error["z1"][1:, 1], rtol=1e-6)
    assert "nats" in energy.get_ylabel() and "step" in energy.get_xlabel() and length.get_yscale() == "log"
    assert f"{way.log_joint[-1, 1].neg().item():.4g}".replace("-", "−") in energy.get_title(loc="left")
    assert save(figure, tmp_path / "way.png").stat().st_size > 20_000


def test_maps_are_units_by_steps_centred_at_zero():
    way, _ = told(levels=(4, 3, 2), steps=40)
    axes = [ax for ax in panels(plot_settling(way, 2), 1) if ax.images]
    expected = [part[name][:, 2].T for name in ("z3", "z2", "z1") for part in (way.beliefs, way.errors)]
    assert len(axes) == 6
    for ax, values in zip(axes, expected, strict=True):
        np.testing.assert_allclose(ax.images[0].get_array(), values, rtol=1e-6)
        low, high = ax.images[0].get_clim()
        assert low == -high < 0
        assert high == pytest.approx(np.quantile(values.abs(), 0.99))
    ticks = axes[-1]
    marked = dict(zip(ticks.get_xticks(), (label.get_text() for label in ticks.get_xticklabels()), strict=True))
    assert all(way.step[int(place)] == int(text) for place, text in marked.items()) and len(marked) >= 4
    labels = [ax.get_ylabel() for ax in panels(plot_settling(way, 2), 1)]
    assert "belief of z3" in labels and "error ε of z1" in labels


def test_pictures_are_the_image_its_predictions_and_errors():
    way, x = told()
    figure = plot_settling(way, 1, x=x, steps=[0, 3, 20])
    axes = pictures(figure)
    assert [ax.get_title() for ax in axes] == ["image", "step 0", "step 3", "step 20", "", "", ""]
    at = [way.step.tolist().index(step) for step in (0, 3, 20)]
    predicted, errors = way.predictions["x"][at, 1].numpy(), way.errors["x"][at, 1].numpy()
    one = np.quantile(np.abs(np.concatenate([predicted, x[1:2].numpy()])), 0.99)
    two = np.quantile(np.abs(errors), 0.99)
    for ax, tile in zip(axes, [*tiles(np.concatenate([x[1:2].numpy(), predicted]), (1, 5, 6), one), *tiles(errors, (1, 5, 6), two)],
                        strict=True):
        np.testing.assert_allclose(ax.images[0].get_array(), tile, atol=1e-6)
    names = [text.get_text() for ax in panels(figure, 2) for text in ax.texts]
    assert names == [f"prediction\n(±{one:.2g})", f"error ε\n(±{two:.2g})"]
    assert [ax.get_title() for ax in pictures(plot_settling(way, 1, steps=[20]))] == ["step 20", ""]


def test_logits_are_drawn_as_probabilities():
    way, x = told()
    plain, squashed = (pictures(plot_settling(way, 0, steps=[20], logits=logits))[0].images[0].get_array() for logits in (False, True))
    p = torch.sigmoid(way.predictions["x"][-1, :1]).numpy()
    np.testing.assert_allclose(squashed, tiles(p, (1, 5, 6), np.quantile(p, 0.99))[0], atol=1e-6)
    assert np.abs(plain - squashed).max() > 0.1


@pytest.mark.parametrize(("shape", "rows", "wheel"), [((2, 4, 5), 2, True), ((3, 4, 5), 2, False), ((4, 2, 4, 5), 4, True),
                                                      ((5, 1, 4, 5), 4, False)])
def test_flow_and_sequences_are_drawn(tmp_path, shape, rows, wheel):
    way, x = told(shape)
    figure = plot_settling(way, 0, x=x, steps=[0, 20])
    axes = pictures(figure)
    assert len(axes) == rows * 2 + rows // 2
    assert bool({"motion"} & {ax.get_title() for ax in panels(figure, 2)}) == wheel
    if rows == 4:
        last = x[0, -1].numpy()
        size = np.hypot(*last) if wheel else np.abs(last)
        first = [text.get_text() for ax in panels(figure, 2) for text in ax.texts if "frame" in text.get_text()]
        assert [text.split("\n")[1] for text in first] == ["frame 1", "frame 1", f"frame {shape[0]}", f"frame {shape[0]}"]
        limit = float(first[2].split("±")[1][:-1])
        np.testing.assert_allclose(axes[5].images[0].get_array(), tiles(last[None], shape[1:], limit)[0], atol=0.05)
        predicted = tiles(way.predictions["x"][-1, 0, -1:].numpy(), shape[1:], limit)[0]
        np.testing.assert_allclose(axes[7].images[0].get_array(), predicted, atol=0.05)
        assert size.max() > 0.5 * limit and np.abs(predicted - np.asarray(axes[2].images[0].get_array())).max() > 0.2
    assert save(figure, tmp_path / "way.png").stat().st_size > 20_000


@pytest.mark.parametrize(("options", "message"), [
    ({"image": 3}, "image must be one of the 3 that were kept"),
    ({"steps": [21]}, "steps must be 0 to 20"),
    ({"steps": []}, "steps must be 0 to 20, at least one"),
    ({"x": torch.zeros(3, 1, 5, 5)}, r"x must be images \(N, 1, 5, 6\)"),
    ({"x": torch.zeros(1, 1, 5, 6), "image": 1}, "with image 1 among them"),
])
def test_bad_settings_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        plot_settling(told()[0], **options)


def test_what_is_no_settling_or_no_frame_is_told():
    with pytest.raises(TypeError, match="settling must be what inference.settling.settling returns, not dict"):
        plot_settling({})
    with pytest.raises(ValueError, match="frames must be of the sequence's 4"):
        plot_settling(told((4, 1, 3, 3))[0], frames=[0, 4])
    with pytest.raises(ValueError, match="to be drawn; got"):
        plot_settling(told((7,))[0])


# End-stopping


LENGTHS = [6, 12, 18, 24]


def test_end_stopping_is_relative_to_the_short_bar(tmp_path):
    rows = {"on": np.array([[2.0, 4.0, 2.0, 1.0], [1.0, 1.0, 1.0, 0.8], [4.0, 4.0, 4.0, 1.6]]), "off": np.array([[1.0, 2.0, 2.0, 2.0]])}
    figure = plot_end_stopping(LENGTHS, rows, field=16, title="Bars")
    ax, beside = figure.axes
    on, off = (line.get_xydata() for line in ax.lines[:2])
    np.testing.assert_allclose(on, np.stack([LENGTHS, [1.0, 1.0, 1.0, 0.5]], 1))
    np.testing.assert_allclose(off[:, 1], [1.0, 2.0, 2.0, 2.0])
    np.testing.assert_allclose(np.sort(beside.collections[0].get_offsets()[:, 1]), [0.4, 0.5, 0.8])
    assert [text.get_text() for text in beside.texts] == ["0.50", "2.00"]
    band = ax.collections[0].get_paths()[0].vertices
    assert {round(y, 6) for x, y in band if x == 24} >= {0.45, 0.65}, "quartiles"
    assert "error(24 px) / error(6 px)" in beside.get_ylabel() and "pixels" in ax.get_xlabel()
    assert save(figure, tmp_path / "bars.png").stat().st_size > 10_000


def test_repeats_without_error_have_no_ratio():
    figure = plot_end_stopping(LENGTHS, {"on": [[0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 3.0, 1.0]]}, compare=(12, 18))
    assert [text.get_text() for text in figure.axes[1].texts] == ["2.00"]
    figure = plot_end_stopping(LENGTHS, {"on": [[0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 3.0, 4.0]], "none": [[0.0, 1.0, 1.0, 1.0]]})
    assert [text.get_text() for text in figure.axes[1].texts] == ["4.00", "1 silent", "1 silent"]


@pytest.mark.parametrize(("lengths", "errors", "options", "message"), [
    ([6, 6], {"on": [[1, 1]]}, {}, "numbers of pixels that rise"),
    (LENGTHS, {"on": [[1, 1, 1, 1]]}, {"compare": (6, 20)}, "compare must be a shorter and a longer one"),
    (LENGTHS, {}, {}, "there are no errors"),
    (LENGTHS, {"on": [1, 1, 1, 1]}, {}, r"'on' must be finite sizes of at least 0, \(repeats, 4\)"),
    (LENGTHS, {"on": [[1, -1, 1, 1]]}, {}, "finite sizes of at least 0"),
])
def test_bad_errors_are_told(lengths, errors, options, message):
    with pytest.raises(ValueError, match=message):
        plot_end_stopping(lengths, errors, **options)
