"""The figure of ``untangling.py``: what is read out of each model, cause by cause, before and after its training.

    python benchmarks/untangling_figure.py [--names untangling_flat untangling_hierarchy]
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from record import RESULTS, recorded

from inference.plots import plot_decodability

CODES = {"r2": "means", "r2_drawn": "one draw"}


def rows(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """``{label: {cause: R²}}``, means over seeds."""
    models = dict.fromkeys(run["model"] for run in runs)
    return {f"{model} · {title}, {when}": mean([run[when]["by_cause"][code] for run in runs if run["model"] == model])
            for code, title in CODES.items() for model in models for when in ("untrained", "trained")}


def mean(found: list[dict[str, float]]) -> dict[str, float]:
    return {cause: statistics.mean(each[cause] for each in found) for cause in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=["untangling_flat", "untangling_hierarchy"], help="files of results")
    options = parser.parse_args()
    runs = [run for name in options.names for run in recorded(name, "runs")]
    figure = plot_decodability(rows(runs), title="What training adds: in cnvae_s, where the disc is and how it moves")
    figure.savefig(RESULTS / "untangling.png", dpi=150)


if __name__ == "__main__":
    main()
