"""What every way of inferring returns: samples with names, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.density import observation
from zoo.files import atomic_file

__all__ = ["Posterior"]


@dataclass(frozen=True)
class Posterior:
    """Posterior of the latents of ``N`` images.

    Attributes:
        method: Name of the way of inferring.
        samples: ``{site: (chain, draw, image, *event)}``; a point estimate has one chain and one draw.
        log_weights: Log importance weights ``(chain, draw, image)``, or None if every draw counts alike.
        params: Parameters of the variational posterior ``{site: (image, P, K)}``, or None if there is none.
        log_q: Log density of each draw under the guide it comes from, of all its latents together, in the model's own (constrained)
            space, nats, ``(chain, draw, image)``; None where it is not known, or follows from ``params``.
        stats: The method's own statistics, tensors by name: ``(image,)``, or ``(step,)`` if the name ends in ``_trace``.
        summary: Of draws that were not all kept, ``{site: {"mean", "sd", "rhat", "ess": (image, *event)}}``; None where all were.
        cost: ``gradient_evaluations`` and ``evaluations`` per image, ``seconds`` (wall clock, all images) and ``device``.
    """

    method: str
    samples: dict[str, Tensor]
    log_weights: Tensor | None = None
    params: dict[str, Tensor] | None = None
    stats: dict[str, Tensor] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, dict[str, Tensor]] | None = None
    log_q: Tensor | None = None

    def __len__(self) -> int:
        """Number of images."""
        return next(iter(self.samples.values())).shape[2]

    @property
    def mean(self) -> dict[str, Tensor]:
        """Posterior mean of every latent, ``{site: (image, *event)}``; weighted where there are weights; of all draws, kept or not."""
        if self.summary is not None:
            return {name: part["mean"] for name, part in self.summary.items()}
        return {name: self.average(value) for name, value in self.samples.items()}

    def predict(self, model: Callable) -> Tensor:
        """Mean image under the posterior, ``(image, *event_shape)``: the average of decoded draws, not the decoded mean."""
        if hasattr(model, "decode"):
            return self.average(model.observation(model.decode(self.samples)).mean)
        return self.average(observation(model, self.samples, None, size=len(self)).mean)

    @property
    def image_stats(self) -> dict[str, Tensor]:
        """Those of :attr:`stats` that have one number for each image."""
        return {name: value for name, value in self.stats.items()
                if not name.endswith("_trace") and tuple(value.shape) == (len(self),)}

    def average(self, values: Tensor) -> Tensor:
        """Mean over chains and draws of anything ``(chain, draw, image, …)`` computed from them; weighted where there are weights."""
        if self.log_weights is None:
            return values.mean((0, 1))
        weights = self.log_weights.flatten(0, 1).softmax(0)
        weights = weights.reshape(weights.shape + (1,) * (values.dim() - 3))
        return (values.flatten(0, 1) * weights).sum(0)

    def to_arviz(self) -> Any:
        """The posterior as ArviZ ``InferenceData``: groups ``posterior`` and ``sample_stats``; cost and method as attributes."""
        from inference.arviz import convert

        return convert(self)

    def to_netcdf(self, path: str | Path) -> Path:
        """Writes :meth:`to_arviz` as netCDF, atomically; returns the path."""
        with atomic_file(path) as temporary:
            self.to_arviz().to_netcdf(str(temporary))
        return Path(path)

    def first(self, count: int) -> Posterior:
        """The posterior of the first ``count`` images."""
        stats = self.stats | {name: value[:count] for name, value in self.image_stats.items()}
        return replace(
            self, samples={name: value[:, :, :count] for name, value in self.samples.items()},
            log_weights=None if self.log_weights is None else self.log_weights[..., :count],
            log_q=None if self.log_q is None else self.log_q[..., :count],
            params=None if self.params is None else {name: value[:count] for name, value in self.params.items()}, stats=stats,
            summary=_mapped(self.summary, lambda value: value[:count]))

    def to(self, device: str | torch.device) -> Posterior:
        """The same posterior with its tensors on ``device``."""
        parts = {name: _mapped(getattr(self, name), lambda value: value.to(device)) for name in
                 ("samples", "log_weights", "log_q", "params", "stats", "summary")}
        return replace(self, **parts)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nested dictionary (or tensor, or None) with every tensor changed."""
    if isinstance(value, dict):
        return {name: _mapped(part, change) for name, part in value.items()}
    return None if value is None else change(value)
