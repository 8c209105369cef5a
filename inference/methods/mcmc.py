"""Markov chain Monte Carlo for every image at once: the reference for the other ways of inferring.

The sampler follows from the supports of the latents: Hamiltonian Monte Carlo for real values; exact Gibbs sweeps for counts and one-hots
under a linear decoder, gradient-informed moves on the lattice for others; and blocks in turn for programs that mix them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from guides.stepwise import settled
from inference.mcmc.blocks import Block, Blocks, RealBlock
from inference.mcmc.chains import Draws, collect
from inference.mcmc.diagnostics import diagnose
from inference.mcmc.gibbs import Sweeps, can_sweep
from inference.mcmc.lattice import Landscape, Lattice
from inference.mcmc.nuts import nuts
from inference.mcmc.population import population
from inference.mcmc.target import Target
from inference.methods.point import point
from inference.posterior import Posterior
from inference.progress import sampling_bar
from zoo.density import drawn_latents, latent_sites
from zoo.latents.support import support_kind

__all__ = ["SAMPLERS", "mcmc"]

STARTS = ("guide", "prior", "map", "annealed")
PARTICLES = 64  # that an annealed start is drawn from, or as many as there are chains
# What a sampler's name means for the transitions of real-valued latents; they may be overridden.
SAMPLERS: dict[str, dict[str, Any]] = {
    "auto": {},
    "hmc": {},
    "mala": {"steps": 1.0, "accept": 0.574},
    "langevin": {"steps": 1.0, "accept": 0.9, "adjusted": False},
    "gibbs": {},
    "lattice": {},
    "nuts": {},
}


def mcmc(model: Callable, x: Tensor, guide: nn.Module | None, draws: int, *, sampler: str = "auto", chains: int = 4, warmup: int = 200,
         thin: int = 1, start: str | None = None, steps: float | None = None, accept: float | None = None, step_size: float | None = None,
         compiled: bool = False, keep: int | None = None, progress: bool | Callable[[float], None] = False) -> Posterior:
    """Samples the posterior of every image.

    Arguments:
        draws: Draws of each chain.
        sampler: ``"auto"`` follows the supports. For real-valued latents: ``"hmc"``; ``"mala"``, the Metropolis-adjusted Langevin
            algorithm; ``"langevin"``, unadjusted after the warm-up, so biased by its step size; ``"nuts"``, Pyro's own, image by image
            and slow. For counts and one-hots: ``"gibbs"`` or ``"lattice"``.
        chains: Chains for each image.
        warmup: Iterations (sweeps) of each chain before those.
        thin: Iterations for each draw.
        start: Where chains start: at draws of the ``"guide"``, of the ``"prior"``, at ``"map"``, the highest of several summits for each
            chain, or ``"annealed"``, at particles that sequential Monte Carlo leads from the prior to the posterior: dearer, and for
            posteriors of several modes, which chains do not change between; at the guide if there is one, else the prior, if None.
        steps: Mean number of leapfrog steps of a trajectory; tuned if None.
        accept: Acceptance rate that step sizes are tuned to; .8 for trajectories, .574 for single Langevin steps, if None.
        step_size: Step size of the gradient-based samplers; neither it nor a metric is then tuned.
        compiled: Whether the density of real-valued latents is compiled, which takes half a minute and pays in long runs of small latents.
        keep: Draws kept of each chain, with a summary of all (:attr:`Posterior.summary`); all and no summary if None.
        progress: Whether to show acceptance, R-hat so far and the time that is left; or what to call with the fraction that is done.

    The posterior's ``stats``, one number for each image: ``rhat`` (greatest of its latents), ``ess`` (least of them), ``log_joint`` (mean),
    ``accepted``, ``divergences`` and ``step_size`` (real-valued latents), ``step_size_<site>`` (lattice moves).

    Raises:
        ValueError: for settings out of range, a start that is not finite (names the image), latents that the sampler does not move; or
            if no proposal was accepted for an image. Chains that never move while others of their image do are warned of.
    """
    if chains < 1:
        raise ValueError(f"chains must be at least 1, not {chains}")
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; known are: {', '.join(SAMPLERS)}")
    chosen = {"steps": steps, "accept": accept, "step_size": step_size}
    options = SAMPLERS[sampler] | {name: value for name, value in chosen.items() if value is not None}
    unused = {"steps": steps is not None, "step_size": step_size is not None, "compiled": compiled, "keep": keep is not None}
    if sampler == "nuts" and any(unused.values()):
        raise ValueError(f"the sampler 'nuts' has no {', '.join(name for name, is_given in unused.items() if is_given)}")
    values = _start(model, x, guide, chains, start)
    if sampler == "nuts":
        samples, stats = nuts(model, x, values, draws, warmup=warmup, thin=thin, accept=accept or 0.8)
        return Posterior("mcmc", samples, stats=stats | _convergence(samples))
    block = _blocks(model, x, values, warmup, sampler, options, compiled)
    with sampling_bar() if progress is True else nullcontext(_fraction(progress)) as report:
        run = collect(block.move, lambda: block.values() | {"log_prob": block.log_joint()}, draws, warmup=warmup, thin=thin, keep=keep,
                      report=report)
    samples = {name: value for name, value in run.kept.items() if name != "log_prob"}
    summary = _summary(run)
    log_joint = run.summary["log_prob"].mean if summary else run.kept["log_prob"].mean((0, 1))
    convergence = _worst(summary) if summary else _convergence(samples)
    return Posterior("mcmc", samples, stats={"log_joint": log_joint} | block.stats(run.made * thin) | convergence, summary=summary)


def _blocks(model: Callable, x: Tensor, values: dict[str, Tensor], warmup: int, sampler: str, options: dict[str, Any],
            compiled: bool) -> Block:
    """What moves the latents; checks that the sampler and its options apply."""
    sites = latent_sites(model, x)
    kinds = {name: support_kind(site["fn"].support) for name, site in sites.items()}
    real = [name for name, kind in kinds.items() if kind == "real"]
    discrete = [name for name in kinds if name not in real]
    for what, wrong in (("real", discrete if sampler in ("hmc", "mala", "langevin") else []),
                        ("count or one-hot", real if sampler in ("gibbs", "lattice") else [])):
        if wrong:
            raise ValueError(f"the sampler {sampler!r} moves {what} latents; others here are {', '.join(wrong)}; 'auto' moves all kinds")
    if not real and set(options) & {"steps", "accept", "step_size"}:
        raise ValueError(f"{', '.join(options)}: settings of samplers for real-valued latents; here there are only {', '.join(discrete)}")
    if sampler == "gibbs" or (sampler == "auto" and can_sweep(model)):
        return Sweeps(model, x, values.get("z", x))
    blocks: list[Block] = []
    if real:
        target = Target(model, x, given={name: values[name] for name in discrete}, compiled=compiled)
        blocks.append(RealBlock(target, values, warmup, **options))
    for name in discrete:
        others = {other: value for other, value in values.items() if other != name}
        blocks.append(Lattice(Landscape(model, x, name, sites[name]["fn"], others), values[name], warmup))
    return blocks[0] if len(blocks) == 1 else Blocks(blocks)


def _start(model: Callable, x: Tensor, guide: nn.Module | None, chains: int, start: str | None) -> dict[str, Tensor]:
    """First values of all latents, ``{site: (C, N, *event)}``."""
    start = start or ("prior" if guide is None else "guide")
    if start not in STARTS:
        raise ValueError(f"start must be one of {', '.join(STARTS)}, not {start!r}")
    if start == "guide" and guide is None:
        raise ValueError("start='guide' needs a guide")
    if start == "map":
        every = point(model, x.repeat(chains, *[1] * (x.dim() - 1)), None, 1, starts=4).samples
        return {name: value[0, 0].unflatten(0, (chains, len(x))) for name, value in every.items()}
    if start == "annealed":
        every = population(model, x, max(PARTICLES, chains)).values
        few = torch.randperm(max(PARTICLES, chains))[:chains]
        return {name: value[few] for name, value in every.items()}
    return drawn_latents(model if start == "prior" else settled(guide, x), x, chains)


def _fraction(progress: bool | Callable[[float], None]) -> Callable[[int, int, Tensor, float], None] | None:
    if not callable(progress):
        return None

    def report(done: int, total: int, chance: Tensor, worst: float) -> None:
        if done % max(total // 100, 1) == 0 or done == total:
            progress(done / total)

    return report


def _summary(run: Draws) -> dict[str, dict[str, Tensor]] | None:
    every = {name: {"mean": part.mean, "sd": part.sd, "rhat": part.rhat, "ess": part.ess}
             for name, part in run.summary.items() if name != "log_prob"}
    return every or None


def _worst(summary: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return _extremes(*(torch.cat([part[what].reshape(len(part[what]), -1) for part in summary.values()], -1) for what in ("rhat", "ess")))


def _convergence(samples: dict[str, Tensor]) -> dict[str, Tensor]:
    """Greatest R-hat and least effective sample size of each image's latents, where there are draws enough."""
    if next(iter(samples.values())).shape[1] < 4:
        return {}
    worst, least = zip(*(diagnose(value.reshape(*value.shape[:3], -1)) for value in samples.values()), strict=True)
    return _extremes(torch.cat(worst, -1), torch.cat(least, -1))


def _extremes(worst: Tensor, least: Tensor) -> dict[str, Tensor]:
    return {"rhat": worst.nan_to_num(nan=-torch.inf, posinf=torch.inf).amax(-1).where(~worst.isnan().all(-1), torch.nan).float(),
            "ess": least.nan_to_num(nan=torch.inf).amin(-1).where(~least.isnan().all(-1), torch.nan).float()}
