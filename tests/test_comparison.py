"""A comparison's folder: what is computed, what is kept, what the table says."""

import csv
import json
import math
import re

import pytest
import torch

import inference
import zoo
from inference import cells, comparison
from inference.cells import read_trajectory
from inference.comparison import compare
from inference.gaps import DISTANCE_COLUMNS, EVIDENCE_COLUMNS
from inference.metrics.scores import COLUMNS
from inference.recipes import BUDGETS, recipe
from inference.table import GAP_COLUMNS, summarize, write_csv
from zoo.data import Data, Dataset

TINY = {"data": "tiny", "latents": 8, "budget": "smoke", "progress": False, "device": "cpu"}
FOR_SAVED = {name: value for name, value in TINY.items() if name != "latents"}  # saved models have theirs


def tiny(n_train=60, n_test=20, seed=0):
    """Noise on an 8 × 8 grid."""
    x = torch.randn(n_train + n_test, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Dataset("tiny", Data(x[:n_train]), Data(x[n_train:]), "noise")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """A tiny data set, and a smoke budget of few steps and images."""
    cells._loaded.cache_clear()
    monkeypatch.setitem(zoo.data.registry._targets, "tiny", tiny)
    monkeypatch.setitem(zoo.data.registry._lines, "tiny", "noise")
    monkeypatch.setitem(BUDGETS, "smoke", {"steps": 6, "batch_size": 20, "lr": 1e-2, "warmup": 0.0})
    monkeypatch.setitem(comparison.SIZES, "smoke", {"data_options": {"n_train": 40, "n_test": 20, "elsewhere": 1}, "images": 18,
                                                    "draws": 10,
                                                    "k": 3, "keep": 7, "local_steps": 8, "probe": 10,
                                                    "mcmc": {"draws": 12, "chains": 4, "warmup": 10, "keep": 6},
                                                    "evidence": {"chains": 8, "temperatures": 30}, "guide_steps": 4})
    yield
    cells._loaded.cache_clear()


@pytest.fixture
def table_only(monkeypatch):
    """No figures: they have tests of their own, and take most of the time."""
    monkeypatch.setattr(comparison, "write_report", lambda out, rows, budget, *_: write_csv(out / "table.csv", rows))


def table(folder):
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in sorted((folder / "cells").rglob("*")) if path.is_file()}


def test_one_row_for_each_data_model_method_and_seed(tmp_path, unchanged_generator, table_only):
    with unchanged_generator():
        result = compare(models=["gaussian", "poisson"], methods=["amortized", "local", "map"], seeds=[0, 3], out=tmp_path / "c",
                         **TINY)
    rows = table(tmp_path / "c")
    header = list(rows[0])
    assert header[:4] == ["data", "model", "method", "seed"]
    assert header[4:] == [*COLUMNS, *GAP_COLUMNS, *EVIDENCE_COLUMNS, *DISTANCE_COLUMNS]
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in header)
    keys = [(row["data"], row["model"], row["method"], row["seed"]) for row in rows]
    assert sorted(keys) == sorted(("tiny", model, method, seed) for model in ("gaussian", "poisson")
                                  for method in ("amortized", "local", "map") for seed in ("0", "3"))
    assert len(set(keys)) == len(keys) == len(result.rows)
    for row, record in zip(rows, result.records, strict=True):
        for name in header[4:]:
            assert (row[name] == "" and math.isnan(record[name])) or float(row[name]) == record[name]
        assert (row["nelbo"] == "") == (row["method"] == "map")
        assert (row["gap"] == "") == (row["method"] != "amortized")
        if row["method"] != "map":
            assert float(row["gradient_evaluations"]) == {"amortized": 0, "local": 8}[row["method"]]

    for row in result.rows:  # the gap is the paired difference under the same trained model
        if row.record["method"] == "amortized":
            other = next(r for r in result.rows if (r.record["model"], r.record["seed"], r.record["method"]) == (
                row.record["model"], row.record["seed"], "local"))
            paired = other.arrays["elbo"] - row.arrays["elbo"]
            assert other.trained == row.trained and len(paired) == 18
            assert row.record["gap"] == pytest.approx(paired.mean().item())
            assert row.record["gap"] == pytest.approx(other.record["elbo"] - row.record["elbo"], abs=1e-3)
            assert row.record["gap_se"] == pytest.approx(paired.std().item() / math.sqrt(18))

    lines = summarize(result.rows)
    assert len(lines) == 6
    values = [r["distortion"] for r in result.records if (r["model"], r["method"]) == ("poisson", "map")]
    mean, spread = sum(values) / 2, abs(values[0] - values[1]) / math.sqrt(2)
    assert next(line for line in lines if (line["model"], line["method"]) == ("poisson",
                                                                              "map"))["distortion"] == f"{mean:.1f} ± {spread:.1f}"

    assert not [path for path in (tmp_path / "c").rglob(".*")]  # nothing half-written


def test_the_report_links_what_is_there(tmp_path, unchanged_generator):
    with unchanged_generator():
        compare(models=["poisson"], methods=["amortized", "local"], seeds=[0, 3], out=tmp_path / "c", **TINY)
    report = (tmp_path / "c" / "report.md").read_text()
    pictures = re.findall(r"\]\(([^)]+)\)", report)
    assert len(pictures) >= 5 and all((tmp_path / "c" / name).is_file() for name in pictures)
    assert "18 held-out images, seeds 0, 3" in report
    kept = sorted(path.name for path in (tmp_path / "c" / "posteriors").iterdir())
    assert kept == sorted(f"poisson-{method}-seed{seed}.nc" for method in ("amortized", "local") for seed in (0, 3))
    assert not [path for path in (tmp_path / "c").rglob(".*")]


def test_the_frozen_model_and_the_images_are_the_same_for_every_method(tmp_path, table_only):
    result = compare(models=["laplace"], methods=["amortized", "local"], out=tmp_path, **TINY)
    first, second = result.rows
    model, guide, config = inference.load(first.trained)
    assert torch.equal(first.arrays["x"], second.arrays["x"])
    test = tiny(40, 20).test.x[:18]  # only the options that the loader knows are passed on
    assert torch.equal(first.arrays["x"], test[:7]) and len(config["history"]) == 1
    again = inference.score(model, test, inference.infer(model, test, guide=guide, draws=10, seed=0), k=3, seed=0)
    assert again.values["mse"] == pytest.approx(first.record["mse"]) and again.values["kl"] == pytest.approx(first.record["kl"])


def test_a_second_run_is_free_and_a_changed_one_is_new(tmp_path, table_only, monkeypatch):
    settings = {"models": ["poisson"], "methods": ["amortized"], "out": tmp_path} | TINY
    compare(**settings)
    before = stamps(tmp_path)

    def never(*arguments, **options):
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(cells, "fit", never)
        patch.setattr(cells, "infer", never)
        compare(**settings)
    assert stamps(tmp_path) == before
    compare(**settings | {"methods": ["amortized", "map"]})  # one more method: the trained model is used again
    added = set(stamps(tmp_path)) - set(before)
    assert {path.parent.name.split("-")[1] for path in added} == {"map"} and before.items() <= stamps(tmp_path).items()
    folders = len(list((tmp_path / "cells").iterdir()))
    for change in ({"latents": 9}, {"objective": "elbo"}, {"seeds": [1]}, {"encoder": "mlp"}):
        compare(**settings | change)
        now = len(list((tmp_path / "cells").iterdir()))
        assert now == folders + 2  # a training and an inference
        folders = now
    monkeypatch.setitem(comparison.SIZES, "smoke", comparison.SIZES["smoke"] | {"k": 4})
    compare(**settings)
    assert len(list((tmp_path / "cells").iterdir())) == folders + 1  # scored anew, trained before


def test_an_interrupted_comparison_goes_on(tmp_path, table_only, monkeypatch):
    settings = {"models": ["gaussian", "poisson"], "methods": ["amortized", "map"]} | TINY
    whole = compare(out=tmp_path / "whole", **settings)
    calls = []

    def breaks(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inference.infer(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cells, "infer", breaks)
        compare(out=tmp_path / "c", **settings)
    done = stamps(tmp_path / "c")
    assert len({path.parent for path in done}) == 2 and not (tmp_path / "c" / "table.csv").exists()
    result = compare(out=tmp_path / "c", **settings)
    assert done.items() <= stamps(tmp_path / "c").items()
    for ours, theirs in zip(result.records, whole.records, strict=True):
        timeless = [name for name in ours if name not in ("ms_per_image",)]
        assert str([ours[name] for name in timeless]) == str([theirs[name] for name in timeless])


def test_training_that_was_interrupted_goes_on_from_its_checkpoint(tmp_path, table_only, monkeypatch):
    settings = {"models": ["poisson"], "methods": ["map"]} | TINY
    monkeypatch.setitem(BUDGETS, "smoke", BUDGETS["smoke"] | {"log_every": 1, "checkpoint_every": 0.0})
    whole = compare(out=tmp_path / "whole", **settings)

    seen = []

    def stop(what, fraction):
        seen.append(what)
        if seen.count("training poisson") == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(out=tmp_path / "c", **settings | {"progress": stop})
    hidden = list((tmp_path / "c" / "cells").iterdir())
    assert len(hidden) == 1 and hidden[0].name.startswith(".") and len(list(hidden[0].iterdir())) == 1
    result = compare(out=tmp_path / "c", **settings)
    assert result.records[0]["mse"] == whole.records[0]["mse"]
    assert not [path for path in (tmp_path / "c").rglob(".*")]


def test_progress_rises_to_one(tmp_path, table_only):
    seen = []
    compare(models=["gaussian"], methods=["amortized", "map"], out=tmp_path,
            **TINY | {"progress": lambda what, fraction: seen.append((what, fraction))})
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions) and fractions[0] >= 0 and seen[-1] == ("done", 1.0)
    assert {"training gaussian", "gaussian: amortized", "gaussian: map"} <= {what for what, _ in seen}


def saved(folder, name="gaussian", pixels=(1, 8, 8), guide=True, seed=0):
    model = zoo.build(name, pixels, latents=4, seed=seed)
    return inference.save(folder, model, zoo_guide(model) if guide else None)


def zoo_guide(model):
    import guides

    return guides.build("amortized", model)


def test_from_saved_models(tmp_path, table_only):
    folder = saved(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    settings = {"trained": [folder], "methods": ["amortized", "local"], "out": tmp_path / "c"} | FOR_SAVED
    result = compare(**settings)
    assert [(row["model"], row["method"]) for row in result.records] == [("gaussian", "amortized"), ("gaussian", "local")]
    assert all(row.trained == folder for row in result.rows) and result.records[0]["gap"] > 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    first = stamps(tmp_path / "c")
    assert all("fit" not in path.parent.name for path in first)
    saved(folder, seed=1)  # other weights in the same place are another cell
    other = compare(**settings)
    assert other.records[0]["mse"] != result.records[0]["mse"] and len(stamps(tmp_path / "c")) == 2 * len(first)


@pytest.mark.parametrize(("change", "error", "words"), [
    ({"data": "tinny"}, ValueError, "unknown data 'tinny'; known are: patches"),
    ({"models": ["poison"]}, ValueError, "unknown models 'poison'"),
    ({"methods": ["mapp"]}, ValueError, "unknown methods 'mapp'; known are: amortized"),
    ({"budget": "huge"}, ValueError, "unknown budget 'huge'; known are: smoke, default, paper"),
    ({"models": []}, ValueError, "at least one of the models"), ({"methods": []}, ValueError, "at least one of the methods"),
    ({"seeds": []}, ValueError, "at least one of the seeds"), ({"seeds": [1, 1]}, ValueError, "named twice: 1, 1"),
    ({"models": ["laplace", "laplace"]}, ValueError, "named twice"),
    ({"decoder": "cnn"}, ValueError, "unknown decoders 'cnn'; known are: lin"),
    ({"encoder": "cnn"}, ValueError, "unknown encoders 'cnn'"), ({"objective": "exat"}, ValueError, "unknown objectives 'exat'"),
    ({"objective": "exact", "decoder": "mlp"}, ValueError, "needs the decoder 'lin'"),
    ({"latents": 0}, ValueError, "latents must be at least 1"),
    ({"trained": ["nowhere"], "models": None, "latents": None}, FileNotFoundError, "config.json is missing"),
    ({"trained": ["nowhere"], "seeds": [0, 1]}, ValueError, "models, latents, more than one seed cannot be chosen for saved models"),
    ({"device": "cuda"}, ValueError, "sees no GPU"), ({"device": "tpu"}, ValueError, "unknown device 'tpu'")])
def test_bad_requests_are_refused_before_anything_is_written(tmp_path, monkeypatch, change, error, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(error, match=words):
        compare(**{"models": ["gaussian"], "out": tmp_path / "c"} | TINY | change)
    assert list(tmp_path.iterdir()) == []


def test_saved_models_that_do_not_fit_are_refused(tmp_path):
    bare = saved(tmp_path / "bare", guide=False)
    with pytest.raises(ValueError, match="saved without a guide"):
        compare(trained=[bare], out=tmp_path / "c", **FOR_SAVED)
    assert not (tmp_path / "c").exists()
    with pytest.raises(ValueError, match=r"expected images \(N, 1, 4, 4\)"):
        compare(trained=[saved(tmp_path / "small", pixels=(1, 4, 4))], out=tmp_path / "c", **FOR_SAVED)


def test_two_saved_models_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="gaussian, gaussian: compare one of each"):
        compare(trained=[saved(tmp_path / "a"), saved(tmp_path / "b")], out=tmp_path / "c", **FOR_SAVED)


def test_a_cell_is_named_by_all_of_its_description():
    description = {"model": "poisson", "seed": 1, "settings": {"lr": 0.1, "steps": 3}}
    assert cells.digest(description) == cells.digest(json.loads(json.dumps(dict(reversed(description.items())))))
    others = [description | {"seed": 2}, description | {"settings": {"lr": 0.2, "steps": 3}}]
    assert len({cells.digest(other) for other in [description, *others]}) == 3 and len(cells.digest(description)) == 12


def test_recipes_are_options_of_fit():
    import inspect

    accepted = inspect.signature(inference.fit).parameters
    for budget in ("smoke", "default", "paper"):
        for data in ("patches", "mnist", "digits/x"):
            assert set(recipe(budget, data)) <= set(accepted)
    assert recipe("paper", "mnist") != recipe("paper", "patches")
    recipe("default")["steps"] = 1  # a copy
    assert recipe("default")["steps"] != 1


def test_chains_give_evidence_gaps_and_distances(tmp_path):
    methods = ["amortized", "local", "map", "mcmc"]
    result = compare(models=["gaussian", "poisson"], methods=methods, out=tmp_path, **(TINY | {"latents": 4}))
    with (tmp_path / "gaps.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 18 and (tmp_path / "gap.png").exists()
    for row in result.rows:
        record, mine = row.record, [line for line in lines if line["model"] == row.record["model"]]
        evidence = torch.tensor([float(line["log_evidence"]) for line in mine])
        assert record["log_evidence"] == pytest.approx(evidence.mean().item())
        if record["method"] in ("amortized", "local"):
            gap = evidence - row.arrays["elbo"]
            assert record["inference_gap"] == pytest.approx(gap.mean().item(), abs=1e-4)
            assert record["inference_gap_se"] == pytest.approx(gap.std().item() / math.sqrt(18), rel=0.01)
            assert [float(line[f"elbo_{record['method']}"]) for line in mine] == pytest.approx(row.arrays["elbo"].tolist())
        assert math.isnan(record["inference_gap"]) == (record["method"] in ("map", "mcmc"))
        assert math.isnan(record["c2st"]) == (record["method"] == "map") == math.isnan(record["sliced_w2"])
        assert math.isnan(record["rhat"]) == (record["method"] != "mcmc") == math.isnan(record["ess"])
        for line in mine:
            best, reached = float(line["elbo_local"]), float(line["elbo_amortized"])
            assert float(line["approximation_gap"]) == pytest.approx(float(line["log_evidence"]) - best)
            assert float(line["amortization_gap"]) == pytest.approx(best - reached)
    model, _, _ = inference.load(result.rows[0].trained)
    errors = torch.tensor([float(line["log_evidence"]) for line in lines[:18]]) - gaussian_evidence(model, tiny(40, 20).test.x[:18])
    assert (errors.abs() < 5 * torch.tensor([float(line["log_evidence_se"]) for line in lines[:18]]) + 0.02).all()
    compare(models=["gaussian", "poisson"], methods=methods[:2], out=tmp_path, **(TINY | {"latents": 4}))
    assert not (tmp_path / "gaps.csv").exists(), "what this comparison does not have is not left from another"


def test_chains_that_are_stopped_are_no_cell(tmp_path, table_only):
    def stop(what, fraction):
        stop.calls += what == "gaussian: mcmc"
        if stop.calls == 18:  # of 22 moves, of which 10 warm up
            raise KeyboardInterrupt

    stop.calls = 0
    with pytest.raises(KeyboardInterrupt):
        compare(models=["gaussian"], methods=["amortized", "mcmc"], out=tmp_path, **(TINY | {"progress": stop}))
    names = [path.name for path in (tmp_path / "cells").iterdir()]
    assert any("amortized" in name for name in names) and not any("mcmc" in name for name in names)


def gaussian_evidence(model, x):
    """Exact log p(x) of a one-layer Gaussian model with a linear decoder."""
    with torch.no_grad():
        loc, log_scale = model.prior
        weight = model.decoder.weight
        covariance = (weight * (2 * log_scale).exp()) @ weight.T + model.scale.square() * torch.eye(len(weight))
        mean = model.decoder(loc).flatten()
        return torch.distributions.MultivariateNormal(mean, covariance).log_prob(x.flatten(1))


def test_ways_that_infer_in_steps_train_their_guides_once_and_are_followed(tmp_path):
    ways = ["amortized", "local", "iterative", "natural", "semi"]
    settings = {"models": ["poisson"], "out": tmp_path} | TINY
    result = compare(methods=ways, **settings)
    records = {record["method"]: record for record in result.records}
    assert list(records) == ways
    for way in ("amortized", "iterative", "natural", "semi"):
        assert records[way]["gap"] == pytest.approx(records["local"]["elbo"] - records[way]["elbo"], abs=1e-3)
    assert math.isnan(records["local"]["gap"]) and records["semi"]["elbo"] >= records["amortized"]["elbo"] - 1e-4
    trained = list((tmp_path / "cells").glob("poisson-iterative-*/guide.safetensors"))
    assert len(trained) == 1 and (tmp_path / "trajectory_poisson.png").exists()
    for row in result.rows:
        way = read_trajectory(row.inferred)
        assert way.elbo.shape == (len(way.step), 7) and way.step[0] == 0
        assert len(way) == {"amortized": 1, "local": 8, "iterative": 8, "natural": 100, "semi": 8}[row.record["method"]]
        if row.record["method"] != "local":  # which is drawn from after its last step, and followed before it, too
            torch.testing.assert_close(way.elbo[-1], row.arrays["elbo"][:7], atol=1e-3, rtol=1e-5)
    before = stamps(tmp_path)
    compare(methods=ways, **settings)
    assert stamps(tmp_path) == before


def test_a_guide_of_its_own_is_trained_for_real_latents_and_refused_for_others(tmp_path, table_only):
    settings = {"methods": ["amortized", "flow", "full"], "out": tmp_path / "real"} | TINY
    records = {record["method"]: record for record in compare(models=["laplace"], **settings).records}
    assert all(math.isfinite(records[way]["elbo"]) for way in ("flow", "full"))
    with pytest.raises(ValueError, match="'flow' does not fit the model 'poisson': .*is a count; methods that fit it: amortized"):
        compare(models=["laplace", "poisson"], **settings | {"out": tmp_path / "counts"})
    assert not (tmp_path / "counts").exists(), "refused before anything was trained"


def test_models_by_name_are_compared_beside_families(tmp_path, table_only):
    comparison = compare(models=("predictive_coding", "gaussian"), methods=("amortized", "map"), out=tmp_path,
                         **TINY | {"latents": None})
    keys = [(row["model"], row["method"]) for row in comparison.records]
    assert keys == [(model, method) for model in ("predictive_coding", "gaussian") for method in ("amortized", "map")]
    latents = [inference.load(folder)[0].latents for folder in sorted((tmp_path / "cells").glob("*-fit-*"))]
    assert [[units for _, units in told.values()] for told in latents] == [[64], [16, 64]], "its own numbers of units, not the families'"
    with pytest.raises(ValueError, match="'predictive_coding' has no option decoder; it accepts: event_shape, levels"):
        compare(models=("predictive_coding",), decoder="mlp", out=tmp_path, **TINY | {"latents": None})
