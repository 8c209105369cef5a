"""The one place that knows ArviZ: posteriors become ``InferenceData``, the container, file format and input of its plots."""

from __future__ import annotations

import warnings
from typing import Any

__all__ = ["convert"]


def convert(posterior: Any) -> Any:
    """``InferenceData`` of a :class:`~inference.posterior.Posterior`: latents with dimensions (chain, draw, image, unit …).

    Group ``sample_stats`` holds ``log_weight`` if the draws are weighted and the per-image statistics of the method; attributes
    hold the method's name and its cost.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its 1.0 at import
        import arviz

    samples = {name: value.detach().cpu().numpy() for name, value in posterior.samples.items()}
    dims = {name: ["image", *(f"{name}_unit_{axis}" if value.ndim > 4 else f"{name}_unit" for axis in range(value.ndim - 3))]
            for name, value in samples.items()}
    stats = {}
    if posterior.log_weights is not None:
        stats["log_weight"] = posterior.log_weights.detach().cpu().numpy()
        dims["log_weight"] = ["image"]
    draws = next(iter(samples.values())).shape[:2]
    for name, value in posterior.image_stats.items():
        stats[name] = value.detach().cpu().expand(*draws, -1).numpy()
        dims[name] = ["image"]
    attributes = {"method": posterior.method} | {key: str(value) for key, value in posterior.cost.items()}
    return arviz.from_dict(posterior=samples, sample_stats=stats or None, dims=dims, attrs=attributes)
