"""What each training step sees: a slice of a shuffled epoch of stored images, or the next frames of a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.data.base import images_of

__all__ = ["Batches", "batches_of", "length", "place"]


@dataclass(frozen=True)
class Batches:
    """Images by training step.

    Attributes:
        at: From a step to its images ``(batch_size, *event_shape)``; steps may be asked for in any order.
        per_epoch: Steps of an epoch; None for a stream, which has none.
        source: What the images are taken from, JSON-able.
        device: Where they are.
    """

    at: Callable[[int], Tensor]
    per_epoch: int | None
    source: int | str
    device: torch.device


def batches_of(data: object, batch_size: int, *, seed: int, event_shape: Sequence[int] | None, device: torch.device | None) -> Batches:
    """Batches of a data set's training images, of a tensor of images, or of a stream (anything with ``images(start, stop)``).

    Stored images are shuffled anew in each epoch; the last, smaller batch is dropped.

    Arguments:
        seed: Seed of the shuffling.
        event_shape: The shape that the images must have; any if None.
        device: Where the images shall be; where they are if None.

    Raises:
        ValueError: for a batch size below 1, or images that are none, not finite, or of another shape.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    streamed = hasattr(data, "images")
    x = data if streamed else images_of(data)
    shape = tuple(x.event_shape if streamed else x.shape[1:])
    if not streamed and (len(x) == 0 or not torch.isfinite(x).all()):
        raise ValueError("the training images must be at least one and all finite")
    if event_shape is not None and shape != tuple(event_shape):
        raise ValueError(f"images of shape {shape} do not fit a model of images {tuple(event_shape)}")
    x = x if device is None else x.to(device)
    if streamed:
        return Batches(lambda step: x.images(step * batch_size, (step + 1) * batch_size), None, repr(x), x.device)
    return _shuffled(x, batch_size, seed)


def _shuffled(x: Tensor, batch_size: int, seed: int) -> Batches:
    per_epoch = max(len(x) // batch_size, 1)
    held: dict[int, Tensor] = {}  # the permutation of the epoch that is going on

    def at(step: int) -> Tensor:
        epoch, batch = divmod(step, per_epoch)
        if epoch not in held:
            held.clear()
            generator = torch.Generator(x.device).manual_seed(hash((seed, epoch)) % 2**63)
            held[epoch] = torch.randperm(len(x), generator=generator, device=x.device)
        return x[held[epoch][batch * batch_size:(batch + 1) * batch_size]]

    return Batches(at, per_epoch, len(x), x.device)


def length(steps: int | None, epochs: float | None, steps_per_epoch: int | None) -> int:
    """Length of training in steps, from steps or epochs.

    Raises:
        ValueError: unless exactly one is given, for epochs of a stream, or for no step at all.
    """
    if epochs is not None and steps_per_epoch is None:
        raise ValueError("a stream has no epochs: give the length of training as steps")
    if (steps is None) == (epochs is None):
        raise ValueError("give the length of training as steps or as epochs, one of the two")
    steps = round(epochs * steps_per_epoch) if steps is None else steps
    if steps < 1:
        raise ValueError(f"training must last at least one step, not {steps}")
    return steps


def place(model: nn.Module, device: object) -> torch.device | None:
    """Moves the model if a device was named; says where it is, or None if it has no parameters that would tell."""
    if device is not None:
        model.to(device)
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else None if device is None else torch.device(device)
