"""Training settings by budget: ``smoke`` (seconds), ``default`` (half a minute a model on two cores), ``paper`` (as published).

The published settings are those of Vafaii, Galor & Yates 2024 for whitened 16 × 16 patches ("vH16") and for MNIST; they are
keyword arguments of :func:`inference.fit`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["BUDGETS", "recipe"]

PATCHES = {"epochs": 3000, "batch_size": 1000, "lr": 5e-3, "warmup": 5 / 3000, "clip": 500.0}
MNIST = {"epochs": 1200, "batch_size": 200, "lr": 2e-3, "warmup": 5 / 1200, "restarts": 2, "weight_decay": 3e-4, "clip": 1000.0}

BUDGETS: dict[str, dict[str, Any]] = {
    "smoke": {"steps": 60, "batch_size": 250, "lr": 1e-2, "warmup": 0.1},
    "default": {"steps": 4000, "batch_size": 250, "lr": 1e-2, "warmup": 0.02, "beta_warmup": 0.2},
    "paper": PATCHES,
}


def recipe(budget: str, data: str = "patches") -> dict[str, Any]:
    """Keyword arguments of :func:`inference.fit` for a budget and a data set.

    Raises:
        ValueError: for an unknown budget.
    """
    if budget not in BUDGETS:
        raise ValueError(f"unknown budget {budget!r}; known are: {', '.join(BUDGETS)}")
    if budget == "paper" and data.split("/")[0] in ("mnist", "omniglot", "digits"):
        return dict(MNIST)
    return dict(BUDGETS[budget])
