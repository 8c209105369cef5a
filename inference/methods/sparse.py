"""What the iterative solvers of sparse codes share: the loop over steps, the stopping test, and the posterior they return."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inference.methods.lasso import Lasso, Start, first_codes, read
from inference.posterior import Posterior
from zoo.density import count, log_joint

__all__ = ["Scheme", "Solution", "State", "solve", "sparse_code"]

State = dict[str, Tensor]  # "target", "code" and "mean" (W z), and what else a scheme remembers; all with the images first
CHECK_EVERY = 20  # steps between stopping tests: each waits for the device


@dataclass(frozen=True)
class Scheme:
    """An iterative solver.

    Attributes:
        begin: From a state of ``target``, ``code`` and ``mean`` to the scheme's own.
        advance: One step; costs one gradient of the density.
        hint: What to do if steps diverge.
    """

    begin: Callable[[State], State]
    advance: Callable[[State], State]
    hint: str = ""


@dataclass(frozen=True)
class Solution:
    """Codes ``(N, K)`` with their objective (−log p(x, z) less constants, nats), relative KKT residual and steps, each ``(N,)``, and the
    mean objective over all images after each step."""

    code: Tensor
    objective: Tensor
    kkt: Tensor
    steps: Tensor
    trace: Tensor


@torch.no_grad()
def solve(problem: Lasso, scheme: Scheme, code: Tensor, *, max_steps: int, tolerance: float,
          progress: Callable[[float], None] | None = None) -> Solution:
    """Runs a scheme until every image's relative KKT residual is within ``tolerance``, or for ``max_steps`` steps.

    The test is made every :data:`CHECK_EVERY` steps; images that pass it are taken out of the batch. ``code`` is left as it is.

    Raises:
        ValueError: for ``max_steps`` below 1 or a negative tolerance.
        FloatingPointError: if the steps diverge.
    """
    if max_steps < 1 or not tolerance >= 0:
        raise ValueError(f"max_steps must be at least 1 and tolerance at least 0, not {max_steps} and {tolerance}")
    target, mean = problem.target, problem.decode(code)
    state = scheme.begin({"target": target, "code": code, "mean": mean})
    codes, objective = code.clone(), problem.objective(target, code, mean)
    kkt, steps = torch.full_like(objective, torch.nan), torch.full_like(objective, max_steps)
    trace = objective.new_zeros(max_steps)
    active = torch.arange(len(target), device=target.device)
    for step in range(1, max_steps + 1):
        state = scheme.advance(state)
        objective[active] = value = problem.objective(*_parts(state))
        count(value, gradient=True)
        trace[step - 1] = objective.mean()
        if step % CHECK_EVERY and step < max_steps:
            continue
        found = problem.kkt(*_parts(state))
        count(found, gradient=True)
        if not torch.isfinite(found).all():
            raise FloatingPointError(f"the codes are not finite after {step} steps{scheme.hint}")
        codes[active], kkt[active], steps[active] = state["code"], found, float(step)
        going = (found > tolerance).nonzero().squeeze(1)
        if len(going) == 0:
            break
        if len(going) < len(active):
            active, state = active[going], {name: value[going] for name, value in state.items()}
        if progress is not None:
            progress(step / max_steps)
    return Solution(codes, objective, kkt, steps, trace[:step].clone())


def sparse_code(model: Callable, x: Tensor, guide: nn.Module | None, scheme_of: Callable[[Lasso], Scheme], *, name: str, max_steps: int,
                tolerance: float, start: Start, progress: Callable[[float], None] | None) -> Posterior:
    """The posterior (a point) that a scheme finds; warns if images have not converged. See :func:`inference.methods.ista.ista`."""
    problem = read(model, x)
    codes = first_codes(problem, x, guide, start)
    solution = solve(problem, scheme_of(problem), codes, max_steps=max_steps, tolerance=tolerance, progress=progress)
    late = solution.kkt > tolerance
    if late.any():
        warnings.warn(f"{name}: {int(late.sum())} of {len(x)} images have not converged after {max_steps} steps (relative KKT residual up "
                      f"to {float(solution.kkt.max()):.2g}, tolerance {tolerance:g}); give more max_steps", RuntimeWarning, stacklevel=4)
    with torch.no_grad():
        best = log_joint(model, {"z": solution.code}, x)
    return Posterior(name, {"z": solution.code[None, None]}, stats={
        "log_joint": best, "kkt": solution.kkt, "steps": solution.steps, "objective_trace": solution.trace})


def _parts(state: State) -> tuple[Tensor, Tensor, Tensor]:
    return state["target"], state["code"], state["mean"]
