"""What the time of a frame of retinal optic flow goes to: each part of ``zoo.data.rofl`` alone, against the device's copy bandwidth.

Not a program: ``benchmarks/rofl.py`` runs it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from timing import seconds
from torch import Tensor

from zoo.data.rofl import World, render, sample, visible
from zoo.data.rofl.acceptance import BLOCK, GPU_BLOCK
from zoo.data.rofl.discs import discs_of
from zoo.data.rofl.render import CHUNK, covered_pixels
from zoo.data.rofl.retina import gaze_at, tables

BLOCKS = {"cpu": BLOCK, "cuda": GPU_BLOCK}


def pixel_work(causes: dict[str, Tensor], world: World, out: Tensor) -> dict[str, Callable[[], object]]:
    """What rendering does with pixels, step by step, on arrays of the same shapes in the same chunks; wall and discs alike."""
    n, device = len(out), out.device
    table, field = tables(world.resolution, world.fov, out.dtype, device), out.view(n, -1)
    chunk = max(CHUNK // (world.resolution**2 * max(world.objects, 1)), 8) if device.type == "cpu" else n
    weights = torch.randn(2, n, 5, device=device)
    margin = torch.randn(min(chunk, n), world.objects, world.resolution**2, device=device)
    covers, moving = margin.sign().clamp(min=0.0), torch.randn(len(margin), 2, world.resolution**2, device=device)

    def in_chunks(work: Callable[[slice], object], times: int = 1) -> Callable[[], None]:
        def run() -> None:
            for i in range(0, n, chunk):
                for _ in range(times):
                    work(slice(i, i + chunk))
        return run

    def composite(part: slice) -> None:
        target = field[part].unflatten(-1, (2, -1))
        torch.lerp(target, moving[:len(target)], covers[:len(target), 0, None], out=target)

    work = {"flow_matmul_of_wall": in_chunks(lambda part: torch.bmm(weights[:, part], table.flow))}
    if world.objects:
        form = discs_of(causes["object_position"], gaze_at(causes["fixation"]).unsqueeze(), world).form
        work["mask_matmul"] = in_chunks(lambda part: form[part] @ table.quadratic)
        work["mask_sign"] = in_chunks(lambda part: margin.sign().clamp(min=0.0))
        work["flow_matmul_of_discs"] = in_chunks(lambda part: torch.bmm(weights[:, part], table.flow), world.objects)
        work["compositing"] = in_chunks(composite, world.objects)
    return work


def parts(world: World, device: torch.device, *, frames: int, repeats: int, seed: int, compiled: bool) -> dict[str, object]:
    """Nanoseconds a frame of each part, medians of ``repeats`` turns; gigabytes of frames copied and filled per second.

    Arguments:
        frames: Work on as many as are proposed at once, but not on more than these.
        compiled: Whether to time rejection and rendering with compiled kernels, too.
    """
    n = min(BLOCKS[device.type], frames)
    generator = torch.Generator(device).manual_seed(seed)
    draw = lambda: sample(world, n, generator=generator, device=device)  # noqa: E731
    causes = draw()
    out, source = (torch.randn(n, 2, world.resolution, world.resolution, device=device) for _ in range(2))
    runs = {"sampling": draw}
    if world.objects:
        runs["rejection"] = lambda: covered_pixels(causes, world)
        kept = visible(causes, world) > world.min_size
        runs["selection"] = lambda: {name: value.index_select(0, kept.nonzero().squeeze(-1)) for name, value in causes.items()}
    runs["rendering"] = lambda: render(causes, world, out)
    if compiled:
        runs |= {"compiled_rejection": lambda: covered_pixels(causes, world, compiled=True)} if world.objects else {}
        runs["compiled_rendering"] = lambda: render(causes, world, out, compiled=True)
    work = pixel_work(causes, world, out)
    runs |= work
    runs |= {"copy": lambda: out.copy_(source), "fill": lambda: out.fill_(1.0), "fill_of_fresh_memory": lambda: torch.full_like(out, 1.0)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(-2, repeats):
        for name, run in runs.items():
            taken = seconds(run, device)
            if repeat >= 0:
                times[name].append(1e9 * taken / n)
    ns = {name: statistics.median(values) for name, values in times.items()}
    fresh = max(ns.pop("fill_of_fresh_memory") - ns["fill"], 0.0)
    pixels = {name: ns.pop(name) for name in work}
    pixels["geometry_of_causes_and_the_rest"] = ns["rendering"] - sum(pixels.values())
    copy, fill, size = ns.pop("copy"), ns.pop("fill"), out[0].nbytes
    return {"proposed_at_once": n, "ns_per_proposed_frame": ns, "ns_of_rendering": pixels,
            "ns_of_page_faults_in_fresh_memory": fresh, "bytes_per_frame": size,
            "copy_gb_written_per_s": size / copy, "fill_gb_written_per_s": size / fill}


def bounds(world: World, rates: dict[str, dict], shares: dict, acceptance: float) -> dict[str, object]:
    """What an accepted frame's time goes to, and how far the frames are from what a copy of them would take."""
    ns, pixels = shares["ns_per_proposed_frame"], shares["ns_of_rendering"]
    proposing = {name: ns[name] / acceptance for name in ("sampling", "rejection", "selection") if name in ns}
    terms = proposing | {f"rendering: {name}": value for name, value in pixels.items()}
    largest = max(terms, key=terms.get)
    total = 1e9 / rates["reused_memory"]["frames_per_s"]
    made = shares["bytes_per_frame"] / total
    return {"ns_per_accepted_frame": total, "ns_per_accepted_frame_by_part": terms, "sum_of_parts_over_total": sum(terms.values()) / total,
            "largest_part": largest, "share_of_largest_part": terms[largest] / sum(terms.values()),
            "share_of_page_faults_in_fresh_memory": 1.0 - rates["fresh_memory"]["frames_per_s"] / rates["reused_memory"]["frames_per_s"],
            "gb_of_frames_per_s": made, "rendering_alone_gb_per_s": shares["bytes_per_frame"] / ns["rendering"],
            "fraction_of_copy_bandwidth": made / shares["copy_gb_written_per_s"],
            "rendering_alone_fraction_of_copy_bandwidth": shares["bytes_per_frame"] / ns["rendering"] / shares["copy_gb_written_per_s"]}
