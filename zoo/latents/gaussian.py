r"""Gaussian latents, :math:`z_k \sim N(\mathrm{loc}, \mathrm{scale}^2)`, seen by the decoder through an optional activation.

With ``activation="relu"`` or ``"exp"`` the code is ``relu(z)`` or ``exp(z)`` (the "G_relu" and "G_exp" VAEs of Vafaii et al. 2024);
latents, KL and samples stay Gaussian, and mean and variance of the *code* are the rectified and the log-normal ones.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution

from zoo.distributions.units import normal_units
from zoo.latents.base import Family

__all__ = ["Gaussian", "bounded_log_scale", "location_scale_natural", "residual"]

LOG_SCALE_BOUND = 5.3  # Vafaii et al. 2024: log-scales are kept within ±5.3 of the prior's by a tanh
LOG_SCALE_LIMIT = 4.0  # Vafaii, Yates & Butts 2023: log-scales l that a network computes are 4 tanh(l / 4)
ACTIVATIONS = ("identity", "relu", "exp")


class Gaussian(Family):
    """Normal latents with parameters ``loc`` and ``log_scale``.

    Arguments:
        activation: ``"identity"``, ``"relu"`` or ``"exp"``, applied to ``z`` on its way into the decoder.
    """

    parameters = ("loc", "log_scale")

    def __init__(self, activation: str = "identity") -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; known are: {', '.join(ACTIVATIONS)}")
        self.activation = activation

    def distribution(self, params: Tensor) -> Distribution:
        loc, log_scale = params.unbind(-2)
        return normal_units(loc, log_scale.exp())

    def read(self, distribution: Distribution) -> Tensor:
        base = distribution.base_dist
        return torch.stack([base.loc, base.scale.log()], dim=-2)

    def posterior(self, prior: Tensor, delta: Tensor) -> Tensor:
        return residual(prior, delta)

    def bounded(self, raw: Tensor) -> Tensor:
        return bounded_log_scale(raw)

    def unit_kl(self, q: Tensor, p: Tensor) -> Tensor:
        """KL of two Normals, from the log-scales as they are."""
        return _NormalKL.apply(q, p)

    def natural(self, params: Tensor, gradient: Tensor) -> Tensor:
        """Fisher information ``diag(1 / scale², 2)`` for ``(loc, log_scale)``."""
        return location_scale_natural(params, gradient, 2.0)

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


def location_scale_natural(params: Tensor, gradient: Tensor, scale_information: float) -> Tensor:
    """Gradient ``(…, 2, K)`` times scale² for the location, and over the information of the log-scale."""
    to_loc, to_log_scale = gradient.unbind(-2)
    return torch.stack([to_loc * (2.0 * params[..., 1, :]).exp(), to_log_scale / scale_information], dim=-2)


def residual(prior: Tensor, delta: Tensor) -> Tensor:
    """``prior + delta`` for parameters ``(…, 2, K)``, the log-scale's shift kept within ±5.3 by a tanh."""
    return _Residual.apply(prior, delta)


def bounded_log_scale(raw: Tensor) -> Tensor:
    """Parameters ``(…, 2, K)`` with the log-scale kept within ±4 by a tanh."""
    loc, log_scale = raw.unbind(-2)
    return torch.stack([loc, LOG_SCALE_LIMIT * torch.tanh(log_scale / LOG_SCALE_LIMIT)], dim=-2)


class _Residual(torch.autograd.Function):
    """Written out because stacking the two parameters again, forward and backward, is a twentieth of a training step."""

    @staticmethod
    def forward(ctx: Any, prior: Tensor, delta: Tensor) -> Tensor:
        params = prior + delta
        bend = torch.tanh(delta[..., 1, :] / LOG_SCALE_BOUND)
        torch.add(prior[..., 1, :], bend, alpha=LOG_SCALE_BOUND, out=params[..., 1, :])
        ctx.save_for_backward(bend)
        ctx.shapes = prior.shape, delta.shape
        return params

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        bend, = ctx.saved_tensors
        to_delta = gradient.clone()
        to_delta[..., 1, :] *= 1.0 - bend.square()
        to_prior = gradient.sum_to_size(ctx.shapes[0]) if ctx.needs_input_grad[0] else None
        return to_prior, to_delta.sum_to_size(ctx.shapes[1])


class _NormalKL(torch.autograd.Function):
    """Written out for the same reason; the backward pass is made of operations that can be differentiated again."""

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
