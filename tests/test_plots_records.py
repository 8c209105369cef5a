"""Figures of a comparison's records: coordinates, means, error bars and gaps are the records' own."""

from __future__ import annotations

import math

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from inference import plots
from inference.plots.gap import amortization_gap
from inference.plots.style import COLOR_CYCLE, METHOD_MARKERS, MODEL_COLORS


@pytest.fixture(autouse=True)
def settings_left_as_found():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def rows(nelbo: dict[tuple[str, str], list[float]], **extra: float) -> list[dict]:
    """Records with a KL of 10 + seed and a squared error of nelbo − kl; NaN KL and NELBO for ``map``."""
    records = []
    for (model, method), values in nelbo.items():
        for seed, value in enumerate(values):
            point = method == "map"
            kl = math.nan if point else 10.0 + seed
            records.append({"data": "patches", "model": model, "method": method, "seed": seed, "kl": kl, "distortion": value - 10.0 - seed,
                            "nelbo": math.nan if point else value, "lifetime_sparsity": 0.5 + 0.01 * seed, **extra})
    return records


def points(ax) -> dict[str, object]:
    """Error-bar containers of an axes, by label."""
    return {container.get_label(): container for container in ax.containers if hasattr(container, "has_xerr")}


def place(container) -> tuple[float, float]:
    (x,), (y,) = container.lines[0].get_data()
    return float(x), float(y)


def half_bars(container) -> list[float]:
    """Half the extent of each error bar of a single point, horizontal before vertical."""
    return [float(np.ptp(bar.get_segments()[0], axis=0).max()) / 2 for bar in container.lines[2]]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_frontier_draws_the_records_of_one_seed_without_bars():
    records = rows({("poisson", "amortized"): [160.0], ("poisson", "local"): [150.0], ("poisson", "map"): [70.0],
                    ("student", "mcmc"): [140.0]})
    left, right = plots.plot_frontier(records).axes
    rate, sparse = points(left), points(right)
    assert set(rate) == {"poisson · amortized", "poisson · local", "student · mcmc"}  # map has no KL
    assert set(sparse) == {*rate, "poisson · map"}
    for record in records:
        label = f"{record['model']} · {record['method']}"
        assert place(sparse[label]) == (record["lifetime_sparsity"], record["distortion"])
        if label in rate:
            assert place(rate[label]) == (record["kl"], record["distortion"])
            assert not rate[label].has_xerr and not rate[label].has_yerr
    line = rate["poisson · local"].lines[0]
    assert to_hex(line.get_color()) == MODEL_COLORS["poisson"].lower() and line.get_marker() == METHOD_MARKERS["local"]
    assert to_hex(rate["student · mcmc"].lines[0].get_color()) == COLOR_CYCLE[0].lower()


def test_frontier_draws_mean_and_standard_deviation_of_seeds():
    values = [150.0, 153.0, 159.0]
    left, _ = plots.plot_frontier(rows({("poisson", "local"): values})).axes
    (container,) = points(left).values()
    squares = [value - 10.0 - seed for seed, value in enumerate(values)]
    assert place(container) == pytest.approx((11.0, np.mean(squares)))
    assert half_bars(container) == pytest.approx([1.0, np.std(squares, ddof=1)])


def test_frontier_lines_join_equal_nelbo():
    left, _ = plots.plot_frontier(rows({("poisson", "local"): [150.0], ("gaussian", "local"): [180.0]})).axes
    labels = {float(text.get_text()): text.get_position() for text in left.texts}
    lines = [line.get_xydata().sum(1) for line in left.lines if to_hex(line.get_color()) == "#c4c4c4"]
    assert len(labels) >= 2
    for total in lines:
        assert total[0] == pytest.approx(total[1]) and any(total[0] == pytest.approx(level) for level in labels)
    for level, (x, y) in labels.items():
        assert x + y == pytest.approx(level)


def test_frontier_skips_what_is_missing_and_takes_text_fields():
    records = rows({("poisson", "local"): [150.0, 152.0], ("poisson", "map"): [70.0]})
    records[1]["distortion"] = ""  # as an empty field of a table reads
    records[0]["distortion"] = "140.5"
    left, right = plots.plot_frontier(records).axes
    assert {label: place(point) for label, point in points(left).items()} == {"poisson · local": (10.0, 140.5)}
    assert set(points(right)) == {"poisson · local", "poisson · map"}
    only_map = plots.plot_frontier(records[2:])
    assert "no method has a KL" in texts(only_map)


def test_frontier_has_a_row_of_panels_for_each_data_set():
    records = rows({("poisson", "local"): [150.0]})
    other = [{**records[0], "data": "digits", "distortion": 7.0}]
    axes = plots.plot_frontier(records + other).axes
    assert [place(point)[1] for ax in axes for point in points(ax).values()] == [140.0, 140.0, 7.0, 7.0]


@pytest.mark.parametrize("plot", [plots.plot_frontier, plots.plot_gap])
def test_records_are_checked(plot):
    with pytest.raises(ValueError, match="no records"):
        plot([])
    with pytest.raises(ValueError, match="record 1 lacks model"):
        plot([*rows({("poisson", "local"): [150.0]}), {"data": "patches"}])


def test_gap_uses_the_paired_difference_with_its_standard_error():
    records = rows({("poisson", "amortized"): [160.0], ("poisson", "local"): [150.0], ("poisson", "map"): [60.0]})
    records[0] |= {"gap": 9.25, "gap_se": 0.31}
    figure = plots.plot_gap(records)
    left, right = figure.axes
    assert {label: place(point) for label, point in points(left).items()} == {
        "poisson · amortized": (160.0, 0.0), "poisson · local": (150.0, 0.0)}
    assert [bar.get_width() for bar in right.patches] == [9.25]
    assert texts(figure) == ["9.25 ± 0.31"]


def test_gap_of_seeds_and_its_standard_error():
    records = rows({("poisson", "amortized"): [160.0, 163.0, 164.0], ("poisson", "local"): [150.0, 151.0, 158.0]})
    gap = amortization_gap(records, "poisson")
    differences = np.array([10.0, 12.0, 6.0])
    over_seeds = differences.std(ddof=1) / math.sqrt(3)
    assert gap == pytest.approx((differences.mean(), over_seeds, 3))
    assert texts(plots.plot_gap(records)) == [f"{differences.mean():.2f} ± {over_seeds:.2f}"]
    paired = [{**record, "gap": 10.0 if record["method"] == "amortized" else math.nan, "gap_se": 0.4} for record in records]
    assert amortization_gap(paired, "poisson") == pytest.approx((10.0, 0.4, 3))  # no spread over seeds
    for record, value in zip(paired[:3], differences, strict=True):
        record["gap"] = value
    assert amortization_gap(paired, "poisson").sd == pytest.approx(math.hypot(over_seeds, 0.4))


def test_gap_of_one_seed_has_no_error_and_models_keep_their_rows():
    records = rows({("gaussian", "amortized"): [150.0], ("gaussian", "local"): [148.5], ("student", "amortized"): [170.0]})
    figure = plots.plot_gap(records)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["gaussian", "student"]
    assert texts(figure) == ["1.50"]  # the student model has no second method to compare with
    assert place(points(left)["student · amortized"]) == (170.0, 1.0)
    assert [(bar.get_y() + bar.get_height() / 2, bar.get_width()) for bar in right.patches] == [(pytest.approx(0.0), 1.5)]
    assert "needs methods amortized and local" in texts(plots.plot_gap(records[2:]))


def test_gap_leaves_out_a_seed_without_a_pair():
    records = rows({("poisson", "amortized"): [160.0, 163.0], ("poisson", "local"): [150.0]})
    mean, error, count = amortization_gap(records, "poisson")
    assert (mean, count) == (10.0, 1) and math.isnan(error)


def test_gap_needs_a_nelbo():
    with pytest.raises(ValueError, match="finite nelbo"):
        plots.plot_gap(rows({("poisson", "map"): [60.0]}))
