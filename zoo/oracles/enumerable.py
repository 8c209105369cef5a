r"""Discrete latents with few states: evidence and posterior by summing over all of them.

:math:`p(x) = \sum_z p(z)\,p(x \mid z)` over states :math:`z`: all counts up to a stated highest one, or a mixture's components.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from zoo.latents.base import Family
from zoo.latents.categorical import Categorical
from zoo.latents.poisson import Poisson
from zoo.models.image_model import UNIT_SCALE
from zoo.models.one_layer import OneLayer
from zoo.networks.lin import LinearDecoder
from zoo.oracles.likelihood import flat_images, likelihood_constant, noise_variance

__all__ = ["Enumerable", "Mixture", "enumerable_poisson", "fixture_image", "mixture", "poisson_fixture"]

MOST_STATES = 1_000_000


class Enumerable(OneLayer):
    """A one-layer model that sums over the states of its latent, and its exact answers, in float64.

    Arguments:
        states: All values of the latent ``(M, *event)``; those left out count as impossible. The others are of
            :class:`~zoo.models.one_layer.OneLayer`.

    Memory of an answer is N × M numbers.
    """

    def __init__(self, states: Tensor, family: Family, units: int, decoder: nn.Module, event_shape: tuple[int, ...], *,
                 prior: Tensor, learn_prior: bool, scale: float = UNIT_SCALE) -> None:
        super().__init__(family, units, decoder, event_shape, prior=prior, learn_prior=learn_prior, scale=scale)
        self.register_buffer("states", states, persistent=False)

    @property
    def missing_mass(self) -> Tensor:
        """Prior probability of the states that are left out: p(x) is short by at most this times the largest likelihood."""
        return 1.0 - self._log_prior(self.states).exp().sum()

    def log_evidence(self, x: Tensor, constant: bool = True) -> Tensor:
        """log p(x) in nats, ``(N,)``; without :func:`~zoo.oracles.likelihood_constant` if ``constant`` is False."""
        value = self._log_joint(x).logsumexp(1)
        return value - likelihood_constant(self) if constant else value

    def posterior_probabilities(self, x: Tensor) -> Tensor:
        """Posterior probability of each of :attr:`states`, ``(N, M)``."""
        return self._log_joint(x).softmax(1)

    def posterior_probability(self, x: Tensor, z: Tensor) -> Tensor:
        """Posterior probability of latents ``z`` of shape ``(N, *event)`` or ``(*event)``, ``(N,)``."""
        z = z.to(self.states).expand(len(x), *self.states.shape[1:])
        squares = (flat_images(self, x) - self._means(z)).square() / noise_variance(self)
        return (self._log_prior(z) - 0.5 * squares.sum(1) - self.log_evidence(x, constant=False)).exp()

    def posterior_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean ``(N, K)`` and covariance ``(N, K, K)`` of the code."""
        code = self.family.code(self.states).double()
        probabilities = self.posterior_probabilities(x)
        mean = probabilities @ code
        centred = code - mean.unsqueeze(1)
        return mean, (centred * probabilities.unsqueeze(-1)).mT @ centred

    def _log_joint(self, x: Tensor) -> Tensor:
        """log p(x, z) of images and states without the likelihood's constant, ``(N, M)``."""
        precision = noise_variance(self).reciprocal()
        images, means = flat_images(self, x), self._means(self.states)
        squares = (images.square() @ precision).unsqueeze(1) + means.square() @ precision - 2 * (images * precision) @ means.T
        return self._log_prior(self.states) - 0.5 * squares

    def _log_prior(self, z: Tensor) -> Tensor:
        return self.family.distribution(self.prior.double()).log_prob(z.double())

    def _means(self, z: Tensor) -> Tensor:
        return self.decode({"z": z}).double().flatten(1)


class Mixture(Enumerable):
    """A mixture of Gaussians with one covariance σ² I; the columns of the linear decoder are the components' means."""

    def responsibilities(self, x: Tensor) -> Tensor:
        """Posterior probability of each component, ``(N, K)``."""
        return self.posterior_probabilities(x)


def enumerable_poisson(weight: Tensor, rates: Tensor, event_shape: tuple[int, ...] | None = None, *, scale: float = UNIT_SCALE,
                       max_count: int = 30) -> Enumerable:
    """Poisson latents under a linear decoder, summed over all counts from 0 to ``max_count``.

    Arguments:
        weight: The decoder's matrix Φ, ``(D, K)``.
        rates: Prior rates ``(K,)``.
        event_shape: Shape of one image, ``(1, 1, D)`` if None.
        scale: Standard deviation σ of a pixel.
        max_count: Highest count of a unit; :attr:`Enumerable.missing_mass` says what that leaves out.

    Raises:
        ValueError: if shapes do not fit, rates are not positive, or there are more than a million states.
    """
    weight, rates = torch.as_tensor(weight), torch.as_tensor(rates)
    pixels, units = weight.shape
    event_shape = (1, 1, pixels) if event_shape is None else tuple(event_shape)
    if rates.shape != (units,) or prod(event_shape) != pixels or not (rates > 0).all():
        raise ValueError(f"a weight (D, K) = {(pixels, units)} needs {units} positive rates and an event shape of {pixels} pixels, "
                         f"not rates {rates.tolist()} and {event_shape}")
    if max_count < 1 or (max_count + 1) ** units > MOST_STATES:
        raise ValueError(f"{units} latents with counts from 0 to {max_count} have {(max_count + 1) ** units:.3g} states; "
                         f"1 ≤ max_count and at most {MOST_STATES} states are accepted")
    counts = torch.arange(max_count + 1, dtype=weight.dtype)
    states = torch.cartesian_prod(*[counts] * units).reshape(-1, units)
    decoder = LinearDecoder(units, event_shape)
    decoder.weight = nn.Parameter(weight.clone())
    return Enumerable(states, Poisson(), units, decoder, event_shape, prior=rates.log().unsqueeze(0), learn_prior=False,
                      scale=scale)


def poisson_fixture() -> Enumerable:
    """Two Poisson latents and three pixels: small enough to check on paper.

    For :func:`fixture_image`, −log p(x) without the constant is 1.3963487; the best factorized Poisson posterior has rates
    (0.445883, 0.150157), 0.269071 nats worse, as a Poisson cannot be narrower than its mean says.
    """
    return enumerable_poisson(torch.tensor([[1.0, 0.0], [0.5, -1.0], [0.0, 0.8]]), torch.tensor([0.5, 0.2]))


def fixture_image() -> Tensor:
    """The image ``(1, 1, 1, 3)`` that the known numbers of :func:`poisson_fixture` are about."""
    return torch.tensor([1.2, -0.3, 0.5]).reshape(1, 1, 1, 3)


def mixture(components: int = 3, event_shape: tuple[int, ...] = (1, 2, 2), scale: float = UNIT_SCALE, seed: int = 0) -> Mixture:
    """A mixture with random means, Normal(0, 1) in every pixel, and unequal weights.

    The log responsibilities are linear in the image, so a linear encoder with a bias can be exact.

    Raises:
        ValueError: if there are fewer than two components.
    """
    if components < 2:
        raise ValueError(f"a mixture needs at least 2 components, not {components}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = LinearDecoder(components, tuple(event_shape), init_scale=1.0)
        logits = 0.5 * torch.randn(1, components)
    return Mixture(torch.eye(components), Categorical(), components, decoder, tuple(event_shape), prior=logits, learn_prior=False,
                   scale=scale)
