"""Models by name: a latent family's name gives its one-layer model, any other name is looked up among the models."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from zoo import latents as families
from zoo import models, networks
from zoo.models.one_layer import UNIT_SCALE, OneLayer

__all__ = ["build"]


def build(name: str, data: Any = None, *, latents: int = 512, decoder: str = "lin", learn_prior: bool | None = None,
          scale: float = UNIT_SCALE, learn_scale: bool | str = False, decoder_bias: bool = False, init_scale: float = 0.05,
          seed: int = 0, **options: Any) -> nn.Module:
    """Builds a generative model.

    Arguments:
        name: A latent family (``zoo list``), for its one-layer model, or a model's name.
        data: What the model is for: anything with an ``event_shape`` (a data set), or the event shape itself.
        latents: Number of latents ``K``.
        decoder: ``"lin"``, ``"mlp"`` or ``"conv"``.
        learn_prior: Whether the prior's parameters are learned; the family's own habit if None.
        scale: Standard deviation σ of a pixel; √½ by default (see :class:`~zoo.models.one_layer.OneLayer`).
        learn_scale: False, ``"image"`` or ``"pixel"``.
        decoder_bias: Whether the decoder's first linear map has a bias.
        init_scale: Standard deviation of the decoder's linear weights at the start.
        seed: Seed of the initial parameters.
        options: Passed to the family (``activation="relu"``, ``relaxation="sigmoid"``, …), or to the named model.

    Raises:
        ValueError: for an unknown name, an option that the family does not have, or no data where the model needs it.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name not in families.registry:
            if name not in models.registry:
                known = ", ".join([*families.registry, *models.registry])
                raise ValueError(f"unknown model {name!r}; known are: {known}")
            return models.registry[name](**options)
        if data is None:
            raise ValueError(f"the model {name!r} needs data (or an event shape) to know the size of its images")
        if latents < 1:
            raise ValueError(f"latents must be at least 1, not {latents}")
        event_shape = tuple(getattr(data, "event_shape", data))
        family = _family(name, options)
        model = OneLayer(
            family, latents, networks.decoder(decoder, latents, event_shape, bias=decoder_bias, init_scale=init_scale),
            event_shape, prior=family.initial_prior(latents), scale=scale, learn_scale=learn_scale,
            learn_prior=family.learn_prior if learn_prior is None else learn_prior)
    model.built_with = {
        "name": name, "event_shape": event_shape, "latents": latents, "decoder": decoder, "learn_prior": learn_prior,
        "scale": scale, "learn_scale": learn_scale, "decoder_bias": decoder_bias, "init_scale": init_scale, "seed": seed, **options}
    return model


def _family(name: str, options: dict[str, Any]) -> families.Family:
    kind = families.registry[name]
    accepted = [parameter for parameter in inspect.signature(kind).parameters]
    unknown = [option for option in options if option not in accepted]
    if unknown:
        raise ValueError(f"the family {name!r} has no option {', '.join(unknown)}; it accepts: {', '.join(accepted) or 'none'}")
    return kind(**options)
