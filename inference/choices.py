"""What is chosen where nobody said: the device, the number of latents, the training objective."""

from __future__ import annotations

import torch

import zoo

__all__ = ["choose_device", "choose_latents", "choose_objective"]

LATENTS = {"smoke": 64, "default": 512, "paper": 512}
ROFL_LATENTS = {"smoke": 64, "default": 128, "paper": 420}  # as published; fewer where readouts are fitted on few frames


def choose_objective(model: str, decoder: str) -> str:
    """``"exact"`` where that is possible (a latent family with a closed-form KL under a linear decoder), else ``"elbo"``."""
    if decoder != "lin" or model not in zoo.latents.registry:
        return "elbo"
    family = zoo.latents.registry[model]()
    with torch.random.fork_rng(devices=[]):
        prior = family.initial_prior(2)
    return "elbo" if family.unit_kl(prior, prior) is None else "exact"


def choose_latents(latents: int | None, budget: str, data: str) -> int:
    """The number that was asked for, or the budget's for these data."""
    return latents or (ROFL_LATENTS if data.split("/")[0] == "rofl" else LATENTS)[budget]


def choose_device(device: str | None) -> str:
    """The device that was asked for; a GPU if there is one, else the CPU, if none was.

    Raises:
        ValueError: for a GPU where there is none, or an unknown device.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"the device {device!r} was asked for, but PyTorch sees no GPU here; use device 'cpu'")
    try:
        return str(torch.device(device))
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}; use 'cpu' or 'cuda'") from None
