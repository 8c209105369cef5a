r"""What all models of images share: latents drawn top-down inside the plate ``"data"``, decoded, and seen through a likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from zoo.distributions.endpoint import EndpointError
from zoo.latents.base import Family
from zoo.models.normal_image import NormalImage

__all__ = ["LIKELIHOODS", "UNIT_SCALE", "Draw", "ImageModel"]

UNIT_SCALE = math.sqrt(0.5)  # −log N(x; y, ½) = ‖x − y‖² + (D/2) log π: the literature's "sum of squares" likelihood

LIKELIHOODS = ("normal", "bernoulli", "categorical", "endpoint")

Draw = Callable[..., Tensor]  # draw(site, family, prior parameters (…, P, K), features from above or None) -> the latent (…, *event)


class ImageModel(nn.Module):
    """A Pyro program with the observation site ``"x"``; subclasses give :attr:`latents`, :meth:`descend` and :meth:`decode`.

    Arguments:
        event_shape: Shape of one image.
        scale: Of a pixel, at the start if it is learned: the standard deviation σ of ``"normal"``, where the default √½ makes
            −log p(x | z) the sum of squared errors plus a constant (:data:`UNIT_SCALE`), or the b of ``"endpoint"``.
        learn_scale: False, or what shares a learned scale: ``"image"`` (one) or ``"pixel"`` (one for each pixel; ``"normal"`` only).
        likelihood: ``"normal"``; ``"bernoulli"`` for images of zeros and ones, ``"categorical"`` for one-hot labels of event shape
            ``(classes,)``: decoded are logits then, and there is no scale; ``"endpoint"`` for optic flow ``(2, H, W)``: −log p(x | z) is
            the summed endpoint error over b, plus a constant
            (:class:`~zoo.distributions.endpoint.EndpointError`).
    """

    linear = False

    def __init__(self, event_shape: tuple[int, ...], *, scale: float = UNIT_SCALE, learn_scale: bool | str = False,
                 likelihood: str = "normal") -> None:
        super().__init__()
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood must be {', '.join(map(repr, LIKELIHOODS))}, not {likelihood!r}")
        if not scale > 0:
            raise ValueError(f"scale must be positive, not {scale}")
        if learn_scale not in (False, True, "image", "pixel"):
            raise ValueError(f"learn_scale must be False, 'image' or 'pixel', not {learn_scale!r}")
        self.event_shape = tuple(event_shape)
        if likelihood == "endpoint" and (len(self.event_shape) != 3 or self.event_shape[0] != 2 or learn_scale == "pixel"):
            raise ValueError("the likelihood 'endpoint' is of optic flow (2, height, width) with one scale for all pixels; "
                             f"got images {self.event_shape} and learn_scale={learn_scale!r}")
        if likelihood == "categorical" and len(self.event_shape) != 1:
            raise ValueError(f"the likelihood 'categorical' is of one-hot labels (classes,), not of images {self.event_shape}")
        self.likelihood = likelihood
        log_scale = torch.full(self.event_shape if learn_scale == "pixel" else (), math.log(scale))
        self._store("log_scale", log_scale, bool(learn_scale))

    def _store(self, name: str, value: Tensor, learned: bool) -> None:
        if learned:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    @property
    def latents(self) -> dict[str, tuple[Family, int]]:
        """``{site: (family, number of units)}`` in top-down order."""
        raise NotImplementedError

    def descend(self, draw: Draw, x: Tensor | None = None) -> dict[str, Tensor]:
        """Walks the latents top-down, asking ``draw(site, family, prior, above)`` for each; returns them by site.

        ``prior`` has the prior's parameters ``(…, P, K)`` given the latents above, and ``above`` the features that they made, or None.
        """
        raise NotImplementedError

    def decode(self, latents: dict[str, Tensor]) -> Tensor:
        """What :meth:`observation` takes, for latents ``(…, *event)``: the image's mean, or its logits, ``(…, *event_shape)``."""
        raise NotImplementedError

    @property
    def scale(self) -> Tensor:
        """σ or b of a pixel, shape ``()`` or ``event_shape``."""
        return self.log_scale.exp()

    def observation(self, decoded: Tensor) -> Distribution:
        """The likelihood for images of this mean, or of these logits."""
        if self.likelihood == "bernoulli":
            return dist.Bernoulli(logits=decoded).to_event(len(self.event_shape))
        if self.likelihood == "categorical":
            return dist.OneHotCategorical(logits=decoded)
        if self.likelihood == "endpoint":
            return EndpointError(decoded, self.scale, validate_args=False)
        return NormalImage(decoded, self.scale, len(self.event_shape))

    def sample_latents(self, given: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Draws every latent from its prior, as the program does; one sample site for each that is not given."""
        return self.descend(partial(_sample_prior, given or {}))

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """The program: conditions on images ``x`` of shape ``(N, *event_shape)``, or draws ``size`` images from the prior."""
        if x is None and size is None:
            raise ValueError("give images x to condition on, or size=n to draw n images from the prior")
        if x is not None and tuple(x.shape[-len(self.event_shape):]) != self.event_shape:
            raise ValueError(f"images of shape {tuple(x.shape)} do not end in the model's event shape {self.event_shape}")
        size = size if x is None else x.shape[-len(self.event_shape) - 1]
        with pyro.plate("data", size):
            latents = self.sample_latents()
            return pyro.sample("x", self.observation(self.decode(latents)), obs=x)


def _sample_prior(given: dict[str, Tensor], name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
    return given[name] if name in given else pyro.sample(name, family.distribution(prior))
