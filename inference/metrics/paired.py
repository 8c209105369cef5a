"""Draws of two posteriors that are to be compared: checked, side by side, of equal weight, and in parts that memory can hold."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from inference.mcmc.diagnostics import ess
from inference.posterior import Posterior
from inference.resampling import resample

__all__ = ["check_pair", "chunks", "effective_sizes", "flat_draws", "spread", "total_size"]

CHUNK = 2**24  # numbers held at once


def check_pair(posterior: Posterior, reference: Posterior, draws: int) -> None:
    """Refuses posteriors that cannot be compared.

    Raises:
        ValueError: if they are not of the same images and latents, are not finite, or have fewer draws than ``draws``.
    """
    if bad := [name for part in (posterior, reference) for name, value in part.samples.items() if value.dim() < 3]:
        raise ValueError(f"samples must be (chain, draw, image, …); those of {bad[0]!r} have fewer dimensions")
    shapes = [{name: tuple(value.shape[2:]) for name, value in part.samples.items()} for part in (posterior, reference)]
    if shapes[0] != shapes[1] or not shapes[1]:
        raise ValueError(f"both posteriors must have the same images and latents; their sites are {shapes[0]} and {shapes[1]}")
    for part in (posterior, reference):
        count = math.prod(next(iter(part.samples.values())).shape[:2])
        if count < draws:
            raise ValueError(f"the posterior of {part.method!r} has {count} draws of each image; at least {draws} are needed")
        for name, value in part.samples.items():
            fine = torch.isfinite(value.movedim(2, 0).flatten(1)).all(1)
            if not fine.all():
                raise ValueError(f"the draws of {name!r} of image {int((~fine).nonzero()[0])} by {part.method!r} are not finite")
        if part.log_weights is not None and not torch.isfinite(part.log_weights.logsumexp((0, 1))).all():
            raise ValueError(f"the log weights of {part.method!r} must be below infinity, and not all −infinity")


def chunks(posterior: Posterior, reference: Posterior, width: int = 0) -> Iterator[slice]:
    """Images in parts, that memory be bounded."""
    draws = sum(math.prod(next(iter(part.samples.values())).shape[:2]) for part in (posterior, reference))
    step = max(1, CHUNK // (draws * max(total_size(reference), width)))
    return (slice(start, start + step) for start in range(0, len(reference), step))


def flat_draws(posterior: Posterior, images: slice, seed: int) -> Tensor:
    """Draws of all sites that count alike, ``(C, S, n, F)`` in double precision."""
    parts = [posterior.samples[name][:, :, images] for name in sorted(posterior.samples)]
    draws = torch.cat([part.reshape(*part.shape[:3], -1).double() for part in parts], -1)
    if posterior.log_weights is None:
        return draws
    chosen = resample(posterior.log_weights.flatten(0, 1), seed)[:, images]
    return draws.flatten(0, 1).gather(0, chosen[..., None].expand(-1, -1, draws.shape[-1]))[None]


def effective_sizes(posterior: Posterior, images: slice, seed: int, draws: Tensor | None = None) -> Tensor:
    """Effective sample sizes ``(n, F)``, Kish's where there are weights; NaN for a latent that does not vary."""
    draws = flat_draws(posterior, images, seed) if draws is None else draws
    if posterior.log_weights is not None:
        weights = posterior.log_weights[..., images].flatten(0, 1).double().softmax(0)
        size = 1.0 / weights.square().sum(0)
        return torch.where(spread(draws.flatten(0, 1)) > 0, size[:, None], torch.nan)
    if draws.shape[1] < 4:
        return torch.where(spread(draws.flatten(0, 1)) > 0, float(draws[:, :, 0, 0].numel()), torch.nan)
    return ess(draws)


def spread(flat: Tensor) -> Tensor:
    """Standard deviation over the first dimension, exactly 0 where nothing varies."""
    return torch.where(flat.amin(0) < flat.amax(0), flat.std(0), 0.0)


def total_size(posterior: Posterior) -> int:
    """How many numbers the latents of an image have, F."""
    return sum(math.prod(value.shape[3:]) for value in posterior.samples.values())
