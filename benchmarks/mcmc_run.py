"""What a sampler's run leaves, and the numbers that are made of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from mcmc_posteriors import Case, worst_ess
from torch import Tensor

from inference.mcmc.diagnostics import rhat

__all__ = ["Run", "summary"]


@dataclass(frozen=True)
class Run:
    """One run of a sampler on N images.

    Attributes:
        draws: ``(C, S, N, K)``.
        warmup_seconds, sampling_seconds: Wall clock, all images.
        warmup_gradients, sampling_gradients: Of one chain, mean over chains and images.
        compile_seconds: Spent once before, in neither of the times.
    """

    draws: Tensor
    warmup_seconds: float
    sampling_seconds: float
    warmup_gradients: float
    sampling_gradients: float
    compile_seconds: float = 0.0


def summary(case: Case, runs: list[Run]) -> dict[str, float]:
    """Numbers of a sampler; of the times of several runs the median, of their effective sample sizes those of the last.

    ``ess`` is the bulk effective sample size of an image's worst latent, the median over images; rates are per second of the machine's time
    that one image took, the N-th part of a run.
    """
    last = runs[-1]
    chains, _, images, _ = last.draws.shape
    least = worst_ess(last.draws)
    total = _median([run.warmup_seconds + run.sampling_seconds for run in runs])
    sampling = _median([run.sampling_seconds for run in runs])
    ess = least.median().item()
    values = {
        "images": images, "ess": ess, "ess_least_image": least.min().item(), "ess_of_squares": _of_squares(last.draws),
        "rhat": _worst_rhat(last.draws),
        "ess_per_second_of_an_image": ess * images / total, "ess_per_second_of_an_image_without_warmup": ess * images / sampling,
        "seconds": total, "sampling_seconds": sampling, "compile_seconds": last.compile_seconds,
        "gradients_of_a_chain_warmup": last.warmup_gradients, "gradients_of_a_chain_sampling": last.sampling_gradients,
        "ess_per_1000_gradients": 1e3 * ess / chains / last.sampling_gradients,
        "us_per_gradient": 1e6 * sampling / (chains * images * last.sampling_gradients),
    }
    if case.exact is not None:
        values |= _against_exact(case, last.draws)
    return values


def _median(values: list[float]) -> float:
    return torch.tensor(values, dtype=torch.float64).quantile(0.5).item()


def _of_squares(draws: Tensor) -> float:
    """The same as ``ess`` for the squared distance from the mean, which long trajectories remember best."""
    return worst_ess((draws - draws.mean((0, 1))).square()).median().item()


def _worst_rhat(draws: Tensor) -> float:
    """Greatest R-hat of each image's latents, the median over (the first) images."""
    return rhat(draws[:, :, :32]).nan_to_num(nan=math.inf).amax(-1).median().item()


def _against_exact(case: Case, draws: Tensor) -> dict[str, float]:
    """Root mean square error of posterior means, in posterior standard deviations, and the ratio of standard deviations."""
    mean, deviation = (value[: draws.shape[2]].to(draws.device) for value in case.exact)
    flat = draws.flatten(0, 1)
    return {"mean_error_in_deviations": ((flat.mean(0) - mean) / deviation).square().mean().sqrt().item(),
            "deviation_ratio": (flat.std(0) / deviation).mean().item()}
