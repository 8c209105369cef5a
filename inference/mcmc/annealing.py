r"""Annealed importance sampling: the log evidence of every image, from its prior to its posterior and, where the truth is known, back.

Along :math:`\log p_\beta(z) = \log p(z) + \beta \log p(x \mid z)` a chain gathers
:math:`\log w = \sum_t (\beta_t - \beta_{t-1}) \log p(x \mid z_{t-1})`, and :math:`E[w] = p(x)` (Neal 2001): the mean over chains is
unbiased, its logarithm a stochastic lower bound. A chain that starts at an exact posterior draw and goes back gives an upper bound in the
same way (Grosse, Ghahramani & Adams 2015); such draws exist where z made x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.density import count, drawn_latents
from inference.mcmc.gibbs import can_sweep, sweeps
from inference.mcmc.hmc import leapfrog
from inference.mcmc.target import Target

__all__ = ["Evidence", "ais", "betas"]

WANTED = 0.65  # acceptance rate that step sizes are tuned to along the way
STEPS = 4  # leapfrog steps between two temperatures


@dataclass(frozen=True)
class Evidence:
    """Estimates of log p(x) of each image.

    Attributes:
        log_evidence: Log of the mean weight, ``(N,)``, nats: a lower bound in expectation (an upper one for a reverse run).
        se: Its standard error ``(N,)`` by the delta method; trust it where the weights do not vary by much more than 1.
        log_weights: Log weights ``(C, N)``.
    """

    log_evidence: Tensor
    se: Tensor
    log_weights: Tensor


def betas(temperatures: int) -> Tensor:
    """``temperatures + 1`` inverse temperatures from 0 to 1, dense at both ends: a logistic function, stretched to end there."""
    t = torch.linspace(-4.0, 4.0, temperatures + 1, dtype=torch.float64).sigmoid()
    return (t - t[0]) / (t[-1] - t[0])


def ais(model: Callable, x: Tensor, *, chains: int = 16, temperatures: int = 500, seed: int = 0,
        truth: dict[str, Tensor] | None = None, report: Callable[[int, int], None] | None = None) -> Evidence:
    """Log evidence of every image, all chains and images at once.

    Real-valued latents move by Hamiltonian Monte Carlo, whose step sizes a first run finds for every temperature and image (the weights of
    a run that tunes itself are biased); counts and one-hots under a linear decoder by Gibbs sweeps.

    Arguments:
        model: A Pyro program.
        x: Images ``(N, *event_shape)``.
        chains: Chains for each image, C.
        temperatures: Steps from prior to posterior.
        seed: Seed of the chains; the global generator is left as it was.
        truth: The latents ``{site: (N, *event)}`` that the images were drawn with: runs backwards from there, for an upper bound.
        report: Called with (temperature, temperatures of all runs).

    Raises:
        ValueError: for settings out of range or latents without a sampler.
    """
    if chains < 2 or temperatures < 2:
        raise ValueError(f"chains and temperatures must be at least 2, not {chains} and {temperatures}")
    schedule = betas(temperatures).tolist()
    if truth is not None:
        schedule = schedule[::-1]
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        start = _start(model, x, chains, truth)
        run = _sweep_run if can_sweep(model) else _hamiltonian_run
        log_weights = run(model, x, start, schedule, report or (lambda done, total: None))
    # Backwards, the weights' mean is 1 / p(x).
    return _summary(log_weights, 1.0 if truth is None else -1.0)


def _start(model: Callable, x: Tensor, chains: int, truth: dict[str, Tensor] | None) -> dict[str, Tensor]:
    if truth is not None:
        return {name: value.detach().expand(chains, *value.shape).clone() for name, value in truth.items()}
    return drawn_latents(model, x, chains)


def _sweep_run(model: Callable, x: Tensor, start: dict[str, Tensor], schedule: list[float], report: Callable) -> Tensor:
    sweep, residual = sweeps(model, x)
    noise = model.scale.expand(model.event_shape)
    constant = -noise.log().sum() - 0.5 * noise.numel() * math.log(2.0 * math.pi)
    z = start["z"]
    rest, log_weights = residual(z), torch.zeros(z.shape[:2], dtype=torch.float64, device=x.device)
    for t in range(1, len(schedule)):
        likelihood = constant - 0.5 * rest.double().square().sum(-1)
        log_weights += (schedule[t] - schedule[t - 1]) * likelihood
        if t < len(schedule) - 1:
            sweep(z, rest, schedule[t])
            rest = residual(z)
        count(log_weights)
        report(t, len(schedule) - 1)
    return log_weights


def _hamiltonian_run(model: Callable, x: Tensor, start: dict[str, Tensor], schedule: list[float], report: Callable) -> Tensor:
    target = Target(model, x)
    u = target.unconstrain(start)
    total = 2 * (len(schedule) - 1)
    _, steps = _pass(target, u, schedule, None, lambda t: report(t, total))
    log_weights, _ = _pass(target, u, schedule, steps, lambda t: report(t + total // 2, total))
    return log_weights


def _pass(target: Target, u: Tensor, schedule: list[float], steps: list[Tensor] | None, report: Callable) -> tuple[Tensor, list[Tensor]]:
    """One run through the temperatures; tunes the step sizes if none are given, and returns the log weights and those used."""
    used: list[Tensor] = []
    log_weights = torch.zeros(u.shape[:2], dtype=torch.float64, device=u.device)
    step, scale = u.new_full(u.shape[1:2], 0.1), u.new_ones(u.shape[1:])
    likelihood = target.log_terms(u)[1]
    for t in range(1, len(schedule)):
        log_weights += (schedule[t] - schedule[t - 1]) * likelihood.double()
        if t == len(schedule) - 1:
            break
        step = step if steps is None else steps[t - 1]
        used.append(step)
        u, likelihood, accepted = _transition(target, u, schedule[t], step, scale)
        if steps is None:
            step = step * torch.exp(0.1 * (accepted.mean(0) - WANTED))
        report(t)
    return log_weights, used


def _transition(target: Target, u: Tensor, beta: float, step: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One accepted or rejected trajectory at a temperature; returns states, log-likelihoods and acceptance probabilities."""
    held = {}

    def density(v: Tensor) -> tuple[Tensor, Tensor]:
        v = v.detach().requires_grad_(True)
        with torch.enable_grad():
            prior, likelihood = target.log_terms(v)
            value = prior + beta * likelihood
            gradient, = torch.autograd.grad(value.sum(), v)
        held["likelihood"] = likelihood.detach()
        return value.detach(), gradient

    value, gradient = density(u)
    before, momentum = held["likelihood"], torch.randn_like(u)
    end, velocity, new_value, _ = leapfrog(density, u, momentum, gradient, step[:, None], scale, STEPS)
    error = (new_value - value).double() - 0.5 * (velocity.double().square() - momentum.double().square()).sum(-1)
    chance = torch.where(torch.isfinite(error), error, -torch.inf).clamp(max=0.0).exp().to(u.dtype)
    take = torch.rand_like(chance) < chance
    return torch.where(take[..., None], end, u), torch.where(take, held["likelihood"], before), chance


def _summary(log_weights: Tensor, sign: float) -> Evidence:
    """Log of the mean of exp(log_weights), times ``sign``, with its standard error."""
    chains = len(log_weights)
    log_mean = log_weights.logsumexp(0) - math.log(chains)
    relative = (log_weights - log_mean).exp()
    return Evidence(sign * log_mean, relative.std(0) / math.sqrt(chains), sign * log_weights)
