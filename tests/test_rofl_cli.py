"""Optic flow from the command line: files, previews, and comparisons that say what can be read out."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import rofl_oracle as oracle
import torch
from matplotlib.contour import ContourSet
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from test_rofl_data import files_no_larger_than
from typer.testing import CliRunner

import guides
import inference
import zoo
from inference import cells, choices, comparison
from inference.cli import app
from inference.metrics.decodability import mean_code
from inference.plots.rofl import plot_frames
from inference.recipes import BUDGETS
from zoo.data import Data, Dataset
from zoo.data.rofl import World, acceptance, frames, read, storage

HERE = Path(__file__).parent
OPTIONS = {"n_train": 60, "n_validation": 200, "n_test": 190, "resolution": 5}  # 50 pixels
OTHERS = OPTIONS | {"n_validation": 220, "n_test": 210}
PROBE = 180
NAMES = World("fixate-1").cartesian_names


def zoo_command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(result, words):
    """One line on standard error, exit code 2."""
    lines = result.stderr.strip().splitlines()
    return result.exit_code == 2 and result.stdout == "" and len(lines) == 1 and lines[0].startswith("zoo: ") and words in lines[0]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def same_data(first, second):
    assert list(first.factors) == list(second.factors)
    return torch.equal(first.x, second.x) and all(torch.equal(first.factors[name], second.factors[name]) for name in first.factors)


# zoo rofl


def test_frames_are_written_with_a_preview(tmp_path, unchanged_generator):
    out = tmp_path / "new" / "flow.safetensors"
    with unchanged_generator():
        result = zoo_command("rofl", "--category", "obj-1", "--n", 40, "--resolution", 9, "--out", out)
    assert result.exit_code == 0, result.output
    assert same_data(read(out), frames(World("obj-1", 9), 40, seed=0))
    said = result.stdout.strip()
    factors = len(read(out).factors)
    assert said == f"40 frames of obj-1, 9 × 9 pixels, with {factors} factors: {out}, {out.with_suffix('.png')}"
    assert files(tmp_path) == ["new/flow.png", "new/flow.safetensors"]
    picture = matplotlib.image.imread(out.with_suffix(".png"))
    assert picture.shape[0] > 300 and picture.shape[1] > 300 and np.ptp(picture[..., :3]) > 0.5
    assert "frames" in result.stderr and "40/40" in result.stderr  # progress, on standard error only


def test_by_default_ten_thousand_published_frames(tmp_path):
    out = tmp_path / "flow.safetensors"
    result = zoo_command("rofl", "--out", out, "--no-preview", "--quiet")
    assert result.exit_code == 0 and result.stdout.startswith("10,000 frames of fixate-1, 17 × 17 pixels"), result.output
    assert result.stderr == "" and files(tmp_path) == ["flow.safetensors"] and len(result.stdout.strip().splitlines()) == 1
    data = read(out)
    assert data.x.shape == (10_000, 2, 17, 17) and set(NAMES) <= set(data.factors)
    assert data.x.std().item() == pytest.approx(0.222, abs=0.01)  # published


@pytest.mark.parametrize(("words", "world", "seed"), [
    (["--grid"], World("fixate-1", 7, grid=True), 0), (["--residual"], World("fixate-1", 7, residual=True), 0),
    (["--seed", 3], World("fixate-1", 7), 3), (["--category", "terrain-2"], World("terrain-2", 7), 0),
    (["--category", "fixate-0"], World("fixate-0", 7), 0)])
def test_options_reach_the_simulator(tmp_path, words, world, seed):
    from safetensors import safe_open

    out = tmp_path / "flow.safetensors"
    result = zoo_command("rofl", "--n", 6, "--resolution", 7, "--out", out, "--no-preview", "--quiet", *words)
    assert result.exit_code == 0, result.output
    assert same_data(read(out), frames(world, 6, seed=seed))
    with safe_open(out, framework="pt") as file:
        about = file.metadata()
        assert sorted(file.keys()) == ["factors", "x"]
    settings = json.loads(about["world"])
    assert (settings["category"], settings["grid"], settings["residual"]) == (world.category, world.grid, world.residual)
    assert about["seed"] == str(seed) and json.loads(about["names"])[:5] == list(world.factor_names)[:5]


@pytest.mark.parametrize(("words", "message"), [
    (["--category", "fixate-9"], "unknown category 'fixate-9'; there are fixate-0…8"), (["--category", "flight-1"], "unknown category"),
    (["--resolution", "16"], "resolution must be an odd number"), (["--resolution", "1"], "at least 3"),
    (["--n", "0"], "the number of frames must be at least 1, not 0"), (["--n", "-4"], "at least 1"), (["--seed", 2**70], "")])
def test_bad_requests_get_one_line_and_leave_nothing(tmp_path, words, message):
    result = zoo_command("rofl", "--n", 6, "--resolution", 5, "--out", tmp_path / "flow.safetensors", "--quiet", *words)
    assert refused(result, message), result.output
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_gets_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for out in (tmp_path / "file" / "flow.safetensors", tmp_path / "folder"):
        assert refused(zoo_command("rofl", "--n", 6, "--resolution", 5, "--out", out, "--quiet"), "could not write")
    assert files(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_gets_one_line_and_leaves_nothing(tmp_path):
    with files_no_larger_than(3000):
        result = zoo_command("rofl", "--n", 30, "--resolution", 5, "--out", tmp_path / "flow.safetensors", "--quiet")
    assert refused(result, "which takes 9,960 bytes"), result.output
    assert list(tmp_path.iterdir()) == []


def test_the_preview_never_takes_the_place_of_the_frames(tmp_path):
    out = tmp_path / "flow.png"
    result = zoo_command("rofl", "--n", 6, "--resolution", 5, "--out", out, "--quiet")
    if result.exit_code == 0:
        assert len(read(out)) == 6
    else:
        assert refused(result, "png") and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("when", ["generating", "writing"])
def test_ctrl_c_leaves_nothing_and_promises_nothing(tmp_path, monkeypatch, when):
    calls = []

    def sampled(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(*arguments, **options)

    def half_written(tensors, path, metadata):
        path.write_bytes(b"some")
        raise KeyboardInterrupt

    sample = acceptance.sample
    if when == "generating":
        monkeypatch.setattr(acceptance, "sample", sampled)
    else:
        monkeypatch.setattr(storage, "save_file", half_written)
    result = zoo_command("rofl", "--n", 20_000, "--resolution", 5, "--out", tmp_path / "flow.safetensors", "--quiet")
    assert result.exit_code == 130 and result.stdout == "" and list(tmp_path.iterdir()) == []
    assert len(calls) == (2 if when == "generating" else 0)
    assert "goes on from there" not in result.stderr and "is kept" not in result.stderr  # the frames start anew


def test_help_imports_nothing_heavy():
    code = ("import sys\nfrom inference.cli import app\n"
            "try:\n    app(['rofl', '--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
            "print([name for name in ('torch', 'pyro', 'matplotlib', 'numpy', 'sklearn') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE.parent)
    assert done.stdout.strip().splitlines()[-1] == "[]" and "--category" in done.stdout


# The preview


def panels(figure):
    return [ax for ax in figure.axes if ax.get_xlim()[1] > 10]


@pytest.mark.parametrize(("category", "count"), [("fixate-0", 2), ("fixate-1", 6), ("terrain-2", 3), ("pursuit-1", 1), ("transl-3", 4)])
def test_the_preview_shows_frames_in_their_order(category, count):
    world = World(category, 9)
    data = frames(world, 7, seed=1)
    figure = plot_frames(data, world, count=count)
    assert len(panels(figure)) == count and category in figure.get_suptitle()
    assert plot_frames(data, world, title="mine").get_suptitle() == "mine"
    shown = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert ("object" in shown) == (world.objects > 0) and any("gaze" in text for text in shown)
    assert len(panels(plot_frames(data[:1], world))) == 1  # fewer than the usual six


def test_outlines_are_where_the_rays_meet_the_rim():
    """Each outline's points, cast as rays on the disc's plane, lie on a circle of 25 cm about its centre."""
    world = World("fixate-1", 9)
    data = frames(world, 4, seed=2)
    for i, ax in enumerate(panels(plot_frames(data, world, count=4))):
        fixation = np.array([data.factors["fix_x"][i], data.factors["fix_y"][i]], dtype=float)
        position = np.array([data.factors[f"obj0_{name}"][i] for name in ("alpha_x", "alpha_y", "z")], dtype=float)
        centre = oracle.disc_centre(fixation, position)
        drawn = [path.vertices for each in ax.collections if isinstance(each, ContourSet) for path in each.get_paths()]
        angle = np.radians(np.concatenate(drawn))
        inner = angle[(np.abs(angle) < np.radians(44)).all(1)]
        assert len(inner) > 20
        rays = np.column_stack([np.tan(inner), np.ones(len(inner))])
        met = oracle.at_depth(oracle.rotate(oracle.gaze_rotation(fixation), rays), np.full(len(rays), position[2]))
        distance = np.linalg.norm((met - centre)[:, :2], axis=1)
        np.testing.assert_allclose(distance, oracle.RADIUS, atol=0.03)  # a pixel of the outline's own grid
        assert abs(distance.mean() - oracle.RADIUS) < 0.01


# zoo compare --data rofl/…


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Few steps, few and small frames, a cache of its own."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    cells._loaded.cache_clear()
    monkeypatch.setitem(zoo.data.registry._targets, "tiny", tiny)
    monkeypatch.setitem(zoo.data.registry._lines, "tiny", "noise")
    monkeypatch.setitem(BUDGETS, "smoke", {"steps": 30, "batch_size": 20, "lr": 1e-2, "warmup": 0.0})
    monkeypatch.setitem(comparison.SIZES, "smoke", comparison.SIZES["smoke"] | {
        "data_options": OPTIONS, "images": 18, "draws": 2, "k": 3, "keep": 7, "local_steps": 5,
                                                    "probe": PROBE})
    yield
    cells._loaded.cache_clear()


@pytest.fixture
def no_pictures(monkeypatch):
    """Figures have tests of their own, and take most of the time."""
    monkeypatch.setattr("inference.report._figures", lambda out, rows, first: {})


def tiny(n_train: int = 60, n_test: int = 20):
    """Noise without known causes."""
    x = torch.randn(n_train + n_test, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    return Dataset("tiny", Data(x[:n_train]), Data(x[n_train:]), "noise")


def compared(out, **change):
    settings = {"data": "rofl/fixate-1", "models": ["gaussian"], "methods": ["amortized"], "latents": 6, "budget": "smoke", "device": "cpu",
                "progress": False}
    return inference.compare(out=out, **settings | change)


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(row):
    return [float(row[name]) for name in NAMES]


def probed(options=OPTIONS):
    """Frames that readouts are fitted and scored on, with their factors ``(n, 11)``."""
    data = zoo.data.load("rofl/fixate-1", **options)
    parts = data.validation[:PROBE], data.test[:PROBE]
    return [part.x for part in parts], [np.stack([part.factors[name] for name in NAMES], 1).astype(float) for part in parts]


def readout(z, factors):
    fitted = LinearRegression().fit(np.asarray(z[0], dtype=float), factors[0])
    return r2_score(factors[1], fitted.predict(np.asarray(z[1], dtype=float)), multioutput="raw_values").tolist()


def components(x, count):
    train = zoo.data.load("rofl/fixate-1", **OPTIONS).train.x.flatten(1).double().numpy()
    fitted = PCA(count).fit(train)
    return [fitted.transform(part.flatten(1).double().numpy()) for part in x]


@pytest.fixture
def never(monkeypatch):
    """What refuses to train or to infer."""

    def fails(*arguments, **options):
        raise AssertionError("computed")

    def forbid(*names):
        for name in names:
            monkeypatch.setattr(cells, name, fails)

    return forbid


def test_a_comparison_on_flow_says_what_can_be_read_out(tmp_path, small):
    out = tmp_path / "c"
    result = zoo_command("compare", "--data", "rofl/fixate-1", "--models", "gaussian", "--methods", "amortized,map", "--latents", 6,
                         "--budget", "smoke", "--device", "cpu", "--out", out, "--quiet")
    assert result.exit_code == 0, result.output
    assert "rofl/fixate-1: 18 held-out images" in result.stdout and re.search(r"decodability: R² of a linear readout", result.stdout)
    rows, lines = table(out / "table.csv"), table(out / "decodability.csv")
    assert list(lines[0]) == ["data", "model", "method", "seed", *NAMES]
    assert [line["model"] for line in lines[:2]] == ["raw pixels", "PCA 6"] and all(line["data"] == "rofl/fixate-1" for line in lines)
    assert all(line["method"] == line["seed"] == "" for line in lines[:2])
    assert [(line["model"], line["method"], line["seed"]) for line in lines[2:]] == [
        (row["model"], row["method"], row["seed"]) for row in rows]
    for row, line in zip(rows, lines[2:], strict=True):
        assert float(row["decodability"]) == pytest.approx(sum(numbers(line)) / 11)
    x, factors = probed()
    assert numbers(lines[0]) == pytest.approx(readout([part.flatten(1) for part in x], factors), rel=1e-3, abs=1e-3)
    assert numbers(lines[1]) == pytest.approx(readout(components(x, 6), factors), abs=1e-5)
    for line in lines[2:]:
        model, guide, _ = inference.load(next((out / "cells").glob(f"{line['model']}-fit-*")))
        codes = [mean_code(model, inference.infer(model, part, line["method"], guide=guide, draws=2)) for part in x]
        assert numbers(line) == pytest.approx(readout(codes, factors), abs=2e-3)
    assert len({tuple(numbers(line)) for line in lines}) == len(lines)
    report = (out / "report.md").read_text()
    assert "![" in report and "(decodability.png)" in report and "**decodability**" in report
    assert all((out / name).is_file() for name in re.findall(r"\]\(([^)]+)\)", report)) and (out / "decodability.png").is_file()
    model, _, _ = inference.load(next((out / "cells").glob("gaussian-fit-*")))
    assert model.scale.item() == pytest.approx(0.1)
    for row in rows:  # what the definitions say, at σ = 0.1
        assert float(row["distortion"]) == pytest.approx(float(row["mse"]) / (2 * 0.1**2), rel=1e-4)
        if row["method"] != "map":
            assert float(row["nelbo"]) == pytest.approx(float(row["distortion"]) + float(row["kl"]), rel=1e-4)
            constant = 25 * math.log(2 * math.pi * 0.1**2)
            assert float(row["nelbo"]) == pytest.approx(-float(row["elbo"]) - constant, rel=1e-4, abs=1e-2)


def test_data_without_known_causes_have_no_such_column(tmp_path, small, no_pictures):
    out = tmp_path / "c"
    compared(out)
    assert {"decodability.csv", "decodability.png"} <= set(files(out)) and table(out / "table.csv")[0]["decodability"] != ""
    result = compared(out, data="tiny")
    assert table(out / "table.csv")[0]["decodability"] == "" and math.isnan(result.records[0]["decodability"])
    assert not [name for name in files(out) if name.startswith("decodability")]  # nothing stale
    assert "decodability.png" not in (out / "report.md").read_text()
    assert len(list((out / "cells").glob("reference-*"))) == 1


def test_a_second_run_is_free_and_other_models_share_the_references(tmp_path, small, no_pictures, never):
    compared(tmp_path / "c")
    compared(tmp_path / "c", models=["gaussian", "laplace"])
    assert len(list((tmp_path / "c" / "cells").glob("reference-*"))) == 1
    never("fit", "infer", "linear_decodability", "principal_components")
    lines = (tmp_path / "c" / "decodability.csv").read_text()
    compared(tmp_path / "c", models=["gaussian", "laplace"])
    assert (tmp_path / "c" / "decodability.csv").read_text() == lines


def test_pixels_are_left_out_where_images_are_too_few(tmp_path, small, no_pictures, monkeypatch):
    monkeypatch.setitem(comparison.SIZES, "smoke", comparison.SIZES["smoke"] | {"probe": 51})  # pixels: 50
    compared(tmp_path / "c")
    assert [line["model"] for line in table(tmp_path / "c" / "decodability.csv")] == ["PCA 6", "gaussian"]


def test_no_probe_no_readout(tmp_path, small, no_pictures, monkeypatch):
    monkeypatch.setitem(comparison.SIZES, "smoke", comparison.SIZES["smoke"] | {"probe": 0})
    compared(tmp_path / "c")
    assert table(tmp_path / "c" / "table.csv")[0]["decodability"] == "" and "decodability.csv" not in files(tmp_path / "c")


def test_more_latents_than_a_readout_can_have_are_refused_before_training(tmp_path, small, never):
    never("fit", "infer")
    with pytest.raises(ValueError, match="a readout of 179 latents cannot be fitted on 180 images; choose at most 178 latents"):
        compared(tmp_path / "c", latents=179)


@pytest.mark.parametrize("change", [{"latents": 179}, {"data": "rofl/fixate-9"}, {"data": "tiny/fixate-1"}], ids=str)
def test_bad_requests_are_refused_before_anything_is_written(tmp_path, small, never, change):
    never("fit", "infer")
    with pytest.raises(ValueError, match="readout of 179|unknown category|has no member"):
        compared(tmp_path / "c", **change)
    assert not (tmp_path / "c").exists()


def test_an_unknown_category_gets_one_line(tmp_path, small):
    for command in (["compare", "--models", "gaussian"], ["fit", "gaussian"]):
        result = zoo_command(*command, "--data", "rofl/flight-1", "--budget", "smoke", "--out", tmp_path / "c", "--quiet")
        assert refused(result, "unknown category 'flight-1'"), result.output
        assert not (tmp_path / "c").exists()


def test_there_may_be_more_latents_than_pixels(tmp_path, small, no_pictures):
    """Sixty latents for fifty pixels: an overcomplete code is compared, with as many components as there are."""
    compared(tmp_path / "c", latents=60)
    lines = table(tmp_path / "c" / "decodability.csv")
    assert lines[-1]["model"] == "gaussian" and lines[0]["model"] == "raw pixels"


@pytest.fixture
def saved(tmp_path, small, monkeypatch):
    """A model of six latents, trained on data of other sizes than the budget's."""
    monkeypatch.setitem(choices.ROFL_LATENTS, "smoke", 7)
    data = zoo.data.load("rofl/fixate-1", **OTHERS)
    model = zoo.build("gaussian", data, latents=6, seed=0)
    guide = guides.build("amortized", model, seed=0)
    inference.fit(model, guide, data, objective="exact", steps=20, batch_size=20, progress=False)
    inference.save(tmp_path / "model", model, guide, description={"data": "rofl/fixate-1", "data_options": OTHERS})
    return model, guide


def test_saved_models_and_references_are_read_out_of_the_same_frames(tmp_path, saved, no_pictures):
    compared(tmp_path / "c", models=None, latents=None, trained=[tmp_path / "model"])
    pixels, *_, last = table(tmp_path / "c" / "decodability.csv")
    x, factors = probed(OTHERS)
    model, guide = saved
    codes = [mean_code(model, inference.infer(model, part, guide=guide, draws=2)) for part in x]
    assert numbers(last) == pytest.approx(readout(codes, factors), abs=2e-3)
    assert numbers(pixels) == pytest.approx(readout([part.flatten(1) for part in x], factors), rel=1e-3, abs=1e-3)


def test_a_saved_models_reference_has_as_many_components_as_it_has_latents(tmp_path, saved, no_pictures):
    compared(tmp_path / "c", models=None, latents=None, trained=[tmp_path / "model"])
    assert [line["model"] for line in table(tmp_path / "c" / "decodability.csv")] == ["raw pixels", "PCA 6", "gaussian"]


def test_a_saved_model_of_too_many_latents_for_a_readout_is_refused_before_inference(tmp_path, saved, never, monkeypatch):
    monkeypatch.setitem(comparison.SIZES, "smoke", comparison.SIZES["smoke"] | {"probe": 7})
    never("infer")
    with pytest.raises(ValueError, match="a readout of 6 latents cannot be fitted on 7 images"):
        compared(tmp_path / "c", models=None, latents=None, trained=[tmp_path / "model"])
