r"""Can a classifier tell the draws of one posterior from those of another (C2ST: Friedman 2003; Lopez-Paz & Oquab 2017)?"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from inference.metrics.paired import check_pair, chunks, effective_sizes, flat_draws, spread
from inference.posterior import Posterior

__all__ = ["c2st"]


@torch.no_grad()
def c2st(posterior: Posterior, reference: Posterior, *, folds: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    r"""Cross-validated accuracy of a classifier that tells draws of one from draws of the other, and its standard error by chance.

    .5 says that it could not, 1 that it always could. The classifier is least squares on all latents, their squares and their products
    (kernel ridge regression of the labels ±1 with :math:`k(a, b) = 1 + a^\top b / F + (a^\top b / F)^2` and unit ridge), so it sees
    means, variances and correlations, but little of a difference in shape alone. Of few draws in many dimensions it learns little: a small
    distance is then missed, never invented. Draws of the larger set are thinned to the number of the smaller; folds are blocks of
    successive draws, so that states of a chain, which resemble each other, do not help across folds.

    Arguments:
        folds: Parts that are predicted from all others, at least 2.

    Returns:
        Accuracies ``(N,)``, and their standard errors ``(N,)`` around .5 if the two are one law: :math:`1 / \sqrt{8 n}` with n independent
        draws of each, and from effective sample sizes in general (the median latent's). Time is cubic in n.

    Raises:
        ValueError: if the posteriors are not of the same images and latents, are not finite, or have fewer than 2 draws for each fold.
    """
    if folds < 2:
        raise ValueError(f"folds must be at least 2, not {folds}")
    check_pair(posterior, reference, 2 * folds)
    count = min(math.prod(next(iter(part.samples.values())).shape[:2]) for part in (posterior, reference))
    chosen = torch.arange(count)
    block = (chosen * folds // count).repeat(2)
    order, sizes = block.argsort(stable=True), torch.bincount(block).tolist()  # each fold in one piece
    label = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(count)[order]
    parts = []
    for images in chunks(posterior, reference, 4 * count):
        draws = [flat_draws(part, images, seed).flatten(0, 1) for part in (posterior, reference)]
        both = torch.cat([part[chosen * len(part) // count] for part in draws])[order].movedim(1, 0)
        kernel, y = _kernel(both), label.to(both)
        kernel.diagonal(dim1=1, dim2=2).add_(1.0)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(kernel))
        pull = (inverse @ y).split(sizes, 1)
        right = both.new_zeros(len(both))
        for start, size, held_out in zip([0, *itertools.accumulate(sizes)], sizes, pull, strict=False):
            fold = slice(start, start + size)
            predicted = y[fold] - torch.linalg.solve(inverse[:, fold, fold], held_out)  # of the fit to all other folds
            side = predicted.sign() * (predicted.abs() > 1e-9)  # no side where nothing was learned
            right += 0.5 * (1.0 + side * y[fold]).sum(-1)
        effective = (effective_sizes(part, images, seed).nanmedian(-1).values.nan_to_num(nan=count) for part in (posterior, reference))
        parts.append((right / (2 * count), 0.25 * sum(1.0 / size.clamp(max=count) for size in effective).sqrt()))
    accuracy, error = (torch.cat(values) for values in zip(*parts, strict=True))
    return accuracy, error


def _kernel(draws: Tensor) -> Tensor:
    """Kernel of all draws ``(n, T, F)`` of each image, standardized: ``(n, T, T)``."""
    centered = draws - draws.mean(1, keepdim=True)
    sd = spread(draws.movedim(1, 0))[:, None]
    z = centered / torch.where(sd > 0, sd, 1.0) * (sd > 0)
    gram = z @ z.mT / (sd > 0).sum(-1, keepdim=True).clamp(min=1)
    return 1.0 + gram + gram.square()
