r"""Coverage of credible intervals: whether a posterior is as sure as it may be.

Where causes are drawn from the prior and images from the likelihood, a central interval of the exact posterior that holds a share ℓ of
the probability holds the true value in a share ℓ of the images, whatever the model (Cook, Gelman & Rubin 2006; Talts et al. 2018). Less
means too sure, more means too vague. It is a mean over images: of a single image it says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import Tensor

from inference.posterior import Posterior

__all__ = ["coverage", "intervals", "scalars"]

LEVELS = (0.5, 0.8, 0.9, 0.95)


def coverage(draws: Posterior | Mapping[str, Tensor], truth: Mapping[str, Tensor], *, levels: Sequence[float] = LEVELS,
             log_weights: Tensor | None = None, among: Tensor | None = None) -> list[dict[str, float | str | int]]:
    """How often central credible intervals hold the truth: one record for each scalar and each level.

    Arguments:
        draws: A posterior, or draws of named scalars ``{name: (chain, draw, image)}``, such as :func:`zoo.data.rofl.factors` of a
            posterior's samples; chains are pooled. Vectors are taken apart as by :func:`scalars`.
        truth: True values ``{name: (image,)}`` of the scalars that are to be looked at, in that order; vectors likewise.
        levels: Probabilities that the intervals hold, above 0 and below 1.
        log_weights: Log importance weights ``(chain, draw, image)``; those of a posterior if None.
        among: Which images count, ``(image,)`` of bool; all if None.

    Returns:
        Records ``factor``, ``level``, ``coverage`` (a fraction), its binomial ``standard_error`` √(c (1 − c) / n), ``width`` (the mean
        length of the intervals, in the scalar's own unit) and ``images`` (n). Draws that are independent cover with probability ℓ, however
        few they are (see :func:`intervals`); those of a Markov chain a little less, as they count for fewer.

    Raises:
        ValueError: for names without draws, shapes that do not fit, values that are not finite, no images, or what :func:`intervals`
            refuses.
    """
    if isinstance(draws, Posterior):
        log_weights = draws.log_weights if log_weights is None else log_weights
        draws = draws.samples
    values, true = scalars(draws, 3), scalars(truth, 1)
    _check(values, true)
    images = len(next(iter(true.values())))
    among = torch.ones(images, dtype=torch.bool) if among is None else torch.as_tensor(among)
    if among.dtype != torch.bool or among.shape != (images,) or not among.any():
        raise ValueError(f"among must say of each of the {images} images whether it counts, and of one at least that it does")
    records = []
    for name, target in true.items():
        lower, upper = intervals(values[name], levels, log_weights)
        chosen = among.to(target.device)
        lower, upper, target = lower[:, chosen], upper[:, chosen], target[chosen].to(lower)
        share = ((lower <= target) & (target <= upper)).double().mean(1)
        for level, fraction, width in zip(levels, share.tolist(), (upper - lower).mean(1).tolist(), strict=True):
            error = math.sqrt(fraction * (1.0 - fraction) / len(target))
            records.append({"factor": name, "level": float(level), "coverage": fraction, "standard_error": error, "width": width,
                            "images": len(target)})
    return records


def intervals(draws: Tensor, levels: Sequence[float], log_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Ends of central credible intervals, lower and upper, each ``(level, image)``.

    The k-th of S ordered draws stands for the probability k / (S + 1), between them ends are linear: an interval between two of S
    independent draws then holds one more, and so the truth, with just the probability it claims (Hyndman & Fan 1996, definition 6).
    With weights, S is Kish's effective number of draws, and an interval ends at the outermost draw if it would end beyond.

    Arguments:
        draws: Draws of one scalar ``(chain, draw, image)``.
        levels: Probabilities that the intervals hold.
        log_weights: Log importance weights of the draws, likewise shaped; equal ones if None.

    Raises:
        ValueError: for other shapes, levels out of range, or so few draws that the tails of an interval hold none.
    """
    if draws.dim() != 3 or draws.numel() == 0 or (log_weights is not None and log_weights.shape != draws.shape):
        raise ValueError(f"draws must be (chain, draw, image), and weights of the same shape; got {tuple(draws.shape)}"
                         + ("" if log_weights is None else f" and {tuple(log_weights.shape)}"))
    if len(levels) == 0 or not all(0.0 < level < 1.0 for level in levels):
        raise ValueError(f"levels must be above 0 and below 1, and one at least; not {tuple(levels)}")
    flat, count = draws.flatten(0, 1).double(), draws.shape[0] * draws.shape[1]
    needed = math.ceil(2.0 / (1.0 - max(levels)) - 1.0 - 1e-9)
    if count < needed:
        raise ValueError(f"an interval of level {max(levels):g} takes at least {needed} draws, not {count}")
    ordered, order = flat.sort(0)
    weights = torch.full_like(flat, 1.0 / count) if log_weights is None else log_weights.flatten(0, 1).double().softmax(0).gather(0, order)
    effective = 1.0 / weights.square().sum(0)
    position = ((weights.cumsum(0) - 0.5 * weights) * effective + 0.5) / (effective + 1.0)
    tails = flat.new_tensor([[0.5 - 0.5 * level for level in levels], [0.5 + 0.5 * level for level in levels]])
    ends = _interpolate(position, ordered, tails.flatten())
    return ends[: len(levels)], ends[len(levels):]


def scalars(values: Mapping[str, Tensor], leading: int) -> dict[str, Tensor]:
    """Vectors taken apart: ``{"z": (*leading, 2)}`` becomes ``{"z[0]": (*leading), "z[1]": …}``, matrices ``"z[0,0]"`` and so on.

    Arguments:
        values: Tensors by name.
        leading: Number of dimensions that each scalar keeps.

    Raises:
        ValueError: if a tensor has fewer dimensions.
    """
    apart: dict[str, Tensor] = {}
    for name, value in values.items():
        if value.dim() < leading:
            raise ValueError(f"{name!r} must have at least {leading} dimension(s), not the shape {tuple(value.shape)}")
        for index in product(*map(range, value.shape[leading:])):
            apart[f"{name}[{','.join(map(str, index))}]" if index else name] = value[(..., *index)]
    return apart


def _interpolate(position: Tensor, ordered: Tensor, at: Tensor) -> Tensor:
    """Values ``(T, N)`` at the probabilities ``at`` ``(T,)``, linear between ``ordered`` ``(S, N)`` at ``position`` ``(S, N)``."""
    rows, last = position.T.contiguous(), len(ordered) - 1
    above = torch.searchsorted(rows, at.expand(len(rows), -1).contiguous()).T  # (T, N)
    below, above = (above - 1).clamp(0, last), above.clamp(0, last)
    low, high = position.gather(0, below), position.gather(0, above)
    share = torch.where(high > low, (at[:, None] - low) / (high - low), 0.0).clamp(0.0, 1.0)
    return torch.lerp(ordered.gather(0, below), ordered.gather(0, above), share)


def _check(values: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> None:
    if not truth:
        raise ValueError("there are no true values to be covered")
    if missing := [name for name in truth if name not in values]:
        raise ValueError(f"there are no draws of {', '.join(missing)}; there are draws of {', '.join(values) or 'nothing'}")
    for name, true in truth.items():
        if len(true) == 0 or values[name].shape[-1] != len(true):
            raise ValueError(f"{name!r} has true values of {len(true)} images and draws of {values[name].shape[-1]}")
        if not torch.isfinite(true).all() or not torch.isfinite(values[name]).all():
            raise ValueError(f"true values and draws of {name!r} must be finite")
