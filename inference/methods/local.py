r"""Per-image variational inference: the ELBO of each image ascended in its own parameters, all images in one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyro
import torch
from torch import Tensor, nn

import guides
from guides.bounds import OBJECTIVES, WITHOUT_KL
from guides.local import Local
from guides.stepwise import has_exact_elbo
from inference.methods.amortized import draw
from inference.posterior import Posterior
from inference.schedules import cosine
from zoo.frozen import frozen

__all__ = ["ascent", "local"]


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
    program, bounds = ascent(model, x, guide, steps=steps, lr=lr, objective=objective, start=start, temperature=temperature,
                             particles=particles)
    trace = torch.zeros(steps, device=x.device)
    for step, value in enumerate(bounds):
        trace[step] = value
        if progress is not None and step % 10 == 0:
            progress(step / steps)
    program.temperature = 0.0
    posterior = draw(program, x, draws)
    posterior.stats["elbo_trace"] = trace
    return posterior


def ascent(model: Callable, x: Tensor, guide: nn.Module | None, *, steps: int, lr: float = 0.1, objective: str | None = None,
           start: str = "guide", temperature: float = 0.1, particles: int = 4) -> tuple[Local, Iterator[Tensor]]:
    """The guide that :func:`local` optimizes, at its start, and its steps: each, taken when asked for, gives the bound before it."""
    program = guides.build("local", model, x, start=guide if start == "guide" else None)
    objective = objective or ("exact" if has_exact_elbo(program.model) else "elbo")
    bound_of = OBJECTIVES[objective]
    program.temperature = 0.0 if objective in WITHOUT_KL else temperature  # weights need exact densities
    parameters = list(program.parameters())
    adam = torch.optim.Adam(parameters, lr=lr)

    def step(t: float) -> Tensor:
        with frozen(model), torch.enable_grad(), pyro.validation_enabled(False):
            adam.param_groups[0]["lr"] = cosine(t, lr, 0.0, 0.0)
            bound = bound_of(model, program, x, particles=particles)
            adam.zero_grad(set_to_none=True)
            (-bound.surrogate.sum()).backward()
            adam.step()
            return bound.value.detach().mean()

    return program, (step(i / steps) for i in range(steps))
