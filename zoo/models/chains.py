"""Predictive-coding networks by name: chains of levels of any size, and the network of Rao & Ballard."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import nn

from zoo.latents import registry as families
from zoo.latents.base import Family
from zoo.models.image_model import UNIT_SCALE
from zoo.models.predictive_coding import Level, PredictiveCoding
from zoo.networks.prediction import Prediction

__all__ = ["predictive_coding", "rao_ballard"]

Families = str | Family | Sequence[str | Family]


def predictive_coding(event_shape: tuple[int, ...] | None = None, levels: Sequence[int] = (64, 16), family: Families = "gaussian", *,
                      activation: str = "identity", after: str = "identity", hidden: int | None = None, bias: bool = True,
                      gain: float = 1.0, level_scale: float | Sequence[float] = 1.0, precision: str | Sequence[str] = "fixed",
                      floor: float = 1e-2, rank: int = 4, learn_prior: bool = False, scale: float = UNIT_SCALE,
                      learn_scale: bool | str = False, likelihood: str = "normal") -> PredictiveCoding:
    """A chain of levels, each predicting the one below.

    Arguments:
        event_shape: Shape of one image.
        levels: Units of z1 (next to the image), z2, …, zL; numbers, or a string with commas.
        family: A latent family for all levels, or one for each, z1 first; names, names with commas, or families.
        activation: The nonlinearity g in f(z) = h(W g(z) + b); ``"identity"`` with ``after="identity"`` makes a linear network.
        after: The nonlinearity h of the prediction of the image (of latents, predictions are linear in g(z)).
        hidden: Units of a hidden layer (ELU) inside each map; then a map is no single layer of synapses.
        bias: Whether maps have biases.
        gain: Weights start as N(0, gain² / K).
        level_scale: Standard deviation of the noise at each level (scale, of other families than Gaussian; of a Student-t top level times
            1/√ν), at the start if it is learned.
        precision: ``"fixed"``, ``"scalar"``, ``"diagonal"``, ``"lowrank"`` or ``"full"``, of all levels or of each
            (:class:`~zoo.models.predictive_coding.Level`).
        floor: What learned scales, the image's included, stay above: a point estimate of the latents would let them vanish.
        rank: Of low-rank correlations.
        learn_prior: Whether the top level's prior mean is learned.
        scale, learn_scale, likelihood: Of the image: see :class:`~zoo.models.predictive_coding.PredictiveCoding`.

    Raises:
        ValueError: if the shape of the images is missing, or settings do not fit.
    """
    if event_shape is None:
        raise ValueError("a predictive-coding network needs data (or an event shape) to know the size of its images")
    units = [int(part) for part in levels.split(",")] if isinstance(levels, str) else list(levels)
    count = len(units)
    if count == 0 or min(units) < 1:
        raise ValueError(f"levels must be one or more numbers of units, at least 1 each; got {levels!r}")
    kinds = [_family(kind) for kind in _each("family", family, count)]
    scales, precisions = _each("level_scale", level_scale, count), _each("precision", precision, count)
    built = [Level(kind, k, scale=_own_scale(kind, i == count - 1) * s, precision=p, floor=floor, rank=rank)
             for i, (kind, k, s, p) in enumerate(zip(kinds, units, scales, precisions, strict=True))]
    shapes: list[tuple[int, ...]] = [tuple(event_shape), *((k,) for k in units[:-1])]
    maps = [_map(k, shape, activation, after if i == 0 else "identity", hidden, bias, gain)
            for i, (k, shape) in enumerate(zip(units, shapes, strict=True))]
    return PredictiveCoding(maps, built, tuple(event_shape), prior=kinds[-1].initial_prior(units[-1]), learn_prior=learn_prior, scale=scale,
                            learn_scale=learn_scale, likelihood=likelihood, floor=floor if learn_scale else 0.0, rank=rank)


def rao_ballard(event_shape: tuple[int, ...] = (3, 16, 16), levels: Sequence[int] = (96, 128), family: str = "student_t", *,
                df: float = 3.0, lower: str = "gaussian", modules: int = 3, activation: str = "identity", level_scale: float = 10**0.5,
                scale: float = 1.0, norm: float | None = None, gain: float = 0.1) -> PredictiveCoding:
    """The network of Rao & Ballard 1999: modules that each see one of several patches side by side, and a level that predicts them all.

    Its energy, to which a sparse prior adds α Σ log(1 + r²) / 2 in units where the image's error has the weight ½, has no normalized
    density at the usual α = 1 and .05; the prior here is proper. σ = 1 and √10 are its weights of the two prediction errors in these units.

    Arguments:
        event_shape: (patches, height, width); pixels where neighbouring patches overlap are predicted (and counted) by each.
        levels: Units of the modules together, and of the second level; one number for a single level.
        family: Prior of the highest level: ``"student_t"``, ``"laplace"`` or ``"gaussian"``.
        df: Degrees of freedom ν of Student's t: its density is (1 + r²)^(−(ν + 1) / 2) at a scale of 1/√ν; 1 is the Cauchy law.
        lower: Law of the first level around what the second predicts of it: ``"gaussian"``, or a sparse one of the same names.
        modules: Number of modules, one for each patch.
        activation: The nonlinearity of predictions, f(U r): ``"identity"`` or ``"tanh"``.
        level_scale: σ of the top-down prediction error (scale of another law).
        scale: σ of a pixel.
        norm: Length of every first-level unit's receptive field, as of atoms in sparse coding; free if None: then a point estimate can make
            a sparse prior vanish, by longer fields and smaller values.
        gain: Weights start as N(0, gain² / K).

    Raises:
        ValueError: for settings that do not fit.
    """
    units = [int(part) for part in levels.split(",")] if isinstance(levels, str) else list(levels)
    if len(units) not in (1, 2):
        raise ValueError(f"the network has one level or two, not {len(units)}; use 'predictive_coding' for others")
    if len(event_shape) != 3 or event_shape[0] != modules:
        raise ValueError(f"each of {modules} modules sees one patch: images must be ({modules}, height, width), not {tuple(event_shape)}")
    top, below = (families["student_t"](df) if name == "student_t" else _family(name) for name in (family, lower))
    built = [Level(top, units[-1], scale=_own_scale(top, True))]
    maps: list[nn.Module] = [Prediction(units[0], event_shape, after=activation, bias=False, modules=modules, norm=norm, gain=gain)]
    if len(units) == 2:
        built.insert(0, Level(below, units[0], scale=level_scale))
        maps.append(Prediction(units[1], units[0], after=activation, bias=False, gain=gain))
    return PredictiveCoding(maps, built, tuple(event_shape), prior=top.initial_prior(units[-1]), scale=scale)


def _each(name: str, value: object, count: int) -> list:
    """One for each level, of one for all, or of as many as levels."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    values = list(value) if isinstance(value, Sequence) else [value]
    if len(values) not in (1, count):
        raise ValueError(f"{name} takes one value for all levels, or {count}, one for each; got {len(values)}")
    return values * count if len(values) == 1 else values


def _family(kind: str | Family) -> Family:
    return families[kind]() if isinstance(kind, str) else kind


def _own_scale(family: Family, top: bool) -> float:
    """Scale of a top level's own prior (1/√ν of Student's t); 1 for other families and levels."""
    prior = family.initial_prior(1)
    return prior[1, 0].exp().item() if top and family.parameters[1:] == ("log_scale",) else 1.0


def _map(units: int, shape: tuple[int, ...], before: str, after: str, hidden: int | None, bias: bool, gain: float) -> nn.Module:
    if hidden is None:
        return Prediction(units, shape, before=before, after=after, bias=bias, gain=gain)
    if before != "identity" or after != "identity":
        raise ValueError("maps with a hidden layer have its nonlinearity (ELU) alone: leave activation and after as they are")
    second = nn.Linear(hidden, prod(shape), bias=bias)
    with torch.no_grad():
        second.weight.mul_(gain)
    return nn.Sequential(nn.Linear(units, hidden), nn.ELU(), second, nn.Unflatten(-1, shape))
