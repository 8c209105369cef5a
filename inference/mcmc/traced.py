"""The tensor operations of a function of tensors, recorded once: what is left of a Pyro program when its handlers have done their work.

A log density costs about a millisecond of Python in Pyro's handlers, which a chain of thousands of small steps pays at each of them.
``make_fx`` records what the handlers ask of PyTorch, gradient included; the record is run instead while the inputs keep their shapes. Model
parameters are held by reference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["traced"]

Function = Callable[..., tuple[Tensor, ...]]


def traced(function: Function, compiled: bool = False) -> Function:
    """The same function of tensors to a tuple of tensors, which records its operations at the second call with inputs of the same shapes,
    and replays them, without gradients, from the fourth on.

    A function whose course depends on the tensors' values cannot be recorded, or shows itself at the third call, where both are compared;
    then it is run as it is. Random numbers must not be drawn in it.

    Arguments:
        compiled: Whether the record is compiled (``torch.compile``): operations are fused, after half a minute once per shape.
    """
    records: dict[tuple, Function | None] = {}

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        key = tuple((value.shape, value.dtype, value.device) for value in inputs)
        if key not in records:
            records[key] = None
        elif records[key] is None:
            records[key] = record(key, inputs)
        else:
            return records[key](*inputs)
        return function(*inputs)

    def record(key: tuple, inputs: tuple[Tensor, ...]) -> Function:
        try:
            graph = make_fx(function)(*inputs)
        except Exception:  # whatever cannot be recorded is run as it is
            return function
        graph.graph.eliminate_dead_code()
        graph.recompile()
        validated = Distribution._validate_args
        replay = torch.no_grad()(torch.compile(graph) if compiled else graph)
        Distribution.set_default_validate_args(validated)  # which the first call of torch.compile turns off, for everybody

        def compared(*inputs: Tensor) -> tuple[Tensor, ...]:
            expected, found = function(*inputs), replay(*inputs)
            same = all(torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True) for a, b in zip(expected, found, strict=True))
            records[key] = replay if same else function
            return expected

        return compared

    return run
