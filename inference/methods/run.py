"""One call for every way of inferring: checks its input, counts and times it, and leaves the random generator as it was."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from inference.methods import fitting, misfit, registry
from inference.posterior import Posterior
from zoo.density import counting

__all__ = ["infer", "now"]


def infer(model: Callable, x: Tensor, method: str = "amortized", *, guide: nn.Module | None = None, draws: int = 100,
          seed: int = 0, **options: Any) -> Posterior:
    """Infers the latents of images.

    Arguments:
        model: The generative model; its parameters are not changed.
        x: Images ``(N, *event_shape)``, on the model's device.
        method: One of ``inference.methods.registry`` (``zoo list``).
        guide: The guide, for methods that use one.
        draws: Posterior draws per image.
        seed: Seed of the draws.
        options: The method's own options.

    Raises:
        ValueError: for an unknown method or option, images of the wrong shape or not finite, a missing guide, or a method
            that does not fit the model's latents; says which do.
    """
    run = registry[method]
    accepted = list(inspect.signature(run).parameters)[4:]
    unknown = [name for name in options if name not in accepted]
    if unknown:
        raise ValueError(f"the method {method!r} has no option {', '.join(unknown)}; it accepts: {', '.join(accepted) or 'none'}")
    shape = getattr(model, "event_shape", None)
    if shape is not None and tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(f"expected images (N, {', '.join(map(str, shape))}), got {tuple(x.shape)}")
    if len(x) == 0:
        raise ValueError("there are no images to infer")
    finite = torch.isfinite(x.flatten(1)).all(1)
    if not finite.all():
        raise ValueError(f"image {int((~finite).nonzero()[0])} has values that are not finite")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, not {draws}")
    reason = misfit(method, model, x)
    if reason is not None:
        raise ValueError(f"the method {method!r} does not fit the model: {reason}; methods that fit it: {', '.join(fitting(model, x))}")
    x = x.detach()  # images drawn from a model carry its graph
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), counting() as cost:
        torch.manual_seed(seed)
        began = now(x)
        posterior = run(model, x, guide, draws, **options)
        seconds = now(x) - began
    spent = {"gradient_evaluations": cost.gradients / len(x), "evaluations": cost.evaluations / len(x),
             "seconds": seconds, "device": str(x.device)}
    return replace(posterior, method=method, cost=spent)


def now(x: Tensor) -> float:
    """Seconds on the wall clock once the device of ``x`` has done what it was given."""
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
