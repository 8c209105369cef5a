r"""Kernels for the pixels of many frames on a CPU, compiled by ``torch.compile``: one pass over the pixels, nothing but frames written.

They work on a fixed number of frames at once, as a kernel is compiled for its shapes. Polynomials in the pixel's tangents a and b are
summed by Horner's rule rather than as matrix products, so flow agrees with the other way to float32 rounding, and a pixel within rounding
of a disc's rim may be on the other side of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType

import torch
from torch import Tensor
from torch.distributions import Distribution

from zoo.data.rofl.retina import Tables
from zoo.data.rofl.world import World

__all__ = ["check_device", "count", "kernel", "paint", "pieces"]

PIXELS = 16384 * 289  # of one call: enough to make up for its cost, few enough for what is known of each frame to stay in a cache
OPTIONS = {"cpp.dynamic_threads": True,  # as many as PyTorch has when a kernel is called
           # Rather compute twice than store for each pixel:
           "realize_reads_threshold": 1 << 16, "realize_acc_reads_threshold": 1 << 16, "realize_opcount_threshold": 1 << 16}


def check_device(device: torch.device) -> None:
    """Raises a ValueError for another device than a CPU."""
    if device.type != "cpu":
        raise ValueError(f"compiled=True is for a CPU, not for {device}")


def pieces(n: int, world: World, device: torch.device) -> list[slice]:
    """All of ``n`` frames in pieces of one length, of which the last overlaps the one before; none if n is less than that length.

    Raises:
        ValueError: if the frames are not on a CPU.
    """
    check_device(device)
    size = max(PIXELS // world.resolution**2, 64)
    return [slice(min(i, n - size), min(i, n - size) + size) for i in range(0, n if n >= size else 0, size)]


@cache
def kernel(function: FunctionType, world: World) -> Callable[..., object]:
    """The function, compiled when first called (for each dtype), in threads as many as PyTorch's.

    Raises:
        OSError: when called, if it cannot be compiled, as there is no C++ compiler.
    """
    # Kernels are kept by code object, of each a limited number: a world has its own.
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__)
    validated = Distribution._validate_args
    fast = torch.compile(own, dynamic=False, fullgraph=True, options=OPTIONS)
    Distribution.set_default_validate_args(validated)  # which the first call of torch.compile turns off, for everybody

    def run(*arguments: object) -> object:
        try:
            return fast(*arguments)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise OSError("compiled=True takes a C++ compiler (g++, or what the environment variable CXX names), which was not found or "
                          f"failed; install one or leave compiled=False: {str(error).splitlines()[0]}") from error

    return run


def paint(wall: Tensor, moving: Tensor | None, form: Tensor | None, table: Tables, horizontal: Tensor, vertical: Tensor) -> None:
    """Writes both channels, ``(m, N²)`` each, of frames given as a scene's parts, all discs with hard edges."""
    _, a, b = table.linear
    covers = [] if form is None else [_margin(disc, a, b) > 0.0 for disc in form.unbind(1)]
    for channel, out, own, other in ((0, horizontal, a, b), (1, vertical, b, a)):
        weights = [weight.unsqueeze(-1) for weight in wall[channel].unbind(-1)]
        for i, mask in enumerate(covers):
            weights = [torch.where(mask, weight.unsqueeze(-1), behind)
                       for weight, behind in zip(moving[channel, :, i].unbind(-1), weights, strict=True)]
        one, first, second, across, mixed = weights
        out.copy_((one + own * (first + own * second + other * mixed) + other * across) * table.flow[channel, 0])


def count(form: Tensor, table: Tables) -> Tensor:
    """Pixels that each disc covers, by itself and where nothing is in front of it, ``(2, m, n)``, of forms from far to near."""
    _, a, b = table.linear
    whole, seen, free = [], [], None
    for disc in reversed(form.unbind(1)):
        covers = _margin(disc, a, b) > 0.0
        shows = covers if free is None else covers & free
        free = ~covers if free is None else free & ~covers
        whole.append(torch.where(covers, 1.0, 0.0).sum(-1))
        seen.append(torch.where(shows, 1.0, 0.0).sum(-1))
    return torch.stack([*whole[::-1], *seen[::-1]]).unflatten(0, (2, -1)).mT


def _margin(form: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The margin over the pixels ``(m, N²)`` for forms ``(m, 6)``."""
    one, at_a, at_b, aa, ab, bb = (part.unsqueeze(-1) for part in form.unbind(-1))
    return one + a * (at_a + a * aa + b * ab) + b * (at_b + b * bb)
