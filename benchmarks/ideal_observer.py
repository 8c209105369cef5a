"""What an ideal observer knows of the causes of optic flow, and whether the chains that tell it are right: coverage of credible intervals.

    python benchmarks/ideal_observer.py [--categories fixate-0 fixate-1] [--frames 500] [--starts map annealed] [--draws 200] [--warmup 300]

Causes and frames are drawn from the program ``optic_flow`` itself, so draws of its exact posterior would cover the true causes with just
the probability that they claim: what is missing is the sampler's. Coverage is over all frames, whatever the chains look like; beside it
stand the frames whose chains disagree (rank-normalized split R-hat above 1.05 of the worst latent) and coverage with and without them. For
a wall alone (``fixate-0``) exact draws are made without a Markov chain (``ideal_exact.py``), and the chains are held against them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

import pyro
import torch
from ideal_exact import exact_draws
from record import record
from torch import Tensor, nn

import inference
import zoo
from inference.metrics.coverage import coverage, intervals
from zoo.data.rofl import World, factors
from zoo.density import sites

LEVELS = (0.5, 0.9)
AGREE = 1.05  # R-hat above which chains count as disagreeing
EDGE = 0.02  # m, of the discs: with a hard edge no gradient sees where a disc ends


def frames_of(model: nn.Module, n: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Causes ``{site: (n, …)}`` and noisy frames ``(n, 2, H, W)`` of the program."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        trace = pyro.poutine.trace(model).get_trace(size=n)
    return {name: site["value"] for name, site in sites(trace, observed=False).items() if name != "x"}, trace.nodes["x"]["value"]


def named(causes: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """The Cartesian factors, in double precision."""
    every = factors({name: value.double() for name, value in causes.items()}, world)
    return {name: every[name] for name in world.cartesian_names}


def table(draws: Mapping[str, Tensor], truth: Mapping[str, Tensor], **options: Tensor | None) -> dict[str, dict[str, float]]:
    """``{level: {factor: coverage}}``, with the standard errors and the mean lengths of the intervals."""
    rows = coverage(draws, truth, levels=LEVELS, **options)
    found = {}
    for level in LEVELS:
        for column in ("coverage", "standard_error", "width"):
            found[f"{column}_{100 * level:g}"] = {row["factor"]: row[column] for row in rows if row["level"] == level}
    return found


def sampled(model: nn.Module, world: World, x: Tensor, truth: Mapping[str, Tensor], start: str, options: argparse.Namespace,
            ) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Numbers of the chains from one kind of start, and their draws."""
    began = time.perf_counter()
    posterior = inference.infer(model, x, "mcmc", draws=options.draws, warmup=options.warmup, chains=options.chains, thin=options.thin,
                                start=start, seed=options.seed)
    seconds, draws, stats = time.perf_counter() - began, named(posterior.samples, world), posterior.stats
    agree = stats["rhat"] <= AGREE
    numbers = {"images": len(x), "seconds": seconds, "images_that_disagree": int((~agree).sum()),
               "rhat_quantiles": _quantiles(stats["rhat"]), "ess_quantiles": _quantiles(stats["ess"]),
               "divergences": int(stats["divergences"].sum()), "images_with_divergences": int((stats["divergences"] > 0).sum()),
               "accepted_mean": stats["accepted"].mean().item(),
               "gradients_of_a_chain": posterior.cost["gradient_evaluations"] / options.chains, "all": table(draws, truth)}
    for name, among in (("agreeing", agree), ("disagreeing", ~agree)):
        if among.any():
            numbers[name] = table(draws, truth, among=among)
    return numbers, draws


def against(draws: Mapping[str, Tensor], exact: Mapping[str, Tensor], log_weights: Tensor) -> dict[str, object]:
    """The chains' means and intervals against exact ones, image by image."""
    off, ratio = [], {}
    weights = log_weights.softmax(1)
    for name, value in exact.items():
        mean = (weights * value).sum((0, 1))
        sd = (weights * (value - mean).square()).sum((0, 1)).sqrt()
        off.append((draws[name].mean((0, 1)) - mean).abs() / sd)
        ours, theirs = (high[0] - low[0] for low, high in (intervals(draws[name], [0.9]), intervals(value, [0.9], log_weights)))
        ratio[name] = (ours / theirs).median().item()
    worst = torch.stack(off).amax(0)
    return {"images_with_a_mean_off_by_half_an_sd": int((worst > 0.5).sum()), "worst_mean_off_in_sd_quantiles": _quantiles(worst),
            "width_ratio_90_median": ratio}


def measured(category: str, options: argparse.Namespace) -> dict[str, object]:
    """All numbers of one category."""
    world, edge = World(category), EDGE if World(category).objects else 0.0
    model = zoo.build("optic_flow", category=category, edge=edge)
    causes, x = frames_of(model, options.frames, options.seed)
    truth = named(causes, world)
    result: dict[str, object] = {"edge_m": edge, "noise_rad_per_s": model.scale.item()}
    exact = None
    if category == "fixate-0":
        began = time.perf_counter()
        drawn, log_weights = exact_draws(x, world, model.scale.item(), seed=options.seed)
        exact = named(drawn, world), log_weights
        result["exact"] = {"images": len(x), "seconds": time.perf_counter() - began, "all": table(exact[0], truth, log_weights=log_weights)}
    for start in options.starts:
        result[start], draws = sampled(model, world, x, truth, start, options)
        if exact is not None:
            result[start]["against_exact"] = against(draws, *exact)
        _tell(f"{category}, start={start}", result[start])
    n = min(options.double, options.frames)
    if n == 0:
        return result
    few = {name: value[:n] for name, value in truth.items()}
    single, double = (sampled(model.to(dtype), world, x[:n].to(dtype), few, options.starts[0], options)[0]
                      for dtype in (torch.float32, torch.float64))
    result |= {"float32_of_first_frames": single, "float64_of_first_frames": double}
    return result


def _quantiles(values: Tensor) -> dict[str, float]:
    at = (0.0, 0.05, 0.5, 0.95, 1.0)
    return {f"{q:g}": value for q, value in zip(at, values.double().quantile(torch.tensor(at, dtype=torch.double)).tolist(), strict=True)}


def _tell(name: str, numbers: dict) -> None:
    shares = ", ".join(f"{factor} {value:.3f}" for factor, value in numbers["all"]["coverage_90"].items())
    print(f"{name}: {numbers['images_that_disagree']} of {numbers['images']} disagree, {numbers['divergences']} divergences, "
          f"{numbers['seconds']:.0f} s; 90 % intervals cover: {shares}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--categories", nargs="+", default=["fixate-0", "fixate-1"])
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--starts", nargs="+", choices=["map", "prior", "annealed"], default=["map", "annealed"])
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=200, help="of each chain (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--thin", type=int, default=1)
    parser.add_argument("--double", type=int, default=50, help="frames sampled in double precision as well (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of PyTorch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.frames < 10 or options.chains * options.draws < 40 or options.draws < 4:
        parser.error("--frames must be at least 10, --draws at least 4, and all chains' draws of an image together at least 40")
    return options


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    results = {}
    for category in options.categories:
        results[category] = measured(category, options)
        record(f"ideal_observer_{category}", results[category], seed=options.seed,
               notes=f"{options.chains} chains x ({options.warmup} + {options.draws} x {options.thin}) iterations; coverage of central "
                     "intervals over all images, with its binomial standard error; widths in m and m/s; chains of an image disagree where "
                     f"R-hat > {AGREE}; exact: importance-weighted draws without a Markov chain")


if __name__ == "__main__":
    main()
