"""Images of zeros and ones, drawn from images in [0, 1] as pixel-wise probabilities: once for all, or anew whenever they are asked for."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from zoo.data.base import Data, Dataset

__all__ = ["BinaryStream", "binarized", "binarized_data"]

HELD_OUT = 1 << 40  # added to the seed of held-out images, which share no numbers with the training images


class BinaryStream:
    """Training images drawn anew each time ("dynamic binarization", Salakhutdinov & Murray 2008), as a stream for :func:`inference.fit`.

    Image ``i`` of the sequence is image ``i mod n`` of a permutation of the data's training images, which is drawn anew for each epoch.

    Arguments:
        data: A data set in [0, 1].
        seed: Seed of permutations and pixels.

    Attributes:
        event_shape: Shape of one image.
    """

    def __init__(self, data: Dataset, *, seed: int = 0) -> None:
        _check(data.train.x)
        self.x, self.seed, self.name = data.train.x, seed, data.name
        self.event_shape = data.event_shape
        self._epoch, self._order = -1, torch.empty(0)

    def __repr__(self) -> str:
        return f"BinaryStream({self.name}, {len(self.x)} images, seed={self.seed})"

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.x.device

    def to(self, device: str | torch.device) -> BinaryStream:
        """The same sequence on another device (there of other random numbers, if of another kind)."""
        moved = BinaryStream.__new__(BinaryStream)
        moved.__dict__ |= self.__dict__ | {"x": self.x.to(device), "_epoch": -1}
        return moved

    def images(self, start: int, stop: int) -> Tensor:
        """Images ``start`` to ``stop`` of the sequence, ``(stop − start, *event_shape)``; the same whenever they are asked for so."""
        if not 0 <= start < stop:
            raise ValueError(f"images from {start} to {stop}: start must not be negative, and below stop")
        pieces, n = [], len(self.x)
        for epoch in range(start // n, (stop - 1) // n + 1):
            pieces.append(self._permutation(epoch)[max(start - epoch * n, 0):stop - epoch * n])
        probs = self.x[torch.cat(pieces)]
        return torch.bernoulli(probs, generator=_generator(probs, self.seed, start))

    def _permutation(self, epoch: int) -> Tensor:
        if self._epoch != epoch:
            generator = _generator(self.x, self.seed, -2 - epoch)  # hash(-1) is hash(-2)
            self._epoch, self._order = epoch, torch.randperm(len(self.x), generator=generator, device=self.x.device)
        return self._order


def binarized(data: Dataset, *, seed: int = 0) -> Dataset:
    """The data set with every image drawn once: for held-out images, on which numbers are to be compared.

    Raises:
        ValueError: for images outside [0, 1].
    """
    parts = {name: None if part is None else binarized_data(part, seed=seed + offset * HELD_OUT)
             for offset, (name, part) in enumerate((("train", data.train), ("test", data.test), ("validation", data.validation)))}
    return replace(data, name=f"{data.name}, binarized", about=f"{data.about}; pixels drawn as zeros and ones, once, seed {seed}", **parts)


def binarized_data(data: Data, *, seed: int = 0) -> Data:
    """One part of a data set with every image drawn once. Raises as :func:`binarized`."""
    _check(data.x)
    return replace(data, x=torch.bernoulli(data.x, generator=_generator(data.x, seed, 0)))


def _generator(like: Tensor, seed: int, number: int) -> torch.Generator:
    return torch.Generator(like.device).manual_seed(hash((seed, number)) % 2**63)


def _check(x: Tensor) -> None:
    if not ((x >= 0) & (x <= 1)).all():
        raise ValueError(f"pixels must be probabilities in [0, 1] to be drawn as zeros and ones; they are in [{x.min():g}, {x.max():g}]")
