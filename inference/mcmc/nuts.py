"""Pyro's No-U-Turn sampler, image by image: a slow cross-check of the samplers that move all images at once (Hoffman & Gelman 2014)."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from pyro.infer.mcmc import MCMC, NUTS
from torch import Tensor

from inference.mcmc.target import Target

__all__ = ["nuts"]


def nuts(model: Callable, x: Tensor, start: dict[str, Tensor], draws: int, *, warmup: int = 200, thin: int = 1,
         accept: float = 0.8) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Runs the chains of each image one after another, with Pyro's own tuning of step size and metric.

    Arguments:
        model: A Pyro program of real-valued latents.
        x: Images ``(N, *event_shape)``.
        start: Initial values ``{site: (C, N, *event)}``.
        draws, warmup, thin: Draws of each chain, transitions before them, and for each of them.
        accept: Acceptance statistic that step sizes are tuned to.

    Returns:
        Draws ``{site: (C, S, N, *event)}``, and ``log_joint`` and ``divergences`` of each image.

    Raises:
        ValueError: for discrete latents or settings out of range.
    """
    if draws < 1 or warmup < 0 or thin < 1 or not 0.0 < accept < 1.0:
        raise ValueError("draws and thin must be at least 1, warmup at least 0 and accept between 0 and 1, not "
                         f"{draws}, {thin}, {warmup} and {accept}")
    target = Target(model, x)
    first = target.unconstrain(start)
    states = first.new_empty(len(first), draws, len(x), target.size)
    divergences = first.new_zeros(len(x))
    for image in range(len(x)):
        one = Target(model, x[image: image + 1])
        for chain in range(len(first)):
            kernel = NUTS(potential_fn=_potential(one), target_accept_prob=accept)
            run = MCMC(kernel, num_samples=draws * thin, warmup_steps=warmup, initial_params={"u": first[chain, image].clone()},
                       disable_progbar=True)
            with pyro.validation_enabled(False), torch.enable_grad():
                run.run()
            states[chain, :, image] = run.get_samples()["u"][thin - 1:: thin]
            divergences[image] += sum(map(len, run.diagnostics()["divergences"].values()))
    with torch.no_grad():
        log_joint = (target.log_prob(states) - target.log_volume(states)).mean((0, 1))
    return target.constrain(states), {"log_joint": log_joint, "divergences": divergences}


def _potential(target: Target) -> Callable[[dict[str, Tensor]], Tensor]:
    def potential(params: dict[str, Tensor]) -> Tensor:
        return -target.log_prob(params["u"].unsqueeze(0)).squeeze(0)

    return potential
