"""Live progress on the terminal, with the time that is left."""

from __future__ import annotations

import math
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
from torch import Tensor

__all__ = ["bar", "count_bar", "sampling_bar", "silent", "training_bar", "work_bar"]


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
            name = "elbo" if row["elbo"] == row["elbo"] else "log_joint"  # training on chains has no bound
            display.update(task, completed=step, note=f"{name} {row.get(name, float('nan')):.1f} nats")

        yield report


@contextmanager
def sampling_bar() -> Iterator[Callable[[int, int, Tensor, float], None]]:
    """A bar over the transitions of Markov chains; yields what to call with (transition, transitions, acceptance ``(N,)``, R-hat)."""
    with bar() as display:
        task = display.add_task("sampling", total=None, note="")
        smooth = 0.0

        def report(done: int, total: int, chance: Tensor, rhat: float) -> None:
            nonlocal smooth
            smooth = smooth + (chance.mean() - smooth) / min(done, 20)
            if done % max(total // 200, 1) == 0 or done == total:
                seen = "" if math.isnan(rhat) else f", R-hat {rhat:.3f} (90 % of images)"
                display.update(task, completed=done, total=total, note=f"accepted {float(smooth):.2f}{seen}")

        yield report


@contextmanager
def work_bar() -> Iterator[Callable[[str, float], None]]:
    """A bar over a whole comparison; yields what to call with (what is being done, fraction of the work done)."""
    columns = (TextColumn("{task.description:<24}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False))
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=60) as display:
        task = display.add_task("starting", total=1.0)

        def show(what: str, fraction: float) -> None:
            display.update(task, description=what, completed=fraction)

        yield show


@contextmanager
def count_bar(what: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar that counts; yields what to call with (done, total). Nothing is shown if ``quiet``."""
    if quiet:
        yield lambda done, total: None
        return
    with bar() as display:
        task = display.add_task(what, total=None, note="")
        yield lambda done, total: display.update(task, completed=done, total=total)


@contextmanager
def silent(show: Callable[[str, float], None]) -> Iterator[Callable[[str, float], None]]:
    """No bar: passes on to ``show``."""
    yield show
