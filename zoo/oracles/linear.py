r"""Normal latents under a linear decoder: probabilistic PCA with a full basis (Tipping & Bishop 1999), all of it in closed form.

With :math:`x \mid z \sim N(\Phi z + b, \Sigma)` and a prior :math:`N(m, S)`, both covariances diagonal, the posterior's precision
is :math:`\Lambda = S^{-1} + \Phi^\top \Sigma^{-1} \Phi` for every image, and its mean
:math:`m + \Lambda^{-1} \Phi^\top \Sigma^{-1} r` with :math:`r = x - \Phi m - b`. By the matrix inversion lemma only Λ, ``(K, K)``,
is ever factored.
"""

from __future__ import annotations

import math
from math import prod

import torch
from torch import Tensor

from zoo.latents.gaussian import Gaussian
from zoo.models.image_model import UNIT_SCALE
from zoo.models.one_layer import OneLayer
from zoo.networks.lin import LinearDecoder
from zoo.oracles.likelihood import flat_images, likelihood_constant, noise_variance

__all__ = ["LinearGaussian", "linear_gaussian"]


class LinearGaussian(OneLayer):
    """A one-layer model with Normal latents and a linear decoder, and its exact answers, in float64."""

    @classmethod
    def of(cls, model: OneLayer) -> LinearGaussian:
        """The oracle of a model of ``zoo.build("gaussian", …)``; its parameters share memory with the model's.

        Raises:
            ValueError: if the decoder is not linear, or the latents are not Normal as the decoder sees them.
        """
        if not (model.linear and isinstance(model.family, Gaussian) and model.family.activation == "identity"):
            raise ValueError("exact answers need Gaussian latents without activation and a linear decoder (decoder='lin')")
        decoder = LinearDecoder(model.units, model.event_shape, bias=model.decoder.bias is not None)
        oracle = cls(model.family, model.units, decoder, model.event_shape, prior=model.prior.detach(), learn_prior=False,
                     learn_scale="pixel" if model.log_scale.dim() else False)
        oracle.load_state_dict(model.state_dict(), assign=True)
        return oracle.requires_grad_(False)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The exact posterior of images ``(N, *event_shape)``: means ``(N, K)`` and the covariance ``(K, K)`` that all share."""
        precision, pull, _ = self._information(x)
        factor = torch.linalg.cholesky(precision)
        mean = self.prior[0].double() + torch.cholesky_solve(pull.T, factor).T
        return mean, torch.cholesky_inverse(factor)

    def log_evidence(self, x: Tensor, constant: bool = True) -> Tensor:
        """log p(x) in nats, ``(N,)``; without :func:`~zoo.oracles.likelihood_constant` if ``constant`` is False."""
        precision, pull, residual = self._information(x)
        factor = torch.linalg.cholesky(precision)
        whitened = torch.linalg.solve_triangular(factor, pull.T, upper=False)
        squares = (residual.square() / noise_variance(self)).sum(1) - whitened.square().sum(0)
        log_det = 2 * factor.diagonal().log().sum() + 2 * self.prior[1].double().sum()
        value = -0.5 * (squares + log_det)
        return value - likelihood_constant(self) if constant else value

    def mean_field(self, x: Tensor) -> dict[str, Tensor]:
        """Parameters ``{"z": (N, 2, K)}`` of the best posterior with independent units: exact means, variances 1/Λ_kk."""
        mean, _ = self.posterior(x)
        log_scale = -0.5 * self._information(x)[0].diagonal().log()
        return {"z": torch.stack([mean, log_scale.expand_as(mean)], dim=-2)}

    def mean_field_elbo(self, x: Tensor, constant: bool = True) -> Tensor:
        """The highest ELBO of any posterior with independent units, nats, ``(N,)``: log p(x) − ½ (Σ log Λ_kk − log det Λ)."""
        precision = self._information(x)[0]
        gap = 0.5 * (precision.diagonal().log().sum() - torch.linalg.slogdet(precision)[1])
        return self.log_evidence(x, constant) - gap

    def _information(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Precision Λ ``(K, K)``, what the images add to the prior's mean before Λ⁻¹ ``(N, K)``, residuals ``(N, D)``."""
        loc, log_scale = self.prior.double().unbind(-2)
        weight = self.decoder.weight.double()
        weighted = weight / noise_variance(self).unsqueeze(1)
        residual = flat_images(self, x) - weight @ loc
        if self.decoder.bias is not None:
            residual = residual - self.decoder.bias.double()
        return weight.T @ weighted + torch.diag((-2 * log_scale).exp()), residual @ weighted, residual


def linear_gaussian(latents: int = 8, event_shape: tuple[int, ...] = (1, 4, 4), scale: float = UNIT_SCALE,
                    seed: int = 0) -> LinearGaussian:
    """An oracle with Normal(0, 1) latents and a random linear decoder whose columns have length about 1.

    Arguments:
        latents: Number of latents ``K``.
        event_shape: Shape of one image.
        scale: Standard deviation σ of a pixel.
        seed: Seed of the decoder.

    Raises:
        ValueError: if ``latents`` or ``scale`` is not positive.
    """
    if latents < 1:
        raise ValueError(f"latents must be at least 1, not {latents}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = LinearDecoder(latents, tuple(event_shape), init_scale=1 / math.sqrt(prod(event_shape)))
    family = Gaussian()
    return LinearGaussian(family, latents, decoder, tuple(event_shape), prior=family.initial_prior(latents), learn_prior=False,
                          scale=scale)
