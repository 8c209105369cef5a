"""A report while it is being made: its text, its figures, its tables, and how they become a folder."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from inference.plots.style import save
from zoo.files import atomic_folder

__all__ = ["Draft", "check_free"]

REPORT = "report.md"


@dataclass
class Draft:
    """Text by section, and figures and tables by file name."""

    parts: list[str] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    tables: dict[str, list[list[Any]]] = field(default_factory=dict)

    def section(self, title: str, text: str, name: str | None = None, figure: Figure | None = None) -> None:
        """Adds a section, with a figure to be stored as ``name.png``."""
        self.parts += [f"## {title}", ""]
        if figure is not None:
            self.figures[f"{name}.png"] = figure
            self.parts += [f"![{title}]({name}.png)", ""]
        self.parts += [text, ""]

    def write(self, out: Path) -> None:
        """Writes the folder, whole or not at all; an older one is replaced."""
        with atomic_folder(out) as folder:
            for name, figure in self.figures.items():
                save(figure, folder / name)
            for name, rows in self.tables.items():
                with (folder / name).open("w", newline="") as file:
                    csv.writer(file).writerows(rows)
            (folder / REPORT).write_text("\n".join(self.parts))


def check_free(out: Path) -> None:
    """Raises ``ValueError`` if the folder holds anything but a report that :meth:`Draft.write` has written."""
    if out.is_file():
        raise ValueError(f"{out} is a file; a page is written into a folder")
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    others = [name for name in names if name != REPORT and not name.endswith((".png", ".csv"))]
    if names and (others or REPORT not in names):
        raise ValueError(f"the folder {out} holds {', '.join((others or names)[:3])}, which is not part of a page; "
                         "choose an empty or a new folder")
