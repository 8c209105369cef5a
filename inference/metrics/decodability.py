r"""Linear decodability: how much of each ground-truth factor a linear readout of a representation explains.

The measure of untangling of Vafaii, Yates & Butts 2023: ordinary least squares with an intercept, fitted on one held-out set, :math:`R^2`
scored on another; the headline is the plain mean over the factors, negative values included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from inference.posterior import Posterior
from zoo.latents.base import Family

__all__ = ["check_representations", "drawn_code", "linear_decodability", "mean_code", "mean_codes", "principal_components", "scales"]

ROUNDING = 1e-6  # a few times the relative precision of single floats


def linear_decodability(z_fit: Tensor, factors_fit: Mapping[str, Tensor], z_score: Tensor, factors_score: Mapping[str, Tensor],
                        ) -> dict[str, float]:
    """R² of each factor, ``{name: number}``: 1 − squared error / squared deviation from the mean of the scored set.

    Arguments:
        z_fit, z_score: Representations ``(n, K)`` and ``(m, K)``; computed with in double precision. Units that are constant or
            linear in others do no harm: units are brought to one scale, the solution of least norm is taken, and directions with less
            than :data:`ROUNDING` of the greatest spread, which single precision cannot hold, are left out.
        factors_fit, factors_score: The factors ``{name: (n,)}`` and ``{name: (m,)}``; those of ``factors_fit`` are read out.

    Raises:
        ValueError: for representations that do not fit the factors or each other or are not finite, fewer fitted images than K + 2, or a
            factor that does not vary.
    """
    _check(z_fit, factors_fit, z_score, factors_score)
    z, scored = z_fit.flatten(1).double().cpu(), z_score.flatten(1).double().cpu()
    g = torch.stack([factors_fit[name] for name in factors_fit], 1).double().cpu()
    truth = torch.stack([factors_score[name] for name in factors_fit], 1).double().cpu()
    center, spread = z.mean(0), z.std(0)
    spread = torch.where(spread > 0.0, spread, 1.0)
    z, scored = (z - center) / spread, (scored - center) / spread
    weights = torch.linalg.lstsq(z.T @ z, z.T @ (g - g.mean(0)), rcond=ROUNDING**2, driver="gelsd").solution
    error = truth - g.mean(0) - scored @ weights
    r2 = 1.0 - error.square().sum(0) / (truth - truth.mean(0)).square().sum(0)
    return dict(zip(factors_fit, r2.tolist(), strict=True))


def mean_code(model: Callable, posterior: Posterior) -> Tensor:
    """Posterior mean of what a model's decoder receives, ``(N, K)``: in closed form where the posterior has parameters, else over draws.

    Of a hierarchy the codes of all groups side by side, top-down (:func:`mean_codes`). For programs without a code, the mean of all
    latents side by side.
    """
    return torch.cat(list(mean_codes(model, posterior).values()), 1)


def mean_codes(model: Callable, posterior: Posterior, by: str = "site") -> dict[str, Tensor]:
    """The parts of :func:`mean_code`, ``{part: (N, K)}``, top-down.

    Parameters of a hierarchy's groups are given the means above (temperature zero), as the published readouts of hierarchies are.

    Arguments:
        by: ``"site"``: one part for each latent. ``"scale"``, for hierarchies: one for all groups of a scale (:func:`scales`).

    Raises:
        ValueError: for another way of parting, or scales of a model that has none.
    """
    if by not in ("site", "scale"):
        raise ValueError(f"codes are parted by 'site' or by 'scale', not by {by!r}")
    codes = {name: _mean_code(model, posterior, name) for name in posterior.samples}
    if by == "site":
        return codes
    if not hasattr(model, "scales"):
        raise ValueError(f"{type(model).__name__} is no hierarchy, so it has no scales; part its code by 'site'")
    return {name: torch.cat([codes[site] for site in sites], 1) for name, sites in scales(model).items()}


def drawn_code(model: Callable, posterior: Posterior) -> Tensor:
    """What a model's decoder receives in one draw of the posterior, ``(N, K)``, sites side by side, top-down.

    What is read out of a draw, a code carries. Means tell more: where a posterior is as wide as the prior, its mean is still some function
    of the image, and a linear readout of many such means is one of random features, with or without training.

    Raises:
        ValueError: for weighted draws, none of which stands for the posterior.
    """
    if posterior.log_weights is not None:
        raise ValueError(f"the draws of the method {posterior.method!r} have weights, so that one of them is no draw of the posterior")
    first = {name: value[0, 0] for name, value in posterior.samples.items()}
    families = {name: _family(model, name) for name in first}
    return torch.cat([(value if families[name] is None else families[name].code(value)).reshape(len(posterior), -1)
                      for name, value in first.items()], 1)


def scales(model: Callable) -> dict[str, list[str]]:
    """The sites of a hierarchy at each scale, ``{name: sites}``, top-down: named by the size of the maps, ``"2 × 2"``, or where that is the
    same everywhere by their number from the top, ``"scale 1"``."""
    sizes = [f"{height} × {width}" for height, width in model.plan.sizes]
    names = sizes if len(set(sizes)) == len(sizes) else [f"scale {number + 1}" for number in range(len(sizes))]
    return dict(zip(names, model.scales, strict=True))


def _family(model: Callable, name: str) -> Family | None:
    return model.latents[name][0] if hasattr(model, "observation") else None


def _mean_code(model: Callable, posterior: Posterior, name: str) -> Tensor:
    family = _family(model, name)
    if family is not None and name in (posterior.params or {}):
        return family.moments(posterior.params[name])[0]
    if posterior.summary is not None and getattr(family, "activation", "identity") == "identity":
        mean = posterior.summary[name]["mean"]  # of all draws, kept or not
    else:
        drawn = posterior.samples[name]
        mean = posterior.average(drawn if family is None else family.code(drawn))
    return mean.reshape(len(posterior), -1)


def principal_components(x_fit: Tensor, *others: Tensor, components: int) -> tuple[Tensor, ...]:
    """Projections ``(n, components)`` of images on the principal components of ``x_fit``, itself first; the linear reference.

    Components with less than :data:`ROUNDING` of the greatest standard deviation are rounding errors: 0 is returned for them.

    Arguments:
        components: At most the number of pixels, and of images in ``x_fit``.
    """
    flat = [x.flatten(1).double().cpu() for x in (x_fit, *others)]
    if len({x.shape[1] for x in flat}) > 1:
        raise ValueError(f"all images must have as many pixels; got shapes {', '.join(str(tuple(x.shape)) for x in (x_fit, *others))}")
    if len(x_fit) < 2:
        raise ValueError("principal components need at least 2 images")
    if not 1 <= components <= min(flat[0].shape):
        raise ValueError(f"components must be from 1 to {min(flat[0].shape)} for images {tuple(flat[0].shape)}, not {components}")
    variances, axes = torch.linalg.eigh(torch.cov(flat[0].T))
    axes = (axes * (variances > ROUNDING**2 * variances[-1]))[:, -components:].flip(1)
    return tuple((x - flat[0].mean(0)) @ axes for x in flat)


def check_representations(z: Tensor, factors: Mapping[str, Tensor]) -> None:
    """Raises ``ValueError`` unless there are factors ``(n,)`` for representations ``(n, K)``, n at least 2, all of them finite."""
    if z.dim() < 2 or len(z) < 2:
        raise ValueError(f"representations must be (n, K) with n at least 2, not {tuple(z.shape)}")
    if not factors or any(value.shape != (len(z),) for value in factors.values()):
        raise ValueError(f"there must be factors, each with one number for each of the {len(z)} representations")
    if not torch.isfinite(z).all() or not all(torch.isfinite(value).all() for value in factors.values()):
        raise ValueError("representations and factors must be finite")


def _check(z_fit: Tensor, factors_fit: Mapping[str, Tensor], z_score: Tensor, factors_score: Mapping[str, Tensor]) -> None:
    check_representations(z_fit, factors_fit)
    check_representations(z_score, factors_score)
    if missing := set(factors_fit) - set(factors_score):
        raise ValueError(f"the factors {', '.join(sorted(missing))} are missing in the set that is scored")
    units = z_fit.flatten(1).shape[1]
    if z_score.flatten(1).shape[1] != units or len(z_fit) < units + 2:
        raise ValueError(f"a readout of {units} units needs at least {units + 2} images to be fitted on and as many units in both sets; "
                         f"got {tuple(z_fit.shape)} and {tuple(z_score.shape)}")
    if still := [name for name in factors_fit if not factors_score[name].double().std() > 0.0]:
        raise ValueError(f"the factors {', '.join(still)} do not vary")
