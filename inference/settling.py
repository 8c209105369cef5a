"""Beliefs and prediction errors of every level while the latents climb to their most probable values, as data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inference.gradient_dynamics import ascend
from inference.methods.point import first_values
from inference.methods.run import now
from inference.prediction_errors import predicted_sites
from inference.spaces import Space
from inference.trajectory import looked_at
from zoo.density import log_sites, uncounted
from zoo.frozen import frozen

__all__ = ["Settling", "settling"]


@dataclass(frozen=True)
class Settling:
    """The way of ``N`` images' latents to a mode, at the start and after ``T`` of the steps. Sites are the model's, ``"x"`` among them.

    Attributes:
        step: Which steps these are, 0 for the start, ``(T + 1,)``.
        energy: −log p of each site given those above it, nats, ``{site: (T + 1, N)}``; their sum is −log p(x, z), which inference lowers.
        error: Length of each site's precision-weighted prediction error, ``{site: (T + 1, N)}``.
        slope: Length of the gradient of log p(x, z) in the coordinates that move, ``(T + 1, N)``; 0 at a mode.
        beliefs: Values of the latents of the first images, ``{site: (T + 1, keep, *event)}``.
        errors: Their precision-weighted prediction errors, ``{site: (T + 1, keep, K)}``, of ``"x"`` ``(T + 1, keep, *event_shape)``.
        predictions: What is predicted of each site, of the same shapes; of ``"x"`` what the model decodes: its mean, or logits.
        seconds: Wall clock of all images since the start, ``(T + 1,)``; what it takes to look is not counted.
    """

    step: Tensor
    energy: dict[str, Tensor]
    error: dict[str, Tensor]
    slope: Tensor
    beliefs: dict[str, Tensor]
    errors: dict[str, Tensor]
    predictions: dict[str, Tensor]
    seconds: Tensor

    def __len__(self) -> int:
        """Number of steps, the start not counted."""
        return int(self.step[-1])

    @property
    def log_joint(self) -> Tensor:
        """log p(x, z), nats, ``(T + 1, N)``."""
        return -sum(self.energy.values())


def settling(model: nn.Module, x: Tensor, *, steps: int = 100, lr: float | None = None, optimizer: str = "gradient", space: str = "states",
             start: str = "prior", guide: nn.Module | None = None, keep: int = 8) -> Settling:
    """Follows ``inference.infer(model, x, "map", …)`` step by step: all of the first 16 steps, then eight in every doubling, and the last.

    Arguments:
        model: A model of the zoo with real-valued latents.
        x: Images ``(N, *event_shape)``.
        steps, lr, optimizer, space, start, guide: As of the method (:func:`inference.methods.point.point`), but for the default
            optimizer: plain gradient dynamics.
        keep: Images whose beliefs and errors are kept.

    Raises:
        ValueError: for settings out of range, discrete latents, or a missing guide.
        TypeError: for a program from outside the zoo.
    """
    rows: dict[str, dict[str, list[Tensor]]] = {name: {} for name in ("energy", "error", "beliefs", "errors", "predictions")}
    looked, slopes, seconds, before = [], [], [], 0.0
    with frozen(model):
        place = Space(model, x, space)
        start_u = place.enter(first_values(model, x, guide, start))
        moments = ascend(place.target, start_u, steps=steps, lr=lr, optimizer=optimizer)
        began = now(x)
        for step, moment in enumerate(moments):
            before += now(x) - began
            if looked_at(step) or step == steps:
                with uncounted():
                    _look(rows, model, place.leave(moment.u), x, keep)
                looked.append(step), slopes.append(moment.slope), seconds.append(before)
            began = now(x)
    found = {what: {name: torch.stack(parts) for name, parts in sites.items()} for what, sites in rows.items()}
    return Settling(step=torch.tensor(looked), slope=torch.stack(slopes), seconds=torch.tensor(seconds), **found)


@torch.no_grad()
def _look(rows: dict[str, dict[str, list[Tensor]]], model: nn.Module, values: dict[str, Tensor], x: Tensor, keep: int) -> None:
    for name, site in log_sites(model, values, x).items():
        rows["energy"].setdefault(name, []).append(-site["log_prob"])
    for name, site in predicted_sites(model, values, x).items():
        rows["error"].setdefault(name, []).append(site.error.flatten(1).norm(dim=1))
        rows["errors"].setdefault(name, []).append(site.error[:keep])
        rows["predictions"].setdefault(name, []).append(site.prediction[:keep].expand_as(site.error[:keep]))
        if name in values:
            rows["beliefs"].setdefault(name, []).append(values[name][:keep])
