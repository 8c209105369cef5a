"""Reading the rows of a comparison's table: which cells there are, and a number's mean and spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Spread", "cells", "number", "require", "unique"]


class Spread(NamedTuple):
    """Mean, standard deviation (0 for one seed) and count of a number over seeds."""

    mean: float
    sd: float
    count: int


def require(records: Sequence[Mapping[str, Any]], *columns: str) -> None:
    """Raises ValueError unless there are records and each has the columns."""
    if not records:
        raise ValueError("there are no records to plot")
    for index, record in enumerate(records):
        missing = [name for name in columns if name not in record]
        if missing:
            raise ValueError(f"record {index} lacks {', '.join(missing)}; it has: {', '.join(map(str, record))}")


def unique(records: Iterable[Mapping[str, Any]], column: str) -> list[str]:
    """The values of a column in order of first appearance."""
    return list(dict.fromkeys(str(record[column]) for record in records))


def number(record: Mapping[str, Any], column: str) -> float:
    """The number in a column; NaN where it is absent, empty or None."""
    value = record.get(column)
    return math.nan if value is None or value == "" else float(value)


def spread(values: Iterable[float]) -> Spread:
    """Over the finite values."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return Spread(math.nan, math.nan, 0)
    mean = math.fsum(values) / len(values)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)) if len(values) > 1 else 0.0
    return Spread(mean, sd, len(values))


def cells(records: Sequence[Mapping[str, Any]], *columns: str) -> dict[tuple[str, str], dict[str, Spread]]:
    """``{(model, method): {column: spread over seeds}}``, in order of first appearance; without cells that lack a number."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault((str(record["model"]), str(record["method"])), []).append(record)
    result = {}
    for key, rows in groups.items():
        whole = [row for row in rows if all(math.isfinite(number(row, column)) for column in columns)]
        if whole:
            result[key] = {column: spread(number(row, column) for row in whole) for column in columns}
    return result
