r"""Iterative shrinkage: gradient steps on the squared error, each followed by a soft threshold.

ISTA (Daubechies, Defrise & De Mol 2004): :math:`z \leftarrow S_{1/(Lb)}\big(z + W^\top(r - Wz) / L\big)`, with :math:`L` the largest
eigenvalue of :math:`W^\top W`; the objective never rises. FISTA (Beck & Teboulle 2009) steps from a point extrapolated along the last
change: after k steps its objective is within :math:`2 L \|z_0 - z^*\|^2 / (k + 1)^2` of the optimum, where ISTA's bound falls as 1 / k.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from inference.methods.lasso import Lasso, Start, misfit, shrink
from inference.methods.sparse import Scheme, State, sparse_code
from inference.posterior import Posterior

__all__ = ["fista", "fista_scheme", "ista", "ista_scheme"]


def ista(model: Callable, x: Tensor, guide: nn.Module | None, draws: int, *, max_steps: int = 5000, tolerance: float = 1e-3,
         start: Start = None, progress: Callable[[float], None] | None = None) -> Posterior:
    """The most probable sparse code by ISTA, all images in one batch. ``draws`` is not used: there is one point.

    For programs whose one latent site ``"z"`` is Laplace around 0 and whose images are Normal around a mean linear in it.

    Arguments:
        max_steps: Steps after which images that have not converged are left as they are, with a warning.
        tolerance: Relative KKT residual at which an image has converged: the largest violation of the optimality conditions, as a
            fraction of 1 / b (see :mod:`inference.methods.lasso`). Single precision reaches about 1e-5 at moderate penalties.
        start: Where codes start: at 0 if None, the posterior mean of the ``"guide"``, codes ``(N, K)``, or a posterior of these images.
        progress: Called now and then with the fraction of ``max_steps`` that is done.

    The posterior's ``stats`` hold ``log_joint`` (nats), ``kkt`` (the residual) and ``steps`` for each image, and ``objective_trace``
    ``(step,)``, the mean over images of −log p(x, z) less its constants, nats.

    Raises:
        ValueError: for other programs, settings out of range, or codes to start from that do not fit.
    """
    return sparse_code(model, x, guide, ista_scheme, name="ista", max_steps=max_steps, tolerance=tolerance, start=start, progress=progress)


def fista(model: Callable, x: Tensor, guide: nn.Module | None, draws: int, *, max_steps: int = 2000, tolerance: float = 1e-3,
          restart: bool = True, start: Start = None, progress: Callable[[float], None] | None = None) -> Posterior:
    """The same by FISTA; arguments, statistics and errors are those of :func:`ista`.

    Arguments:
        restart: Whether an image's momentum is dropped when it points uphill (O'Donoghue & Candès 2015), which ends the ripples of plain
            FISTA; the bound above is proved for plain FISTA.
    """
    return sparse_code(model, x, guide, lambda problem: fista_scheme(problem, restart=restart), name="fista", max_steps=max_steps,
                       tolerance=tolerance, start=start, progress=progress)


def ista_scheme(problem: Lasso) -> Scheme:
    """ISTA's steps for a problem."""
    descent = _descent(problem)

    def advance(state: State) -> State:
        code = descent(state["target"], state["code"], state["mean"])
        return {"target": state["target"], "code": code, "mean": problem.decode(code)}

    return Scheme(lambda state: state, advance)


def fista_scheme(problem: Lasso, restart: bool = True) -> Scheme:
    """FISTA's steps; the state also holds the extrapolated point ``ahead``, what it decodes to, and the momentum's ``t`` ``(n, 1)``."""
    descent = _descent(problem)

    def begin(state: State) -> State:
        return state | {"ahead": state["code"], "ahead_mean": state["mean"], "t": torch.ones_like(state["code"][:, :1])}

    def advance(state: State) -> State:
        code = descent(state["target"], state["ahead"], state["ahead_mean"])
        mean, change, t = problem.decode(code), code - state["code"], state["t"]
        if restart:
            uphill = ((state["ahead"] - code) * change).sum(-1, keepdim=True) > 0
            t = t.masked_fill(uphill, 1.0)
        later = 0.5 + (0.25 + t.square()).sqrt()
        momentum = (t - 1.0) / later
        return {"target": state["target"], "code": code, "mean": mean, "ahead": code + momentum * change,
                "ahead_mean": mean + momentum * (mean - state["mean"]), "t": later}

    return Scheme(begin, advance)


def _descent(problem: Lasso) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """One gradient step of length 1 / L from a point, and the soft threshold."""
    rate = 1.0 / problem.curvature()
    threshold = rate * problem.slope
    return lambda target, point, mean: shrink(torch.addmm(point, target - mean, problem.weight, alpha=rate), threshold)


ista.misfit = misfit
fista.misfit = misfit
