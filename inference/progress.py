"""Live progress on the terminal, with the time that is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["bar", "training_bar"]


def bar() -> Progress:
    """A progress display on standard error: what is done, how much of it, time gone and left."""
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
                    TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True))


@contextmanager
def training_bar(steps: int) -> Iterator[Callable[[int, int, dict], None]]:
    """A bar over the steps of one training run; yields what to call with (step, steps, row)."""
    with bar() as display:
        task = display.add_task("training", total=steps, note="")

        def report(step: int, steps: int, row: dict) -> None:
            display.update(task, completed=step, note=f"elbo {row['elbo']:.1f} nats")

        yield report
