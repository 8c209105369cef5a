"""Draws from guides that infer in steps: learned updates, and an encoder's start refined image by image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from guides.base import Fixed
from guides.iterative import Iterative
from guides.semi import Semi
from guides.stepwise import Stepwise, evaluating
from inference.methods.amortized import draw
from inference.posterior import Posterior
from zoo.program import adopt

__all__ = ["follow", "iterative", "of_model", "semi"]


def iterative(model: Callable, x: Tensor, guide: nn.Module | None, draws: int, *, steps: int | None = None) -> Posterior:
    """Takes the learned steps of a trained ``iterative`` guide, then draws.

    Arguments:
        steps: How many; the guide's own number if None.

    Raises:
        ValueError: if there is no such guide.
    """
    if not isinstance(guide, Iterative):
        raise ValueError(f"the method 'iterative' needs a trained guide of that name, not {_described(guide)}; "
                         "train guides.build('iterative', model) and give guide=…")
    of_model(guide, model)
    return follow(guide, x, draws, steps)


def semi(model: Callable, x: Tensor, guide: nn.Module | None, draws: int, *, steps: int | None = None,
         refine: str | None = None) -> Posterior:
    """Refines an encoder's posterior for each image, then draws.

    Arguments:
        guide: A trained encoder, or a trained ``semi`` guide.
        steps: Steps of refinement; if None 8, or the guide's own number.
        refine: ``"natural"`` or ``"svi"``, for an encoder; natural where it fits the model, if None. A ``semi`` guide has its own.

    Raises:
        ValueError: if there is no guide to start from, or for a refinement that does not fit the model.
    """
    if not hasattr(guide, "delta"):
        raise ValueError(f"the method 'semi' starts from a trained encoder, not from {_described(guide)}: give guide=…")
    if isinstance(guide, Semi):
        of_model(guide, model)
    else:
        guide = Semi(adopt(model, x), encoder=guide, refine=refine)
    return follow(guide, x, draws, steps)


def of_model(guide: Stepwise, model: Callable) -> None:
    """Raises ``ValueError`` if the guide was built for another model, under which it would infer."""
    if model is not guide.model and model is not getattr(guide.model, "program", None):
        raise ValueError(f"the {type(guide).__name__} guide was built for another model than the one that is given; build it for this one")


def follow(guide: Stepwise, x: Tensor, draws: int, steps: int | None = None) -> Posterior:
    """Draws from where a guide arrives after ``steps`` steps, its own number if None, in evaluation mode.

    Raises:
        ValueError: for a negative number of steps.
    """
    if steps is not None and steps < 0:
        raise ValueError(f"steps must not be negative, but is {steps}")
    with torch.no_grad(), evaluating(guide):
        for deltas in guide.path(x, steps):
            arrived = deltas
    return draw(Fixed(guide.model, arrived), x, draws)


def _described(guide: nn.Module | None) -> str:
    return "none" if guide is None else f"a {type(guide).__name__}"
