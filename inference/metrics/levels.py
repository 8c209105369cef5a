"""What each level of a hierarchy knows about the causes, and what only it knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.metrics.decodability import linear_decodability

__all__ = ["LevelContributions", "level_contributions"]


@dataclass(frozen=True)
class LevelContributions:
    """R² of a linear readout of each factor from some levels of a hierarchy; double precision, at most 1, negative values included.

    Attributes:
        factors, levels: Names, in the order of rows and columns.
        alone: ``(factors, levels)``, read out of one level.
        without: ``(factors, levels)``, read out of all levels but one.
        together: ``(factors,)``, read out of all levels side by side.
    """

    factors: tuple[str, ...]
    levels: tuple[str, ...]
    alone: Tensor
    without: Tensor
    together: Tensor

    @property
    def unique(self) -> Tensor:
        """``(factors, levels)``: R² that is lost without the level; about 0 for what other levels know as well."""
        return self.together[:, None] - self.without


@torch.no_grad()
def level_contributions(levels_fit: Mapping[str, Tensor], factors_fit: Mapping[str, Tensor], levels_score: Mapping[str, Tensor],
                        factors_score: Mapping[str, Tensor]) -> LevelContributions:
    """Reads the factors out of each level, of all levels, and of all but each one.

    Arguments:
        levels_fit, levels_score: Representations ``{level: (n, K_l)}`` and ``{level: (m, K_l)}``; those of ``levels_fit`` are used. Levels
            may have any shape to the right of images, e.g. channels on a grid.
        factors_fit, factors_score: ``{name: (n,)}`` and ``{name: (m,)}``, as
            :func:`~inference.metrics.decodability.linear_decodability` takes them.

    Without its only level nothing is left but the mean of the factors on the fitted set.

    Raises:
        ValueError: if there are no levels, one is missing or empty in a set, levels differ in their images, or sets cannot be read out.
    """
    fit, score = _flat(levels_fit, levels_fit), _flat(levels_score, levels_fit)

    def read(names: list[str]) -> Tensor:
        parts = [torch.cat([part[name] for name in names] or [torch.zeros(len(next(iter(part.values()))), 1)], 1) for part in (fit, score)]
        return torch.tensor(list(linear_decodability(parts[0], factors_fit, parts[1], factors_score).values()), dtype=torch.float64)

    names = list(levels_fit)
    together = read(names)
    alone = [together if len(names) == 1 else read([name]) for name in names]
    without = [read([other for other in names if other != name]) for name in names]
    return LevelContributions(tuple(factors_fit), tuple(names), torch.stack(alone, 1), torch.stack(without, 1), together)


def _flat(levels: Mapping[str, Tensor], names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not names:
        raise ValueError("there must be levels")
    if missing := set(names) - set(levels):
        raise ValueError(f"the levels {', '.join(sorted(missing))} are missing in the set that is scored")
    wrong = {name: tuple(levels[name].shape) for name in names if levels[name].dim() < 2 or levels[name].numel() == 0}
    if wrong or len({len(levels[name]) for name in names}) > 1:
        shapes = ", ".join(f"{name} {tuple(levels[name].shape)}" for name in names)
        raise ValueError(f"levels must be (n, K) with K at least 1, of the same n images; got {shapes}")
    return {name: levels[name].flatten(1).double().cpu() for name in names}
