"""Frames of retinal optic flow per second, all frames at once against one frame at a time in NumPy.

    python benchmarks/rofl.py [--threads 1] [--device cuda] [--category fixate-1] [--resolution 17] [--frames 131072] [--repeats 7]

A frame counts once it is accepted: proposing causes, rejecting those in which too little of a disc can be seen, and rendering the rest are
all timed. First both must give the same frames for the same causes, accept the same of them, and accept at the same rate from their own
random numbers. Then they run in turn in one process: ours into memory that is used again, ours into fresh memory (of which the operating
system clears every page first), ours with compiled kernels into memory that is used again (on a CPU with a C++ compiler; compiled before),
and two ways frame by frame, on one CPU core whatever the device: ``per_frame`` is written with care for speed; ``textbook`` is the tests'
oracle, the equations as they stand (Rodrigues' formula, cross products over (N, N, 3), points in space), its rays computed once, too.

Then the parts are timed alone, on as many frames as are proposed at once, and set against the device's copy bandwidth: the bytes of the
frames per second when they are made, and when as many bytes are copied from one tensor to another (and as much is read).
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from device import check_device
from record import record
from rofl_parts import BLOCKS, bounds, parts
from rofl_per_frame import KINDS, accepted_frames, one_frame, pixel_rays, propose
from timing import seconds

from zoo.data.rofl import World, accepted, flow, generate, render, sample

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import rofl_oracle  # noqa: E402

rofl_oracle.rays = lru_cache(rofl_oracle.rays)

SAME = 1e-10  # rad/s, in double precision
RIM = 1e-4  # rad/s: beyond rounding in single precision
TARGETS = {"cpu": "", "cuda": "; target: at least 20 million frames per second"}


def same_frames(world: World, seed: int, frames: int = 300) -> dict[str, float]:
    """Flow and acceptance of the same causes, both ways, in double precision.

    Raises:
        SystemExit: if they differ.
    """
    causes = sample(world, frames, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ours, keep, rays = flow(causes, world).numpy(), accepted(causes, world).tolist(), pixel_rays(world)
    theirs = [one_frame({name: value[i].numpy() for name, value in causes.items()}, world, rays) for i in range(frames)]
    difference = max(float(np.abs(field - ours[i]).max()) for i, (field, _) in enumerate(theirs))
    disagreements = sum(a != b for a, (_, b) in zip(keep, theirs, strict=True))
    if not difference < SAME or disagreements:
        raise SystemExit(f"the two do not agree: flow differs by {difference:.2g} rad/s, acceptance in {disagreements} of {frames} frames")
    return {"frames": frames, "greatest_difference_rad_per_s": difference, "acceptance_disagreements": disagreements}


def same_rate(world: World, proposed: int, kept: int, seed: int, device: torch.device) -> dict[str, float]:
    """Acceptance rates from independent random numbers.

    Raises:
        SystemExit: if they are further apart than five standard errors.
    """
    generator = torch.Generator(device).manual_seed(seed)
    flags = accepted(sample(world, 4 * BLOCKS["cpu"], generator=generator, device=device), world).double()
    ours, theirs = flags.mean().item(), kept / proposed
    error = math.sqrt(ours * (1.0 - ours) / len(flags) + theirs * (1.0 - theirs) / proposed)
    if abs(ours - theirs) > 5.0 * error:
        raise SystemExit(f"the two do not accept at the same rate: {ours:.4f} and frame by frame {theirs:.4f}, standard error {error:.4f}")
    return {"ours": ours, "per_frame": theirs, "standard_error_of_difference": error}


def textbook_frames(world: World, rng: np.random.Generator, count: int) -> None:
    """Makes that many accepted frames with the tests' oracle."""
    made = 0
    while made < count:
        frame = rofl_oracle.frame(world.kind, propose(world, rng), world.resolution)
        made += (frame.size_eff * world.resolution**2 > world.min_size).sum() >= world.min_objects


def compilation(world: World, options: argparse.Namespace) -> dict[str, float] | None:
    """Seconds until as many frames as in a turn are there for the first time, with and then without compilation, and how far frames of the
    same causes are from ours without; nothing without a C++ compiler."""
    def run() -> torch.Tensor:
        return render(generate(world, options.frames, seed=options.seed, compiled=True), world, compiled=True)

    try:
        first, second = seconds(run, torch.device("cpu")), seconds(run, torch.device("cpu"))
    except OSError as error:
        print(f"no row for compiled kernels: {error}")
        return None
    causes = generate(world, min(options.frames, BLOCKS["cpu"]), seed=options.seed)
    difference = (render(causes, world) - render(causes, world, compiled=True)).abs().amax((1, 2, 3))
    rim = difference > RIM
    return {"first_run_s": first, "second_run_s": second, "frames": len(rim), "frames_with_another_pixel_at_a_rim": int(rim.sum()),
            "greatest_difference_of_the_others_rad_per_s": difference[~rim].max().item()}


def in_turn(world: World, device: torch.device, options: argparse.Namespace, compiled: bool) -> tuple[dict[str, dict], int, int]:
    """Frames per second of each, and how many frames were proposed and kept frame by frame."""
    out = torch.empty(options.frames, 2, world.resolution, world.resolution, device=device)
    few, rays, proposed = np.empty((options.per_frame, *out.shape[1:]), np.float32), pixel_rays(world), 0
    ours = ["reused_memory", "fresh_memory", *(["compiled"] if compiled else [])]
    rows: dict[str, list[float]] = {name: [] for name in (*ours, "per_frame", "textbook")}
    few_textbook = max(options.per_frame // 5, 1)
    for repeat in range(-1, options.repeats):  # the first is a rehearsal
        seed, rng = options.seed + repeat + 1, np.random.default_rng(options.seed + repeat + 1)
        proposals: list[int] = []
        turns = {
            "reused_memory": lambda s=seed: render(generate(world, options.frames, seed=s, device=device), world, out),
            "fresh_memory": lambda s=seed: render(generate(world, options.frames, seed=s, device=device), world),
            "compiled": lambda s=seed: render(generate(world, options.frames, seed=s, compiled=True), world, out, compiled=True),
            "per_frame": lambda r=rng, p=proposals: p.append(accepted_frames(world, r, rays, few)),
            "textbook": lambda r=rng: textbook_frames(world, r, few_textbook)}
        for name, run in ((name, turns[name]) for name in rows):
            frames = {"per_frame": options.per_frame, "textbook": few_textbook}.get(name, options.frames)
            rate = frames / seconds(run, device)
            if repeat >= 0:
                rows[name].append(rate)
        proposed += proposals[0]
        print(f"repeat {repeat}:", *(f"{name} {values[-1]:,.0f}/s" for name, values in rows.items() if values), flush=True)
    results = {name: {"frames_per_s": statistics.median(values), "frames_per_s_least_most": [min(values), max(values)]}
               for name, values in rows.items()}
    for name in ours:
        for other in ("per_frame", "textbook"):
            ratios = [a / b for a, b in zip(rows[name], rows[other], strict=True)]
            results[name] |= {f"times_{other}": results[name]["frames_per_s"] / results[other]["frames_per_s"],
                              f"times_{other}_least_most": [min(ratios), max(ratios)]}
    return results, proposed, options.per_frame * (options.repeats + 1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of PyTorch (default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where our frames are made (default: %(default)s)")
    parser.add_argument("--category", default="fixate-1", help="fixate-n, transl-n or obj-n (default: %(default)s)")
    parser.add_argument("--resolution", type=int, default=17, help="pixels along a side, odd (default: %(default)s)")
    parser.add_argument("--frames", type=int, help="accepted frames in a turn of ours (default: 0.3 GB of them, 5 GB on a GPU)")
    parser.add_argument("--per-frame", type=int, default=4000, help="accepted frames in a turn frame by frame (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in ("threads", "frames", "per_frame", "repeats"):
        number = getattr(options, name)
        if number is not None and number < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {number}")
    check_device(parser, options.device)
    try:
        options.world = World(options.category, options.resolution)
    except ValueError as error:
        parser.error(str(error))
    if options.world.kind not in KINDS:
        parser.error(f"--category must be one of {', '.join(f'{kind}-n' for kind in KINDS)}, not {options.category}")
    if options.frames is None:
        options.frames = max(8 * BLOCKS[options.device] * 17**2 // options.resolution**2, 1)
    return options


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    world, device = options.world, torch.device(options.device)
    results: dict[str, object] = {"same_causes": same_frames(world, options.seed)}
    results["compilation"] = compilation(world, options) if device.type == "cpu" else None
    compiled = results["compilation"] is not None
    rates, proposed, kept = in_turn(world, device, options, compiled)
    results["acceptance_rate"] = same_rate(world, proposed, kept, options.seed, device)
    shares = parts(world, device, frames=options.frames, repeats=3 * options.repeats, seed=options.seed, compiled=compiled)
    results |= rates | {"bound": bounds(world, rates, shares, results["acceptance_rate"]["ours"]), "parts": shares,
                        "settings": {"category": options.category, "resolution": options.resolution, "frames": options.frames,
                                     "per_frame_frames": options.per_frame, "repeats": options.repeats, "threads": options.threads}}
    where = f"cpu_{options.threads}" if device.type == "cpu" else "cuda"
    record(f"rofl_{options.category}_{options.resolution}_{where}", results, seed=options.seed,
           notes="accepted frames, float32; per_frame and textbook: NumPy, one frame at a time, on one CPU core; times_…: ratio of the "
                 f"medians, and least and most over the turns; compiled: into memory used again, "
                 f"compilation before the first turn; copy bandwidth: bytes written{TARGETS[device.type]}")


if __name__ == "__main__":
    main()
