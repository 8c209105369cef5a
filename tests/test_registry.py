"""Names: unknown ones are answered with those that exist, packages add theirs by entry points, nobody takes another's."""

from importlib.metadata import EntryPoint

import pytest

import zoo.registry
from zoo.registry import Registry


def small() -> Registry:
    return Registry("numbers", {"pi": ("math:pi", "the circle's")})


def test_an_entry_is_imported_when_it_is_asked_for():
    registry = small()
    assert registry.lines() == {"pi": "the circle's"} and list(registry) == ["pi"] and len(registry) == 1
    assert registry["pi"] == pytest.approx(3.14159, abs=1e-5)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown numbers 'tau'; known are: pi"):
        small()["tau"]


def test_registering_files_a_thing_and_refuses_a_taken_name():
    registry = small()

    @registry.register("one", "the first")
    def one() -> int:
        return 1

    assert registry["one"] is one and registry.lines()["one"] == "the first" and "one" in registry
    registry.register("one", "the first, imported again")(one)
    with pytest.raises(ValueError, match="'one' is already taken"):
        registry.register("one", "another")(lambda: 2)


def test_an_installed_package_adds_entries_without_being_imported(monkeypatch):
    asked = []

    def entry_points(group: str) -> list[EntryPoint]:
        asked.append(group)
        points = {"e": "math:e", "broken": "no_such_module_at_all:x", "pi": "math:tau"}
        return [EntryPoint(name, target, group) for name, target in points.items()]

    monkeypatch.setattr(zoo.registry, "entry_points", entry_points)
    registry = small()
    assert set(registry) == {"pi", "e", "broken"} and asked == ["perception_zoo.numbers"]
    assert registry["e"] == pytest.approx(2.71828, abs=1e-5)
    assert registry["pi"] == pytest.approx(3.14159, abs=1e-5), "a package must not replace what is there"
    with pytest.raises(ModuleNotFoundError):
        registry["broken"]
