r"""Linear dynamical systems, of which everything is known: filter, one-step predictions, smoother, evidence, steady state.

With :math:`z_t = A z_{t-1} + a + N(0, Q)` and :math:`x_t = C z_t + c + N(0, R)` all laws are Normal (Kalman 1960; Rauch, Tung & Striebel
1965), and their covariances are those of every sequence, whatever was seen. Of covariances only ``(K, K)`` are ever factored: with
:math:`\Sigma = L L^\top` for what is predicted and :math:`J = C^\top R^{-1} C`, what is left after a frame is
:math:`P = L (I + L^\top J L)^{-1} L^\top`, and :math:`\log|C \Sigma C^\top + R| = \log|I + L^\top J L| + \log|R|`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.models.temporal import Dynamics, TemporalPredictiveCoding

__all__ = ["Filtered", "LinearDynamicalSystem", "Smoothed", "kalman_filter", "linear_dynamical_system", "rts_smoother", "steady_state"]


@dataclass(frozen=True)
class Filtered:
    """What a Kalman filter knows of N sequences of T frames, float64.

    Attributes:
        mean, covariance: Of the state at each frame given the frames up to it, ``(N, T, K)`` and ``(T, K, K)``.
        predicted, predicted_covariance: Given the frames before it, ``(N, T, K)`` and ``(T, K, K)``.
        frames: Means of each frame given the frames before it, ``(N, T, D)``.
        log_evidence: log p of each frame given the frames before it, nats, ``(N, T)``: the sum over T is log p(x).
    """

    mean: Tensor
    covariance: Tensor
    predicted: Tensor
    predicted_covariance: Tensor
    frames: Tensor
    log_evidence: Tensor


@dataclass(frozen=True)
class Smoothed:
    """States given all frames, float64.

    Attributes:
        mean, covariance: ``(N, T, K)`` and ``(T, K, K)``.
        lagged: Covariance of the state at frame t + 1 (rows) with that at frame t, ``(T − 1, K, K)``.
    """

    mean: Tensor
    covariance: Tensor
    lagged: Tensor


def kalman_filter(system: Dynamics, x: Tensor) -> Filtered:
    """Filters sequences frame by frame; can be differentiated.

    Arguments:
        system: The matrices, float64.
        x: Frames ``(N, T, D)``, float64.
    """
    gain = system.emission / system.noise_variance.unsqueeze(1)  # R⁻¹ C
    information = system.emission.T @ gain
    constant = (2.0 * math.pi * system.noise_variance).log().sum()
    predicted, covariance = system.first_mean.expand(len(x), -1), torch.diag(system.first_variance)
    rows: list[tuple[Tensor, ...]] = []
    for frame in x.unbind(1):
        left, log_det = _updated(covariance, information)
        foretold = predicted @ system.emission.T + system.offset
        error = frame - foretold
        pull = error @ gain
        mean = predicted + pull @ left
        squares = (error.square() / system.noise_variance).sum(-1) - ((pull @ left) * pull).sum(-1)
        rows.append((mean, left, predicted, covariance, foretold, -0.5 * (squares + log_det + constant)))
        predicted = mean @ system.transition.T + system.drift
        covariance = _ahead(system, left)
    mean, left, predicted, covariance, foretold, evidence = zip(*rows, strict=True)
    return Filtered(torch.stack(mean, 1), torch.stack(left), torch.stack(predicted, 1), torch.stack(covariance), torch.stack(foretold, 1),
                    torch.stack(evidence, 1))


def rts_smoother(system: Dynamics, filtered: Filtered) -> Smoothed:
    """Passes back through time what later frames tell of earlier states (Rauch, Tung & Striebel 1965)."""
    mean, covariance = [filtered.mean[:, -1]], [filtered.covariance[-1]]
    lagged: list[Tensor] = []
    for t in range(filtered.mean.shape[1] - 2, -1, -1):
        factor = torch.linalg.cholesky(filtered.predicted_covariance[t + 1])
        back = torch.cholesky_solve(system.transition @ filtered.covariance[t], factor).T  # P Aᵀ Σ⁻¹
        lagged.append(covariance[-1] @ back.T)
        mean.append(filtered.mean[:, t] + (mean[-1] - filtered.predicted[:, t + 1]) @ back.T)
        covariance.append(filtered.covariance[t] + back @ (covariance[-1] - filtered.predicted_covariance[t + 1]) @ back.T)
    size = len(system.drift)
    return Smoothed(torch.stack(mean[::-1], 1), torch.stack(covariance[::-1]),
                    torch.stack(lagged[::-1]) if lagged else system.drift.new_zeros(0, size, size))


def steady_state(system: Dynamics, tolerance: float = 1e-13, most: int = 100_000) -> tuple[Tensor, Tensor]:
    """Covariances ``(K, K)`` that the filter settles to: what is predicted, Σ = A P Aᵀ + Q, and what is left after a frame, P.

    Arguments:
        tolerance: Largest relative change of Σ in the last iteration of Riccati's equation.
        most: Largest number of iterations, which start at Σ = S₀.

    Raises:
        ValueError: if they do not settle: of states that grow and are not seen.
    """
    information = system.emission.T @ (system.emission / system.noise_variance.unsqueeze(1))
    covariance = torch.diag(system.first_variance)
    for _ in range(most):
        left, _ = _updated(covariance, information)
        after = _ahead(system, left)
        change, covariance = (after - covariance).abs().max(), after
        if change <= tolerance * after.abs().max():
            return covariance, _updated(covariance, information)[0]
        if not change.isfinite():
            break
    raise ValueError(f"the filter's covariance has not settled in {most} iterations: states that grow (the spectral radius of A is "
                     f"{float(torch.linalg.eigvals(system.transition).abs().max()):.3g}) must be seen in the frames")


def _updated(covariance: Tensor, information: Tensor) -> tuple[Tensor, Tensor]:
    """P from Σ and J, and log|I + Lᵀ J L|."""
    factor = torch.linalg.cholesky(covariance)
    inner = torch.linalg.cholesky(torch.eye(len(factor)).to(factor) + factor.T @ information @ factor)
    root = torch.linalg.solve_triangular(inner, factor.T, upper=False)
    return root.T @ root, 2.0 * inner.diagonal().log().sum()


def _ahead(system: Dynamics, left: Tensor) -> Tensor:
    return system.transition @ left @ system.transition.T + torch.diag(system.state_variance)


class LinearDynamicalSystem(TemporalPredictiveCoding):
    """A temporal model whose f is the identity, and its exact answers, in float64, for sequences ``(N, T, *frame_shape)``."""

    @classmethod
    def of(cls, model: TemporalPredictiveCoding) -> LinearDynamicalSystem:
        """The oracle of a model of ``zoo.build("temporal", …)``; its parameters share memory with the model's.

        Raises:
            ValueError: if the model's f is not the identity.
        """
        _check_linear(model)
        oracle = cls(model.event_shape, model.units, decoder_bias=model.emission.bias is not None,
                     learn_scale="pixel" if model.log_scale.dim() else False)
        oracle.load_state_dict(model.state_dict(), assign=True)
        oracle._floors = dict(model._floors)
        return oracle.requires_grad_(False)

    def filtered(self, x: Tensor) -> Filtered:
        """The Kalman filter's answers."""
        return kalman_filter(self.dynamics(), self.frames(x))

    def smoothed(self, x: Tensor) -> Smoothed:
        """The states' posterior given all frames, frame by frame."""
        return rts_smoother(self.dynamics(), self.filtered(x))

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) of each sequence, nats, ``(N,)``."""
        return self.filtered(x).log_evidence.sum(1)


def _check_linear(model: object) -> None:
    if getattr(model, "activation", None) != "identity" or not isinstance(model, TemporalPredictiveCoding):
        raise ValueError("exact answers need a temporal model with activation='identity', not "
                         f"{getattr(model, 'activation', type(model).__name__)!r}")


def linear_dynamical_system(event_shape: tuple[int, ...] = (5, 2, 2), units: int = 3, scale: float = 0.5, radius: float = 0.95,
                            seed: int = 0) -> LinearDynamicalSystem:
    """An oracle whose states turn and shrink by ``radius``, stationary with variance 1, seen through random weights.

    Arguments:
        event_shape: Of a sequence: ``(T, *frame_shape)``.
        units: Numbers of a state, K.
        scale: Standard deviation √R of a pixel.
        radius: Spectral radius of A, in [0, 1).
        seed: Seed of A and C.
    """
    return LinearDynamicalSystem(event_shape, units, scale=scale, radius=radius, seed=seed).requires_grad_(False)
