r"""Gaussian latents, :math:`z_k \sim N(\mathrm{loc}, \mathrm{scale}^2)`, seen by the decoder through an optional activation.

With ``activation="relu"`` or ``"exp"`` the code is ``relu(z)`` or ``exp(z)`` (the "G_relu" and "G_exp" VAEs of Vafaii et al. 2024);
latents, KL and samples stay Gaussian, and mean and variance of the *code* are the rectified and the log-normal ones.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from zoo.distributions.units import normal_units
from zoo.latents.location_scale import LocationScale, natural_gradient

__all__ = ["Gaussian"]

ACTIVATIONS = ("identity", "relu", "exp")


class Gaussian(LocationScale):
    """Normal latents with parameters ``loc`` and ``log_scale``.

    Arguments:
        activation: ``"identity"``, ``"relu"`` or ``"exp"``, applied to ``z`` on its way into the decoder.
    """

    def __init__(self, activation: str = "identity") -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; known are: {', '.join(ACTIVATIONS)}")
        self.activation = activation

    def distribution(self, params: Tensor) -> Distribution:
        loc, log_scale = params.unbind(-2)
        return normal_units(loc, log_scale.exp())

    def unit_kl(self, q: Tensor, p: Tensor) -> Tensor:
        """KL of two Normals, from the log-scales as they are."""
        return _NormalKL.apply(q, p)

    def natural(self, params: Tensor, gradient: Tensor) -> Tensor:
        """Fisher information ``diag(1 / scale², 2)`` for ``(loc, log_scale)``."""
        return natural_gradient(params, gradient, scale=2.0)

    def code(self, z: Tensor) -> Tensor:
        if self.activation == "relu":
            return z.relu()
        return z.exp() if self.activation == "exp" else z

    def moments(self, params: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = params.unbind(-2)
        scale = log_scale.exp()
        if self.activation == "relu":
            ratio = loc / scale
            density = (-0.5 * ratio.square()).exp() / math.sqrt(2 * math.pi)
            above = torch.special.ndtr(ratio)
            mean = loc * above + scale * density
            return mean, (loc.square() + scale.square()) * above + loc * scale * density - mean.square()
        if self.activation == "exp":
            mean = (loc + 0.5 * scale.square()).exp()
            return mean, mean.square() * scale.square().expm1()
        return loc, scale.square()


class _NormalKL(torch.autograd.Function):
    """Written out because taking parameters apart and stacking them again is felt in a training step; the backward pass is made of
    operations that can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, p: Tensor) -> Tensor:
        ctx.save_for_backward(q, p)
        shift, log_ratio = (q - p).unbind(-2)
        ratio = (2.0 * log_ratio).exp()
        return ratio.addcmul_(shift.square(), (-2.0 * p[..., 1, :]).exp()).sub_(1.0).mul_(0.5).sub_(log_ratio)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        q, p = ctx.saved_tensors
        shift, log_ratio = (q - p).unbind(-2)
        ratio, slope = (2.0 * log_ratio).exp(), shift * (-2.0 * p[..., 1, :]).exp()
        to_q = torch.stack([gradient * slope, gradient * (ratio - 1.0)], dim=-2)
        to_p = None
        if ctx.needs_input_grad[1]:
            to_p = -torch.stack([gradient * slope, gradient * (ratio - 1.0 + slope * shift)], dim=-2).sum_to_size(p.shape)
        return to_q.sum_to_size(q.shape), to_p
