"""Writes a benchmark's numbers with all that is needed to make them again: command, commit, machine, versions, seed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def _commit() -> str:
    here = Path(__file__).parent
    try:
        commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=here, text=True).strip()
        dirty = subprocess.check_output(["git", "status", "--porcelain", "--untracked-files=no"], cwd=here, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if dirty.strip() else "")


STARTED_FROM = _commit()  # before a long run, during which the checkout may move on


def _machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu,
            "python": platform.python_version(), "torch": torch.__version__}


def _portable(argument: str) -> str:
    """The argument; of an absolute path its last part, as the rest is of this machine alone."""
    return Path(argument).name if os.path.isabs(argument) else argument


def recorded(name: str, rows: str) -> list[dict[str, Any]]:
    """The list ``rows`` among the results in ``benchmarks/results/<name>.json``; empty where there is no such file yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["results"][rows] if path.exists() else []


def record(name: str, results: Any, *, seed: int | None = None, notes: str = "") -> Path:
    """Writes ``benchmarks/results/<name>.json`` and prints the results.

    Arguments:
        name: File name without ending.
        results: Anything JSON holds; numbers carry their unit in the key.
        seed: The seed that made them, if any.
        notes: What a reader must know to read the numbers right.
    """
    report = {
        "command": " ".join(["python", os.path.relpath(sys.argv[0], RESULTS.parent.parent), *map(_portable, sys.argv[1:])]),
        "commit": STARTED_FROM, "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "machine": _machine(),
        "seed": seed, "notes": notes, "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=2) + "\n")
    temporary.replace(path)
    print(json.dumps(report["results"], indent=2))
    return path
