r"""The learning rules of predictive coding: every synapse changes by what stands at its two ends.

With weighted errors :math:`\varepsilon_l` (:mod:`inference.prediction_errors`) and predictions :math:`h(W g(z_{l+1}) + b)` the slopes of
log p(x, z) are products of an error below and an activity above, and those of log-scales of two errors of one unit (Rao & Ballard 1999;
Friston 2005; Marino 2022):

.. math:: \Delta W = (\varepsilon_l \circ h')\, g(z_{l+1})^\top, \quad \Delta b = \varepsilon_l \circ h', \quad
          \Delta \log \sigma_l = (z_l - \hat z_l)\, \varepsilon_l - 1 .

The last holds for every law that has a location and a scale; for a Normal one it is :math:`e^2 / \sigma^2 - 1`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from inference.prediction_errors import PredictedSite, predicted_sites
from zoo.models.clamped import Clamped
from zoo.models.predictive_coding import PredictiveCoding
from zoo.networks.prediction import ACTIVATIONS, Prediction

__all__ = ["local_gradients", "synaptic_gradients"]


def local_gradients(model: PredictiveCoding | Clamped, latents: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """Gradients of the mean of log p(x, z) over images, by local rules alone.

    Arguments:
        model: A chain of levels, or one whose top is clamped.
        latents: Values of its latents ``{site: (…, N, *event)}``, at any of which the rules hold; it takes settled ones to learn by them.
        x: Images ``(N, *event_shape)``.

    Returns:
        ``{name of a parameter: its gradient}``, nats, of all weights and biases, learned log-scales and a learned mean of the top's prior,
        averaged over images and what is to their left. Weights of correlations between units are left out: their gradient takes the
        inverse of a matrix, which is not local.

    Raises:
        TypeError: for another model.
        ValueError: for predictions by more than one layer of synapses or by columns of a given length, or missing latents.
    """
    chain = _chain(model)
    sites = predicted_sites(model, latents, x)
    values = latents if chain is model else latents | {model.site: model.top}
    found = synaptic_gradients(chain, values, {name: site.error for name, site in sites.items()})
    for number, level in enumerate(chain.levels, 1):
        site = sites.get(f"z{number}")
        if site is not None and isinstance(getattr(level, "log_scale", None), nn.Parameter):
            found[f"levels.{number - 1}.log_scale"] = _scale_gradient(site, 1, level.scale, level.floor, level.log_scale)
    if isinstance(chain.log_scale, nn.Parameter) and sites["x"].located:
        found["log_scale"] = _scale_gradient(sites["x"], len(chain.event_shape), chain.scale, chain.floor, chain.log_scale)
    top = sites.get(f"z{len(chain.levels)}")
    if top is not None and isinstance(chain.top, nn.Parameter):
        error = _through(lambda value: chain.levels[-1].prior(value)[..., 0, :], chain.top.expand_as(top.error), top.error)
        found["top"] = _mean(error, 1)
    prefix = "" if chain is model else "model."
    return {prefix + name: gradient.detach() for name, gradient in found.items()}


@torch.no_grad()
def synaptic_gradients(chain: PredictiveCoding, values: dict[str, Tensor], errors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Products of errors and activities, averaged over images: what these errors would have each weight and bias change by.

    Arguments:
        chain: A chain of levels with predictions of one layer each.
        values: Values of all its latents ``{site: (…, N, *event)}``.
        errors: Weighted errors of ``"x"``, ``(…, N, *event_shape)``, and of all levels but the top, ``(…, N, K)``.

    Raises:
        ValueError: for predictions by more than one layer of synapses, or by columns of a given length.
    """
    found = {}
    for number, mapping in enumerate(chain.maps):
        if not isinstance(mapping, Prediction):
            raise ValueError(f"the prediction of level {number} has layers of its own ({type(mapping).__name__}), inside which learning is "
                             "backpropagation; local rules are of one layer of synapses: build the chain with hidden=None")
        if mapping.norm is not None:
            raise ValueError(f"the synapses of a unit of level {number + 1} share a length, so that each one's change takes all of "
                             "them; local rules are of free weights: build the chain with norm=None")
        error = errors["x"].flatten(-len(chain.event_shape)) if number == 0 else errors[f"z{number}"]
        activity = mapping.presynaptic(chain.levels[number].family.code(values[f"z{number + 1}"]))
        activity = activity.expand(*error.shape[:-1], activity.shape[-1])

        def unit(drive: Tensor, number: int = number, mapping: Prediction = mapping) -> Tensor:
            predicted = ACTIVATIONS[mapping.after](drive)
            return predicted if number == 0 else chain.levels[number - 1].prior(predicted)[..., 0, :]

        error = _through(unit, mapping.drive(activity), error)
        below, above = (part.reshape(-1, mapping.module_count, part.shape[-1] // mapping.module_count) for part in (error, activity))
        found[f"maps.{number}.weight"] = (torch.einsum("nmo,nmi->moi", below, above) / len(below)).reshape(mapping.weight.shape)
        if mapping.bias is not None:
            found[f"maps.{number}.bias"] = _mean(error, 1)
    return found


def _chain(model: nn.Module) -> PredictiveCoding:
    chain = model.model if isinstance(model, Clamped) else model
    if not isinstance(chain, PredictiveCoding):
        raise TypeError(f"local learning rules are of chains of levels ('predictive_coding', 'rao_ballard'), not of {type(chain).__name__}")
    return chain


def _through(unit: Callable[[Tensor], Tensor], at: Tensor, error: Tensor) -> Tensor:
    """The error times the slope of each unit's own nonlinearity."""
    with torch.enable_grad():
        at = at.detach().requires_grad_(True)
        return torch.autograd.grad(unit(at), at, error)[0]


def _scale_gradient(site: PredictedSite, dims: int, scale: Tensor, floor: float, parameter: Tensor) -> Tensor:
    """Of a log-scale ℓ with scale = floor + exp(ℓ), which units may share."""
    change = (site.residual * site.error - 1.0) * (scale - floor) / scale
    return _mean(change, dims).sum_to_size(parameter.shape)


def _mean(values: Tensor, dims: int) -> Tensor:
    """Over all but the last ``dims`` dimensions."""
    return values.reshape(-1, *values.shape[-dims:]).mean(0)
