r"""Dictionary learning: sparse codes and the atoms they are made of, in turn (Olshausen & Field 1996).

Each step infers the most probable codes of a batch, moves the atoms (columns of the decoder's matrix) up the gradient of
:math:`\log p(x, z)`, averaged over the batch, and gives them length 1 again.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.parametrize import is_parametrized

from inference.batches import batches_of
from inference.methods.ista import fista_scheme, ista_scheme
from inference.methods.lasso import Lasso, read
from inference.methods.lca import lca_scheme
from inference.methods.sparse import Solution, solve
from inference.progress import count_bar
from inference.schedules import cosine
from inference.training import History
from zoo.networks.lin import LinearDecoder

__all__ = ["SCHEMES", "learn_dictionary"]

SCHEMES: dict[str, Callable] = {"fista": fista_scheme, "ista": ista_scheme, "lca": lca_scheme}


@torch.no_grad()
def learn_dictionary(model: nn.Module, data: object, *, method: str = "fista", steps: int = 1000, batch_size: int = 250, lr: float = 0.5,
                     max_steps: int = 100, tolerance: float = 1e-2, revive: int | None = 100, seed: int = 0,
                     device: str | torch.device | None = None, log_every: int = 50,
                     progress: bool | Callable[[int, int, dict], None] = True, **options: Any) -> History:
    """Learns the atoms of a sparse-coding model in place; its prior, noise and bias stay as they are.

    Codes start at 0 for every batch. Atoms that no image has used for ``revive`` steps are dead: they are replaced by what the current
    dictionary leaves of the batch's worst explained images, one image each, scaled to length 1.

    Arguments:
        model: A program with a linear ``decoder`` that the methods ``"fista"``, ``"ista"`` and ``"lca"`` take: ``zoo.build`` makes it as
            ``"sparse_coding"`` or ``"laplace"``.
        data: A data set (its training images), images ``(n, *event_shape)``, or a stream of them.
        method: What infers the codes: ``"fista"``, ``"ista"`` or ``"lca"``.
        steps: Learning steps, each of one batch.
        batch_size: Images of a step.
        lr: Length of a step at the start, falling to 0 by a cosine: atom k moves by lr · mean(error · z_k) / mean(z²), with means over the
            batch, the last over all units, too. It depends neither on the size of the batch nor on the scale of the images.
        max_steps, tolerance: Of inferring the codes (see :func:`inference.methods.ista.ista`). Codes that have not converged after that
            are learned from without a warning: the history has their residual.
        revive: Steps after which an unused atom is dead; None to leave dead atoms alone.
        seed: Seed of the order of the images.
        device: Where to learn; where the model is if None.
        log_every: Steps between rows of the history.
        progress: Whether to show progress, or what to call with (step, steps, row) at each row.
        options: The method's own: ``restart`` (fista), ``time_constant`` (lca).

    Returns:
        Rows with ``step``, ``objective`` (−log p(x, z) less its constants, nats per image), ``zeros`` (fraction of exact zeros) and ``kkt``
        (relative KKT residual), means over training images since the row before; ``revived`` (atoms, since then), ``lr``, ``seconds``.

    Raises:
        ValueError: for another program, settings out of range, or images that do not fit.
        FloatingPointError: if codes or atoms stop being finite; the model keeps the last finite atoms.
    """
    scheme_of = _check(model, method, options, steps=steps, lr=lr, revive=revive, log_every=log_every)
    if device is not None:
        model.to(device)
    batches = batches_of(data, batch_size, seed=seed, event_shape=model.event_shape, device=model.decoder.weight.device)
    problem = read(model, batches.at(0))
    weight = normalize(model.decoder.weight.detach(), dim=0)
    used, rows = torch.zeros_like(problem.slope, dtype=torch.bool), []
    totals, revived, since, began = problem.slope.new_zeros(3), 0, 0, time.perf_counter()
    with count_bar("learning atoms", quiet=progress is not True) as show:
        for step in range(1, steps + 1):
            rate = cosine((step - 1) / steps, lr, 0.0, 0.0)
            target = (batches.at(step - 1).flatten(1) - problem.offset) / problem.noise
            batch = replace(problem, weight=weight / problem.noise[:, None], target=target)
            found = solve(batch, scheme_of(batch), torch.zeros_like(target[:, :1]).expand(-1, len(problem.slope)), max_steps=max_steps,
                          tolerance=tolerance)
            moved = weight + rate * _slope(batch, found.code)
            if not torch.isfinite(moved.norm(dim=0)).all():
                raise FloatingPointError(f"atoms are not finite after step {step}; try a smaller lr")
            weight = normalize(moved, dim=0)
            used |= (found.code != 0).any(0)
            if revive and step % revive == 0:
                weight, count = _revive(weight, used, batch, found)
                revived += count
                used.zero_()
            _store(model.decoder, weight)
            totals += torch.stack([found.objective.mean(), (found.code == 0).to(totals.dtype).mean(), found.kkt.mean()])
            if step % log_every == 0 or step == steps:
                objective, zeros, kkt = (totals / (step - since)).tolist()
                rows.append({"step": step, "objective": objective, "zeros": zeros, "kkt": kkt, "revived": revived, "lr": rate,
                             "seconds": time.perf_counter() - began})
                totals, revived, since = totals.zero_(), 0, step
                if callable(progress):
                    progress(step, steps, rows[-1])
            show(step, steps)
    return History(rows)


def _check(model: nn.Module, method: str, options: dict[str, Any], *, steps: int, lr: float, revive: int | None,
           log_every: int) -> Callable[[Lasso], Any]:
    """The method's scheme with its options, once the settings are seen to be right."""
    if method not in SCHEMES:
        raise ValueError(f"unknown method {method!r}; codes are inferred by: {', '.join(SCHEMES)}")
    accepted = list(inspect.signature(SCHEMES[method]).parameters)[1:]
    unknown = [name for name in options if name not in accepted]
    if unknown:
        raise ValueError(f"the method {method!r} has no option {', '.join(unknown)}; it accepts: {', '.join(accepted) or 'none'}")
    if not isinstance(getattr(model, "decoder", None), LinearDecoder):
        raise ValueError(f"atoms are learned of a model with a linear decoder (decoder='lin'), not of {type(model).__name__}")
    if steps < 1 or log_every < 1 or (revive is not None and revive < 1) or not 0.0 < lr < float("inf"):
        raise ValueError(f"steps, log_every and revive must be at least 1 and lr positive; got {steps}, {log_every}, {revive} and {lr}")
    return lambda problem: SCHEMES[method](problem, **options)


def _slope(problem: Lasso, code: Tensor) -> Tensor:
    """Gradient of the mean log p(x, z) by the matrix Φ, ``(D, K)``, times σ² and over the mean square of the code's units."""
    error = (problem.target - problem.decode(code)) / problem.noise
    power = code.square().mean().clamp(min=torch.finfo(code.dtype).tiny)
    return error.T @ code * (problem.noise.square().mean() / power / len(code))


def _revive(weight: Tensor, used: Tensor, problem: Lasso, found: Solution) -> tuple[Tensor, int]:
    """Unused atoms replaced by residuals of the worst explained images, as far as there are any; and how many were."""
    error = (problem.target - problem.decode(found.code)) * problem.noise
    worst = error.norm(dim=1).topk(min(len(error), len(used))).indices
    dead = (~used).nonzero().squeeze(1)[: len(worst)]
    new = error[worst[: len(dead)]]
    some = new.norm(dim=1) > torch.finfo(new.dtype).eps
    weight = weight.clone()
    weight[:, dead[some]] = normalize(new[some], dim=1).T
    return weight, int(some.sum())


def _store(decoder: LinearDecoder, weight: Tensor) -> None:
    if is_parametrized(decoder, "weight"):
        decoder.weight = weight  # goes through the parametrization's inverse
    else:
        decoder.weight.copy_(weight)
