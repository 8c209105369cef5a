r"""A predictive-coding network as a Pyro program: every level predicts the one below it.

With :math:`z_l \mid z_{l+1} \sim N(f_l(z_{l+1}), \sigma_l^2)` this is the generative model behind Rao & Ballard 1999, Friston 2005 and
Marino 2022, with the normalized densities that learned precisions and any comparison of inference methods need. With prediction errors
:math:`e_l = z_l - f_l(z_{l+1})`, weighted by the precision (one over the variance, not the standard deviation),
:math:`\varepsilon_l = e_l / \sigma_l^2`, gradient ascent on log p(x, z) is

.. math:: \dot z_l = J_{l-1}^\top \varepsilon_{l-1} - \varepsilon_l, \qquad J_{l-1} = \partial f_{l-1} / \partial z_l .
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from zoo.distributions.correlated import CorrelatedNormal
from zoo.distributions.reshaped import Reshaped
from zoo.distributions.units import normal_units
from zoo.latents.base import Family
from zoo.latents.correlated import CorrelatedGaussian, Correlations
from zoo.latents.gaussian import Gaussian
from zoo.models.image_model import UNIT_SCALE, Draw, ImageModel

__all__ = ["PRECISIONS", "Level", "PredictiveCoding"]

PRECISIONS = ("fixed", "scalar", "diagonal", "lowrank", "full")


class Level(nn.Module):
    """What is known of a level before anything is seen of it: its family, and all parameters of its law but the predicted one.

    Arguments:
        family: The latent family; its first parameter (loc, log rate, logits) is what is predicted.
        units: ``K``.
        scale: Scale of the noise around the prediction, at the start if it is learned (families with a log-scale).
        precision: ``"fixed"``; learned: ``"scalar"`` (one for all units), ``"diagonal"``, and of Gaussian latents ``"lowrank"`` and
            ``"full"``: one for each unit and shared correlations (:class:`~zoo.latents.correlated.CorrelatedGaussian`).
        floor: What a learned scale stays above: scale = floor + exp(log_scale).
        rank: Of ``"lowrank"``.

    Raises:
        ValueError: for a precision that the family does not have, or a scale not above the floor.
    """

    def __init__(self, family: Family, units: int, *, scale: float = 1.0, precision: str = "fixed", floor: float = 0.0,
                 rank: int = 4) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be {', '.join(map(repr, PRECISIONS))}, not {precision!r}")
        floor = floor if precision != "fixed" else 0.0
        if units < 1 or not scale > floor >= 0.0:
            raise ValueError(f"a level needs at least 1 unit and a scale above its floor; got {units}, {scale} and {floor}")
        scaled = family.parameters[1:] == ("log_scale",)
        if precision != "fixed" and not scaled:
            raise ValueError(f"a precision is of a family with loc and log_scale, not of {type(family).__name__}; use precision='fixed'")
        self.units, self.floor, self.scaled = units, floor, scaled
        self.correlations = None
        if precision in ("lowrank", "full"):
            if type(family) is not Gaussian or family.activation != "identity":
                raise ValueError(f"correlated noise ({precision!r}) is of Gaussian latents, not of {type(family).__name__}")
            self.correlations = Correlations(units, precision, rank)
            family = CorrelatedGaussian(self.correlations)
        self.family = family
        if not scaled:
            return
        log_scale = torch.full(() if precision in ("fixed", "scalar") else (units,), math.log(scale - self.floor))
        if precision == "fixed":
            self.register_buffer("log_scale", log_scale)
        else:
            self.log_scale = nn.Parameter(log_scale)

    @property
    def scale(self) -> Tensor:
        """Of the noise, ``()`` or ``(K,)``."""
        return self.floor + self.log_scale.exp() if self.floor else self.log_scale.exp()

    def prior(self, prediction: Tensor) -> Tensor:
        """Parameters ``(…, P, K)`` of the level's law for predictions ``(…, K)``."""
        if not self.scaled:
            return self.family.bounded(prediction.unsqueeze(-2))
        log_scale = self.scale.log() if self.floor else self.log_scale
        return torch.stack([prediction, log_scale.expand_as(prediction)], dim=-2)

    def law(self, prediction: Tensor) -> Distribution:
        """The level's law for predictions ``(…, K)``: that of :meth:`prior`, whose scale is not written out for every image."""
        if type(self.family) is Gaussian:
            return normal_units(prediction, self.scale)
        return self.family.distribution(self.prior(prediction))


class PredictiveCoding(ImageModel):
    """A chain of levels with latent sites ``"zL"`` (top) … ``"z1"`` (next to the image) and the observation ``"x"``.

    Arguments:
        maps: :math:`f_0, …, f_{L-1}`, modules from values ``(…, K_{l+1})`` to predictions, of the image first.
        levels: Levels 1 to L, that of z1 first.
        event_shape: Shape of one image.
        prior: Parameters of the top level's prior ``(P, K_L)``, of which the first is its prediction; 0 if None.
        learn_prior: Whether the top's prediction (its prior mean, log rate …) is learned.
        scale, likelihood: As in :class:`~zoo.models.image_model.ImageModel`.
        learn_scale: As there, or ``"lowrank"`` or ``"full"``: one for each pixel, and correlations of the pixels' noise.
        floor: What a learned scale of the image stays above.
        rank: Of ``"lowrank"``.

    Raises:
        ValueError: for maps and levels that do not fit, or settings out of range.
    """

    def __init__(self, maps: Sequence[nn.Module], levels: Sequence[Level], event_shape: tuple[int, ...], *, prior: Tensor | None = None,
                 learn_prior: bool = False, scale: float = UNIT_SCALE, learn_scale: bool | str = False, likelihood: str = "normal",
                 floor: float = 0.0, rank: int = 4) -> None:
        if not levels or len(maps) != len(levels):
            raise ValueError(f"a network has as many maps as levels, at least one; got {len(maps)} and {len(levels)}")
        correlated = learn_scale in ("lowrank", "full")
        if correlated and likelihood != "normal":
            raise ValueError(f"correlated noise is of the likelihood 'normal', not of {likelihood!r}")
        if not scale > floor >= 0.0:
            raise ValueError(f"scale must be above its floor, which is at least 0; got {scale} and {floor}")
        self.floor = floor if learn_scale else 0.0
        super().__init__(event_shape, scale=scale - self.floor, learn_scale="pixel" if correlated else learn_scale, likelihood=likelihood)
        self.maps, self.levels = nn.ModuleList(maps), nn.ModuleList(levels)
        self.noise = Correlations(math.prod(self.event_shape), learn_scale, rank) if correlated else None
        first = torch.zeros(levels[-1].units) if prior is None else prior[0]
        self._store("top", first, learn_prior)
        self._latents = {f"z{len(levels) - i}": (level.family, level.units) for i, level in enumerate(reversed(levels))}

    @property
    def latents(self) -> dict[str, tuple[Family, int]]:
        """``{site: (family, K)}``, the top first."""
        return self._latents

    @property
    def units(self) -> tuple[int, ...]:
        """``(K_1, …, K_L)``."""
        return tuple(level.units for level in self.levels)

    @property
    def floors(self) -> dict[str, float]:
        """What the scale of each level, and of the image, stays above while it is learned; 0 for one with no floor."""
        return {f"z{i + 1}": level.floor for i, level in enumerate(self.levels)} | {"x": self.floor}

    @property
    def scale(self) -> Tensor:
        """σ of a pixel, shape ``()`` or ``event_shape``."""
        return self.floor + self.log_scale.exp()

    def descend(self, draw: Draw, x: Tensor | None = None) -> dict[str, Tensor]:
        """Asks ``draw`` for each level, the top first."""
        return self._walk(lambda name, level, prediction: draw(name, level.family, level.prior(prediction)))

    def _walk(self, value_of: Callable[[str, Level, Tensor], Tensor]) -> dict[str, Tensor]:
        prediction, values = self.top, {}
        for number in range(len(self.levels), 0, -1):
            name = f"z{number}"
            values[name] = value_of(name, self.levels[number - 1], prediction)
            if number > 1:
                prediction = self.predict(number - 1, values[name])
        return values

    def sample_latents(self, given: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Draws every latent from its prior, as the program does; one sample site for each that is not given."""
        given = given or {}
        return self._walk(lambda name, level, prediction: given[name] if name in given else pyro.sample(name, level.law(prediction)))

    def predict(self, level: int, z: Tensor) -> Tensor:
        """What level ``level + 1`` predicts of level ``level`` (0: the image) at its values ``z``."""
        return self.maps[level](self.levels[level].family.code(z))

    def decode(self, latents: dict[str, Tensor]) -> Tensor:
        """The prediction of the image."""
        return self.predict(0, latents["z1"])

    def observation(self, decoded: Tensor) -> Distribution:
        """The likelihood for images of this mean, or of these logits."""
        if self.noise is None:
            return super().observation(decoded)
        dims = len(self.event_shape)
        law = CorrelatedNormal(decoded.flatten(-dims), self.scale.flatten(), self.noise.structure(decoded), validate_args=False)
        return Reshaped(law, self.event_shape)
