"""The coordinates in which latents climb to a mode: their own values, or their prediction errors."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from inference.mcmc.target import Target
from zoo.error_space import ErrorSpace

__all__ = ["SPACES", "Space"]

SPACES = ("states", "errors")


class Space:
    """The density of a model's real-valued latents, and the way between their values and what moves.

    Arguments:
        model: A Pyro program.
        x: Images ``(N, *event_shape)``.
        space: ``"states"``, or ``"errors"`` (:class:`zoo.error_space.ErrorSpace`).
        given: Values of its other latents, which are held fixed.

    Attributes:
        target: The density in what moves; of values, as for modes.

    Raises:
        ValueError: for another space, or latents that :class:`~inference.mcmc.target.Target` refuses.
    """

    def __init__(self, model: Callable, x: Tensor, space: str, given: dict[str, Tensor] | None = None) -> None:
        if space not in SPACES:
            raise ValueError(f"space must be {' or '.join(map(repr, SPACES))}, not {space!r}")
        self.x, self.errors = x, ErrorSpace(model, x) if space == "errors" else None
        self.target = Target(model if self.errors is None else self.errors, x, given, of_values=True)

    def enter(self, values: dict[str, Tensor]) -> Tensor:
        """The state ``(N, K)`` that stands for values of all latents ``{site: (N, *event)}``."""
        return self.target.unconstrain(values if self.errors is None else self.errors.errors(values, self.x))

    def leave(self, u: Tensor) -> dict[str, Tensor]:
        """The values of all latents at a state."""
        moved = self.target.given | self.target.constrain(u)
        return moved if self.errors is None else self.errors.values(moved, self.x)
