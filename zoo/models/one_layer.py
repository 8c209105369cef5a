r"""One layer of latents under a decoder: :math:`z \sim p(z)`, :math:`x \sim N(\mathrm{decoder}(\mathrm{code}(z)), \sigma^2)`.

With a linear decoder this is the generative model of sparse coding (Olshausen & Field 1996), of probabilistic PCA, and of the
Poisson VAE (Vafaii et al. 2024), told apart by the latent family alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from zoo.latents.base import Family
from zoo.models.normal_image import NormalImage
from zoo.networks.lin import LinearDecoder

__all__ = ["OneLayer", "UNIT_SCALE"]

UNIT_SCALE = math.sqrt(0.5)  # −log N(x; y, ½) = ‖x − y‖² + (D/2) log π: the literature's "sum of squares" likelihood

LIKELIHOODS = ("normal", "bernoulli")

Draw = Callable[[str, Family, Tensor], Tensor]


class OneLayer(nn.Module):
    """A Pyro program with latent site ``"z"`` and observation site ``"x"``, inside the plate ``"data"``.

    Arguments:
        family: The latent family.
        units: Number of latents ``K``.
        decoder: Module from codes ``(…, K)`` to means ``(…, *event_shape)``.
        event_shape: Shape of one image.
        prior: Parameters of the prior ``(P, K)``.
        learn_prior: Whether they are learned (a parameter) or fixed (a buffer).
        scale: Standard deviation σ of the pixels, at the start if it is learned. The default √½ makes
            −log p(x | z) the sum of squared errors plus a constant (:data:`UNIT_SCALE`).
        learn_scale: False, or what shares a learned σ: ``"image"`` (one σ) or ``"pixel"`` (one for each pixel).
        likelihood: ``"normal"``, or ``"bernoulli"`` for images of zeros and ones: the decoder then gives logits, and there is no σ.
    """

    def __init__(self, family: Family, units: int, decoder: nn.Module, event_shape: tuple[int, ...], *, prior: Tensor,
                 learn_prior: bool, scale: float = UNIT_SCALE, learn_scale: bool | str = False,
                 likelihood: str = "normal") -> None:
        super().__init__()
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood must be {' or '.join(map(repr, LIKELIHOODS))}, not {likelihood!r}")
        if not scale > 0:
            raise ValueError(f"scale must be positive, not {scale}")
        if learn_scale not in (False, True, "image", "pixel"):
            raise ValueError(f"learn_scale must be False, 'image' or 'pixel', not {learn_scale!r}")
        self.family = family
        self.units = units
        self.decoder = decoder
        self.event_shape = tuple(event_shape)
        self.likelihood = likelihood
        self._store("prior", prior, learn_prior)
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
        return {"z": (self.family, self.units)}

    @property
    def scale(self) -> Tensor:
        """Standard deviation of a pixel, shape ``()`` or ``event_shape``."""
        return self.log_scale.exp()

    @property
    def linear(self) -> bool:
        """Whether the image's mean is linear in the code."""
        return isinstance(self.decoder, LinearDecoder) and self.likelihood == "normal"

    def descend(self, draw: Draw, x: Tensor | None = None) -> dict[str, Tensor]:
        """Walks the latents top-down, asking ``draw(site, family, prior parameters)`` for each; returns them by site."""
        return {"z": draw("z", self.family, self.prior)}

    def decode(self, latents: dict[str, Tensor]) -> Tensor:
        """What :meth:`observation` takes, for latents ``(…, *event)``: the image's mean, or its logits, ``(…, *event_shape)``."""
        return self.decoder(self.family.code(latents["z"]))

    def mean(self, code: Tensor) -> Tensor:
        """Mean of the image, ``(…, *event_shape)``, for codes ``(…, K)``."""
        return self.decoder(code) if self.likelihood == "normal" else self.decoder(code).sigmoid()

    def observation(self, decoded: Tensor) -> Distribution:
        """The likelihood for images of this mean, or of these logits."""
        if self.likelihood == "bernoulli":
            return dist.Bernoulli(logits=decoded).to_event(len(self.event_shape))
        return NormalImage(decoded, self.scale, len(self.event_shape))

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """The program: conditions on images ``x`` of shape ``(N, *event_shape)``, or draws ``size`` images from the prior."""
        if x is None and size is None:
            raise ValueError("give images x to condition on, or size=n to draw n images from the prior")
        if x is not None and tuple(x.shape[-len(self.event_shape):]) != self.event_shape:
            raise ValueError(f"images of shape {tuple(x.shape)} do not end in the model's event shape {self.event_shape}")
        size = size if x is None else x.shape[-len(self.event_shape) - 1]
        with pyro.plate("data", size):
            latents = self.descend(_sample_prior)
            return pyro.sample("x", self.observation(self.decode(latents)), obs=x)

    def expected_log_prob(self, x: Tensor, params: dict[str, Tensor]) -> Tensor:
        r"""Closed form of :math:`E_q[\log p(x \mid z)]` for a linear decoder, ``(N,)``.

        :math:`\log N(x; \Phi E[z], \sigma^2) - \tfrac12 \mathrm{tr}(\Phi\,\mathrm{Cov}[z]\,\Phi^\top / \sigma^2)`, for any family,
        the categorical with its covariances and the activated Gaussian with its rectified or log-normal moments.

        Arguments:
            params: The posterior's parameters by site, ``{"z": (N, P, K)}``.

        Raises:
            ValueError: if the decoder is not linear.
        """
        if not self.linear:
            raise ValueError("the closed-form reconstruction needs a linear decoder (decoder='lin'); use objective 'elbo'")
        moments = self.family.moments(params["z"])
        log_likelihood = self.observation(self.decoder(moments[0])).log_prob(x)
        if self.scale.dim() == 0:
            return log_likelihood - 0.5 * self.family.decoded_variance(params["z"], self.decoder.weight, moments) / self.scale.square()
        weight = self.decoder.weight / self.scale.reshape(-1, 1)
        return log_likelihood - 0.5 * self.family.decoded_variance(params["z"], weight, moments)


def _sample_prior(name: str, family: Family, prior: Tensor) -> Tensor:
    return pyro.sample(name, family.distribution(prior))
