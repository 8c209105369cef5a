r"""The locally competitive algorithm (LCA): neurons that inhibit one another settle on a sparse code.

Each unit has a membrane potential u that leaks, is driven by the image and inhibited by the units that are active,
:math:`\tau \dot u_k = \phi_k^\top x - u_k - \sum_{j \ne k} \phi_k^\top \phi_j z_j`, and responds with :math:`z = S_\lambda(u)`, the soft
threshold at :math:`\lambda = \sigma^2 / b`. Its rest states are the most probable codes, those that ISTA comes to.
Rozell, Johnson, Baraniuk & Olshausen 2008, "Sparse coding via thresholding and local competition in neural circuits".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from inference.methods.lasso import Lasso, Start, misfit, shrink
from inference.methods.sparse import Scheme, State, sparse_code
from inference.posterior import Posterior

__all__ = ["lca", "lca_scheme"]

SMOOTH = 10.0  # steps of a time constant, at least, where the network's stability does not ask for more


def lca(model: Callable, x: Tensor, guide: nn.Module | None, draws: int, *, max_steps: int = 5000, tolerance: float = 1e-3,
        time_constant: float | None = None, start: Start = None, progress: Callable[[float], None] | None = None) -> Posterior:
    """The most probable sparse code by LCA, all images in one batch; arguments, statistics and errors are those of
    :func:`inference.methods.ista.ista`.

    Arguments:
        time_constant: τ, in Euler steps. If None the largest eigenvalue of the atoms' correlations, which is stable for every active set,
            and 10 at least.

    For atoms that differ in length, or pixels in noise, it is the network of the atoms in units of the noise, each divided by its length;
    ``kkt`` is that of the response z.

    Raises:
        FloatingPointError: if the potentials diverge, as the time constant is too short.
    """
    return sparse_code(model, x, guide, lambda problem: lca_scheme(problem, time_constant), name="lca", max_steps=max_steps,
                       tolerance=tolerance, start=start, progress=progress)


def lca_scheme(problem: Lasso, time_constant: float | None = None) -> Scheme:
    """LCA's Euler steps for a problem; the state also holds the ``potential`` (n, K).

    Raises:
        ValueError: for a time constant below one step.
    """
    square = problem.weight.square().sum(0)
    gain = torch.where(square > 0, square, 1.0).reciprocal()  # σ², for atoms of length 1
    stable = problem.curvature(problem.weight * gain.sqrt())
    steps = max(stable, SMOOTH) if time_constant is None else time_constant
    if not steps >= 1:
        raise ValueError(f"the time constant must be at least one step, not {time_constant}")
    threshold = gain * problem.slope

    def begin(state: State) -> State:
        """Potentials whose responses are the codes: at rest for a silent unit of a code that is 0 everywhere."""
        code = state["code"]
        drive = gain * ((state["target"] - state["mean"]) @ problem.weight)
        silent = torch.clamp(drive, -threshold, threshold) * (code != 0).any(-1, keepdim=True)
        return state | {"potential": torch.where(code == 0, silent, code + code.sign() * threshold)}

    def advance(state: State) -> State:
        drive = gain * ((state["target"] - state["mean"]) @ problem.weight)
        potential = state["potential"] + (drive - state["potential"] + state["code"]) / steps
        code = shrink(potential, threshold)
        return {"target": state["target"], "code": code, "mean": problem.decode(code), "potential": potential}

    return Scheme(begin, advance, f"; Euler steps are stable from a time constant of {max(stable / 2, 1.0):.1f} steps")


lca.misfit = misfit
