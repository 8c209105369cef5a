"""What is chosen where nobody said: the device, the number of latents, the training objective, the images, a model's options."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch

import zoo

__all__ = ["choose_device", "choose_images", "choose_latents", "choose_objective", "choose_options"]

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


def choose_images(data: str, model: str, seed: int = 0) -> Any:
    """What a model is trained on: for hierarchies the frames of optic flow never repeat (a stream), all else learns from stored images.

    Arguments:
        data: Name of a data set.
        model: Name of the model.
        seed: Of the stream.

    Raises:
        ValueError, OSError: as :func:`zoo.data.load`.
    """
    family, _, member = data.partition("/")
    if family == "rofl" and model in zoo.models.registry and "groups" in _parameters(model):
        from zoo.data.rofl import Stream

        return Stream(member or "fixate-1", seed=seed)
    return zoo.data.load(data)


def choose_options(model: str, given: dict[str, Any], budget: str, data: str) -> dict[str, Any]:
    """Options of ``zoo.build`` for a model by name: those that were given, and the number of latents where that can be chosen.

    Arguments:
        given: What was asked for by name, None where nothing was.

    Raises:
        ValueError: for what was asked for and the model does not have; says what it has.
    """
    options = {name: value for name, value in given.items() if value is not None}
    if model in zoo.models.registry and model not in zoo.latents.registry:
        accepted = _parameters(model)
        unknown = [name for name in options if name not in accepted]
        if unknown:
            raise ValueError(f"the model {model!r} has no option {', '.join(unknown)}; it accepts: {', '.join(accepted) or 'none'}")
        if "latents" not in accepted:
            return options
    return options | {"latents": choose_latents(options.get("latents"), budget, data)}


def _parameters(model: str) -> list[str]:
    return list(signature(zoo.models.registry[model]).parameters)
