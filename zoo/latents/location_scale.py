r"""Families with a location and a scale: their parameters are ``loc`` and ``log_scale``, and a log-scale is kept where it makes sense."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution

from zoo.latents.base import Family

__all__ = ["LOG_SCALE_LIMIT", "LocationScale", "natural_gradient"]

LOG_SCALE_BOUND = 5.3  # Vafaii et al. 2024: log-scales are kept within ±5.3 of the prior's by a tanh
LOG_SCALE_LIMIT = 4.0  # Vafaii, Yates & Butts 2023: log-scales l that a network computes are 4 tanh(l / 4)


class LocationScale(Family):
    """Real-valued latents ``loc + scale · noise``; subclasses give the law."""

    parameters = ("loc", "log_scale")

    def read(self, distribution: Distribution) -> Tensor:
        base = distribution.base_dist
        return torch.stack([base.loc, base.scale.log()], dim=-2)

    def posterior(self, prior: Tensor, delta: Tensor) -> Tensor:
        """``prior + delta``, the log-scale's shift kept within ±5.3 by a tanh."""
        return _Residual.apply(prior, delta)

    def bounded(self, raw: Tensor) -> Tensor:
        """The log-scale kept within ±4 by a tanh."""
        loc, log_scale = raw.unbind(-2)
        return torch.stack([loc, LOG_SCALE_LIMIT * torch.tanh(log_scale / LOG_SCALE_LIMIT)], dim=-2)


def natural_gradient(params: Tensor, gradient: Tensor, *, scale: float, loc: float = 1.0) -> Tensor:
    """The gradient ``(…, 2, K)`` over a Fisher information that is diagonal in (loc, log-scale).

    Arguments:
        scale: Information of the log-scale.
        loc: Information of the location, times scale².
    """
    to_loc, to_log_scale = gradient.unbind(-2)
    return torch.stack([to_loc * (2.0 * params[..., 1, :]).exp() / loc, to_log_scale / scale], dim=-2)


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
