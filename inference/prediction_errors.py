r"""Prediction errors: how each site of a model departs from what the level above predicted of it.

The precision-weighted error of a site is the slope of its log density in its prediction,
:math:`\varepsilon = \partial \log p(z \mid \hat z) / \partial \hat z`, whatever its law: :math:`(z - \hat z) / \sigma^2` for a Normal one,
:math:`\Sigma^{-1} (z - \hat z)` with correlated noise, the sign of z − ẑ over its scale (Laplace), :math:`x - \mathrm{sigmoid}(\hat x)` for
Bernoulli logits, :math:`z - e^{\hat z}` for Poisson log-rates, and an error that falls again when it is large for Student's t. Marino 2022
divides by σ where the gradient of his Normal density has σ².
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from zoo.density import count
from zoo.latents.base import Family

__all__ = ["PredictedSite", "predicted_sites", "prediction_errors", "residuals"]


@dataclass(frozen=True)
class PredictedSite:
    """A site beside what is predicted of it.

    Attributes:
        value: ``(…, N, *event)``.
        prediction: First of the law's parameters (loc, log-rate, logits), ``(…, N, K)``; of ``"x"`` what the model decodes,
            ``(…, N, *event_shape)``.
        error: The precision-weighted error, of the prediction's shape.
        located: Whether the prediction is a location, of which the value's distance can be told.
    """

    value: Tensor
    prediction: Tensor
    error: Tensor
    located: bool

    @property
    def residual(self) -> Tensor:
        """value − prediction, not weighted."""
        return self.value - self.prediction


def prediction_errors(model: nn.Module, latents: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """The precision-weighted error of every site.

    Arguments:
        model: A model of the zoo (``descend``, ``decode``, ``observation``).
        latents: A value of every latent, ``{site: (…, N, *event)}``.
        x: Images ``(N, *event_shape)``.

    Returns:
        ``{site: (…, N, K)}`` and ``"x": (…, N, *event_shape)``, without a graph. A Laplace unit at its mode, where the density has no
        slope, has that from above. One evaluation of the density and its gradient.

    Raises:
        TypeError: if the model is no model of the zoo.
        ValueError: if latents are missing or not the model's, or images have another shape.
    """
    return {name: site.error for name, site in predicted_sites(model, latents, x).items()}


def residuals(model: nn.Module, latents: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """The errors z − prediction as they are, not weighted, of every site whose prediction is a location (no counts, no one-hots).

    Arguments and errors are those of :func:`prediction_errors`.
    """
    return {name: site.residual for name, site in predicted_sites(model, latents, x).items() if site.located}


def predicted_sites(model: nn.Module, latents: dict[str, Tensor], x: Tensor) -> dict[str, PredictedSite]:
    """Every site with its prediction and error, in the model's order, ``"x"`` last. Arguments and errors: :func:`prediction_errors`."""
    if not all(hasattr(model, name) for name in ("latents", "descend", "decode", "observation")):
        raise TypeError(f"prediction errors are of models of the zoo, which have a level's prior in hand; got {type(model).__name__}")
    if set(latents) != set(model.latents):
        given = ", ".join(latents) or "none"
        raise ValueError(f"give values of the latents {', '.join(model.latents)} and of no others; given were: {given}")
    if tuple(x.shape[-len(model.event_shape):]) != tuple(model.event_shape):
        raise ValueError(f"images of shape {tuple(x.shape)} do not end in the model's event shape {tuple(model.event_shape)}")
    found: dict[str, PredictedSite] = {}
    terms = []

    def see(name: str, value: Tensor, prediction: Tensor, law: Callable[[Tensor], Distribution], located: bool) -> None:
        with torch.enable_grad():
            prediction = prediction.detach().requires_grad_(True)
            log_prob = law(prediction).log_prob(value.detach())
            error, = torch.autograd.grad(log_prob.sum(), prediction)
        terms.append(log_prob.detach())
        found[name] = PredictedSite(value.detach(), prediction.detach(), error, located)

    def draw(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
        value, events = latents[name], len(family.distribution(prior).event_shape)
        batch = torch.broadcast_shapes(value.shape[:value.dim() - events], prior.shape[:-2])
        prior = prior.expand(*batch, *prior.shape[-2:])

        def law(prediction: Tensor) -> Distribution:
            return family.distribution(torch.cat([prediction.unsqueeze(-2), prior[..., 1:, :]], -2))

        see(name, value, prior[..., 0, :], law, family.parameters[0] == "loc")
        return value

    with pyro.validation_enabled(False), torch.no_grad():
        model.descend(draw, x)
        decoded = model.decode(latents)
        decoded = decoded.expand(torch.broadcast_shapes(decoded.shape, x.shape))
        see("x", x, decoded, model.observation, not model.observation(decoded).support.is_discrete and not hasattr(model, "normalize"))
    count(sum(terms), gradient=True)
    return found
