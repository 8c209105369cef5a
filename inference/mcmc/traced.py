"""The tensor operations of a function of tensors, recorded once: what is left of a Pyro program when its handlers have done their work.

A log density costs about a millisecond of Python in Pyro's handlers, which a chain of thousands of small steps pays at each of them.
``make_fx`` records what the handlers ask of PyTorch, gradient included; the record is run instead while the inputs keep their shapes. Model
parameters are held by reference.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.fx.experimental.proxy_tensor import make_fx

from inference.mcmc.simplified import simplified

__all__ = ["traced"]

Function = Callable[..., tuple[Tensor, ...]]


def traced(function: Function, compiled: bool = False) -> Function:
    """The same function of tensors to a tuple of tensors, which records its operations at the second call with inputs of the same shapes,
    and replays them, without gradients, from the fourth on.

    A function whose course depends on the tensors' values cannot be recorded, or shows itself at the third call, where both are compared;
    then it is run as it is. Random numbers must not be drawn in it. On a CPU a record keeps the memory that it works in, for each kind of
    inputs, so that two threads must not call it at the same time.

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
            graph.graph.eliminate_dead_code()
            graph.recompile()
            validated = Distribution._validate_args
            replay = torch.no_grad()(torch.compile(graph) if compiled else simplified(graph))
        except Exception:  # whatever cannot be recorded is run as it is
            return function
        Distribution.set_default_validate_args(validated)  # which the first call of torch.compile turns off, for everybody

        calls = 0

        def compared(*inputs: Tensor) -> tuple[Tensor, ...]:
            nonlocal calls
            calls += 1
            if calls & (calls - 1):  # compared at the first call, the second, the fourth, the eighth …
                return replay(*inputs)
            expected, found = function(*inputs), replay(*inputs)
            same = all(_same(a, b) for a, b in zip(expected, found, strict=True))
            if not same:
                records[key] = function
                if calls > 1:
                    warnings.warn("the function takes another course for other values, so its record was wrong for some of the last "
                                  f"{calls // 2} calls; it is run as it is from here on", RuntimeWarning, stacklevel=2)
            return expected

        return compared

    return run


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two results differ by rounding alone: sums of large terms of both signs may leave small ones that are nothing else."""
    finite = a.isfinite()
    largest = a[finite].abs().max().item() if finite.any() else 0.0
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5 + 1e-5 * largest, equal_nan=True)
