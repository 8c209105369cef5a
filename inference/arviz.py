"""The one place that knows ArviZ: posteriors become ``InferenceData``, its container, file format and input of its plots; Pareto k̂."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["convert", "pareto_k", "read_samples"]


def convert(posterior: Any) -> Any:
    """``InferenceData`` of a :class:`~inference.posterior.Posterior`: latents with dimensions (chain, draw, image, unit …).

    Group ``sample_stats`` holds ``log_weight`` if the draws are weighted, ``log_q`` if their density under a guide is known, and the
    per-image statistics of the method; attributes hold the method's name and its cost. A posterior that kept a part of its draws has
    the group ``summary``: ``<site>_mean``, ``_sd``, ``_rhat`` and ``_ess`` of all of them.
    """
    arviz = _arviz()
    samples = {name: value.detach().cpu().numpy() for name, value in posterior.samples.items()}
    dims = {name: ["image", *(f"{name}_unit_{axis}" if value.ndim > 4 else f"{name}_unit" for axis in range(value.ndim - 3))]
            for name, value in samples.items()}
    stats = {}
    for name, value in (("log_weight", posterior.log_weights), ("log_q", posterior.log_q)):
        if value is not None:
            stats[name] = value.detach().cpu().numpy()
            dims[name] = ["image"]
    draws = next(iter(samples.values())).shape[:2]
    for name, value in posterior.image_stats.items():
        stats[name] = value.detach().cpu().expand(*draws, -1).numpy()
        dims[name] = ["image"]
    attributes = {"method": posterior.method} | {key: str(value) for key, value in posterior.cost.items()}
    data = arviz.from_dict(posterior=samples, sample_stats=stats or None, dims=dims, attrs=attributes)
    if posterior.summary is not None:
        import xarray

        data.add_groups({"summary": xarray.Dataset({
            f"{name}_{what}": (dims[name], value.detach().cpu().numpy())
            for name, part in posterior.summary.items() for what, value in part.items()})})
    return data


def pareto_k(log_weights: Tensor) -> Tensor:
    """Shape of a generalized Pareto law fitted to the greatest of log weights ``(k, N)``, ``(N,)``: ArviZ's ``psislw``.

    −∞ where the greatest weight was drawn so often that there is no tail above it (weights all alike, discrete latents): bounded weights.
    +∞ where fewer than 5 weights make the tail.
    """
    values = log_weights.detach().double()
    tail = math.ceil(min(len(values) / 5, 3 * math.sqrt(len(values))))
    bounded = (values >= values.amax(0) - 1e-9).sum(0) > tail
    _, shape = _arviz().psislw(values.T.cpu().numpy())
    return torch.where(bounded, -torch.inf, torch.as_tensor(shape).to(values))


def _arviz() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its 1.0 at import
        import arviz
    return arviz


def read_samples(path: str | Path) -> dict[str, Tensor]:
    """The draws ``{site: (chain, draw, image, *event)}`` of a posterior stored by :meth:`~inference.posterior.Posterior.to_netcdf`."""
    data = _arviz().from_netcdf(str(path))
    try:
        return {str(name): torch.as_tensor(value.values) for name, value in data.posterior.data_vars.items()}
    finally:
        data.close()
