"""Training on several devices at once: every process of a PyTorch process group takes its share of each batch.

``torchrun --nproc-per-node 2 -m inference.cli fit …`` starts the processes, or a program of one's own that calls
``torch.distributed.init_process_group`` before :func:`inference.fit`. Gradients are averaged before each step of the optimizer, so that
any number of processes climbs what one process with the same batch would climb, but for the draws of their latents, which differ.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, distributed

from inference.batches import Batches

__all__ = ["Team", "launched", "local_device", "team"]


@dataclass(frozen=True)
class Team:
    """The processes that train together, as one of them sees it.

    Attributes:
        rank: Which of them this is.
        size: How many there are; with 1 all methods do nothing.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this one writes and reports."""
        return self.rank == 0

    def share(self, batches: Batches, batch_size: int) -> Batches:
        """This process's part of every batch.

        Raises:
            ValueError: for a batch that cannot be divided evenly.
        """
        if self.size == 1:
            return batches
        if batch_size % self.size:
            raise ValueError(f"batch_size {batch_size} cannot be divided among {self.size} processes; choose a multiple of {self.size}")
        own = slice(self.rank * batch_size // self.size, (self.rank + 1) * batch_size // self.size)

        def at(step: int) -> Tensor:
            x = batches.at(step)
            if len(x) != batch_size:
                raise ValueError(f"{len(x)} images are fewer than a batch of {batch_size}, which {self.size} processes share")
            return x[own]

        return replace(batches, at=at)

    def total(self, sums: Tensor) -> Tensor:
        """Sums ``(M,)`` added up over the processes."""
        if self.size > 1:
            sums = sums.clone()
            distributed.all_reduce(sums)
        return sums

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Puts the mean over the processes in the place of each tensor: one exchange for all of them."""
        if self.size > 1:
            tensors = list(tensors)
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            distributed.all_reduce(flat)
            _put(tensors, flat / self.size)

    @torch.no_grad()
    def agree(self, *modules: torch.nn.Module) -> None:
        """Gives every process the parameters and buffers of the first."""
        tensors = [value for module in modules for value in module.state_dict().values()] if self.size > 1 else []
        for value in tensors:
            distributed.broadcast(value, 0)

    def check_same(self, value: int, words: str) -> None:
        """Waits for all processes.

        Raises:
            ValueError: on all of them, with these words, if they do not have the same value.
        """
        if self.size > 1:
            values = [None] * self.size
            distributed.all_gather_object(values, value)
            if len(set(values)) > 1:
                raise ValueError(f"{words}: {', '.join(map(str, values))} by process")

    def reseed(self, seed: int, step: int) -> None:
        """Seeds the draws of a step: other ones in each process, and the same again when training is resumed."""
        if self.size > 1:
            torch.manual_seed(int.from_bytes(hashlib.sha256(repr((seed, self.rank, step)).encode()).digest()[:7], "big"))


def team() -> Team:
    """The processes that this one trains with: those of PyTorch's process group, or itself alone."""
    if distributed.is_available() and distributed.is_initialized():
        return Team(distributed.get_rank(), distributed.get_world_size())
    return Team()


@contextmanager
def launched(device: str) -> Iterator[Team]:
    """Joins the process group that ``torchrun`` started, for the time of the block; alone if there is none.

    Arguments:
        device: Where this process trains: NCCL between GPUs, gloo between CPUs.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or distributed.is_initialized():
        yield team()
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(torch.device(device))
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield team()
    finally:
        distributed.destroy_process_group()


def local_device(device: str) -> str:
    """The GPU that ``torchrun`` means for this process, where ``device`` names GPUs without saying which."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def _put(tensors: list[Tensor], flat: Tensor) -> None:
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
