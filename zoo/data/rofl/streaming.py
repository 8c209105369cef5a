"""Fresh frames without end: generated on the device when they are asked for, never stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from zoo.data.base import Data
from zoo.data.rofl.acceptance import generate
from zoo.data.rofl.compiled import check_device
from zoo.data.rofl.factors import factors
from zoo.data.rofl.render import render
from zoo.data.rofl.world import World

__all__ = ["Stream", "derived_seed"]

BLOCK_PIXELS = 32768 * 289  # frames are made in blocks of this many pixels, as small batches would cost as much as large ones


class Stream:
    """An endless sequence of accepted frames; frame i is the same whenever it is asked for, with the same seed and ``compiled`` on the same
    kind of device.

    Arguments:
        world: A category, or settings.
        seed: Seed of the sequence; no sequence shares frames with a fixed split.
        device: Where the frames are made and stay.
        compiled: Whether they are made by compiled kernels, several times as fast; only on a CPU with a C++ compiler: see
            :func:`~zoo.data.rofl.render`.

    ``inference.fit`` takes a stream in the place of a data set: no frame is then seen twice.

    Attributes:
        event_shape: Shape of one frame.
        noise: As that of a data set.
    """

    noise = 0.1  # rad/s, about half the standard deviation of the flow itself

    def __init__(self, world: World | str = "fixate-1", *, seed: int = 0, device: str | torch.device = "cpu",
                 compiled: bool = False) -> None:
        self.world = World(world) if isinstance(world, str) else world
        self.seed, self.device, self.compiled = seed, torch.device(device), compiled
        if compiled:
            check_device(self.device)
        self.event_shape = (2, self.world.resolution, self.world.resolution)
        self.block = max(BLOCK_PIXELS // self.world.resolution**2, 256)
        self._number: int | None = None  # of the block that is held
        self._causes: dict[str, Tensor] = {}
        self._x: Tensor | None = None  # its memory is used again by the next block

    def __repr__(self) -> str:
        return f"Stream({self.world}, seed={self.seed})"

    def to(self, device: str | torch.device) -> Stream:
        """The same sequence, made on another device (there of other random numbers, if of another kind)."""
        return Stream(self.world, seed=self.seed, device=device, compiled=self.compiled)

    def images(self, start: int, stop: int) -> Tensor:
        """Frames ``start`` to ``stop`` as images ``(stop − start, 2, N, N)``."""
        _check(start, stop)
        x, at = torch.empty(stop - start, *self.event_shape, dtype=torch.float32, device=self.device), 0
        for _, piece in self._pieces(start, stop):
            x[at:at + len(piece)] = piece
            at += len(piece)
        return x

    def frames(self, start: int, stop: int) -> Data:
        """The same with their factors."""
        _check(start, stop)
        parts = [causes for causes, _ in self._pieces(start, stop)]
        causes = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return Data(self.images(start, stop), factors=factors(causes, self.world))

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Causes and images of the blocks that the frames lie in, one after the other: an image is gone with the next one."""
        for number in range(start // self.block, (stop - 1) // self.block + 1):
            if self._number != number:
                self._make(number)
            part = slice(max(start - number * self.block, 0), stop - number * self.block)
            yield {name: value[part] for name, value in self._causes.items()}, self._x[part]

    @torch.inference_mode(False)  # the memory is used again, perhaps outside of inference mode
    def _make(self, number: int) -> None:
        self._number = None  # until the block is whole
        self._causes = generate(self.world, self.block, seed=derived_seed("stream", self.seed, number), device=self.device,
                                compiled=self.compiled)
        self._x = render(self._causes, self.world, self._x, self.compiled)
        self._number = number


def _check(start: int, stop: int) -> None:
    if not 0 <= start < stop:
        raise ValueError(f"frames are asked for from start ≥ 0 to stop > start, not from {start} to {stop}")


def derived_seed(*parts: object) -> int:
    """A seed that differs for any other parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")
