"""How chains of many images at once scale: seconds for a draw, and effective samples a second, of 1 to 10,000 images.

    python benchmarks/mcmc_scaling.py [--images 1 10 100 1000 10000] [--posterior laplace-64] [--threads 2] [--device cuda]

Where there are fewer test images than asked for, they are taken several times over.
"""

from __future__ import annotations

import argparse
import os
import time

import torch
from device import check_device
from mcmc_posteriors import Case, case, worst_ess
from record import record

import inference

MEASURED = 1000  # images whose effective sample sizes are looked at


def one_size(target: Case, images: int, options: argparse.Namespace) -> dict[str, float]:
    """Times of one run with so many images."""
    times = -(-images // len(target.x))
    x = target.x.repeat(times, 1, 1, 1)[:images]
    when: list[tuple[float, float]] = []
    posterior = inference.infer(target.model, x, "mcmc", draws=options.draws, chains=options.chains, warmup=options.warmup,
                                seed=options.seed, progress=lambda done: when.append((done, time.perf_counter())))
    warm, began = next(point for point in when if point[0] >= options.warmup / (options.warmup + options.draws))
    sampling, made = when[-1][1] - began, round((1.0 - warm) * (options.warmup + options.draws))
    seconds, per_draw = posterior.cost["seconds"], sampling / made
    ess = worst_ess(posterior.samples["z"][:, :, :MEASURED]).median().item()
    return {"ms_per_draw": 1e3 * per_draw, "us_per_draw_of_an_image": 1e6 * per_draw / images, "seconds": seconds, "ess": ess,
            "gradients_of_a_chain": posterior.cost["gradient_evaluations"] / options.chains,
            "ess_per_second_of_each_image": ess / seconds, "ess_per_second_of_an_image": ess * images / seconds,
            "ess_per_second_of_an_image_without_warmup": ess * images / (per_draw * options.draws)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--posterior", default="laplace-64", help="as in mcmc.py (default: %(default)s)")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 10, 100, 1000, 10000], help="default: 1 10 100 1000 10000")
    parser.add_argument("--scale", type=float, default=0.5**0.5, help="standard deviation of the pixels' noise (default: √½)")
    parser.add_argument("--training", type=int, default=500, help="training steps of the model (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=100, help="of each chain (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=200, help="iterations before those (default: %(default)s)")
    parser.add_argument("--chains", type=int, default=4, help="for each image (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="cores (default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if min(*options.images, options.chains, options.threads) < 1 or options.draws < 4 or options.warmup < 0 or options.training < 0:
        parser.error("images, chains and threads must be at least 1, --draws at least 4, --warmup and --training at least 0")
    check_device(parser, options.device)
    return options


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:options.threads])
    try:
        target = case(options.posterior, min(max(options.images), 4000), training=options.training, scale=options.scale,
                      seed=options.seed, device=torch.device(options.device))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    one_size(target, 1, options)  # a rehearsal
    results = {}
    for images in options.images:
        results[str(images)] = one_size(target, images, options)
        print(f"{images} images: {results[str(images)]['ms_per_draw']:.2f} ms a draw", flush=True)
    where = f"cpu_{options.threads}" if options.device == "cpu" else "cuda"
    record(f"mcmc_scaling_{options.posterior}_{where}", results, seed=options.seed,
           notes=f"{options.chains} chains, {options.warmup} + {options.draws} iterations; ess: bulk, of an image's worst latent, median "
                 "over images; seconds and the first two rates count warm-up and diagnostics")


if __name__ == "__main__":
    main()
