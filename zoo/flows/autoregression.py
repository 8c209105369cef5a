r"""Linear autoregression as a temporal flow: :math:`\mu_t = c_a + \sum_k B_{a,k}\, x_{t-k}`, :math:`\sigma_t = e^{s_a}`, with age a.

Frames of each age a = 0 … p have coefficients of their own, so that a Gaussian process of order p is whitened exactly from its first frame
on, stationary or not. Per pixel, :math:`B_{a,k}` is diagonal; dense, every pixel is predicted from all pixels (vector autoregression).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from zoo.flows.frames import pasts
from zoo.flows.temporal import Temporal

__all__ = ["DenseAutoregression", "Autoregression"]


class Autoregression(Temporal):
    """Every pixel predicted from its own past; starts as the identity.

    Attributes:
        weight: B, ``(p + 1, p, D)``: of age, lag (the latest frame first) and pixel.
        loc, log_scale: c and s, ``(p + 1, D)``. Scales do not depend on what is seen, so they need no bound.
    """

    closed_form = True

    def __init__(self, event_shape: Sequence[int], past: int = 1) -> None:
        super().__init__(event_shape, past)
        self.size = prod(self.frame_shape)
        self.weight = nn.Parameter(torch.zeros(past + 1, past, *self._coefficients()))
        self.loc = nn.Parameter(torch.zeros(past + 1, self.size))
        self.log_scale = nn.Parameter(torch.zeros(past + 1, self.size))

    def _coefficients(self) -> tuple[int, ...]:
        return (self.size,)

    def predict(self, past: Tensor, ages: Tensor) -> tuple[Tensor, Tensor]:
        flat = past.flatten(-len(self.frame_shape))
        shift = self._combine(flat, ages) + self.loc[ages]
        return shift.unflatten(-1, self.frame_shape), self.log_scale[ages].unflatten(-1, self.frame_shape)

    def _combine(self, past: Tensor, ages: Tensor) -> Tensor:
        return (past * self.weight[ages]).sum(-2)

    @torch.no_grad()
    def fit(self, x: Tensor, ridge: float = 1e-5) -> Autoregression:
        """Least squares, for each age; the ridge is a fraction of a pixel's variance."""
        frames = len(self.frame_shape)
        x = self.check(x).detach().double()
        x = x.reshape(-1, *self.event_shape)
        before, now = pasts(x, self.past, frames).flatten(-frames), x.flatten(-frames)
        if len(x) < 2:
            raise ValueError(f"a regression takes at least 2 sequences, not {len(x)}")
        for age in range(min(self.past + 1, self.event_shape[0])):
            span = slice(age, None if age == self.past else age + 1)
            target, given = now[:, span].flatten(0, 1), before[:, span, :age].flatten(0, 1)
            mean, centre = target.mean(0), given.mean(0)
            target, given = target - mean, given - centre
            weight = self._regress(given, target, ridge)
            predicted = _apply(weight, given)
            self.weight[age].zero_()
            self.weight[age, :age] = weight.to(self.weight)
            self.loc[age] = (mean - _apply(weight, centre)).to(self.loc)
            floor = ridge * target.square().mean()
            self.log_scale[age] = (0.5 * ((target - predicted).square().mean(0) + floor).log()).to(self.log_scale)
        return self

    @staticmethod
    def _regress(given: Tensor, target: Tensor, ridge: float) -> Tensor:
        """``(a, D)`` from ``(M, a, D)`` and ``(M, D)``."""
        gram = torch.einsum("mkd,mld->dkl", given, given)
        gram = gram + ridge * gram.diagonal(dim1=1, dim2=2).mean() * torch.eye(given.shape[1]).to(gram)
        return torch.linalg.solve(gram, torch.einsum("mkd,md->dk", given, target)).T


class DenseAutoregression(Autoregression):
    """Every pixel predicted from the past of all pixels; ``weight`` is ``(p + 1, p, D, D)``, from its last dimension to the one before."""

    def _coefficients(self) -> tuple[int, ...]:
        return (self.size, self.size)

    def _combine(self, past: Tensor, ages: Tensor) -> Tensor:
        early = int((ages < self.past).sum())  # few; the others share one matrix, which is not to be copied for each
        first = torch.einsum("...tkd,tked->...te", past[..., :early, :, :], self.weight[ages[:early]])
        rest = torch.einsum("...tkd,ked->...te", past[..., early:, :, :], self.weight[self.past])
        return torch.cat([first, rest], -2)

    @staticmethod
    def _regress(given: Tensor, target: Tensor, ridge: float) -> Tensor:
        """``(a, D, D)`` from ``(M, a, D)`` and ``(M, D)``."""
        lags, flat = given.shape[1], given.flatten(1)
        gram = flat.T @ flat
        gram = gram + (ridge * gram.diagonal().mean() if lags else 0.0) * torch.eye(flat.shape[1]).to(gram)
        return torch.linalg.solve(gram, flat.T @ target).T.unflatten(1, (lags, target.shape[1])).transpose(0, 1)


def _apply(weight: Tensor, given: Tensor) -> Tensor:
    """Predictions ``(…, D)`` from pasts ``(…, a, D)``, with weights ``(a, D)`` or ``(a, D, D)``."""
    if weight.dim() == 2:
        return (given * weight).sum(-2)
    return torch.einsum("...kd,ked->...e", given, weight)
