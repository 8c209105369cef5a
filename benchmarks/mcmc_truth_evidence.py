"""Log evidence of a linear-Gaussian model, whose truth is a closed form, by annealed importance sampling.

Not a program: ``benchmarks/mcmc_truth.py`` runs it.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from mcmc_truth_real import CHAINS, Part, drawn
from torch import Tensor

import guides
from inference.mcmc.annealing import ais
from zoo.oracles import LinearGaussian, linear_gaussian

__all__ = ["TEMPERATURES", "evidence"]

TEMPERATURES = (50, 100, 200, 500, 1000)
IMAGES_AT_ONCE, SINGLE = 25, 1e-3  # of annealed chains; nats that densities may be off in single precision (1e-5 was seen)


def evidence(options: argparse.Namespace) -> Part:
    """Log evidence of the same model by AIS, from the prior, the best independent Normals or Laplace's approximation (here exact)."""
    model = linear_gaussian(512, (1, 16, 16)).to(options.device)
    truth, x = drawn(model, options.evidence_images, options.seed)
    few = {name: value[:10] for name, value in truth.items()}
    results: dict[str, Any] = {"mean_field_kl": (model.log_evidence(x) - model.mean_field_elbo(x)).mean().item()}
    needed: dict[str, int | None] = {}
    for start in options.starts:
        results[start] = {}
        for temperatures in options.temperatures:
            row = results[start][str(temperatures)] = _annealed(model, x[:10], few, start, temperatures, options)
            print(f"{start}, {temperatures} temperatures: {row}", flush=True)
        needed[start] = min((int(t) for t, row in results[start].items() if row["greatest_error"] < 0.5), default=None)
    best = min((count, start) for start, count in needed.items() if count) if any(needed.values()) else None
    results |= {"temperatures_for_half_a_nat_on_10_images": needed, "all_images": None}
    passed = {"half_a_nat_on_10_images": best is not None}
    if best is not None and len(x) > 10:
        results["all_images"] = row = _annealed(model, x, truth, best[1], best[0], options) | {"start": best[1]}
        passed |= {"half_a_nat_on_all_images": row["greatest_error"] < 0.5, "inside_bracket": row["share_inside"] == 1.0}
    return results, passed


def _annealed(model: LinearGaussian, x: Tensor, truth: dict[str, Tensor], start: str, temperatures: int,
              options: argparse.Namespace) -> dict[str, float | int | str]:
    """Errors in nats of both bounds; an image is inside its bracket if neither bound passes the truth by more than 3 standard errors (and
    what single precision leaves)."""
    began = time.perf_counter()
    low, high, low_se, high_se, spread = (torch.cat(part) for part in zip(*(
        _bounds(model, x[part], {name: value[part] for name, value in truth.items()}, start, temperatures, options.evidence_chains,
                options.seed + CHAINS + int(part[0]))
        for part in torch.arange(len(x), device=x.device).split(IMAGES_AT_ONCE)), strict=True))
    inside = (low < 3.0 * low_se + SINGLE) & (high > -3.0 * high_se - SINGLE)
    root = math.sqrt(len(x))
    return {"images": len(x), "temperatures": temperatures, "chains": options.evidence_chains, "greatest_error": low.abs().max().item(),
            "share_within_half_a_nat": (low.abs() < 0.5).double().mean().item(), "se_mean": low_se.mean().item(),
            "below_mean": low.mean().item(), "below_mean_se": low.std().item() / root, "above_mean": high.mean().item(),
            "above_mean_se": high.std().item() / root, "sd_of_log_weights": spread.mean().item(),
            "share_inside": inside.double().mean().item(), "share_strictly_inside": ((low < 0) & (high > 0)).double().mean().item(),
            "seconds_both": time.perf_counter() - began}


def _bounds(model: LinearGaussian, x: Tensor, truth: dict[str, Tensor], start: str, temperatures: int, chains: int,
            seed: int) -> tuple[Tensor, ...]:
    """Errors of both bounds, their standard errors and the spread of the log weights, ``(N,)`` each."""
    made: dict[str, Callable[[], Callable | None]] = {
        "prior": lambda: None, "guide": lambda: mean_field(model, x), "laplace": lambda: guides.build("laplace_approximation", model, x)}
    guide = made[start]()
    setting = {"chains": chains, "temperatures": temperatures, "seed": seed, "guide": guide}
    exact = model.log_evidence(x).detach()
    below, above = ais(model, x, **setting), ais(model, x, truth=truth, **setting)
    return below.log_evidence - exact, above.log_evidence - exact, below.se, above.se, below.log_weights.std(0)


def mean_field(model: LinearGaussian, x: Tensor) -> Callable:
    """The best guide with independent Normals for the images ``x``, as a program."""
    mean, log_scale = model.mean_field(x)["z"].detach().to(x.dtype).unbind(-2)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))

    return guide
