"""Effective samples a second: chains of all images at once against Pyro's NUTS image by image, NumPyro's NUTS and BlackJAX's HMC.

    python benchmarks/mcmc.py [--posteriors gaussian-64 laplace-64 laplace-512] [--images 1000] [--threads 2] [--budget small]

All samplers move in the same posteriors, which is checked first, from the same first states (draws of the prior), in float32, with diagonal
metrics, on the same cores. NumPyro and BlackJAX run under ``vmap`` over chains and images, compiled, and are left out where they are not
installed (``pip install numpyro blackjax``). Pyro runs on a few of the images. The samplers take turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys

import torch
from device import check_device
from mcmc_posteriors import Case, case
from mcmc_pyro import pyro_nuts
from mcmc_run import Run, summary
from record import record
from timing import seconds
from torch import Tensor

import inference
from inference.mcmc.hmc import hmc
from inference.mcmc.target import Target
from zoo.density import counting, drawn_latents

PEERS = ("numpyro", "blackjax")
SMALL = {"posteriors": ["gaussian-16", "laplace-16"], "images": 20, "draws": 60, "warmup": 60, "pyro_images": 1, "turns": 1,
         "training": 100}
TOLERANCE = 1e-3  # relative difference of log densities in float32


def ours(target: Case, options: argparse.Namespace, seed: int) -> dict[str, Run]:
    """``infer(model, x, "mcmc")`` with the diagnostics that it computes, and the sampler in it alone, as the others are.

    The seconds of warm-up are those of the same run with one draw.
    """
    posterior = inference.infer(target.model, target.x, "mcmc", draws=options.draws, chains=options.chains, warmup=options.warmup,
                                seed=seed)
    device, times, gradients = target.x.device, [], []
    for draws in (1, options.draws):
        with torch.random.fork_rng(), counting() as cost:
            torch.manual_seed(seed)
            density, start = Target(target.model, target.x), drawn_latents(target.model, target.x, options.chains)
            found = {}

            def run(density: Target = density, start: dict = start, draws: int = draws, found: dict = found) -> None:
                found["chains"] = hmc(density.value_and_grad, density.unconstrain(start), draws, warmup=options.warmup)

            times.append(seconds(run, device))
        gradients.append(cost.gradients / options.chains / len(target.x))
    warm, many = gradients[0], gradients[1] - gradients[0]
    sampler = Run(density.constrain(found["chains"].states)["z"], times[0], times[1] - times[0], warm, many)
    return {"ours": Run(posterior.samples["z"], times[0], posterior.cost["seconds"] - times[0], warm, many), "ours_sampler": sampler}


def same_density(target: Case, start: Tensor) -> float:
    """Greatest relative difference between the program's log density and the one in JAX, at the first states.

    Raises:
        SystemExit: if they are not the same.
    """
    import jax
    import numpy as np
    from mcmc_jax import log_density

    with torch.no_grad():
        program = inference.log_joint(target.model, {"z": start}, target.x).cpu()
    both = jax.vmap(jax.vmap(log_density(target.model)), in_axes=(0, None))
    by_hand = torch.from_numpy(np.array(both(start.cpu().numpy(), target.x.flatten(1).cpu().numpy())))
    difference = ((by_hand - program) / program).abs().max().item()
    if not difference < TOLERANCE:
        raise SystemExit(f"{target.name}: the log density in JAX differs from the program's by up to {difference:.1e} of its value")
    return difference


def compared(target: Case, options: argparse.Namespace, peers: tuple[str, ...]) -> dict[str, object]:
    """All samplers on one posterior, in turns."""
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        start = drawn_latents(target.model, target.x, options.chains)["z"]
    settings = {"draws": options.draws, "warmup": options.warmup, "accept": options.accept}
    runs: dict[str, list[Run]] = {name: [run] for name, run in ours(target, options, options.seed).items()}
    difference = same_density(target, start) if peers else None
    compiled = {}
    if "numpyro" in peers:
        from mcmc_jax import numpyro_nuts
        compiled["numpyro_nuts"] = numpyro_nuts(target.model, target.x, start, seed=options.seed, **settings)
    if "blackjax" in peers:
        from mcmc_jax import blackjax_hmc
        usual = max(round(runs["ours"][0].sampling_gradients / max(options.draws - 1, 1)), 1)
        for steps in options.leapfrog or sorted({usual, 2 * usual}):
            compiled[f"blackjax_hmc_{steps}"] = blackjax_hmc(target.model, target.x, start, seed=options.seed, steps=steps, **settings)
    for turn in range(options.turns):
        if turn:
            for name, run in ours(target, options, options.seed + turn).items():
                runs[name].append(run)
        for name, run in compiled.items():
            runs.setdefault(name, []).append(run())
        if options.pyro_images and not turn:
            few = slice(options.pyro_images)
            cpu = target.model.to("cpu"), target.x[few].cpu(), start[:, few].cpu()
            runs["pyro_nuts"] = [pyro_nuts(*cpu, seed=options.seed, **settings)]
            target.model.to(target.x.device)
        print(f"{target.name}, turn {turn}:", *(f"{name} {run[-1].warmup_seconds + run[-1].sampling_seconds:.1f} s"
                                                for name, run in runs.items()), flush=True)
    results = {name: summary(target, run) for name, run in runs.items()}
    return {"samplers": results, "ratios": _ratios(results), "log_density_relative_difference": difference}


def _ratios(results: dict[str, dict[str, float]]) -> dict[str, dict[str, dict[str, float]]]:
    """What ours gives, with diagnostics and without, over what each of the others gives."""
    keys = {"ess_per_second": "ess_per_second_of_an_image", "ess_per_second_without_warmup": "ess_per_second_of_an_image_without_warmup",
            "ess_per_gradient": "ess_per_1000_gradients", "seconds_per_gradient": "us_per_gradient"}
    mine = ("ours", "ours_sampler")
    return {who: {name: {short: results[who][key] / values[key] for short, key in keys.items()}
                  for name, values in results.items() if name not in mine} for who in mine}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--posteriors", nargs="+", default=["gaussian-64", "laplace-64", "laplace-512"],
                        help="family, latents and, if it is not linear, mlp, as in laplace-64-mlp (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=0.5**0.5, help="standard deviation of the pixels' noise (default: √½)")
    parser.add_argument("--training", type=int, default=500, help="training steps of the models (default: %(default)s)")
    parser.add_argument("--images", type=int, default=1000, help="of all samplers but Pyro's (default: %(default)s)")
    parser.add_argument("--pyro-images", type=int, default=2, help="images of Pyro's NUTS, 0 for none (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=200, help="of each chain (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=200, help="iterations before those (default: %(default)s)")
    parser.add_argument("--chains", type=int, default=4, help="for each image (default: %(default)s)")
    parser.add_argument("--accept", type=float, default=0.8, help="acceptance rate the others aim at (default: %(default)s)")
    parser.add_argument("--leapfrog", type=int, nargs="+", help="steps of BlackJAX's trajectories (default: as ours tuned, and twice that)")
    parser.add_argument("--turns", type=int, default=2, help="runs of every sampler but Pyro's (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="cores, of all samplers (default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of ours; cuda leaves NumPyro and BlackJAX out")
    parser.add_argument("--budget", choices=["small", "full"], default="full", help="small: a minute, to try it")
    parser.add_argument("--seed", type=int, default=0)
    words = {word.partition("=")[0] for word in sys.argv[1:]}
    given = {action.dest for action in parser._actions if words.intersection(action.option_strings)}
    options = parser.parse_args()
    if options.budget == "small":
        for name, value in SMALL.items():
            if name not in given:
                setattr(options, name, value)
    if min(options.images, options.chains, options.turns, options.threads) < 1 or options.draws < 4 or options.warmup < 0:
        parser.error("images, chains, turns and threads must be at least 1, --draws at least 4 and --warmup at least 0")
    if not 0 <= options.pyro_images <= options.images or options.training < 0 or min(options.leapfrog or [1]) < 1:
        parser.error("--pyro-images must be between 0 and --images, --training at least 0 and --leapfrog at least 1")
    check_device(parser, options.device)
    return options


def keep_to(threads: int) -> None:
    """Keeps this process to so many cores; before JAX is imported, which takes as many threads as it may use cores."""
    torch.set_num_threads(threads)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def main() -> None:
    options = arguments()
    keep_to(options.threads)
    peers = tuple(name for name in PEERS if importlib.util.find_spec(name)) if options.device == "cpu" else ()
    if options.device == "cpu" and len(peers) < len(PEERS):
        print(f"left out: {', '.join(name for name in PEERS if name not in peers)}; pip install numpyro blackjax to compare with them")
    results = {}
    for name in options.posteriors:
        try:
            target = case(name, options.images, training=options.training, scale=options.scale, seed=options.seed,
                          device=torch.device(options.device))
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
        results[name] = compared(target, options, peers)
    where = f"cpu_{options.threads}" if options.device == "cpu" else "cuda"
    record(f"mcmc_{options.images}_{where}" + ("_small" if options.budget == "small" else ""), results, seed=options.seed,
           notes=f"{options.chains} chains, {options.warmup} + {options.draws} iterations, float32, pixel noise {options.scale:.3g}; ess: "
                 "bulk, of an image's worst latent, median over images; rates count warm-up unless they say without, none counts "
                 "compile_seconds; ours has its diagnostics in them, ours_sampler has not; "
                 f"Pyro on {options.pyro_images} images, chain after chain: divide its ratios by the cores if it were spread over them; "
                 "targets: at least 100 against Pyro at 1,000 images, at least 1 against the others")


if __name__ == "__main__":
    main()
