"""What fresh frames cost: training on a stream of optic flow, no frame seen twice, against training on as many stored frames.

    python benchmarks/rofl_stream.py [--device cuda] [--batches 1000 250] [--frames 98304] [--pairs 7]

The stored frames are the stream's first, so that both trainings take the same number of steps on frames of one law; one shuffles what it
has, the other proposes, rejects and renders as it goes. They run in turn, A B A B …, each from the parameters where the one before ended;
the ratio is the median over the pairs. ``generation`` is the stream alone, asked for the same batches.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from device import check_device
from record import record
from timing import seconds

import guides
import inference
import zoo
from zoo.data.rofl import Stream, World


def compared(world: World, batch_size: int, options: argparse.Namespace) -> dict[str, object]:
    """Times of both trainings with one batch size."""
    device, steps = torch.device(options.device), options.frames // batch_size
    stored = Stream(world, seed=options.seed, device=device).images(0, steps * batch_size)
    model = zoo.build("gaussian", stored.shape[1:], latents=options.latents, decoder="lin", seed=options.seed).to(device)
    guide = guides.build("amortized", model, encoder="lin", seed=options.seed).to(device)

    def train(data: object) -> None:
        inference.fit(model, guide, data, objective="exact", steps=steps, batch_size=batch_size, seed=options.seed, log_every=steps,
                      progress=False)

    def generate(stream: Stream) -> None:
        for step in range(steps):
            stream.images(step * batch_size, (step + 1) * batch_size)

    times: dict[str, list[float]] = {"stream": [], "stored": [], "generation": []}
    for pair in range(-1, options.pairs):  # the first is a rehearsal
        fresh = [Stream(world, seed=options.seed + 1 + pair, device=device) for _ in range(2)]
        taken = (seconds(lambda s=fresh[0]: train(s), device), seconds(lambda: train(stored), device),
                 seconds(lambda s=fresh[1]: generate(s), device))
        if pair >= 0:
            for values, value in zip(times.values(), taken, strict=True):
                values.append(value)
            rates = (f"{name} {1e3 * values[-1] / steps:.3f} ms" for name, values in times.items())
            print(f"batch {batch_size}, pair {pair}, a step:", *rates, flush=True)
    ratios = [a / b for a, b in zip(times["stream"], times["stored"], strict=True)]
    return {"steps": steps, "ratio_median": statistics.median(ratios), "ratio_least_most": [min(ratios), max(ratios)],
            "ratio_of_medians": statistics.median(times["stream"]) / statistics.median(times["stored"]), "pairs": options.pairs,
            **{f"{name}_ms_per_step": 1e3 * statistics.median(values) / steps for name, values in times.items()},
            **{f"{name}_us_per_frame": 1e6 * statistics.median(values) / steps / batch_size for name, values in times.items()}}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where frames are made and training runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of PyTorch (default: %(default)s)")
    parser.add_argument("--category", default="fixate-1", help="default: %(default)s")
    parser.add_argument("--resolution", type=int, default=17, help="pixels along a side, odd (default: %(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1000, 250], help="batch sizes (default: 1000 250)")
    parser.add_argument("--frames", type=int, default=98304, help="frames in a training (default: %(default)s, six blocks of the stream)")
    parser.add_argument("--latents", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--pairs", type=int, default=7, help="trainings of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if min(options.batches) < 1 or options.frames < max(options.batches) or options.pairs < 1 or options.threads < 1:
        parser.error("pairs, threads and batches must be at least 1, and --frames at least one batch")
    check_device(parser, options.device)
    try:
        options.world = World(options.category, options.resolution)
    except ValueError as error:
        parser.error(str(error))
    return options


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    results = {f"batch {size}": compared(options.world, size, options) for size in options.batches}
    where = f"cpu_{options.threads}" if options.device == "cpu" else "cuda"
    record(f"rofl_stream_{options.category}_{options.resolution}_{where}", results, seed=options.seed,
           notes=f"Gaussian, one layer, K = {options.latents}, lin|lin, exact objective; target: ratio at most 1.10")


if __name__ == "__main__":
    main()
