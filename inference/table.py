"""The table of a comparison: one row per (data, model, method, seed) in CSV, means and spread over seeds on the terminal."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from inference.cells import read_fit, read_scores
from inference.gaps import DISTANCE_COLUMNS, EVIDENCE_COLUMNS, distance_scores, evidence_scores
from inference.metrics.scores import COLUMNS
from zoo.files import atomic_file

__all__ = ["GAP_COLUMNS", "KEYS", "Row", "gather", "shown", "summarize", "write_csv", "write_decodability"]

KEYS = ("data", "model", "method", "seed")
GAP_COLUMNS = {
    "gap": "elbo of 'local' minus elbo of this row on the same images, nats per image: for 'amortized' the amortization gap",
    "gap_se": "standard error of gap over images",
}
SHOWN = {"nelbo": ".1f", "gap": ".2f", "inference_gap": ".2f", "c2st": ".2f", "rhat": ".2f", "distortion": ".1f", "kl": ".1f",
         "log_px_bound": ".1f", "decodability": ".3f", "lifetime_sparsity": ".3f", "zeros": ".3f", "active": ".3f", "ms_per_image": ".2f"}


@dataclass
class Row:
    """One cell's result: the record of ``table.csv`` and what the figures draw."""

    record: dict[str, Any]
    arrays: dict[str, Tensor]
    trained: Path
    inferred: Path
    decodability: dict[str, float]


def gather(cells: Sequence[tuple[Path, Path]], evidence: Mapping[tuple[Path, int], Path], distances: Mapping[Path, Path]) -> list[Row]:
    """Reads inference cells, given as (folder of the trained model, folder of the inference), and pairs them for the gap.

    Arguments:
        evidence: Folder of the evidence cell of (trained model's folder, seed), where there is one.
        distances: Folder of the distance cell of an inference's folder, where there is one.
    """
    rows = []
    for trained, inferred in cells:
        result, arrays = read_scores(inferred)
        described = result["description"]
        record = {"data": described["data"], "model": read_fit(trained)["model"]["name"], "method": described["method"],
                  "seed": described["seed"], **result["scores"], "gap": math.nan, "gap_se": math.nan}
        record |= dict.fromkeys([*EVIDENCE_COLUMNS, *DISTANCE_COLUMNS], math.nan)
        if (trained, described["seed"]) in evidence:
            record |= evidence_scores(evidence[trained, described["seed"]], arrays["elbo"])
        if inferred in distances:
            record |= distance_scores(distances[inferred])
        rows.append(Row(record, arrays, trained, inferred, result["decodability"]))
    for row in rows:
        if row.record["method"] not in ("local", "mcmc") and row.arrays["elbo"].isfinite().all():
            for other in rows:
                if other.record["method"] == "local" and other.trained == row.trained and other.record["seed"] == row.record["seed"]:
                    gap = other.arrays["elbo"] - row.arrays["elbo"]
                    row.record |= {"gap": gap.mean().item(), "gap_se": (gap.std() / math.sqrt(len(gap))).item()}
    return rows


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Writes ``table.csv``: the keys, then the metrics; an empty field where a method has no such number."""
    columns = [*KEYS, *COLUMNS, *GAP_COLUMNS, *EVIDENCE_COLUMNS, *DISTANCE_COLUMNS]
    with atomic_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: "" if _missing(row.record[name]) else row.record[name] for name in columns})


def write_decodability(path: Path, rows: Sequence[Row], references: Mapping[str, Mapping[str, float]]) -> None:
    """Writes ``decodability.csv``: R² of each factor, a line for each row of the table, and for each reference (its name as the model)."""
    lines = [{"data": rows[0].record["data"], "model": name} | scores for name, scores in references.items()]
    lines += [{key: row.record[key] for key in KEYS} | row.decodability for row in rows if row.decodability]
    with atomic_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*KEYS, *next(row.decodability for row in rows if row.decodability)])
        writer.writeheader()
        writer.writerows(lines)


def summarize(rows: Sequence[Row]) -> list[dict[str, str]]:
    """One line per (data, model, method) for people: mean ± standard deviation over seeds, ``–`` where there is no number."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row.record[key] for key in KEYS[:3]), []).append(row.record)
    lines = []
    for key, records in groups.items():
        line = dict(zip(KEYS[:3], map(str, key), strict=True))
        for name, form in SHOWN.items():
            line[name] = _mean_and_spread([record[name] for record in records if not _missing(record[name])], form)
        lines.append(line)
    return lines


def shown(rows: Sequence[Row], budget: str) -> Any:
    """The summary as a rich table, with what the numbers mean below it."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    lines = summarize(rows)
    table = Table(title=f"{rows[0].record['data']}: {len(rows[0].arrays['mse'])} held-out images, budget {budget}", box=SIMPLE_HEAD,
                  caption="\n".join(f"{name}: {definition(name)}" for name in SHOWN), caption_justify="left", pad_edge=False,
                  title_justify="left", padding=0, show_edge=False)
    for name in [*KEYS[1:3], *SHOWN]:
        table.add_column("\n".join(name.rsplit("_", 1)), justify="left" if name in KEYS else "right", no_wrap=True)
    for line in lines:
        table.add_row(*(line[name] for name in [*KEYS[1:3], *SHOWN]))
    return table


def definition(name: str) -> str:
    """What a column means."""
    return (COLUMNS | GAP_COLUMNS | EVIDENCE_COLUMNS | DISTANCE_COLUMNS)[name]


def _mean_and_spread(values: list[float], form: str) -> str:
    if not values:
        return "–"
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:{form}}"
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{mean:{form}} ± {spread:{form}}"


def _missing(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
