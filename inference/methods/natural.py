r"""Natural-gradient steps on the free energy, all images in one batch: inference by the model alone, or by a guide trained for it."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from torch import Tensor, nn

import guides
from guides.bounds import elbo, exact_elbo
from guides.natural import Natural
from guides.stepwise import has_exact_elbo
from inference.methods.amortized import draw
from inference.methods.stepwise import of_model
from inference.posterior import Posterior
from zoo.frozen import frozen

__all__ = ["natural"]


def natural(model: Callable, x: Tensor, guide: nn.Module | None, draws: int, *, steps: int | None = None,
            step_size: float | None = None, halvings: int | None = None, particles: int | None = None,
            slope_temperature: float | None = None, progress: Callable[[float], None] | None = None) -> Posterior:
    """Takes natural-gradient steps from the prior for each image (:mod:`guides.natural`), then draws from where they end.

    Arguments:
        guide: A ``natural`` guide, which infers as it was trained to. Any other one is not used (the method ``"semi"`` starts from it), and
            steps are then guarded where the ELBO has a closed form: no image's falls.
        steps: Steps; if None 100, or as many as the ``natural`` guide takes.
        step_size, halvings, particles, slope_temperature: Of steps without such a guide; see :class:`guides.natural.Natural`.
        progress: Called now and then with the fraction of the steps that is done.

    The posterior's ``stats`` hold ``elbo_trace`` (``(steps + 1,)``, the prior first; mean over images, nats; estimated by one draw per
    image where it has no closed form).

    Raises:
        ValueError: for settings out of range, a model whose latents have no natural gradient, or settings of a guide that has its own.
    """
    settings = {"step_size": step_size, "halvings": halvings, "particles": particles, "slope_temperature": slope_temperature}
    settings = {name: value for name, value in settings.items() if value is not None}
    trained = isinstance(guide, Natural)
    if trained and settings:
        raise ValueError(f"a 'natural' guide has its own {', '.join(settings)}; give steps alone")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    if trained:
        of_model(guide, model)
    program = guide if trained else guides.build("natural", model, x, **settings)
    steps = steps or program.steps
    bound_of = exact_elbo if has_exact_elbo(program.model) else elbo
    trace = torch.zeros(steps + 1, device=x.device)
    with frozen(model), torch.no_grad(), pyro.validation_enabled(False):
        for step, deltas in enumerate(program.path(x, steps)):
            trace[step] = bound_of(program.model, program.at(deltas), x).value.mean()
            if progress is not None and step % 10 == 0:
                progress(step / steps)
        posterior = draw(program.at(deltas), x, draws)
    posterior.stats["elbo_trace"] = trace
    return posterior
