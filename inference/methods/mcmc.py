"""Markov chain Monte Carlo for every image at once: the reference for the other ways of inferring.

The sampler follows from the supports of the latents: Hamiltonian Monte Carlo for real values, exact Gibbs sweeps for counts and one-hots
under a linear decoder.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from inference.density import drawn_latents, latent_sites
from inference.mcmc.diagnostics import ess, rhat
from inference.mcmc.gibbs import can_sweep, gibbs
from inference.mcmc.hmc import hmc
from inference.mcmc.target import Target
from inference.posterior import Posterior
from zoo.latents.support import support_kind

__all__ = ["mcmc"]

STARTS = ("guide", "prior")


def mcmc(model: Callable, x: Tensor, guide: nn.Module | None, draws: int, *, chains: int = 4, warmup: int = 200, thin: int = 1,
         start: str | None = None, steps: float | None = None, accept: float = 0.8) -> Posterior:
    """Samples the posterior of every image.

    Arguments:
        draws: States kept of each chain.
        chains: Chains for each image.
        warmup: Iterations (sweeps) of each chain before those.
        thin: Iterations for each state that is kept.
        start: ``"guide"`` or ``"prior"``, of which the first states are drawn; the guide if there is one, if None.
        steps: Mean number of leapfrog steps of a trajectory; tuned if None. 1 is the Metropolis-adjusted Langevin algorithm.
        accept: Acceptance rate that step sizes are tuned to.

    The posterior's ``stats``, one number for each image: ``rhat`` (greatest of its latents), ``ess`` (least of them), ``log_joint`` (mean),
    and for real-valued latents ``accepted``, ``divergences`` and ``step_size``.

    Raises:
        ValueError: for settings out of range, a start that is not finite (names the image), or latents without a sampler.
    """
    if chains < 1:
        raise ValueError(f"chains must be at least 1, not {chains}")
    values = _start(model, x, guide, chains, start)
    kinds = {name: support_kind(site["fn"].support) for name, site in latent_sites(model, x).items()}
    discrete = [name for name, kind in kinds.items() if kind != "real"]
    if not discrete:
        samples, stats = _real(model, x, values, draws, warmup, thin, steps, accept)
    elif can_sweep(model):
        states, log_joints = gibbs(model, x, values["z"], draws, warmup=warmup, thin=thin)
        samples, stats = {"z": states}, {"log_joint": log_joints.mean((0, 1))}
    else:
        named = ", ".join(f"{name} ({kinds[name]})" for name in discrete)
        raise ValueError(f"there is no sampler for the latents {named} of this program: counts and one-hots need a one-layer model with a "
                         "linear decoder")
    return Posterior("mcmc", samples, stats=stats | _convergence(samples))


def _real(model: Callable, x: Tensor, values: dict[str, Tensor], draws: int, warmup: int, thin: int, steps: float | None,
          accept: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    target = Target(model, x)
    run = hmc(target.value_and_grad, target.unconstrain(values), draws, warmup=warmup, steps=steps, accept=accept, thin=thin)
    log_joints = run.log_prob - target.log_volume(run.states)
    stats = {"accepted": run.accepted, "divergences": run.divergences, "step_size": run.step, "log_joint": log_joints.mean((0, 1))}
    return target.constrain(run.states), stats


def _start(model: Callable, x: Tensor, guide: nn.Module | None, chains: int, start: str | None) -> dict[str, Tensor]:
    """First values of all latents, ``{site: (C, N, *event)}``."""
    start = start or ("prior" if guide is None else "guide")
    if start not in STARTS:
        raise ValueError(f"start must be {' or '.join(STARTS)}, not {start!r}")
    if start == "guide" and guide is None:
        raise ValueError("start='guide' needs a guide")
    return drawn_latents(model if start == "prior" else guide, x, chains)


def _convergence(samples: dict[str, Tensor]) -> dict[str, Tensor]:
    """Greatest R-hat and least effective sample size of each image's latents, where there are draws enough."""
    if next(iter(samples.values())).shape[1] < 4:
        return {}
    every = torch.cat([value.flatten(3) if value.dim() > 3 else value.unsqueeze(-1) for value in samples.values()], -1)
    worst, least = rhat(every), ess(every)
    return {"rhat": worst.nan_to_num(nan=-torch.inf, posinf=torch.inf).amax(-1).where(~worst.isnan().all(-1), torch.nan).float(),
            "ess": least.nan_to_num(nan=torch.inf).amin(-1).where(~least.isnan().all(-1), torch.nan).float()}
