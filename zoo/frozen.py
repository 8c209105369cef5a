"""A model whose parameters stand still while something else is optimized."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["frozen"]


@contextmanager
def frozen(model: Callable) -> Iterator[None]:
    """No gradients for the model's parameters inside the block; those that had them have them again afterwards."""
    parameters = [p for p in getattr(model, "parameters", list)() if p.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
