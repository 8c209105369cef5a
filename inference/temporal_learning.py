r"""Local learning of a temporal model's weights, while it filters (Millidge et al. 2024).

Outer products of a weighted error and the rate that predicts: :math:`\Delta C \propto R^{-1} e_0 f(\hat z_t)^\top` and
:math:`\Delta A \propto \Pi e_1 f(\hat z_{t-1})^\top`, with the errors of :mod:`inference.filtering`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from inference.batches import batches_of
from inference.filtering import Estimates, filter
from inference.training import History
from zoo.models.temporal import TemporalPredictiveCoding

__all__ = ["learn", "weight_updates"]


@torch.no_grad()
def weight_updates(model: TemporalPredictiveCoding, found: Estimates) -> dict[str, Tensor]:
    """Local updates of A, a, C and c: means over sequences and frames of weighted errors times what predicts, by parameter's name.

    They are the slopes of the mean of −F over frames (:mod:`inference.filtering`), at estimates and precisions as they are; A and a, which
    predict no first frame, share the same denominator.
    """
    system, rate = model.dynamics(), model.rate(found.mean)
    frames = rate.shape[0] * rate.shape[1]
    error = found.error.flatten(2) / system.noise_variance
    temporal = torch.linalg.solve(found.predicted_covariance[:, 1:], found.temporal_error[:, 1:].unsqueeze(-1)).squeeze(-1)
    updates = {"emission.weight": torch.einsum("ntd,ntk->dk", error, rate) / frames,
               "emission.bias": error.sum((0, 1)) / frames,
               "transition.weight": torch.einsum("nti,ntk->ik", temporal, rate[:, :-1]) / frames,
               "transition.bias": temporal.sum((0, 1)) / frames}
    return {name: update for name, update in updates.items() if name != "emission.bias" or model.emission.bias is not None}


@torch.no_grad()
def learn(model: TemporalPredictiveCoding, data: object, *, carry: str = "point", precision: Tensor | None = None, steps: int = 500,
          batch_size: int = 100, lr: float = 1e-2, keep_lengths: bool = True, seed: int = 0, log_every: int = 50,
          progress: Callable[[int, int, dict], None] | None = None) -> History:
    """Learns A, a, C and c in place from what filtering finds; variances stay as they are.

    Each step filters a batch and moves the weights by :func:`weight_updates`, each number's step scaled by its own running mean square
    (Adam), which is local, too.

    Arguments:
        model: A model of ``zoo.build("temporal", …)``.
        data: A data set (its training sequences), sequences ``(n, T, *frame_shape)``, or a stream of them.
        carry, precision: Of :func:`inference.filtering.filter`.
        steps, batch_size, lr: Of learning; ``lr`` falls to 0 by a line.
        keep_lengths: Whether C's columns keep their lengths. Otherwise point estimates can shrink, and with them the energy of the states,
            while C grows.
        seed: Seed of the order of the sequences.
        log_every: Steps between rows of the history.
        progress: What to call with (step, steps, row) at each row.

    Returns:
        Rows with ``step``, ``energy`` (nats per frame), ``log_density`` (of one-step predictions, nats per frame), means since the row
        before, and ``seconds``.

    Raises:
        ValueError: for settings out of range, or sequences that do not fit.
        FloatingPointError: if estimates stop being finite.
    """
    if steps < 1 or log_every < 1 or not lr > 0:
        raise ValueError(f"steps and log_every must be at least 1 and lr positive; got {steps}, {log_every} and {lr}")
    parameters = dict(model.named_parameters())
    batches = batches_of(data, batch_size, seed=seed, event_shape=model.event_shape, device=model.emission.weight.device)
    lengths = model.emission.weight.norm(dim=0)
    optimizer, rows, began = None, [], time.perf_counter()
    totals, since = torch.zeros(2, dtype=torch.float64), 0
    for step in range(1, steps + 1):
        found = filter(model, batches.at(step - 1), carry, precision=precision)
        updates = weight_updates(model, found)
        if optimizer is None:
            optimizer = torch.optim.Adam([parameters[name] for name in updates], lr=lr)
        for name, update in updates.items():
            parameters[name].grad = -update.to(parameters[name])
        optimizer.param_groups[0]["lr"] = lr * (1.0 - (step - 1) / steps)
        optimizer.step()
        optimizer.zero_grad()
        if keep_lengths:
            model.emission.weight.copy_(normalize(model.emission.weight, dim=0) * lengths)
        totals += torch.stack([found.energy.mean(), found.log_density.mean()]).cpu()
        if step % log_every == 0 or step == steps:
            energy, log_density = (totals / (step - since)).tolist()
            rows.append({"step": step, "energy": energy, "log_density": log_density, "seconds": time.perf_counter() - began})
            totals, since = totals.zero_(), step
            if progress is not None:
                progress(step, steps, rows[-1])
    return History(rows)
