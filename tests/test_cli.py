"""The command ``zoo``: what it says, what it leaves, and one line for what goes wrong."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import inference
import zoo
from inference import cells, comparison
from inference.cli import app
from inference.recipes import BUDGETS
from inference.table import write_csv
from zoo.data import Data, Dataset

HERE = Path(__file__).parent


def tiny(n_train=60, n_test=20, seed=0):
    """Noise on an 8 × 8 grid."""
    x = torch.randn(n_train + n_test, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Dataset("tiny", Data(x[:n_train]), Data(x[n_train:]), "noise")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """A tiny data set, and a smoke budget of few steps and images."""
    cells._loaded.cache_clear()
    for registry in (zoo.data.registry, zoo.latents.registry):
        registry._find_plugins()
        monkeypatch.setattr(registry, "_targets", dict(registry._targets))
        monkeypatch.setattr(registry, "_lines", dict(registry._lines))
    zoo.data.registry._targets["tiny"] = tiny
    zoo.data.registry._lines["tiny"] = "noise"
    monkeypatch.setitem(BUDGETS, "smoke", {"steps": 6, "batch_size": 20, "lr": 1e-2, "warmup": 0.0})
    monkeypatch.setitem(comparison.SIZES, "smoke", comparison.SIZES["smoke"] | {
        "data_options": {"n_train": 40, "n_test": 20}, "images": 18, "draws": 2, "k": 3,
                                                    "keep": 7, "local_steps": 5, "probe": 10})
    yield
    cells._loaded.cache_clear()


@pytest.fixture
def table_only(monkeypatch):
    """No figures, which take most of the time."""
    monkeypatch.setattr(comparison, "write_report", lambda out, rows, budget, *_: write_csv(out / "table.csv", rows))


def zoo_command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(result, words):
    """One line on standard error, exit code 2."""
    lines = result.stderr.strip().splitlines()
    return result.exit_code == 2 and result.stdout == "" and len(lines) == 1 and lines[0].startswith("zoo: ") and words in lines[0]


def test_list_names_everything():
    import guides
    from inference.methods import registry as methods
    from zoo import data, flows, latents, models, networks

    result = zoo_command("list")
    assert result.exit_code == 0
    listed = {line.split()[0]: line.strip() for line in result.stdout.splitlines() if line.startswith("  ")}
    for registry in (latents.registry, models.registry, guides.registry, methods, networks.encoders, networks.decoders,
                     flows.registry, data.registry):
        for name, line in registry.lines().items():
            assert name in listed and line
    assert "spike counts, Poisson prior with learned rates" in result.stdout


@pytest.mark.parametrize("words", [["--help"], ["list"], ["compare", "--help"], ["fit", "-h"]])
def test_looking_around_imports_nothing_heavy(words):
    code = ("import sys\nfrom inference.cli import app\ntry:\n    app(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
            "print([name for name in ('torch', 'pyro', 'arviz', 'matplotlib', 'numpy', 'sklearn') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, cwd=HERE.parent)
    assert done.stdout.strip().splitlines()[-1] == "[]" and len(done.stdout.splitlines()) > 10


def test_fit_saves_a_model_that_compare_takes(tmp_path):
    out = tmp_path / "model"
    result = zoo_command("fit", "poisson", "--out", out, "--data", "tiny", "--latents", 5, "--budget", "smoke", "--epochs", 2,
                         "--seed", 3,
                         "--device", "cpu", "--quiet")
    assert result.exit_code == 0 and "nats per image after 6 steps" in result.stdout, result.output
    model, guide, config = inference.load(out)
    assert model.units == 5 and guide is not None and config["description"]["data"] == "tiny" and config["history"][-1]["step"] == 6
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "guide.safetensors", "model.safetensors"]
    weights = (out / "model.safetensors").read_bytes()
    result = zoo_command("fit", "poisson", "--out", out, "--data", "tiny", "--latents", 5, "--budget", "smoke", "--epochs", 2,
                         "--seed", 3,
                         "--device", "cpu", "--quiet")
    assert result.exit_code == 0 and (out / "model.safetensors").read_bytes() == weights  # the same again

    result = zoo_command("compare", "--data", "tiny", "--from", out, "--methods", "map, amortized", "--budget", "smoke",
                         "--device", "cpu",
                         "--out", tmp_path / "c", "--quiet")
    assert result.exit_code == 0, result.output
    for words in ("tiny: 18 held-out images", "poisson", "amortized", "map", "report.md", "lower is better"):
        assert words in result.stdout
    with (tmp_path / "c" / "table.csv").open() as file:
        assert [(row["model"], row["method"]) for row in csv.DictReader(file)] == [("poisson", "map"), ("poisson", "amortized")]
    assert (tmp_path / "c" / "report.md").is_file()


def test_a_prior_of_ones_own_is_compared(tmp_path, monkeypatch, table_only):
    monkeypatch.delitem(sys.modules, "my_prior", raising=False)
    plugin = HERE / "my_prior.py"
    listed = zoo_command("list", "--plugin", plugin)
    assert listed.exit_code == 0 and "negative_binomial" in listed.stdout
    result = zoo_command("compare", "--plugin", plugin, "--data", "tiny", "--models", "negative_binomial", "--methods",
                         "amortized,local,map", "--latents", 6, "--budget", "smoke", "--device", "cpu", "--out", tmp_path,
                         "--quiet")
    assert result.exit_code == 0, result.output
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["amortized", "local",
                                               "map"] and {row["model"] for row in rows} == {"negative_binomial"}
    assert all(float(row["mse"]) > 0 for row in rows) and float(rows[0]["nelbo"]) > 0


def test_a_changed_prior_is_another_cell(tmp_path, table_only):
    plugin = tmp_path / "wide.py"
    arguments = ["compare", "--plugin", plugin, "--data", "tiny", "--models", "wide", "--methods", "amortized", "--latents", 4,
                 "--budget", "smoke", "--device", "cpu", "--out", tmp_path / "c", "--quiet"]
    counts = []
    for scale in (2.0, 2.0, 3.0):
        zoo.latents.registry._targets.pop("wide", None)
        plugin.write_text(
            "import torch\nimport zoo\nfrom zoo.latents.gaussian import Gaussian\n\n\n@zoo.latents.register('wide', 'a wider prior')\n"
            f"class Wide(Gaussian):\n    def initial_prior(self, units):\n        return torch.full((2, units), {scale})\n")
        result = zoo_command(*arguments)
        assert result.exit_code == 0, result.output
        counts.append(len(list((tmp_path / "c" / "cells").iterdir())))
    assert counts == [2, 2, 4]


@pytest.mark.parametrize(("words", "message"), [
    (["--data", "tinny"], "unknown data 'tinny'; known are: patches"),
    (["--models", "poisson,poison"], "unknown models 'poison'; known are: gaussian"),
    (["--methods", "nuts"], "unknown methods 'nuts'"), (["--budget", "huge"], "unknown budget 'huge'"),
    (["--seeds", "1,a"], "seeds must be whole numbers separated by commas, not '1,a'"), (["--seeds", "0,0"], "named twice"),
    (["--seeds", ","], "at least one of the seeds"), (["--device", "cuda"], "PyTorch sees no GPU here; use device 'cpu'"),
    (["--encoder", "cnn"], "unknown encoders 'cnn'"), (["--decoder", "cnn"], "unknown decoders 'cnn'"), (["--latents", "0"],
                                                                                                         "at least 1"),
    (["--objective", "exat"], "unknown objectives 'exat'"), (["--from", "nowhere"], "config.json is missing"),
    (["--plugin", "missing.py"], "no plugin file missing.py")])
def test_bad_requests_get_one_line_and_leave_nothing(tmp_path, monkeypatch, words, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = zoo_command("compare", "--data", "tiny", "--budget", "smoke", "--out", tmp_path / "c", "--quiet", *words)
    assert refused(result, message), result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("words", "message"), [
    (["poison"], "unknown model 'poison'; known are: gaussian"), (["poisson", "--data", "tinny"], "unknown data 'tinny'"),
    (["poisson", "--decoder", "mlp", "--objective", "exact"], "linear decoder"),
    (["poisson", "--objective", "exat"], "unknown objective 'exat'"),
    (["poisson", "--budget", "huge"], "unknown budget"), (["poisson", "--device", "cuda"], "sees no GPU"),
    (["poisson", "--epochs", "0"], "at least one step"), (["poisson", "--latents", "-1"], "latents must be at least 1")])
def test_bad_trainings_get_one_line_and_leave_nothing(tmp_path, monkeypatch, words, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = zoo_command("fit", "--data", "tiny", "--budget", "smoke", "--out", tmp_path / "m", "--quiet", *words)
    assert refused(result, message), result.output
    assert list(tmp_path.iterdir()) == []


def test_fit_never_replaces_a_folder_with_other_things(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = zoo_command("fit", "poisson", "--data", "tiny", "--budget", "smoke", "--out", tmp_path, "--quiet")
    assert refused(result, "holds notes.txt") and [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_ctrl_c_says_that_work_is_kept(tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cells, "infer", stop)
    arguments = ["compare", "--data", "tiny", "--models", "gaussian", "--methods", "map", "--budget", "smoke", "--latents", 4,
                 "--device", "cpu", "--out", tmp_path, "--quiet"]
    result = zoo_command(*arguments)
    assert result.exit_code == 130 and "what was finished is kept" in result.stderr
    assert len(list((tmp_path / "cells").iterdir())) == 1


def test_a_damaged_plugin_or_an_occupied_name_gets_one_line(tmp_path):
    taken = tmp_path / "taken.py"
    taken.write_text("import zoo\n\n\n@zoo.latents.register('poisson', 'mine')\nclass Mine(zoo.latents.Family):\n    pass\n")
    assert refused(zoo_command("list", "--plugin", taken), "'poisson' is already taken")


def test_a_plugin_that_is_no_python_or_does_not_run_gets_one_line(tmp_path):
    notes, broken = tmp_path / "notes.md", tmp_path / "broken.py"
    notes.write_text("# notes")
    broken.write_text("import no_such_module_at_all")
    assert refused(zoo_command("list", "--plugin", notes), "is not a Python file")
    assert refused(zoo_command("list", "--plugin", broken), "does not run: ModuleNotFoundError")
