"""Generative models of what an eye receives, as Pyro programs: latent families, networks, models and data.

``zoo.data.load``, ``zoo.build`` and the registries ``zoo.latents.registry`` and ``zoo.models.registry`` are the way in. Importing
this package imports nothing heavy.
"""

from importlib import import_module
from typing import Any

__all__ = ["build", "data", "latents", "models", "networks", "oracles", "testing"]

_ATTRIBUTES = {"build": "zoo.construct:build"}


def __getattr__(name: str) -> Any:
    if name in _ATTRIBUTES:
        module, _, attribute = _ATTRIBUTES[name].partition(":")
        value = getattr(import_module(module), attribute)
        globals()[name] = value
        return value
    if name in __all__:
        return import_module(f"zoo.{name}")
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")
