r"""Laplace's approximation as a way of inferring: an ascent to each image's mode, the curvature there, draws from the Normal."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

import guides
from inference.methods.amortized import draw
from inference.methods.point import point
from inference.posterior import Posterior
from zoo.frozen import frozen

__all__ = ["laplace_approximation"]


def laplace_approximation(model: Callable, x: Tensor, guide: nn.Module | None, draws: int, *, steps: int = 300, lr: float = 0.1,
                          starts: int = 1, newton: int = 20, floor: float = 1e-3) -> Posterior:
    """Climbs to the mode as ``map`` does, goes on by Newton steps in unconstrained coordinates, and draws from the Normal there.

    ``guide`` is not used.

    Arguments:
        steps, lr, starts: Of the ascent (:func:`~inference.methods.point.point`).
        newton, floor: See :class:`~guides.laplace_approximation.LaplaceApproximation`, which also says what happens to directions in
            which the density does not bend down.

    The posterior's ``stats`` hold, for each image, ``log_evidence`` (the approximation's estimate of log p(x), nats: neither a bound nor
    unbiased), ``promise`` (nats that the last Newton step promised: about 0 at a smooth mode) and ``replaced`` (directions without
    curvature).

    Raises:
        ValueError: if a latent is discrete, or a setting is out of range.
    """
    start = {name: value[0, 0] for name, value in point(model, x, None, 1, steps=steps, lr=lr, starts=starts).samples.items()}
    with frozen(model):
        program = guides.build("laplace_approximation", model, x, values=start, newton=newton, floor=floor)
    posterior = draw(program, x, draws)
    posterior.stats.update({name: getattr(program, name) for name in ("log_evidence", "promise", "replaced")})
    return posterior
