r"""How far one posterior is from another, image by image: a guide's from that of long Markov chains, say.

Three answers, from what is easily explained to what sees most: standardized moments, one latent at a time; the sliced Wasserstein
distance (Bonneel, Rabin, Peyré & Pfister 2015); and the accuracy of a classifier that tells the draws of one from those of the other (C2ST:
Friedman 2003; Lopez-Paz & Oquab 2017). Finite samples of one and the same law are some way apart, too, so each comes with what chance
alone gives. Latents are compared as they are sampled: reals, counts, one-hots; those of all sites side by side make up F numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inference.metrics.c2st import c2st
from inference.metrics.paired import check_pair, chunks, effective_sizes, flat_draws, spread, total_size
from inference.posterior import Posterior

__all__ = ["distances", "sliced_wasserstein", "standardized_moments"]


def distances(posterior: Posterior, reference: Posterior, *, directions: int = 128, folds: int = 5, seed: int = 0) -> dict[str, Tensor]:
    """All distances of each image's posterior from its reference, each ``(N,)``.

    Returns:
        ``mean``: root mean square over latents of the differences of means, in the reference's standard deviations; ``log_sd``: that of the
        log ratios of standard deviations, over the latents that vary in both; ``mean_noise`` and ``log_sd_noise``: what Monte-Carlo error
        alone would make of them; ``degenerate``: number of latents that vary in one of the two only. ``sliced`` and ``sliced_floor``: see
        :func:`sliced_wasserstein`. ``c2st`` and ``c2st_se``: see
        :func:`~inference.metrics.c2st.c2st`.

    Raises:
        ValueError: if the posteriors are not of the same images and latents, are not finite, or have too few draws.
    """
    shift = standardized_moments(posterior, reference, seed=seed)
    both = ~shift["log_sd"].isnan()

    def rms(values: Tensor) -> Tensor:
        return (values.square().where(both, 0.0).sum(-1) / both.sum(-1)).sqrt()

    sliced, floor = sliced_wasserstein(posterior, reference, directions=directions, seed=seed)
    accuracy, error = c2st(posterior, reference, folds=folds, seed=seed)
    return {"mean": shift["mean"].square().mean(-1).sqrt(), "mean_noise": shift["mean_se"].square().mean(-1).sqrt(),
            "log_sd": rms(shift["log_sd"]), "log_sd_noise": rms(shift["log_sd_se"]), "degenerate": shift["degenerate"].sum(-1),
            "sliced": sliced, "sliced_floor": floor, "c2st": accuracy, "c2st_se": error}


@torch.no_grad()
def standardized_moments(posterior: Posterior, reference: Posterior, *, seed: int = 0) -> dict[str, Tensor]:
    """First and second moments of every latent against the reference's, each ``(N, F)``.

    Returns:
        ``mean``: difference of means in units of the reference's standard deviation; of a latent that does not vary there, in units of that
        of both together, so that it is at most 2. ``log_sd``: log ratio of standard deviations, NaN unless the latent varies in both;
        ``degenerate``: whether it varies in one only. ``mean_se`` and ``log_sd_se``: their standard errors, from the effective sample
        sizes of both (of the draws, and of their squared deviations).

    Raises as :func:`distances`.
    """
    check_pair(posterior, reference, 4)
    parts = []
    for images in chunks(posterior, reference):
        (mean_q, sd_q, size_q, spread_q), (mean_p, sd_p, size_p, spread_p) = (
            _moments(part, images, seed) for part in (posterior, reference))
        unit, varies = _unit(mean_q, sd_q, mean_p, sd_p), (sd_p > 0) & (sd_q > 0)
        error = (sd_p.square() / size_p + sd_q.square() / size_q).sqrt() / unit
        parts.append(((mean_q - mean_p) / unit, error, torch.where(varies, (sd_q / sd_p).log(), torch.nan),
                      torch.where(varies, (spread_p + spread_q).sqrt(), torch.nan), (sd_p > 0) != (sd_q > 0)))
    names = ("mean", "mean_se", "log_sd", "log_sd_se", "degenerate")
    return {name: torch.cat(values) for name, values in zip(names, zip(*parts, strict=True), strict=True)}


@torch.no_grad()
def sliced_wasserstein(posterior: Posterior, reference: Posterior, *, directions: int = 128, seed: int = 0) -> tuple[Tensor, Tensor]:
    r"""The sliced 2-Wasserstein distance of each image's draws, and the distance that chance alone gives, each ``(N,)``.

    :math:`\big(E_\theta\, W_2^2(\theta^\top q, \theta^\top p)\big)^{1/2}` over directions θ on the sphere, in coordinates standardized
    by the reference: a shift of every latent by δ standard deviations is a distance of δ.

    Arguments:
        directions: Random directions, the same for all images.
        seed: Their seed.

    Returns:
        Distances, and their floor: the root mean square to be expected of two samples of one law as noisy as these. The noise of each is
        measured between two halves of its draws (of its chains, if there are several; gold against gold), which is 4 times as much in
        squares; one noisy number for each image, in the mean a few percent low.
        ``distance² − floor²`` is about unbiased for the squared distance of the two laws.

    Raises as :func:`distances`; also for fewer directions than 1.
    """
    check_pair(posterior, reference, 4)
    if directions < 1:
        raise ValueError(f"directions must be at least 1, not {directions}")
    generator = torch.Generator().manual_seed(seed)  # of the CPU, so that directions are the same on every device
    theta = torch.randn(total_size(reference), directions, generator=generator, dtype=torch.float64)
    theta = (theta / theta.norm(dim=0)).to(next(iter(reference.samples.values())).device)
    parts = []
    for images in chunks(posterior, reference, directions):
        q, p = (flat_draws(part, images, seed) for part in (posterior, reference))
        flat_q, flat_p = q.flatten(0, 1), p.flatten(0, 1)
        unit = _unit(flat_q.mean(0), spread(flat_q), flat_p.mean(0), spread(flat_p))
        q, p = (q / unit) @ theta, (p / unit) @ theta
        parts.append((_squared_w2(q.flatten(0, 1), p.flatten(0, 1)).sqrt(), (_sampling_noise(q) + _sampling_noise(p)).sqrt()))
    distance, floor = (torch.cat(values) for values in zip(*parts, strict=True))
    return distance, floor


def _moments(posterior: Posterior, images: slice, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, standard deviation, effective sample size and squared standard error of the log standard deviation, each ``(n, F)``."""
    draws = flat_draws(posterior, images, seed)
    flat = draws.flatten(0, 1)
    mean, sd = flat.mean(0), spread(flat)
    squares = ((draws - mean) / torch.where(sd > 0, sd, 1.0)).square()
    size = effective_sizes(posterior, images, seed, draws).nan_to_num(nan=1.0)
    size_of_squares = effective_sizes(posterior, images, seed, squares).nan_to_num(nan=float(len(flat)))
    return mean, sd, size, squares.flatten(0, 1).var(0) / (4.0 * size_of_squares)  # delta method


def _unit(mean_q: Tensor, sd_q: Tensor, mean_p: Tensor, sd_p: Tensor) -> Tensor:
    """The reference's standard deviations; where they are 0 those of both sets together, or 1 if nothing varies at all."""
    pooled = (0.5 * (sd_q.square() + sd_p.square()) + 0.25 * (mean_q - mean_p).square()).sqrt()
    unit = torch.where(sd_p > 0, sd_p, pooled)
    return torch.where(unit > 0, unit, 1.0)


def _sampling_noise(draws: Tensor) -> Tensor:
    """What sampling adds to squared distances from draws ``(C, S, n, P)``, ``(n,)``: two halves differ by both halves' noise."""
    axis = 0 if len(draws) > 1 else 1
    left, right = (half.flatten(0, 1) for half in draws.tensor_split(2, axis))
    total = len(left) + len(right)
    return _squared_w2(left, right) / (total / len(left) + total / len(right))


def _squared_w2(a: Tensor, b: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance of samples ``(n, …, P)`` and ``(m, …, P)`` on the line, mean over P; exact for n ≠ m as well."""
    n, m = len(a), len(b)
    steps = torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]).unique()  # where a quantile function jumps, in 1 / (n m)
    i, j = steps[:-1] // m, steps[:-1] // n
    widths = (steps.diff().double() / (n * m)).to(a.device)
    gaps = (a.sort(0).values[i] - b.sort(0).values[j]).square().mean(-1)
    return torch.tensordot(widths, gaps, 1)
