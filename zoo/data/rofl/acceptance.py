"""Which frames count: those in which enough of the discs can be seen."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from zoo.data.rofl.render import covered_pixels, masks
from zoo.data.rofl.sampling import sample
from zoo.data.rofl.world import World

__all__ = ["accepted", "generate", "visible"]

BLOCK = 65536  # frames proposed at once: enough to keep several cores busy, few enough for their caches
GPU_BLOCK = 1 << 18
LEAST_RATE = 1e-3  # below this acceptance rate generation gives up


def visible(causes: Mapping[str, Tensor], world: World, edge: float = 0.0) -> Tensor:
    """Pixels by which a frame passes, ``(…)``: how many can be seen of the disc that shows the ``min_objects``-th most.

    Differentiable where ``edge`` > 0. Infinite where no disc need be seen.
    """
    if world.min_objects == 0:
        return causes["fixation"].new_full(causes["fixation"].shape[:-1], torch.inf)
    return _least_needed(masks(causes, world, edge)[1].sum((-2, -1)), world)


def accepted(causes: Mapping[str, Tensor], world: World) -> Tensor:
    """Whether at least ``min_objects`` discs show strictly more than ``min_size`` pixels each, ``(…)``."""
    return visible(causes, world) > world.min_size


@torch.no_grad()
def generate(world: World, n: int, *, seed: int = 0, dtype: torch.dtype = torch.float32,
             device: str | torch.device = "cpu", compiled: bool = False) -> dict[str, Tensor]:
    """Causes of ``n`` accepted frames, ``{name: (n, …)}``: batches are drawn until there are enough.

    Arguments:
        seed: Same seed, same device, same ``compiled``: same frames.
        compiled: Whether pixels are counted by compiled kernels, as in :func:`~zoo.data.rofl.render`. A frame of which a pixel is within
            rounding of a rim may then be accepted or not where it otherwise would not or would, and all that follow are shifted.

    Raises:
        ValueError: if n is not at least 1; if hardly any frame is accepted, and says which rate was seen; if ``compiled`` and the device
            is not a CPU.
        OSError: if ``compiled`` and there is no C++ compiler.
    """
    if n < 1:
        raise ValueError(f"the number of frames must be at least 1, not {n}")
    device = torch.device(device)
    generator = torch.Generator(device).manual_seed(seed)
    block = GPU_BLOCK if device.type == "cuda" else BLOCK
    parts: list[dict[str, Tensor]] = []
    found = proposed = 0
    while found < n:
        # No larger than what is still missing is likely to take.
        size = min(block, int(1.2 * n) + 64 if not found else int(1.05 * (n - found) * proposed / found) + 64)
        causes = sample(world, size, generator=generator, dtype=dtype, device=device)
        if world.min_objects:
            keep = _least_needed(covered_pixels(causes, world, compiled=compiled)[1], world) > world.min_size
            kept = keep.nonzero().squeeze(-1)
            causes = {name: value.index_select(0, kept) for name, value in causes.items()}
        parts.append(causes)
        found += len(causes["fixation"])
        proposed += size
        if found < min(n, LEAST_RATE * proposed):
            raise ValueError(f"only {found} of {proposed} frames of {world.category} show {world.min_objects} disc(s) of more than "
                               f"{world.min_size:g} pixels (acceptance rate {found / proposed:.2g}); lower min_size or min_objects, "
                               "or use larger or nearer discs")
    return {name: torch.cat([part[name] for part in parts])[:n] for name in parts[0]}


def _least_needed(pixels: Tensor, world: World) -> Tensor:
    return pixels.topk(world.min_objects, dim=-1).values[..., -1] if world.objects > 1 else pixels.squeeze(-1)
