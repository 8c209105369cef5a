"""The README says what is so: its two lines are there, its example prior is the tested file, its names exist."""

import re
from pathlib import Path

import pytest

import zoo
from guides import registry as guides
from inference.methods import registry as methods
from inference.methods.mcmc import SAMPLERS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_two_lines_stand_below_their_markers():
    for marker in ("compare", "test"):
        assert re.search(rf"<!-- {marker} -->\n```bash\n[^\n]+\n```", README), marker


def test_the_example_prior_is_the_file_that_is_tested():
    assert any(block == (ROOT / "tests" / "my_prior.py").read_text() for block in blocks("python"))


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md"])
def test_files_that_pages_link_exist(page):
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / link).exists(), link


def test_every_row_of_the_benchmarks_names_its_results_and_every_result_is_named():
    results = ROOT / "benchmarks" / "results"
    page = (ROOT / "benchmarks" / "README.md").read_text()
    named = set()
    for row in re.findall(r"^\| .* \|$", page, flags=re.MULTILINE):
        if len(row.split("|")) == 5 and not row.startswith(("| what", "|---")):  # rows of numbers: what, measured, where
            patterns = re.findall(r"`([\w.*-]+\.json)`", row.split("|")[3])
            assert patterns, row
            for pattern in patterns:
                assert any(results.glob(pattern)), pattern
    for pattern in re.findall(r"`([\w.*-]+\.json)`", page):
        named.update(results.glob(pattern))
    assert set(results.glob("*.json")) == named


def test_its_python_example_runs_on_a_small_budget(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = next(block for block in blocks("python") if "inference.fit(" in block)
    small = code.replace('load("patches")', 'load("patches", n_train=500, n_test=20)').replace("steps=4000", "steps=3")
    small = small.replace("latents=512", "latents=16").replace("lr=1e-2)", "lr=1e-2, progress=False)")
    assert small.count("\n") == code.count("\n") and "steps=3" in small
    names = {}
    exec(compile(small, "README.md", "exec"), names)
    chains = next(block for block in blocks("python") if "ais(" in block)
    few = chains.replace("draws=200", "draws=6").replace("warmup=100", "warmup=2").replace("temperatures=100", "temperatures=3")
    assert few.count("x[:20]") == 3 and "draws=6" in few and "temperatures=3" in few
    exec(compile(few, "README.md", "exec"), names)
    assert (tmp_path / "posterior.nc").stat().st_size > 0
    exec(compile(next(block for block in blocks("python") if "path_of(" in block).replace("x[:50]", "x[:5]"), "README.md", "exec"), names)
    assert set(names["ways"]) == {"amortized", "local", "natural", "semi"}


def test_its_optic_flow_example_runs():
    code = next(block for block in blocks("python") if "rofl.World(" in block)
    assert "starts=16)" in code
    exec(compile(code.replace("starts=16)", "starts=2, steps=5)"), "README.md", "exec"), {})


def test_every_name_in_its_tables_is_registered():
    known = {*zoo.latents.registry, *zoo.models.registry, *methods, *guides, *SAMPLERS}
    for names in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ", README, flags=re.MULTILINE):
        assert not {name for name in re.findall(r"`(\w+)`", names)} - known, names
    for data in ("patches", "digits", "mnist", "van_hateren", "olshausen", "omniglot", "rofl"):
        assert data in zoo.data.registry and re.search(f"`{data}[`/]", README)


def test_its_example_of_a_hierarchy_runs(capsys):
    code = next(block for block in blocks("python") if "group_kl(" in block)
    small = code.replace("n_validation=1000, n_test=200", "n_validation=1, n_test=3").replace("steps=20,", "steps=2, progress=False,")
    small = small.replace("n_train=1000", "n_train=100, cache=False")
    assert small.count("steps=2,") == 1 and "n_test=3" in small and "cache=False" in small
    exec(compile(small, "README.md", "exec"), {name: __import__(name) for name in ("zoo", "guides", "inference")})
    assert "tensor(" in capsys.readouterr().out


def test_its_example_of_predictive_coding_runs(capsys):
    code = next(block for block in blocks("python") if "settling(" in block)
    small = code.replace("steps=200, batch_size=100", "steps=2, batch_size=100, progress=False").replace('"steps": 20', '"steps": 2')
    small = small.replace("[:50]", "[:4]").replace("steps=100", "steps=3")
    small = small.replace('start="map")', 'start="map", draws=4, warmup=4, chains=2)')
    assert small.count("steps=3") == 2 and "draws=4" in small and "progress=False" in small and "[:4]" in small
    exec(compile(small, "README.md", "exec"), {name: __import__(name) for name in ("zoo", "inference")})
    assert "maps.0.weight" in capsys.readouterr().out
