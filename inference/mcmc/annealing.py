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

from guides.lesioned import check_density
from guides.stepwise import settled
from inference.mcmc.annealed_moves import annealed_blocks, move_all
from inference.mcmc.gibbs import can_sweep, sweeps
from inference.mcmc.traced import traced
from zoo.density import count, drawn_latents, latent_sites, log_terms, uncounted
from zoo.latents.deterministic import is_deterministic

__all__ = ["Evidence", "ais", "betas"]

PILOT_CHAINS = 8  # for each image, that find the step sizes


@dataclass(frozen=True)
class Evidence:
    """Estimates of log p(x) of each image.

    Attributes:
        log_evidence: Log of the mean weight, ``(N,)``, nats: a lower bound in expectation (an upper one for a reverse run).
        se: Its standard error ``(N,)`` by the delta method; trust it where the weights do not vary by much more than 1. Chains of a
            reverse run share their start, which it does not know of: it is then too small.
        log_weights: Log weights ``(C, N)``.
    """

    log_evidence: Tensor
    se: Tensor
    log_weights: Tensor


def betas(temperatures: int, from_guide: bool = False) -> Tensor:
    """``temperatures + 1`` inverse temperatures from 0 to 1.

    From the prior they rise with the third power of time, as the likelihood is felt most where it has just set in; from a guide by a
    logistic function, stretched to end at 0 and 1, dense at both.
    """
    t = torch.linspace(0.0, 1.0, temperatures + 1, dtype=torch.float64)
    if not from_guide:
        return t**3
    t = (8.0 * t - 4.0).sigmoid()
    return (t - t[0]) / (t[-1] - t[0])


def ais(model: Callable, x: Tensor, *, guide: Callable | None = None, chains: int = 16, temperatures: int = 500, seed: int = 0,
        truth: dict[str, Tensor] | None = None, report: Callable[[int, int], None] | None = None) -> Evidence:
    """Log evidence of every image, all chains and images at once.

    Real-valued latents move by Hamiltonian Monte Carlo, counts and one-hots on their lattice, with step sizes that a first run of at
    most eight chains finds for every temperature and image (the weights of a run that tunes itself are biased); under a linear decoder
    counts and one-hots move by Gibbs sweeps.

    Arguments:
        model: A Pyro program.
        x: Images ``(N, *event_shape)``.
        guide: A guide of the model to anneal from, along q(z)^(1 − β) p(x, z)^β: the closer it is to the posterior, the fewer
            temperatures are needed. From the prior if None.
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
    if is_deterministic(model):
        raise ValueError("the codes of a deterministic model have no prior, so that there is no evidence")
    check_density(guide)
    schedule = betas(temperatures, from_guide=guide is not None).tolist()
    if truth is not None:
        schedule = schedule[::-1]
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        guide = None if guide is None else settled(guide, x)
        start = _start(guide or model, x, chains, truth)
        run = _sweep_run if can_sweep(model) else _gradient_run
        log_weights = run(model, guide, x, start, schedule, report or (lambda done, total: None))
    # Backwards, the weights' mean is 1 / p(x).
    return _summary(log_weights, 1.0 if truth is None else -1.0)


def _start(initial: Callable, x: Tensor, chains: int, truth: dict[str, Tensor] | None) -> dict[str, Tensor]:
    if truth is not None:
        return {name: value.detach().expand(chains, *value.shape).clone() for name, value in truth.items()}
    return drawn_latents(initial, x, chains)


def _sweep_run(model: Callable, guide: Callable | None, x: Tensor, start: dict[str, Tensor], schedule: list[float],
               report: Callable) -> Tensor:
    initial = None if guide is None else latent_sites(guide, x)["z"]["fn"]
    sweep, residual = sweeps(model, x, initial)
    noise = model.scale.expand(model.event_shape)
    constant = -noise.log().sum() - 0.5 * noise.numel() * math.log(2.0 * math.pi)
    prior, z = model.family.distribution(model.prior), start["z"]
    rest, log_weights = residual(z), torch.zeros(z.shape[:2], dtype=torch.float64, device=x.device)
    for t in range(1, len(schedule)):
        change = constant - 0.5 * rest.double().square().sum(-1)
        if initial is not None:
            change = change + prior.log_prob(z) - initial.log_prob(z)
        log_weights += (schedule[t] - schedule[t - 1]) * change
        if t < len(schedule) - 1:
            sweep(z, rest, schedule[t])
            rest = residual(z)
        count(log_weights)
        report(t, len(schedule) - 1)
    return log_weights


def _gradient_run(model: Callable, guide: Callable | None, x: Tensor, start: dict[str, Tensor], schedule: list[float],
                  report: Callable) -> Tensor:
    blocks = annealed_blocks(model, guide, x, start)

    def slope(*latents: Tensor) -> tuple[Tensor]:
        """Of the log density along the way, in beta."""
        given = dict(zip(start, latents, strict=True))
        prior, likelihood = log_terms(model, given, x)
        return (likelihood if guide is None else prior + likelihood - sum(log_terms(guide, given, x)),)

    change, total = traced(slope), 2 * (len(schedule) - 1)
    # Steps that were found on the way of these very chains would bias their weights: others find them, from the initial law up.
    upward = sorted(schedule)
    drawn = drawn_latents(guide or model, x, min(len(next(iter(start.values()))), PILOT_CHAINS))
    _, steps = _pass(blocks, change, x, {name: drawn[name] for name in start}, upward, None, lambda t: report(t, total))
    steps = steps if schedule == upward else steps[::-1]
    log_weights, _ = _pass(blocks, change, x, start, schedule, steps, lambda t: report(t + total // 2, total))
    return log_weights


def _pass(blocks: list, change: Callable, x: Tensor, values: dict[str, Tensor], schedule: list[float], steps: list[list[Tensor]] | None,
          report: Callable) -> tuple[Tensor, list[list[Tensor]]]:
    """One run through the temperatures; tunes the step sizes if none are given, and returns the log weights and those used."""
    used: list[list[Tensor]] = []
    current = [] if steps else [block.first_step(values, schedule[1]) for block in blocks]
    log_weights = torch.zeros(next(iter(values.values())).shape[:2], dtype=torch.float64, device=x.device)
    for t in range(1, len(schedule)):
        with uncounted():
            slope, = change(*values.values())
        count(slope, gradient=False)
        log_weights += (schedule[t] - schedule[t - 1]) * slope.double()
        if t == len(schedule) - 1:
            report(t)
            break
        current = current if steps is None else steps[t - 1]
        used.append(current)
        values, current = move_all(blocks, values, schedule[t], current)
        report(t)
    return log_weights, used


def _summary(log_weights: Tensor, sign: float) -> Evidence:
    """Log of the mean of exp(log_weights), times ``sign``, with its standard error."""
    chains = len(log_weights)
    log_mean = log_weights.logsumexp(0) - math.log(chains)
    relative = (log_weights - log_mean).exp()
    return Evidence(sign * log_mean, relative.std(0) / math.sqrt(chains), sign * log_weights)
