"""The numbers that networks are computed in: float32, TF32 on the tensor cores of a GPU, or bfloat16.

In all of them parameters, the optimizer, distributions, divergences and likelihoods are float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from guides.base import Guide
from zoo.program import Adopted

__all__ = ["PRECISIONS", "networks", "precise"]

PRECISIONS = ("float32", "tf32", "bf16")


@contextmanager
def precise(precision: str, *modules: nn.Module) -> Iterator[None]:
    """Lets the networks of models and guides compute in a precision inside the block.

    Arguments:
        precision: ``"float32"``: float32 and nothing less, although PyTorch by itself lets convolutions on a GPU use TF32. ``"tf32"``:
            matrix products and convolutions with ten bits of mantissa, where the GPU has them; no change on a CPU. ``"bf16"``:
            matrix products and convolutions in bfloat16 (``torch.autocast``), on any device; each network's output comes back in the
            type of its input, so that only networks lose digits.
        modules: Models and guides.

    Raises:
        ValueError: for an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; known are: {', '.join(PRECISIONS)}")
    with ExitStack() as stack:
        if precision != "bf16":
            matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
            stack.enter_context(_tf32(matmul, [matmul], precision == "tf32"))
            stack.enter_context(_tf32(cudnn, [getattr(cudnn, name, None) for name in ("conv", "rnn")], precision == "tf32"))
        else:
            for network in {id(one): one for module in modules for one in networks(module)}.values():
                stack.enter_context(_autocast(network))
        yield


def networks(module: nn.Module) -> list[nn.Module]:
    """The largest parts of a model or guide that are called as a whole: those with a ``forward``, which programs are not asked for."""
    found = []
    for child in module.children():
        program = isinstance(child, Guide) or hasattr(child, "descend") or isinstance(module, Adopted)
        if program or type(child).forward is nn.Module.forward:
            found += networks(child)
        else:
            found.append(child)
    return found


@contextmanager
def _autocast(network: nn.Module) -> Iterator[None]:
    """The network's forward pass under autocast, its output cast back."""
    inner = network.forward

    def forward(x: Tensor, *inputs: object, **options: object) -> object:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            output = inner(x, *inputs, **options)
        return _as(x.dtype, output)

    network.forward = forward
    try:
        yield
    finally:
        del network.forward


def _as(dtype: torch.dtype, output: object) -> object:
    if isinstance(output, Tensor):
        return output.to(dtype) if output.is_floating_point() else output
    return type(output)(_as(dtype, part) for part in output) if isinstance(output, tuple | list) else output


@contextmanager
def _tf32(place: object, parts: list, allowed: bool) -> Iterator[None]:
    """Whether matrix products (``backends.cuda.matmul``) or convolutions (``backends.cudnn``) may use TF32 inside the block.

    Arguments:
        parts: Where the same is said since PyTorch 2.9. The older flag is what is set, as reading it fails after the newer ones alone
            were set, and PyTorch's compiler reads it; the newer ones say more and are put back last.
    """
    held = [(part, part.fp32_precision) for part in parts if hasattr(part, "fp32_precision")]
    now = held[0][1] == "tf32" if held else place.allow_tf32
    if now == allowed:
        yield
        return
    try:
        place.allow_tf32 = allowed
        yield
    finally:
        place.allow_tf32 = now
        for part, value in held:
            part.fp32_precision = value
