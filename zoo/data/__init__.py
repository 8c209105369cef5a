"""Data sets by name: images as tensors, with labels and ground-truth factors where there are any."""

import inspect
from importlib import import_module
from typing import Any

from zoo.registry import Registry

__all__ = ["Data", "Dataset", "load", "registry"]

registry = Registry("data", {
    "patches": ("zoo.data.patches:patches", "whitened 16 × 16 patches of photographs that ship with scikit-learn and scikit-image"),
    "van_hateren": ("zoo.data.van_hateren:van_hateren", "whitened patches of van Hateren's natural images; fetched"),
    "olshausen": ("zoo.data.olshausen:olshausen", "whitened patches of Olshausen and Field's ten images; fetched"),
    "mnist": ("zoo.data.digits:mnist", "handwritten digits, 28 × 28, in [0, 1], with labels; fetched"),
    "digits": ("zoo.data.digits:digits", "handwritten digits, 8 × 8, in [0, 1], with labels; ships with scikit-learn"),
    "rofl": ("zoo.data.rofl:rofl", "retinal optic flow with its causes: rofl/fixate-1, transl-1, obj-1, terrain-1, pursuit-1, … (n ≤ 8)"),
    "omniglot": ("zoo.data.omniglot:omniglot", "handwritten characters of five alphabets, 28 × 28, in [0, 1]; fetched"),
    "moving_patches": ("zoo.data.sequences:moving_patches", "sequences of patches under a drifting gaze, from the photographs of patches"),
    "three_patches": ("zoo.data.three_patches:three_patches",
                      "three overlapping patches side by side (Rao & Ballard 1999), from the photographs of patches"),
    "rofl_sequences": ("zoo.data.rofl.sequences:rofl_sequences", "optic flow along smooth motions: rofl_sequences/fixate-0, obj-1, …"),
})


def load(name: str, **options: Any) -> Any:
    """The data set ``name`` as a :class:`Dataset`.

    Arguments:
        name: A name in :data:`registry`; what follows a slash (``"family/member"``) is passed to the loader first.
        options: The loader's own.

    Raises:
        ValueError: for an unknown name, a member of a data set that has none, or an option out of range.
        FileNotFoundError: if a file is missing from ``ZOO_DATA``.
        OSError: if a file cannot be fetched, is damaged, or cannot be stored.
    """
    family, _, member = name.partition("/")
    loader = registry[family]
    if not member:
        return loader(**options)
    if not _takes_member(loader):
        raise ValueError(f"the data set {family!r} has no member {member!r}; ask for {family!r}")
    return loader(member, **options)


def _takes_member(loader: Any) -> bool:
    first = next(iter(inspect.signature(loader).parameters.values()), None)
    return first is not None and first.annotation in (str, "str", first.empty)


def __getattr__(name: str) -> Any:
    if name in ("Data", "Dataset"):
        return getattr(import_module("zoo.data.base"), name)
    raise AttributeError(f"module 'zoo.data' has no attribute {name!r}")
