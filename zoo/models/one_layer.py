r"""One layer of latents under a decoder: :math:`z \sim p(z)`, :math:`x \sim N(\mathrm{decoder}(\mathrm{code}(z)), \sigma^2)`.

With a linear decoder this is the generative model of sparse coding (Olshausen & Field 1996), of probabilistic PCA, and of the
Poisson VAE (Vafaii et al. 2024), told apart by the latent family alone.
"""

from __future__ import annotations

from torch import Tensor, nn

from zoo.latents.base import Family
from zoo.models.image_model import UNIT_SCALE, Draw, ImageModel
from zoo.networks.lin import LinearDecoder

__all__ = ["OneLayer"]


class OneLayer(ImageModel):
    """A Pyro program with latent site ``"z"`` and observation site ``"x"``, inside the plate ``"data"``.

    Arguments:
        family: The latent family.
        units: Number of latents ``K``.
        decoder: Module from codes ``(…, K)`` to means ``(…, *event_shape)``.
        event_shape: Shape of one image.
        prior: Parameters of the prior ``(P, K)``.
        learn_prior: Whether they are learned (a parameter) or fixed (a buffer).
        scale, learn_scale, likelihood: As in :class:`~zoo.models.image_model.ImageModel`.
    """

    def __init__(self, family: Family, units: int, decoder: nn.Module, event_shape: tuple[int, ...], *, prior: Tensor,
                 learn_prior: bool, scale: float = UNIT_SCALE, learn_scale: bool | str = False,
                 likelihood: str = "normal") -> None:
        super().__init__(event_shape, scale=scale, learn_scale=learn_scale, likelihood=likelihood)
        self.family = family
        self.units = units
        self.decoder = decoder
        self._store("prior", prior, learn_prior)

    @property
    def latents(self) -> dict[str, tuple[Family, int]]:
        """``{"z": (family, K)}``."""
        return {"z": (self.family, self.units)}

    @property
    def linear(self) -> bool:
        """Whether the image's mean is linear in the code, under Normal noise."""
        return isinstance(self.decoder, LinearDecoder) and self.likelihood == "normal"

    def descend(self, draw: Draw, x: Tensor | None = None) -> dict[str, Tensor]:
        """Asks ``draw`` for the one latent."""
        return {"z": draw("z", self.family, self.prior)}

    def decode(self, latents: dict[str, Tensor]) -> Tensor:
        """The decoder at the code of ``z``."""
        return self.decoder(self.family.code(latents["z"]))

    def mean(self, code: Tensor) -> Tensor:
        """Mean of the image, ``(…, *event_shape)``, for codes ``(…, K)``."""
        return self.decoder(code).sigmoid() if self.likelihood == "bernoulli" else self.decoder(code)

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
