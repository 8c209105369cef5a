r"""Inference frame by frame: temporal predictive coding, and what it leaves out of the Kalman filter.

At each frame the state descends the free energy

.. math::
    F_t(z) = \tfrac12 e_0^\top R^{-1} e_0 + \tfrac12 e_1^\top \Pi_t\, e_1, \quad e_0 = x_t - C f(z) - c, \quad e_1 = z - p_t,

with the prediction :math:`p_t = A f(\hat z_{t-1}) + a` from the estimate before it, kept as it is. What is carried from frame to frame
beside the estimate decides about the precision of the temporal error :math:`e_1`:

========== ==================================================================================================================
carry      :math:`\Pi_t` for t > 1 (at the first frame it is :math:`S_0^{-1}`)
========== ==================================================================================================================
point      :math:`Q^{-1}`: the estimate is taken for the truth (Millidge et al. 2024)
precision  one matrix for all frames, learned (:mod:`inference.temporal_precision`), or that of the steady state
curvature  :math:`(A f' H_{t-1}^{-1} f' A^\top + Q)^{-1}` with the curvature :math:`H_{t-1}` of :math:`F_{t-1}` at the estimate
========== ==================================================================================================================

Curvatures are Gauss–Newton's, :math:`H = f' C^\top R^{-1} C f' + \Pi`. With the identity for f the last is the Kalman filter, and with any
other the iterated extended Kalman filter, whose iterations are Gauss–Newton steps (Bell & Cathey 1993, IEEE Transactions on Automatic
Control 38).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inference.frame_energy import FrameEnergy, gradient_descent, newton_descent
from zoo.models.temporal import Dynamics, TemporalPredictiveCoding
from zoo.oracles.kalman import steady_state

__all__ = ["CARRIES", "DESCENTS", "Estimates", "filter"]

CARRIES = ("point", "precision", "curvature")
DESCENTS = ("gradient", "newton")


@dataclass(frozen=True)
class Estimates:
    """What filtering N sequences of T frames found, in float64, state by state.

    Attributes:
        mean: Estimates of the state, ``(N, T, K)``.
        covariance: The inverse curvature of the free energy there, ``(N, T, K, K)``.
        error: Prediction errors at the data, :math:`e_0` at the estimate, ``(N, T, *frame_shape)``.
        temporal_error: Prediction errors at the state, :math:`e_1`, ``(N, T, K)``.
        predicted: The state as predicted from the frames before it, ``(N, T, K)``.
        predicted_covariance: :math:`\\Pi_t^{-1}`, ``(N, T, K, K)``.
        predicted_frames: The frame as predicted from the frames before it, :math:`C f(p_t) + c`, ``(N, T, *frame_shape)``.
        next_frame: The same for the frame after the last, ``(N, *frame_shape)``.
        log_density: log p of each frame given the frames before it, nats, ``(N, T)``, of the Normal that the carry makes of it,
            :math:`N(C f(p_t) + c,\\ C f' \\Pi_t^{-1} f' C^\\top + R)` with f′ at :math:`p_t`: exact under ``"curvature"`` and the identity.
        energy: The free energy :math:`F_t` at the estimate with the logarithms that belong to it, :math:`-\\log N(x_t; C f(z) + c, R)
            - \\log N(z; p_t, \\Pi_t^{-1})`, nats, ``(N, T)``.
        slope: Length of its gradient there, ``(N, T)``: 0 where the descent has arrived.
    """

    mean: Tensor
    covariance: Tensor
    error: Tensor
    temporal_error: Tensor
    predicted: Tensor
    predicted_covariance: Tensor
    predicted_frames: Tensor
    next_frame: Tensor
    log_density: Tensor
    energy: Tensor
    slope: Tensor


@torch.no_grad()
def filter(model: TemporalPredictiveCoding, x: Tensor, carry: str = "point", *, precision: Tensor | None = None,
           descent: str = "newton", steps: int | None = None, lr: float | None = None) -> Estimates:
    """Infers each frame's state from the frames up to it, for all sequences at once.

    Arguments:
        model: A model of ``zoo.build("temporal", …)``.
        x: Sequences ``(N, T, *frame_shape)``, of any length.
        carry: ``"point"``, ``"precision"`` or ``"curvature"``.
        precision: Π of the carry ``"precision"``, ``(K, K)``; that of the steady state if None (f must be the identity then).
        descent: ``"newton"``: Gauss–Newton steps, each halved until it descends; under the identity the first one arrives. ``"gradient"``:
            the dynamics of predictive coding, :math:`z \\leftarrow z + \\eta (f' C^\\top R^{-1} e_0 - \\Pi e_1)`.
        steps: Steps at each frame, from the prediction; 20 of ``"newton"``, 1000 of ``"gradient"`` if None.
        lr: η; if None 2 / (largest + smallest eigenvalue of :math:`C^\\top R^{-1} C + \\Pi`), which under the identity converges fastest,
            or 1 / largest under any other f (whose slope is at most 1).

    Raises:
        ValueError: for another model, settings out of range, or sequences that do not fit.
        FloatingPointError: if the estimates are not finite; says at which frame.
    """
    _check(model, carry, precision, descent, steps, lr)
    frames, system = model.frames(x), model.dynamics()
    steps = (20 if descent == "newton" else 1000) if steps is None else steps
    shared = _shared_covariance(model, system, carry, precision)
    predicted = system.first_mean.expand(len(x), -1)
    count = 1 if model.activation == "identity" else len(x)  # of covariances: under the identity one is that of all sequences
    covariance = torch.diag(system.first_variance).expand(count, -1, -1)
    rows: list[tuple[Tensor, ...]] = []
    for t, frame in enumerate(frames.unbind(1)):
        level = FrameEnergy(model, system, frame, predicted, torch.linalg.inv(covariance))
        z = newton_descent(level, steps) if descent == "newton" else gradient_descent(level, steps, lr)
        if not z.isfinite().all():
            raise FloatingPointError(f"estimates are not finite at frame {t + 1}; try a smaller lr")
        left = torch.linalg.inv(level.curvature(z))
        rows.append((z, left, level.error(z), z - predicted, predicted, covariance, level.seen(predicted), level.log_density(covariance),
                     level.energy(z) + level.constant(), level.force(z).norm(dim=-1)))
        predicted = _predict(model, system, z)
        covariance = _ahead(model, system, z, left) if carry == "curvature" else shared.expand(count, -1, -1)
    mean, left, error, temporal, before, around, foretold, density, energy, slope = (torch.stack(row, 1) for row in zip(*rows, strict=True))
    after, shape = model.rate(predicted) @ system.emission.T + system.offset, model.frame_shape
    matrices = (*mean.shape, mean.shape[-1])
    return Estimates(mean, left.expand(matrices), error.unflatten(-1, shape), temporal, before, around.expand(matrices),
                     foretold.unflatten(-1, shape), after.unflatten(-1, shape), density, energy, slope)


def _predict(model: TemporalPredictiveCoding, system: Dynamics, z: Tensor) -> Tensor:
    """A f(z) + a."""
    return model.rate(z) @ system.transition.T + system.drift


def _ahead(model: TemporalPredictiveCoding, system: Dynamics, z: Tensor, left: Tensor) -> Tensor:
    """A f′ P f′ Aᵀ + Q, ``(N, K, K)``, or one for all sequences."""
    moved = system.transition if model.activation == "identity" else system.transition * model.slope(z).unsqueeze(-2)
    return moved @ left @ moved.mT + torch.diag(system.state_variance)


def _shared_covariance(model: TemporalPredictiveCoding, system: Dynamics, carry: str, precision: Tensor | None) -> Tensor:
    """Π⁻¹ of all frames but the first, ``(K, K)``; of no use to ``"curvature"``."""
    if carry != "precision":
        return torch.diag(system.state_variance)
    return steady_state(system)[0] if precision is None else torch.linalg.inv(precision.to(system.transition))


def _check(model: object, carry: str, precision: Tensor | None, descent: str, steps: int | None, lr: float | None) -> None:
    if not isinstance(model, TemporalPredictiveCoding):
        raise ValueError(f"only a temporal model can be filtered (zoo.build('temporal', …)), not {type(model).__name__}")
    if carry not in CARRIES or descent not in DESCENTS:
        raise ValueError(f"carry must be one of {', '.join(CARRIES)}, and descent one of {', '.join(DESCENTS)}; got {carry!r}, {descent!r}")
    if (steps is not None and steps < 1) or (lr is not None and (not lr > 0 or descent == "newton")):
        raise ValueError(f"steps must be at least 1, and lr positive and of descent='gradient'; got {steps} and {lr}")
    if precision is None:
        if carry == "precision" and model.activation != "identity":
            raise ValueError("give the precision: only under activation='identity' does it follow from the model (learn_precision finds it "
                             "from sequences)")
        return
    if carry != "precision" or tuple(precision.shape) != (model.units, model.units):
        raise ValueError(f"a precision is for carry='precision', of shape ({model.units}, {model.units}); "
                         f"got {tuple(precision.shape)} and {carry!r}")
    if not torch.allclose(precision, precision.T) or torch.linalg.cholesky_ex(precision.double())[1] != 0:
        raise ValueError("the precision must be symmetric and positive definite")
