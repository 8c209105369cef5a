r"""Linear predictive-coding networks: chains of Normal levels, whose posterior, evidence and lowest energy are all in closed form.

With the levels side by side, the top first, :math:`z = B z + c + e` where ``B`` holds the maps from each level to the one below, the noise
``e`` has the block-diagonal covariance :math:`N`, and the image is :math:`x = G z + b_0 + e_0`. The posterior's precision, which is the
Hessian of the energy :math:`-\log p(x, z)`, is block tridiagonal,

.. math:: H = (I - B)^\top N^{-1} (I - B) + G^\top N_0^{-1} G,

and with the energy's minimum :math:`\hat z` the Laplace approximation is exact: log p(x) = log p(x, ẑ) + (M/2) log 2π − ½ log det H. In the
space of standardized prediction errors (:mod:`zoo.error_space`), :math:`z = (I - B)^{-1} (c + S \epsilon)` with the levels' scales
:math:`S`, the precision is :math:`J^\top H J` with :math:`J = (I - B)^{-1} S`.
"""

from __future__ import annotations

import copy
import math
from math import prod

import torch
from torch import Tensor

from zoo.latents.gaussian import Gaussian
from zoo.models.chains import predictive_coding
from zoo.models.predictive_coding import Level, PredictiveCoding
from zoo.networks.prediction import Prediction
from zoo.oracles.likelihood import flat_images, noise_variance

__all__ = ["SPACES", "LinearChain", "linear_chain"]

SPACES = ("states", "errors")


class LinearChain(PredictiveCoding):
    """A linear network of Normal levels, correlated ones too, and its exact answers, in float64, for M = K_1 + … + K_L latents."""

    @classmethod
    def of(cls, model: PredictiveCoding) -> LinearChain:
        """The oracle of a linear network; its parameters share memory with the model's, and ask for no gradient.

        Raises:
            ValueError: if the model is no network of this kind, a map is not linear, or a level or the image is not Normal.
        """
        if not isinstance(model, PredictiveCoding):
            raise ValueError(f"exact answers are of predictive-coding networks, not of {type(model).__name__}")
        linear = all(isinstance(part, Prediction) and part.linear for part in model.maps)
        normal = all(isinstance(level.family, Gaussian) and level.family.activation == "identity" for level in model.levels)
        if not (linear and normal and model.likelihood == "normal"):
            raise ValueError("exact answers need linear maps (activation='identity', after='identity', no hidden layer), Gaussian levels "
                             "without activation and the likelihood 'normal'")
        oracle = copy.deepcopy(model)
        oracle.__class__ = cls
        oracle.load_state_dict(model.state_dict(), assign=True)
        return oracle.requires_grad_(False)

    def precision(self, space: str = "states") -> Tensor:
        """The posterior's precision, which is the same for all images: the Hessian of the energy, ``(M, M)``, the top level first.

        Arguments:
            space: Of the latents, ``"states"``, or of their standardized prediction ``"errors"``.
        """
        if space not in SPACES:
            raise ValueError(f"space must be {' or '.join(map(repr, SPACES))}, not {space!r}")
        whitener, to_image = self._whitener(), self._to_image()
        precision = whitener.T @ whitener + to_image.T @ torch.cholesky_solve(to_image, self._image_factor())
        if space == "states":
            return precision
        spread = torch.cat([_scales(level) for level in reversed(self.levels)])
        jacobian = torch.linalg.solve_triangular(self._own(), torch.diag(spread), upper=False, unitriangular=True)
        return jacobian.T @ precision @ jacobian

    def curvatures(self, space: str = "states") -> tuple[Tensor, Tensor]:
        """Smallest and largest curvature of the energy, eigenvalues of :meth:`precision`; their ratio is the condition number, one over
        the largest a stable gradient step, 2 over their sum the fastest."""
        values = torch.linalg.eigvalsh(self.precision(space))
        return values[0], values[-1]

    def posterior(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The exact posterior of images ``(N, *event_shape)``: means ``{site: (N, K)}`` (where the energy is lowest, too), and the
        covariance ``(M, M)`` that all images share, the top level first."""
        factor = torch.linalg.cholesky(self.precision())
        prior = self._prior_mean()
        pull = torch.cholesky_solve(self._residual(x, prior).T, self._image_factor()).T @ self._to_image()
        mean = prior + torch.cholesky_solve(pull.T, factor).T
        return self._by_site(mean), torch.cholesky_inverse(factor)

    def minimum_energy(self, x: Tensor) -> Tensor:
        """The lowest energy −log p(x, z) of each image, with all normalizers, nats, ``(N,)``."""
        means, _ = self.posterior(x)
        mean = torch.cat(list(means.values()), -1)
        whitener, image_factor = self._whitener(), self._image_factor()
        errors = (mean - self._prior_mean()) @ whitener.T
        pixels = torch.linalg.solve_triangular(image_factor, self._residual(x, mean).T, upper=False)
        constant = 0.5 * math.log(2.0 * math.pi) * (len(whitener) + len(image_factor))
        log_dets = image_factor.diagonal().log().sum() - whitener.diagonal().log().sum()
        return 0.5 * (errors.square().sum(1) + pixels.square().sum(0)) + log_dets + constant

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) in nats, ``(N,)``."""
        precision = self.precision()
        return 0.5 * (len(precision) * math.log(2.0 * math.pi) - torch.logdet(precision)) - self.minimum_energy(x)

    def mean_field_gap(self, space: str = "states") -> Tensor:
        """How far the best posterior with independent units, or with independent prediction errors, stays below log p(x), nats, ``()``:
        ½ (Σ log H_kk − log det H), with H the precision in that space.

        A guide that adds to each level's prediction and has scales of its own (uncorrelated levels) is one with independent errors.
        """
        precision = self.precision(space)
        return 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))

    def mean_field_elbo(self, x: Tensor, space: str = "states") -> Tensor:
        """The highest ELBO of such a posterior, nats, ``(N,)``."""
        return self.log_evidence(x) - self.mean_field_gap(space)

    def _own(self) -> Tensor:
        """I − B, ``(M, M)``, unit lower triangular."""
        own = torch.eye(sum(self.units), dtype=torch.float64, device=self.top.device)
        starts = self._starts()
        for number in range(1, len(self.levels)):
            weight = _weight(self.maps[number])
            below, above = starts[f"z{number}"], starts[f"z{number + 1}"]
            own[below: below + weight.shape[0], above: above + weight.shape[1]] = -weight
        return own

    def _whitener(self) -> Tensor:
        """N^(−½) (I − B), lower triangular: what makes independent unit noise of the latents, with no image seen."""
        factor = torch.block_diag(*(_noise_factor(level) for level in reversed(self.levels)))
        return torch.linalg.solve_triangular(factor, self._own(), upper=False)

    def _to_image(self) -> Tensor:
        """G, ``(D, M)``: the image hears of z1 alone, which comes last."""
        weight = _weight(self.maps[0])
        return torch.cat([weight.new_zeros(len(weight), sum(self.units[1:])), weight], 1)

    def _image_factor(self) -> Tensor:
        """Cholesky factor of the covariance of the image's noise, ``(D, D)``."""
        scale = noise_variance(self).sqrt()
        if self.noise is None:
            return torch.diag(scale)
        return torch.linalg.cholesky(scale.unsqueeze(1) * self.noise.structure(scale).matrix() * scale)

    def _prior_mean(self) -> Tensor:
        """Mean of the latents before anything is seen, ``(M,)``: the chain's forward pass."""
        parts = [self.top.double()]
        parts += [_bias(part) for part in reversed(self.maps[1:])]
        return torch.linalg.solve_triangular(self._own(), torch.cat(parts).unsqueeze(1), upper=False, unitriangular=True).squeeze(1)

    def _residual(self, x: Tensor, mean: Tensor) -> Tensor:
        return flat_images(self, x) - mean @ self._to_image().T - _bias(self.maps[0])

    def _starts(self) -> dict[str, int]:
        """Where each level begins among the M latents."""
        starts, at = {}, 0
        for name, (_, units) in self.latents.items():
            starts[name], at = at, at + units
        return starts

    def _by_site(self, values: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.latents, values.split(list(reversed(self.units)), -1), strict=True))


def linear_chain(levels: tuple[int, ...] = (16, 8), event_shape: tuple[int, ...] = (1, 4, 8), scale: float = 1.0, *,
                 level_scale: float | tuple[float, ...] = 1.0, orthogonal: bool = True, seed: int = 0) -> LinearChain:
    """An oracle with Normal levels and random linear maps without biases.

    Arguments:
        levels: Units of z1 (next to the image), z2, …, zL.
        event_shape: Shape of one image.
        scale: Standard deviation σ of a pixel.
        level_scale: Standard deviation of the noise of the levels, one for all or one for each.
        orthogonal: Whether maps have orthonormal columns (rows, of maps to fewer units); weights are N(0, 1 / K) if not.
        seed: Seed of the maps.

    Raises:
        ValueError: for settings out of range.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = predictive_coding(tuple(event_shape), levels, bias=False, scale=scale, level_scale=level_scale)
        if orthogonal:
            for part in model.maps:
                torch.nn.init.orthogonal_(part.weight)
    return LinearChain.of(model).requires_grad_(True)


def _weight(part: Prediction) -> Tensor:
    """The map's matrix ``(M, K)``; of modules side by side, a block-diagonal one."""
    weight = part.synapses.double()
    return weight if weight.dim() == 2 else torch.block_diag(*weight)


def _bias(part: Prediction) -> Tensor:
    return part.weight.new_zeros(prod(part.out_shape), dtype=torch.float64) if part.bias is None else part.bias.double()


def _scales(level: Level) -> Tensor:
    """The level's own scales, ``(K,)``."""
    return level.scale.double().expand(level.units)


def _noise_factor(level: Level) -> Tensor:
    """Cholesky factor of the covariance of the level's noise, ``(K, K)``."""
    scale = _scales(level)
    if level.correlations is None:
        return torch.diag(scale)
    return torch.linalg.cholesky(scale.unsqueeze(1) * level.correlations.structure(scale).matrix() * scale)
