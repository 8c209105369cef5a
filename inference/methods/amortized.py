"""Draws from an encoder's posterior: one pass, whatever the number of draws."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from inference.posterior import Posterior
from zoo.density import sites

__all__ = ["amortized", "draw"]


def amortized(model: Callable, x: Tensor, guide: nn.Module | None, draws: int) -> Posterior:
    """Samples a trained guide at temperature 0.

    Raises:
        ValueError: if there is no guide.
    """
    if guide is None:
        raise ValueError("the method 'amortized' draws from a trained guide: give guide=…")
    return draw(guide, x, draws)


@torch.no_grad()
def draw(guide: nn.Module, x: Tensor, draws: int) -> Posterior:
    """``draws`` exact samples of a guide for every image, with its parameters where it tells them."""
    with pyro.validation_enabled(False), pyro.plate("draws", draws, dim=-2):
        trace = poutine.trace(guide).get_trace(x)
    samples = {name: site["value"].unsqueeze(0) for name, site in sites(trace, observed=False).items()}
    params = guide.posterior(x) if hasattr(guide, "posterior") else None
    return Posterior("amortized", samples, params=params)
