"""Training settings by budget: ``smoke`` (seconds), ``default`` (half a minute a model on two cores), ``paper`` (as published).

The published settings are those of Vafaii, Galor & Yates 2024 for whitened 16 × 16 patches ("vH16") and for MNIST, and of Vafaii,
Yates & Butts 2023 for hierarchies; they are keyword arguments of :func:`inference.fit`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["BUDGETS", "HIERARCHIES", "recipe"]

PATCHES = {"epochs": 3000, "batch_size": 1000, "lr": 5e-3, "warmup": 5 / 3000, "clip": 500.0}
MNIST = {"epochs": 1200, "batch_size": 200, "lr": 2e-3, "warmup": 5 / 1200, "restarts": 2, "weight_decay": 3e-4, "clip": 1000.0}

BUDGETS: dict[str, dict[str, Any]] = {
    "smoke": {"steps": 60, "batch_size": 250, "lr": 1e-2, "warmup": 0.1},
    "default": {"steps": 4000, "batch_size": 250, "lr": 1e-2, "warmup": 0.02, "beta_warmup": 0.2},
    "paper": PATCHES,
}

# Hierarchies take some fifty times as long for an image: a few minutes on two cores for a small one, days on a GPU as published.
HIERARCHIES: dict[str, dict[str, Any]] = {
    "smoke": {"steps": 30, "batch_size": 50, "lr": 1e-2, "warmup": 0.1, "clip": 2000.0},
    "default": {"steps": 2000, "batch_size": 125, "lr": 1e-2, "warmup": 0.02, "beta_warmup": 0.3, "clip": 2000.0},
    "paper": {"steps": 160_000, "batch_size": 600, "lr": 2e-3, "final_lr": 1e-5, "warmup": 0.0125, "beta_hold": 0.01, "beta_warmup": 0.5},
}
# Of the published loss EPE + β KL + λ mean(lognorm²); what multiplies a gradient, is added to it or bounds it.
BY_LOSS = {"beta_start": 1e-4, "weight_decay": 3e-4, "norm_penalty": 1e-4, "clip": 250.0, "warmup_clip": 500.0}


def recipe(budget: str, data: str = "patches", model: nn.Module | None = None) -> dict[str, Any]:
    r"""Keyword arguments of :func:`inference.fit` for a budget, a data set and, where it is no one-layer model, a model.

    The published loss of hierarchies is :math:`\mathrm{EPE} + \beta\,KL` with a last β of .15 (hierarchies) or 1.5 (flat). Here that β is
    the model's ``scale`` b, since :math:`\mathrm{EPE} + b\,KL = b\,(\mathrm{EPE} / b + KL)`, b times the negative ELBO but for a constant.
    So β ends at 1; and as all gradients are those of the published loss over b, all that meets them is divided by b, too: β at the
    start, weight decay, the penalty on norms and both bounds of the gradient's norm. The steps are the same then, as Adamax divides by
    the size of the gradient (its ε = 1e-8 apart). Hierarchies with another likelihood (of digits, or ``cnvae_s``) have no published loss:
    they take the same constants undivided, and the negative ELBO.

    Raises:
        ValueError: for an unknown budget.
    """
    from zoo.models.hierarchy import Hierarchy

    if budget not in BUDGETS:
        raise ValueError(f"unknown budget {budget!r}; known are: {', '.join(BUDGETS)}")
    if isinstance(model, Hierarchy):
        settings = dict(HIERARCHIES[budget])
        if budget == "paper":
            flow = model.likelihood == "endpoint"
            scale = float(model.scale) if flow else 1.0
            settings |= {name: value / scale for name, value in BY_LOSS.items()} | ({"objective": "relative"} if flow else {})
        return settings
    if budget == "paper" and data.split("/")[0] in ("mnist", "omniglot", "digits"):
        return dict(MNIST)
    return dict(BUDGETS[budget])
