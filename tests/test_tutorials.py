"""The tutorials run from start to end, and are committed as they ran: with their pictures, in order, and tied to no machine."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "tutorials").glob("*.ipynb"))
BYTES = 1_800_000  # largest notebook that is kept under version control
MACHINE = re.compile(r"/(home|root|tmp|usr|opt|var|mnt|work|Users)/|[A-Z]:\\|site-packages|://(localhost|\d+\.\d+\.\d+\.\d+)")

each = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Executes a notebook in a kernel of its own, in an empty folder, with nothing of the user's settings; returns it executed."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    folder = tmp_path / "folder"
    folder.mkdir()

    def execute(notebook):
        client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
        client.execute()
        assert not list(folder.iterdir()), "a tutorial leaves files behind"
        return notebook

    return execute


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook, kind):
    return [output for cell in code_cells(notebook) for output in cell.outputs if output.output_type == kind]


def pictures(notebook):
    """Position of the cell of every picture."""
    return [i for i, cell in enumerate(notebook.cells) for output in cell.get("outputs", [])
            if "image/png" in output.get("data", {})]


def texts(notebook):
    """All that a reader sees as text: sources, printed lines, results that are no pictures."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            yield from (value for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


def test_there_is_a_tutorial():
    assert TUTORIALS


@each
def test_a_tutorial_runs_and_draws_what_the_committed_one_shows(path, run):
    committed = nbformat.read(path, as_version=4)
    executed = run(nbformat.read(path, as_version=4))  # an error in a cell, and so a failed check, is raised
    assert not outputs(executed, "error")
    assert pictures(executed) == pictures(committed)


@each
def test_a_tutorial_is_committed_as_it_ran(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert pictures(notebook)
    assert not outputs(notebook, "error")
    assert not [output for output in outputs(notebook, "stream") if output.name == "stderr"]
    assert path.stat().st_size < BYTES


@each
def test_a_tutorial_checks_what_it_says(path):
    """Cells tagged "check" assert the results that the prose rests on, in the reader's sight."""
    notebook = nbformat.read(path, as_version=4)
    tagged = [cell for cell in code_cells(notebook) if "check" in cell.metadata.get("tags", [])]
    assert tagged
    for cell in code_cells(notebook):
        assert ("assert " in cell.source) == (cell in tagged), cell.source


@each
def test_a_tutorial_names_no_machine(path):
    notebook = nbformat.read(path, as_version=4)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert set(notebook.metadata.language_info) == {"name"}
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}, "metadata of the editor or of the run"
    named = [found.group() for text in texts(notebook) for found in MACHINE.finditer(text)]
    assert not named


def test_a_check_that_fails_is_noticed(run):
    cell = nbformat.v4.new_code_cell("assert 1 > 2, 'the claim'")
    with pytest.raises(CellExecutionError, match="the claim"):
        run(nbformat.v4.new_notebook(cells=[cell]))
