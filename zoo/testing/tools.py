"""What the checks share: one sentence for each broken promise, and what counts as equal."""

from __future__ import annotations

from torch import Tensor

__all__ = ["DRAWS", "expect", "near", "worst"]

DRAWS = 20_000


def expect(holds: object, sentence: str) -> None:
    """Raises ``AssertionError`` with the sentence unless ``holds``; also when Python runs without assertions."""
    if not holds:
        raise AssertionError(sentence)


def near(value: Tensor, truth: Tensor, tolerance: float = 1e-3) -> bool:
    """Whether all values are finite and within ``tolerance · (1 + |truth|)``: the error of the grids is far below 1e-3."""
    return bool(((value - truth).abs() <= tolerance * (1 + truth.abs())).all())


def worst(value: Tensor, truth: Tensor) -> float:
    """For a message: the largest deviation, or where truth is 1 everywhere, the value that deviates most."""
    deviation = (value - truth).abs()
    if bool((truth == 1).all()):
        return value.flatten()[deviation.argmax()].item()
    return deviation.max().item()
