r"""The free energy of one frame's state, and ways down it.

.. math::
    F(z) = \tfrac12 e_0^\top R^{-1} e_0 + \tfrac12 e_1^\top \Pi\, e_1, \quad e_0 = x - C f(z) - c, \quad e_1 = z - p

for a frame x, the state's prediction p and its precision Π. Used by :mod:`inference.filtering`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.models.temporal import Dynamics, TemporalPredictiveCoding

__all__ = ["FrameEnergy", "gradient_descent", "newton_descent"]

HALVINGS = 30
SHARE = 0.25  # of what the slope promises, that a step must descend: f bends, and steps that overshoot would zigzag
ROUNDING = 1e-13  # of an energy
TOLERANCE = 1e-9  # of a state: where steps are shorter, the descent has arrived


@dataclass(frozen=True)
class FrameEnergy:
    """The free energy of one frame: ``frame`` ``(N, D)``, ``predicted`` ``(N, K)``, ``precision`` ``(N or 1, K, K)``."""

    model: TemporalPredictiveCoding
    system: Dynamics
    frame: Tensor
    predicted: Tensor
    precision: Tensor

    def seen(self, z: Tensor) -> Tensor:
        """C f(z) + c, ``(N, D)``."""
        return self.model.rate(z) @ self.system.emission.T + self.system.offset

    def error(self, z: Tensor) -> Tensor:
        """e₀, ``(N, D)``."""
        return self.frame - self.seen(z)

    def energy(self, z: Tensor) -> Tensor:
        """F, nats, ``(N,)``, without logarithms of variances."""
        temporal = z - self.predicted
        return 0.5 * ((self.error(z).square() / self.system.noise_variance).sum(-1) + (temporal * _times(self.precision, temporal)).sum(-1))

    def constant(self) -> Tensor:
        """½ log|2π R| − ½ log|Π / 2π|, nats, ``(N,)``: what makes the energy −log p(x, z)."""
        noise = (2.0 * math.pi * self.system.noise_variance).log().sum()
        return 0.5 * (noise + self.predicted.shape[-1] * math.log(2.0 * math.pi) - torch.linalg.slogdet(self.precision)[1])

    def force(self, z: Tensor) -> Tensor:
        """−∂F/∂z: the frame's weighted error, sent back through C, less the state's own."""
        up = (self.error(z) / self.system.noise_variance) @ self.system.emission
        return self.model.slope(z) * up - _times(self.precision, z - self.predicted)

    def information(self, z: Tensor) -> Tensor:
        """f′ Cᵀ R⁻¹ C f′, ``(N, K, K)``, or one for all sequences."""
        shared = self.system.emission.T @ (self.system.emission / self.system.noise_variance.unsqueeze(1))
        if self.model.activation == "identity":
            return shared.unsqueeze(0)
        slope = self.model.slope(z)
        return slope.unsqueeze(-1) * shared * slope.unsqueeze(-2)

    def curvature(self, z: Tensor) -> Tensor:
        """Gauss–Newton's H, ``(N, K, K)``."""
        return self.information(z) + self.precision

    def log_density(self, covariance: Tensor) -> Tensor:
        """log N(frame; C f(p) + c, C f′ Π⁻¹ f′ Cᵀ + R), by the matrix inversion lemma."""
        error = self.error(self.predicted)
        pull = self.model.slope(self.predicted) * ((error / self.system.noise_variance) @ self.system.emission)
        root = torch.linalg.cholesky(covariance)
        inner = torch.linalg.cholesky(torch.eye(root.shape[-1]).to(root) + root.mT @ self.information(self.predicted) @ root)
        whitened = torch.linalg.solve_triangular(inner, _times(root.mT, pull).unsqueeze(-1), upper=False).squeeze(-1)
        squares = (error.square() / self.system.noise_variance).sum(-1) - whitened.square().sum(-1)
        log_det = 2.0 * inner.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (squares + log_det + (2.0 * math.pi * self.system.noise_variance).log().sum())


def newton_descent(level: FrameEnergy, steps: int) -> Tensor:
    """Gauss–Newton steps from the prediction, each halved until it descends as the slope promises, or nearly so; estimates ``(N, K)``."""
    z = level.predicted
    energy = level.energy(z)
    for _ in range(steps):
        force = level.force(z)
        way = torch.cholesky_solve(force.unsqueeze(-1), torch.linalg.cholesky(level.curvature(z))).squeeze(-1)
        promise, slack = (force * way).sum(-1), ROUNDING * (1.0 + energy.abs())
        share = torch.ones_like(energy)
        for _ in range(HALVINGS):
            trial = level.energy(z + share.unsqueeze(-1) * way)
            climbs = ~(trial <= energy - SHARE * share * promise + slack)
            if not climbs.any():
                break
            share = torch.where(climbs, 0.5 * share, share)
        share = torch.where(climbs, 0.0, share)
        z, energy = z + share.unsqueeze(-1) * way, torch.where(climbs, energy, trial)
        if (way.abs() <= TOLERANCE * (1.0 + z.abs())).all() or climbs.all():
            break
    return z


def gradient_descent(level: FrameEnergy, steps: int, lr: float | None) -> Tensor:
    """Steps η along the force from the prediction: 2 / (largest + smallest curvature) under the identity, else 1 / largest, if None."""
    z = level.predicted
    rate = _rate(level) if lr is None else lr
    for _ in range(steps):
        z = z + rate * level.force(z)
    return z


def _rate(level: FrameEnergy) -> Tensor:
    """A learning rate for each sequence, ``(N, 1)``."""
    most = level.system.emission.T @ (level.system.emission / level.system.noise_variance.unsqueeze(1)) + level.precision
    ends = torch.linalg.eigvalsh(most)[:, [0, -1]]
    return 2.0 / ends.sum(1, keepdim=True) if level.model.activation == "identity" else 1.0 / ends[:, 1:]


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
