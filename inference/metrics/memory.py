"""Peak memory of a computation on tensors, on any device, counted exactly from the storages that are alive."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inference.methods import registry
from inference.methods.run import infer

__all__ = ["bytes_per_image", "peak_bytes"]


class _Live(TorchDispatchMode):
    """Follows every storage an operation brings into being until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        before = {_key(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        self.live = {key: item for key, item in self.live.items() if not item[0].expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and _key(tensor) not in before:
                storage = tensor.untyped_storage()
                self.live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def peak_bytes(run: Callable[[], Any]) -> int:
    """Most bytes of tensors alive at once that ``run()`` made itself. Slow: for short probes.

    What an operation uses inside itself and frees before it returns does not show.
    """
    with _Live() as tracker:
        run()
    return tracker.peak


def bytes_per_image(model: Callable, x: Tensor, method: str, *, guide: nn.Module | None = None, **options: Any) -> float:
    """What one more image costs in peak memory, from probes with 8 and 16 images, one draw and two steps.

    Memory does not grow with the number of steps; what grows with the number of draws kept is left out.
    """
    accepted = inspect.signature(registry[method]).parameters
    if "warmup" in accepted:
        options = options | {"warmup": 1}
    for name in ("steps", "max_steps"):
        if name in accepted and "warmup" not in accepted:
            options = options | {name: 2}
    options = {name: value for name, value in options.items() if name not in ("progress", "keep")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two steps do not converge, and need not
        few, more = (peak_bytes(lambda n=n: infer(model, x[:n], method, guide=guide, draws=1, **options)) for n in (8, 16))
    return max(more - few, 0) / 8 if len(x) >= 16 else float("nan")
