"""Models by name: a latent family's name gives its one-layer model, any other name is looked up among the models."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo import latents as families
from zoo import models, networks
from zoo.models.image_model import UNIT_SCALE
from zoo.models.one_layer import OneLayer

__all__ = ["build"]

PLAIN = (bool, int, float, str, tuple)  # defaults of which JSON can tell


USUAL: dict[str, Any] = {"latents": 512, "decoder": "lin", "learn_scale": False, "likelihood": "normal", "decoder_bias": False,
                         "init_scale": 0.05}  # of one-layer models


def build(name: str, data: Any = None, *, latents: int | None = None, decoder: str | None = None, learn_prior: bool | None = None,
          scale: float | None = None, learn_scale: bool | str | None = None, likelihood: str | None = None,
          decoder_bias: bool | None = None, init_scale: float | None = None, seed: int = 0, **options: Any) -> nn.Module:
    """Builds a generative model. Where nothing else is said, options that are None are the named model's own.

    Arguments:
        name: A latent family (``zoo list``), for its one-layer model, or a model's name.
        data: What the model is for: anything with an ``event_shape`` (a data set), or the event shape itself.
        latents: Number of latents ``K``; 512 of a family's one-layer model.
        decoder: ``"lin"`` (of a family), ``"mlp"``, ``"conv"``, …
        learn_prior: Whether the prior's parameters are learned; the family's own habit if None.
        scale: Standard deviation σ of a pixel; if None what ``data.noise`` says where the likelihood is ``"normal"``, or else the model's
            own, √½ of a family (see :class:`~zoo.models.one_layer.OneLayer`).
        learn_scale: False (of a family), ``"image"`` or ``"pixel"``.
        likelihood: ``"normal"`` (of a family), ``"bernoulli"`` for images of zeros and ones (:mod:`zoo.data.binary`), or ``"endpoint"`` for
            optic flow.
        decoder_bias: Whether the decoder's first linear map has a bias; no.
        init_scale: Standard deviation of the decoder's linear weights at the start; .05.
        seed: Seed of the initial parameters.
        options: Passed to the family (``activation="relu"``, ``relaxation="sigmoid"``, …), or to the named model.

    Raises:
        ValueError: for an unknown name, an option that the family does not have, or no data where the model needs it.
    """
    settings = {"latents": latents, "decoder": decoder, "learn_prior": learn_prior, "scale": scale, "learn_scale": learn_scale,
                "likelihood": likelihood, "decoder_bias": decoder_bias, "init_scale": init_scale, "seed": seed}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name in families.registry:
            return _one_layer(name, data, settings | {key: usual for key, usual in USUAL.items() if settings[key] is None}, options)
        if name in models.registry:
            given = {key: value for key, value in settings.items() if value is not None and (key, value) != ("seed", 0)}
            return _named(name, data, given | options)
    raise ValueError(f"unknown model {name!r}; known are: {', '.join([*families.registry, *models.registry])}")


def _one_layer(name: str, data: Any, settings: dict[str, Any], options: dict[str, Any]) -> OneLayer:
    if data is None:
        raise ValueError(f"the model {name!r} needs data (or an event shape) to know the size of its images")
    if settings["latents"] < 1:
        raise ValueError(f"latents must be at least 1, not {settings['latents']}")
    if settings["scale"] is None:
        settings["scale"] = getattr(data, "noise", None) or UNIT_SCALE
    event_shape = tuple(getattr(data, "event_shape", data))
    kind, units = families.registry[name], settings["latents"]
    _check_options(f"the family {name!r}", kind, options)
    family = kind(**options)
    learn_prior = family.learn_prior if settings["learn_prior"] is None else settings["learn_prior"]
    decoder = networks.decoder(settings["decoder"], units, event_shape, bias=settings["decoder_bias"], init_scale=settings["init_scale"])
    model = OneLayer(family, units, decoder, event_shape, prior=family.initial_prior(units), learn_prior=learn_prior,
                     scale=settings["scale"], learn_scale=settings["learn_scale"], likelihood=settings["likelihood"])
    model.built_with = {"name": name, "event_shape": event_shape, **settings, **options}
    return model


def _named(name: str, data: Any, options: dict[str, Any]) -> nn.Module:
    """A model of the registry; the shape of the data is passed on where it takes one."""
    factory = models.registry[name]
    if "seed" not in inspect.signature(factory).parameters:
        options.pop("seed", None)  # the generator that it draws from is seeded
    _check_options(f"the model {name!r}", factory, options)
    event_shape = None if data is None else tuple(getattr(data, "event_shape", data))
    shaped = {"event_shape": event_shape} if event_shape and "event_shape" in inspect.signature(factory).parameters else {}
    # All settings are kept, those that nobody chose, too: a saved model must not change with what is usual.
    defaults = {key: parameter.default for key, parameter in inspect.signature(factory).parameters.items()}
    noise, likelihood = getattr(data, "noise", None), options.get("likelihood") or defaults.get("likelihood", "normal")
    if noise and "scale" in defaults and likelihood == "normal":
        options = {"scale": noise} | options
    options = {key: value for key, value in defaults.items() if isinstance(value, PLAIN)} | options
    model = factory(**options | shaped)
    if event_shape and tuple(model.event_shape) != event_shape:
        raise ValueError(f"the model {name!r} is of images {tuple(model.event_shape)}, not {event_shape}")
    model.built_with = {"name": name, **options, "event_shape": tuple(model.event_shape)}
    return model


def _check_options(what: str, builder: Callable, options: dict[str, Any]) -> None:
    accepted = list(inspect.signature(builder).parameters)
    unknown = [option for option in options if option not in accepted]
    if unknown:
        raise ValueError(f"{what} has no option {', '.join(unknown)}; it accepts: {', '.join(accepted) or 'none'}")
