"""Training and activity curves, the look of all figures, and that Matplotlib is left as found."""

from __future__ import annotations

import math
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from inference import plots
from inference.metrics.activity import ACTIVE_KL
from inference.plots.style import COLOR_CYCLE, MODEL_COLORS, line_styles, method_markers, model_colors


@pytest.fixture(autouse=True)
def settings_left_as_found():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def history(last: float, steps: int = 20) -> list[dict[str, float]]:
    return [{"step": 10 * (i + 1), "seconds": 0.5 * (i + 1), "elbo": -last - 100.0 * math.exp(-i), "kl": 5.0,
             "beta": min(1.0, (i + 1) / 8), "temperature": 1.0} for i in range(steps)]


def test_training_draws_the_negative_bound_against_steps_and_seconds():
    histories = {"poisson": history(300.0), "gaussian · seed 1": history(280.0)}
    offset = plots.gaussian_constant(256, math.sqrt(0.5))
    assert offset == pytest.approx(128 * math.log(math.pi))
    left, right = plots.plot_training(histories, offset=offset).axes
    for ax, across in ((left, "step"), (right, "seconds")):
        lines = {line.get_label(): line for line in ax.lines}
        for label, rows_ in histories.items():
            np.testing.assert_allclose(lines[label].get_xdata(), [row[across] for row in rows_])
            np.testing.assert_allclose(lines[label].get_ydata(), [-row["elbo"] - offset for row in rows_])
    assert "146.5" in left.get_ylabel()
    (warm_up,) = left.patches
    assert warm_up.get_x() + warm_up.get_width() == 80.0  # β is 1 from the eighth row on
    low, high = left.get_ylim()
    assert low < 280.0 - offset and 300.0 - offset < high < 350.0 - offset


def test_training_without_warm_up_has_no_shade_and_one_row_is_enough():
    left, _ = plots.plot_training({"poisson": [{**row, "beta": 1.0} for row in history(300.0, steps=1)]}).axes
    assert not left.patches and left.get_ylabel() == "training −ELBO (nats per image)"
    plots.plot_training({"poisson": [{"step": 1, "seconds": 1.0, "elbo": -3.0}]})


def test_training_refuses():
    with pytest.raises(ValueError, match="no history"):
        plots.plot_training({})
    with pytest.raises(ValueError, match="'mine' is empty"):
        plots.plot_training({"mine": []})
    with pytest.raises(ValueError, match="'mine' lack elbo"):
        plots.plot_training({"mine": [{"step": 1, "seconds": 1.0}]})
    with pytest.raises(ValueError, match="pixels"):
        plots.gaussian_constant(0, 1.0)
    with pytest.raises(ValueError, match="scale positive"):
        plots.gaussian_constant(4, 0.0)


def test_active_curve_is_the_survival_function_on_the_axes_given():
    kl = torch.tensor([1e-7, 1e-3, 0.02, 0.5, 30.0])
    figure = Figure()
    ax = figure.subplots()
    assert plots.plot_active_curve({"poisson": kl, "mine": kl[:1]}, ax) is ax
    line = next(line for line in ax.lines if line.get_label().startswith("poisson"))
    assert line.get_label() == "poisson: 60 %"
    at, fraction = line.get_data()
    np.testing.assert_allclose(fraction, (kl.numpy()[None] > np.asarray(at)[:, None]).mean(1), atol=1e-6)
    assert fraction[0] == pytest.approx(0.8) and fraction[-1] == 0.0 and ax.get_xscale() == "log"
    assert any(np.array_equal(line.get_xdata(), [ACTIVE_KL, ACTIVE_KL]) for line in ax.lines)
    assert plots.plot_active_curve({"poisson": [0.1, 0.2]}).figure is not figure


def test_active_curve_refuses():
    with pytest.raises(ValueError, match="no unit KL"):
        plots.plot_active_curve({})
    for bad in (torch.ones(2, 2), torch.tensor([]), torch.tensor([torch.nan])):
        with pytest.raises(ValueError, match="'mine'"):
            plots.plot_active_curve({"mine": bad})
    with pytest.raises(TypeError, match="'mine'"):
        plots.plot_active_curve({"mine": "many"})


def test_colours_and_markers_are_fixed_and_unknown_names_take_the_cycle_in_any_order():
    names = ["zeta", "poisson", "alpha", "gaussian"]
    colors = model_colors(names)
    assert colors == model_colors(reversed(names))
    assert colors["poisson"] == MODEL_COLORS["poisson"] and (colors["alpha"], colors["zeta"]) == COLOR_CYCLE[:2]
    many = model_colors([f"model{i}" for i in range(20)])
    assert len(many) == 20 and len(set(many.values())) == len(COLOR_CYCLE)
    assert len(set(method_markers(["amortized", "local", "map", "mcmc", "nuts"]).values())) == 5
    styles = line_styles(["poisson · a", "poisson · b", "laplace"])
    assert styles["poisson · a"]["color"] == styles["poisson · b"]["color"] != styles["laplace"]["color"]
    assert styles["poisson · a"]["linestyle"] != styles["poisson · b"]["linestyle"]


def every_figure() -> dict[str, Figure]:
    records = [{"data": "patches", "model": "poisson", "method": method, "seed": seed, "distortion": nelbo + seed - 10.0, "kl": 10.0,
                "nelbo": nelbo + seed, "lifetime_sparsity": 0.9} for method, nelbo in (("amortized", 160.0), ("local", 150.0))
               for seed in range(2)]
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return {"dictionary": plots.plot_dictionary(torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), (1, 4, 4),
                                                torch.logspace(-5, 0, 8), title="features"),
            "reconstructions": plots.plot_reconstructions(x, {"poisson · local": (x, torch.zeros(2))}, title="images"),
            "frontier": plots.plot_frontier(records, title="frontier"), "gap": plots.plot_gap(records, title="gap"),
            "training": plots.plot_training({"poisson": history(300.0)}, title="training"),
            "active": plots.plot_active_curve({"poisson": torch.logspace(-5, 0, 8)}).figure}


def test_figures_are_saved_and_pyplot_is_left_as_found(tmp_path):
    pyplot = sys.modules.get("matplotlib.pyplot")
    open_before = pyplot.get_fignums() if pyplot else []
    figures = every_figure()
    for name, figure in figures.items():
        path = plots.save(figure, tmp_path / f"{name}.png")
        picture = imread(path)
        height, width = picture.shape[:2]
        assert path.read_bytes().startswith(b"\x89PNG") and width >= 500 and height >= 300
        assert (width, height) == pytest.approx(150 * figure.get_size_inches(), abs=1)
        assert picture[..., :3].std() > 0.03  # not an empty page
        sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text().strip()]
        assert min(sizes) >= 9.0
    assert sys.modules.get("matplotlib.pyplot") is pyplot and (pyplot.get_fignums() if pyplot else []) == open_before
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png" for name in figures}


def test_a_save_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")

    class Broken(Figure):
        def savefig(self, *args, **kwargs):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        plots.save(Broken(), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
