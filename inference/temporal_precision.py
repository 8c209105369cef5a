r"""Learning the precision of the temporal prediction error: the steady state of the Kalman filter, without its covariances.

One matrix for all frames, :math:`\Pi = \Sigma^{-1}`, is learned from the temporal errors :math:`e_1` and the curvature H that
each synapse's own level has at hand, by the fixed point of

.. math:: \Sigma \leftarrow \langle e_1 e_1^\top + H^{-1} \rangle, \qquad H = f' C^\top R^{-1} C f' + \Sigma^{-1}

(the expectation–maximization step for :math:`z_t \sim N(p_t, \Sigma)` with :math:`p_t` taken as given). It needs to know neither Q nor how
uncertain the estimate before was. In a linear model whose C has full column rank its only fixed point is the steady state of the Kalman
filter: there the frames' errors have, in the directions of C, the covariance :math:`C \Sigma C^\top + R` that Σ claims, hence Σ is the
covariance of what is predicted, and solves Riccati's equation. It is reached slowly in directions that frames hardly show. With fewer
pixels than units frames' errors alone do not tell Σ, and ``rule="likelihood"`` goes by the log likelihood of all one-step predictions
(innovations), through time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inference.filtering import Estimates, filter
from zoo.models.temporal import Dynamics, TemporalPredictiveCoding

__all__ = ["RULES", "expected_covariance", "innovation_likelihood", "learn_precision"]

RULES = ("local", "likelihood")
LEAST = 1e-3  # of Q, that Σ keeps under "likelihood"; in the steady state it is more than all of Q


def learn_precision(model: TemporalPredictiveCoding, x: Tensor, *, rule: str = "local", skip: int = 1, iterations: int = 300,
                    tolerance: float = 1e-5) -> Tensor:
    """The precision Π of the temporal prediction error, ``(K, K)``, float64, for ``filter(model, x, "precision", precision=Π)``.

    Arguments:
        model: A model of ``zoo.build("temporal", …)``; left as it is.
        x: Sequences ``(N, T, *frame_shape)``, T > ``skip``.
        rule: ``"local"``, or ``"likelihood"`` (f must be the identity), which both start at Q⁻¹.
        skip: First frames to leave out of averages: the first is predicted by a law of its own, and some more until filtering settles.
        iterations: Most passes over the sequences.
        tolerance: Largest relative change of Σ in the last pass of ``"local"``; largest slope of ``"likelihood"`` per frame and number.

    Raises:
        ValueError: for settings out of range, or sequences that do not fit.
        RuntimeError: if ``"local"`` has not settled.
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; precisions are learned by: {', '.join(RULES)}")
    if iterations < 1 or not 1 <= skip < x.shape[1] or not tolerance > 0:
        raise ValueError("iterations must be at least 1, tolerance positive, and skip from 1 to T − 1; "
                         f"got {iterations}, {tolerance} and {skip}")
    system = model.dynamics()
    covariance = torch.diag(system.state_variance.detach())
    if rule == "likelihood":
        if model.activation != "identity":
            raise ValueError("the rule 'likelihood' is for activation='identity'; take rule='local'")
        return _most_likely(system, model.frames(x), covariance, skip, iterations, tolerance)
    steps = 1 if model.activation == "identity" else None
    for _ in range(iterations):
        found = filter(model, x, "precision", precision=_symmetric(torch.linalg.inv(covariance)), steps=steps)
        after = expected_covariance(found, skip)
        change, covariance = (after - covariance).abs().max(), after
        if change <= tolerance * covariance.abs().max():
            return _symmetric(torch.linalg.inv(covariance))
    raise RuntimeError(f"the precision has not settled in {iterations} passes (last relative change "
                       f"{float(change / covariance.abs().max()):.2g}, tolerance {tolerance:g}); give more iterations")


def expected_covariance(found: Estimates, skip: int) -> Tensor:
    """⟨e₁ e₁ᵀ + H⁻¹⟩ over sequences and frames after the first ``skip``, ``(K, K)``."""
    errors = found.temporal_error[:, skip:].flatten(0, 1)
    return _symmetric(errors.T @ errors / len(errors) + found.covariance[:, skip:].mean((0, 1)))


def _most_likely(system: Dynamics, frames: Tensor, start: Tensor, skip: int, iterations: int, tolerance: float) -> Tensor:
    system = Dynamics(*(value.detach() for value in vars(system).values()))
    least = LEAST * start
    root = torch.linalg.cholesky(start - least).contiguous().requires_grad_(True)
    count = frames.shape[0] * (frames.shape[1] - skip)
    optimizer = torch.optim.LBFGS([root], max_iter=iterations, tolerance_grad=tolerance, tolerance_change=0.0,
                                  line_search_fn="strong_wolfe")

    def covariance() -> Tensor:
        return least + root.tril() @ root.tril().T

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -innovation_likelihood(system, frames, covariance(), skip) / count
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return _symmetric(torch.linalg.inv(covariance().detach()))


def innovation_likelihood(system: Dynamics, frames: Tensor, covariance: Tensor, skip: int) -> Tensor:
    """Sum of log N(x_t; C p_t + c, C Σ Cᵀ + R) over sequences and frames after the first ``skip``, with predictions that Σ filters; nats.

    Arguments:
        frames: ``(N, T, D)``.
        covariance: Σ, ``(K, K)``; the first frame has S₀ instead.
    """
    weighted = system.emission / system.noise_variance.unsqueeze(1)
    information, eye = system.emission.T @ weighted, torch.eye(len(covariance)).to(covariance)
    first = torch.linalg.inv(torch.diag(1 / system.first_variance) + information)
    left = torch.linalg.solve(eye + covariance @ information, covariance)  # (Σ⁻¹ + J)⁻¹
    predicted, squares = system.first_mean.expand(len(frames), -1), frames.new_zeros(())
    for t, frame in enumerate(frames.unbind(1)):
        error = frame - predicted @ system.emission.T - system.offset
        pull = error @ weighted
        if t >= skip:
            squares = squares + (error.square() / system.noise_variance).sum() - ((pull @ left) * pull).sum()
        mean = predicted + pull @ (left if t else first).T
        predicted = mean @ system.transition.T + system.drift
    log_det = torch.linalg.slogdet(eye + covariance @ information)[1] + (2.0 * math.pi * system.noise_variance).log().sum()
    return -0.5 * (squares + len(frames) * (frames.shape[1] - skip) * log_det)


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.T)
