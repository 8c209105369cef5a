"""Pyro's NUTS, which takes one posterior at a time: an image after the other, a chain after the other."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import pyro
import torch
from mcmc_run import Run
from pyro.infer.mcmc import MCMC, NUTS
from torch import Tensor

__all__ = ["pyro_nuts"]


def pyro_nuts(model: Callable, x: Tensor, start: Tensor, draws: int, warmup: int, seed: int, accept: float = 0.8, *,
              jit: bool = True) -> Run:
    """Runs NUTS on the program, conditioned on each of a few images.

    Its times are of all chains of all these images, with the compilation of each, which comes with every image.

    Arguments:
        x: Images ``(N, *event_shape)``, few.
        start: First values of the site ``"z"``, ``(C, N, K)``.
        jit: Whether the density is traced by TorchScript; about a third faster.
    """
    chains = [[_chain(model, x[i:i + 1], start[c, i:i + 1], draws, warmup, seed + i + len(x) * c, accept, jit) for i in range(len(x))]
              for c in range(len(start))]
    flat = [run for row in chains for run in row]
    states = torch.stack([torch.stack([z for z, *_ in row], 1) for row in chains])
    warm, sampling, warm_gradients, gradients = (sum(run[i] for run in flat) for i in range(1, 5))
    return Run(states, warm, sampling, warm_gradients / len(flat), gradients / len(flat))


def _chain(model: Callable, image: Tensor, start: Tensor, draws: int, warmup: int, seed: int, accept: float,
           jit: bool) -> tuple[Tensor, float, float, int, int]:
    """Draws ``(S, K)``, seconds of warm-up and of sampling, and gradients in each."""
    counts, marks, wrapped = [0], {}, []

    def counted(potential: Callable) -> Callable:
        def call(z: dict[str, Tensor]) -> Tensor:
            counts[0] += 1
            return potential(z)

        return call

    def watch(kernel: NUTS, samples: object, stage: str, i: int) -> None:
        if not wrapped:  # the potential exists once the kernel has been set up, in the first iteration, whose gradients go uncounted
            kernel.potential_fn = counted(kernel.potential_fn)
            wrapped.append(True)
        if stage.lower().startswith("warmup"):
            marks["warm"] = time.perf_counter(), counts[0]

    with torch.random.fork_rng(), pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer
        pyro.set_rng_seed(seed)
        kernel = NUTS(model, jit_compile=jit, ignore_jit_warnings=True, target_accept_prob=accept)
        chain = MCMC(kernel, num_samples=draws, warmup_steps=warmup, initial_params={"z": start}, disable_progbar=True, hook_fn=watch)
        began = time.perf_counter()
        chain.run(image)
        end = time.perf_counter()
    middle, warm = marks.get("warm", (began, 0))
    return chain.get_samples()["z"][:, 0], middle - began, end - middle, warm, counts[0] - warm
