"""Names for families, models, guides, methods and data sets, resolved only when asked for.

An entry is a name, one line about it, and where it lives (``"package.module:attribute"``), so that listing names imports
nothing heavy. An installed package adds entries through an entry-point group ``perception_zoo.<kind>``; a file adds them by
calling :meth:`Registry.register` when it is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

__all__ = ["Registry"]


class Registry(Mapping):
    """A read-only mapping from a name to the object registered under it.

    Arguments:
        kind: What the entries are, in the plural (``"latents"``); also names the entry-point group.
        entries: ``{name: (target, line)}`` with ``target`` as ``"package.module:attribute"``.
    """

    def __init__(self, kind: str, entries: dict[str, tuple[str, str]]) -> None:
        self.kind = kind
        self._lines = {name: line for name, (_, line) in entries.items()}
        self._targets: dict[str, Any] = {name: target for name, (target, _) in entries.items()}
        self._searched = False

    def register(self, name: str, line: str) -> Callable[[Any], Any]:
        """Decorator that files an object under ``name``; ``line`` says in one sentence what it is.

        Raises:
            ValueError: if the name is taken by another object.
        """

        def file(thing: Any) -> Any:
            self._find_plugins()
            taken = self._targets.get(name)
            if taken is not None and not _same(taken, thing):
                raise ValueError(f"{self.kind}: the name {name!r} is already taken; choose another one")
            self._targets[name] = thing
            self._lines[name] = line
            return thing

        return file

    def lines(self) -> dict[str, str]:
        """``{name: one line about it}``, without importing what the names stand for."""
        self._find_plugins()
        return dict(self._lines)

    def __getitem__(self, name: str) -> Any:
        self._find_plugins()
        if name not in self._targets:
            raise ValueError(f"unknown {self.kind} {name!r}; known are: {', '.join(self._targets)}")
        target = self._targets[name]
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = self._targets[name] = getattr(import_module(module), attribute)
        return target

    def __contains__(self, name: object) -> bool:
        self._find_plugins()
        return name in self._targets

    def __iter__(self) -> Iterator[str]:
        self._find_plugins()
        return iter(self._targets)

    def __len__(self) -> int:
        self._find_plugins()
        return len(self._targets)

    def _find_plugins(self) -> None:
        if self._searched:
            return
        self._searched = True
        for point in entry_points(group=f"perception_zoo.{self.kind}"):
            if point.name not in self._targets:
                self._targets[point.name] = point.value
                self._lines[point.name] = f"from the package {point.dist.name if point.dist else point.module}"


def _same(taken: Any, thing: Any) -> bool:
    """Whether both are the same definition (a module that is imported twice registers its objects twice)."""
    where = taken if isinstance(taken, str) else f"{taken.__module__}:{taken.__qualname__}"
    return where == f"{thing.__module__}:{thing.__qualname__}"
