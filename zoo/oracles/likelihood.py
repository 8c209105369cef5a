r"""The part of a Normal log-likelihood that papers leave out, and the check of images that exact answers share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo.models.one_layer import OneLayer

__all__ = ["flat_images", "likelihood_constant", "noise_variance"]


def likelihood_constant(model: OneLayer) -> Tensor:
    r""":math:`\frac12 \sum_d \log(2 \pi \sigma_d^2)` in nats, a scalar: the literature's numbers are without it.

    With the default σ = √½ it is (D/2) log π, and :math:`-\log p(x \mid z) = \|x - y\|^2` plus it. A log density of the zoo
    plus this constant is the literature's; its "NELBO" is −ELBO minus this constant.
    """
    return 0.5 * (2 * math.pi * noise_variance(model)).log().sum()


def noise_variance(model: OneLayer) -> Tensor:
    """Variance σ² of every pixel, ``(D,)``, float64."""
    return model.scale.double().square().expand(model.event_shape).flatten()


def flat_images(model: OneLayer, x: Tensor) -> Tensor:
    """Images ``(N, *event_shape)`` as float64 rows ``(N, D)``.

    Raises:
        ValueError: for images of another shape.
    """
    if tuple(x.shape[1:]) != model.event_shape:
        raise ValueError(f"expected images (N, {', '.join(map(str, model.event_shape))}), got {tuple(x.shape)}")
    return x.to(torch.float64).flatten(1)
