"""Builders of flows, as :mod:`zoo.flows` names them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from zoo import flows
from zoo.flows.autoregression import Autoregression, DenseAutoregression
from zoo.flows.base import Flow, Stack
from zoo.flows.convolutional import Convolutional
from zoo.flows.frames import PerFrame
from zoo.flows.spatial import spatial

__all__ = ["autoregression", "cholesky", "convolutional", "pca", "stacked", "vector_autoregression", "zca"]

IMAGE_DIMS = 3


def _everywhere(kind: str, event_shape: Sequence[int]) -> Flow:
    """A spatial flow over an image, or over each frame of a sequence."""
    if len(event_shape) > IMAGE_DIMS:
        return PerFrame(spatial(kind, event_shape[1:]), event_shape[0])
    return spatial(kind, event_shape)


def zca(event_shape: Sequence[int]) -> Flow:
    """Symmetric whitening of an image, or of every frame."""
    return _everywhere("zca", event_shape)


def cholesky(event_shape: Sequence[int]) -> Flow:
    """Triangular whitening of an image, or of every frame."""
    return _everywhere("cholesky", event_shape)


def pca(event_shape: Sequence[int]) -> Flow:
    """Whitening along principal axes of an image, or of every frame."""
    return _everywhere("pca", event_shape)


def autoregression(event_shape: Sequence[int], past: int = 1) -> Flow:
    """Every pixel from its own past."""
    return Autoregression(event_shape, past)


def vector_autoregression(event_shape: Sequence[int], past: int = 1) -> Flow:
    """Every pixel from the past of all."""
    return DenseAutoregression(event_shape, past)


def convolutional(event_shape: Sequence[int], past: int = 2, channels: int = 16, layers: int = 1, bound: float = 5.0) -> Flow:
    """Every pixel from its neighbourhood's past."""
    return Convolutional(event_shape, past, channels, layers, bound)


def stacked(name: str, event_shape: Sequence[int], options: dict[str, Any]) -> Flow:
    """What :func:`zoo.flows.build` builds."""
    builders = [flows.registry[part.strip()] for part in name.split("+")]
    accepted = [[option for option in inspect.signature(builder).parameters if option != "event_shape"] for builder in builders]
    unknown = [option for option in options if not any(option in known for known in accepted)]
    if unknown:
        raise ValueError(f"the flow {name!r} has no option {', '.join(unknown)}; it accepts: "
                         f"{', '.join(dict.fromkeys(sum(accepted, []))) or 'none'}")
    parts = [builder(tuple(event_shape), **{option: value for option, value in options.items() if option in known})
             for builder, known in zip(builders, accepted, strict=True)]
    return parts[0] if len(parts) == 1 else Stack(parts)
