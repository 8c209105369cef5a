"""Samplers and evidence against truths that are known: closed forms, enumeration, quadrature, exact draws, another sampler.

    python benchmarks/mcmc_truth.py [--parts linear_gaussian evidence …] [--images 1000] [--device cuda] [--model runs/poisson]

Each part prints its numbers, says PASS or FAIL of each of its targets, and writes ``results/mcmc_truth_<part>.json``. Errors are in
Monte-Carlo standard errors, as normal quantiles; the greatest of 512,000 normal errors is about 5, so that a part with many comparisons
passes if its errors are distributed as normal ones are (``as_normal``), and ``within_4`` is told beside it.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from device import check_device
from mcmc_truth_evidence import TEMPERATURES, evidence
from mcmc_truth_real import (
    CHAINS,
    Part,
    badly_scaled_gaussian,
    compared,
    differences,
    drawn,
    errors,
    laplace,
    linear_gaussian_moments,
    neals_funnel,
    normal,
    optic_flow,
)
from record import record
from torch import Tensor

import guides
import inference
import zoo
from inference import infer
from inference.checkpoint import load
from inference.mcmc.annealing import ais
from inference.mcmc.diagnostics import rhat
from inference.mcmc.gibbs import Sweeps
from inference.mcmc.lattice import Landscape, Lattice
from inference.recipes import recipe
from zoo.density import drawn_latents, latent_sites
from zoo.oracles import fixture_image, likelihood_constant, mixture, poisson_fixture

FIXTURE = {"mean": (0.650267, 0.248782), "covariance": 0.056873, "negative_log_evidence": 1.39635}
WARMUP = 50  # moves in which step sizes on the lattice are tuned
COMMON = 0.01  # posterior probability below which states are not compared one by one
AGREE, OF_PAIRS, ACTIVE = 1.01, 0.99, 0.05  # R-hat below which chains agree, share of pairs that must, posterior mean of those looked at


def fixture(options: argparse.Namespace) -> Part:
    """Two Poisson latents against enumeration, by both samplers, and their log evidence."""
    model, x = poisson_fixture(), fixture_image()
    mean, covariance = (value[0].detach() for value in model.posterior_moments(x))
    known = max((mean - torch.tensor(FIXTURE["mean"])).abs().max().item(), abs(covariance[0, 1].item() - FIXTURE["covariance"]))
    results: dict[str, Any] = {"published_numbers_off_by": known}
    for sampler in ("gibbs", "lattice"):
        z = infer(model, x, "mcmc", sampler=sampler, draws=200, warmup=100, chains=1000, seed=options.seed + CHAINS).samples["z"]
        away = (z - mean).double()[:, :, 0]
        products = torch.stack([away[..., 0].square(), away[..., 1].square(), away[..., 0] * away[..., 1]], -1)
        expected = torch.stack([covariance[0, 0], covariance[1, 1], covariance[0, 1]])
        results |= {f"{sampler}_mean": compared(errors(away, 0.0)[None]),
                    f"{sampler}_covariance": compared(errors(products, expected)[None]),
                    f"{sampler}_states": _states(z, model.states, model.posterior_probabilities(x).detach())}
    found = ais(model, x, chains=20_000, temperatures=30, seed=options.seed + CHAINS)
    value, se = -(found.log_evidence + likelihood_constant(model)).item(), found.se.item()
    off = value - FIXTURE["negative_log_evidence"]
    results["evidence"] = {"negative_log_evidence": value, "se": se, "off_in_se": off / se}
    within = {name: part["within_4"] for name, part in results.items() if isinstance(part, dict) and "within_4" in part}
    return results, within | {"published_numbers": known < 1e-6, "evidence": abs(off) < 4.0 * se < 0.04}


def categorical(options: argparse.Namespace) -> Part:
    """Ten categories: the posterior probability of each, by both samplers."""
    model = mixture(10, (1, 2, 2))
    _, x = drawn(model, min(options.images, 100), options.seed)
    results = {}
    for sampler in ("gibbs", "lattice"):
        z = infer(model, x, "mcmc", sampler=sampler, draws=300, warmup=100, chains=64, seed=options.seed + CHAINS).samples["z"]
        results[sampler] = _states(z, model.states, model.posterior_probabilities(x).detach())
    return {"images": len(x)} | results, normal(results)


def _states(z: Tensor, states: Tensor, probabilities: Tensor) -> dict[str, Any]:
    """Errors of the shares of draws ``(C, S, N, K)`` in each state ``(M, K)`` that has a probability, and in all others together."""
    every, greatest = [], 0.0
    for i, p in enumerate(probabilities):
        common = p > COMMON
        there = (z[:, :, i, None] == states[common]).all(-1).double()
        there, expected = torch.cat([there, 1.0 - there.sum(-1, keepdim=True)], -1), torch.cat([p[common], 1.0 - p[common].sum()[None]])
        greatest = max(greatest, (there.mean((0, 1)) - expected).abs().max().item())
        every.append(errors(there, expected)[(expected > COMMON) & (expected < 1.0 - COMMON)])
    return compared(torch.cat(every)[None]) | {"greatest_difference": greatest}


def patches(options: argparse.Namespace) -> Part:
    """Spike counts of natural patches, K = 512: chains from the prior and from the guide agree, after how many sweeps."""
    data = zoo.data.load("patches")
    if options.model:
        model, guide, _ = load(options.model)
    else:
        model = zoo.build("poisson", data, latents=512, decoder="lin")
        guide = guides.build("amortized", model, encoder="lin")
        inference.fit(model, guide, data, objective="exact", **recipe("default") | {"steps": options.steps})
    model, guide, x = model.to(options.device), guide.to(options.device), data.test.x[:options.patches].to(options.device)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(options.seed + CHAINS)
        start = torch.cat([drawn_latents(program, x, 4)["z"] for program in (model, guide)])
        kernels = {"gibbs": Sweeps(model, x, start),
                   "lattice": Lattice(Landscape(model, x, "z", latent_sites(model, x)["z"]["fn"], {}), start, WARMUP)}
        results = {name: _sweeps_to_agree(name, kernel, options.sweeps) for name, kernel in kernels.items()}
    return {"images": len(x)} | results, {f"{name}_agrees": part["sweeps"] is not None for name, part in results.items()}


def _sweeps_to_agree(name: str, kernel: Sweeps | Lattice, most: int) -> dict[str, Any]:
    """R-hat of the last half of the sweeps, over all chains of both sets, as they go on; the first half is warm-up."""
    kept, rows, ends = [], [], 2 * WARMUP
    began = time.perf_counter()
    while len(kept) < most:
        kernel.move()
        z = kernel.values()["z"]
        if z.max() > 255:
            raise RuntimeError(f"a count of {z.max().item():g} does not fit in a byte")
        kept.append(z.to(torch.uint8))
        if len(kept) in (ends, most):
            rows.append({"sweeps": len(kept), "seconds": time.perf_counter() - began} | _agreement(kept[len(kept) // 2:]))
            print(f"{name}: {rows[-1]}", flush=True)
            ends = round(ends * math.sqrt(2.0))
            if rows[-1]["share"] >= OF_PAIRS:
                break
    return {"sweeps": rows[-1]["sweeps"] if rows[-1]["share"] >= OF_PAIRS else None, "run": rows}


def _agreement(kept: list[Tensor]) -> dict[str, Any]:
    """Of the pairs of image and latent that are active: the share that agrees, R-hat's upper quantile, and the two sets' means."""
    every, off = [], []
    for i in range(kept[0].shape[1]):
        z = torch.stack([part[:, i] for part in kept], 1).float()
        z = z[..., z.mean((0, 1)) > ACTIVE]
        first, second = z.chunk(2)
        every.append(rhat(z))
        off.append(differences(first, second)["moment_1"].nan_to_num(nan=0.0))
    values = torch.cat(every).nan_to_num(nan=1.0, posinf=1e6)  # NaN: all chains stay at one count
    return {"pairs": len(values), "share": (values < AGREE).double().mean().item(), "rhat_99_percent": values.quantile(0.99).item(),
            "rhat_greatest": values.max().item(), "sets_differ": compared(torch.cat(off)[None])}


PARTS: dict[str, Callable[[argparse.Namespace], Part]] = {
    "linear_gaussian": linear_gaussian_moments, "evidence": evidence, "badly_scaled": badly_scaled_gaussian, "funnel": neals_funnel,
    "laplace": laplace, "flow": optic_flow, "poisson_fixture": fixture, "categorical": categorical, "patches": patches}


def _names(text: str) -> Iterable[str]:
    wrong = [name for name in text.split(",") if name not in PARTS]
    if wrong:
        raise argparse.ArgumentTypeError(f"unknown part {wrong[0]!r}; known are: {', '.join(PARTS)}")
    return text.split(",")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=_names, default=list(PARTS), help=f"comma-separated, of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--images", type=int, help="(default: 100 on a CPU, 1000 on a GPU)")
    parser.add_argument("--evidence-images", type=int, help="at the temperatures that 10 images need (default: 20 on a CPU, else --images)")
    parser.add_argument("--evidence-chains", type=int, default=16, help="for each of those (default: %(default)s)")
    parser.add_argument("--starts", nargs="+", choices=["prior", "guide", "laplace"], default=["prior", "guide"],
                        help="of these chains (prior and guide)")
    parser.add_argument("--temperatures", type=int, nargs="+", default=TEMPERATURES, help="(default: 50 to 1000)")
    parser.add_argument("--nuts-draws", type=int, default=1000, help="of each of its chains (default: %(default)s)")
    parser.add_argument("--model", help="folder of a trained Poisson model for patches (default: one is trained)")
    parser.add_argument("--patches", type=int, help="patches to infer (default: 50 on a CPU, else --images)")
    parser.add_argument("--steps", type=int, default=4000, help="of that training (default: %(default)s)")
    parser.add_argument("--sweeps", type=int, default=1600, help="most sweeps on patches (default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of linear_gaussian, evidence and patches")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    check_device(parser, options.device)
    options.images = options.images or (100 if options.device == "cpu" else 1000)
    options.evidence_images = options.evidence_images or (min(20, options.images) if options.device == "cpu" else options.images)
    options.patches = options.patches or (min(50, options.images) if options.device == "cpu" else options.images)
    counts = (options.images, options.patches, options.evidence_images, options.nuts_draws, options.steps)
    if min(counts) < 1 or min(options.evidence_chains, *options.temperatures) < 2:
        parser.error("images, draws and steps must be at least 1, temperatures and --evidence-chains at least 2")
    if options.sweeps < 100:
        parser.error("--sweeps must be at least 100")
    return options


def main() -> None:
    options, failed = arguments(), []
    for part in options.parts:
        began = time.perf_counter()
        results, passed = PARTS[part](options)
        record(f"mcmc_truth_{part}", {"passed": passed, "seconds": time.perf_counter() - began} | results, seed=options.seed,
               notes=PARTS[part].__doc__.splitlines()[0] + " Errors in Monte-Carlo standard errors, as normal quantiles; as_normal: "
               "distributed as independent normal errors are; evidence in nats.")
        for name, good in passed.items():
            print(f"{'PASS' if good else 'FAIL'} {part}: {name}", flush=True)
            failed += [] if good else [f"{part}: {name}"]
    raise SystemExit(f"{len(failed)} targets missed: {'; '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
