r"""Per-image variational inference: the ELBO of each image ascended in its own parameters, all images in one batch."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from torch import Tensor, nn

import guides
from guides.bounds import OBJECTIVES
from guides.stepwise import has_exact_elbo
from inference.methods.amortized import draw
from inference.posterior import Posterior
from inference.schedules import cosine
from zoo.frozen import frozen

__all__ = ["local"]


def local(model: Callable, x: Tensor, guide: nn.Module | None, draws: int, *, steps: int = 300, lr: float = 0.1,
          objective: str | None = None, start: str = "guide", temperature: float = 0.1, particles: int = 4,
          progress: Callable[[float], None] | None = None) -> Posterior:
    """Optimizes a ``local`` guide by Adam with a cosine learning rate, then draws from it.

    Arguments:
        guide: Where to start: its parameters for these images; from the prior if None.
        steps, lr: Steps and their size in the space of unconstrained parameters.
        objective: ``"exact"``, ``"elbo"`` or ``"iwae"``; by default exact where the decoder is linear and every KL has a closed
            form, else elbo.
        start: ``"guide"``, or ``"prior"`` to start from the prior although a guide is given.
        temperature: Of relaxed samples, for the objective ``"elbo"``.
        particles: Draws per image and step, for the objectives ``"elbo"`` and ``"iwae"``.
        progress: Called now and then with the fraction of the steps that is done.

    The posterior's ``stats`` hold ``elbo_trace`` (``(steps,)``, mean over images, nats).

    Raises:
        ValueError: for unknown settings.
    """
    if start not in ("guide", "prior"):
        raise ValueError(f"start must be 'guide' or 'prior', not {start!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    if objective is not None and objective not in OBJECTIVES:
        raise ValueError(f"unknown objective {objective!r}; known are: {', '.join(OBJECTIVES)}")
    program = guides.build("local", model, x, start=guide if start == "guide" else None)
    objective = objective or ("exact" if has_exact_elbo(program.model) else "elbo")
    bound_of = OBJECTIVES[objective]
    program.temperature = 0.0 if objective == "iwae" else temperature  # the weights need exact densities
    parameters = list(program.parameters())
    ascent = torch.optim.Adam(parameters, lr=lr)
    trace = torch.zeros(steps, device=x.device)
    with frozen(model), torch.enable_grad(), pyro.validation_enabled(False):
        for step in range(steps):
            ascent.param_groups[0]["lr"] = cosine(step / steps, lr, 0.0, 0.0)
            bound = bound_of(model, program, x, particles=particles)
            ascent.zero_grad(set_to_none=True)
            (-bound.surrogate.sum()).backward()
            ascent.step()
            trace[step] = bound.value.detach().mean()
            if progress is not None and step % 10 == 0:
                progress(step / steps)
    program.temperature = 0.0
    posterior = draw(program, x, draws)
    posterior.stats["elbo_trace"] = trace
    return posterior

