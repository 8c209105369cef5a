r"""Retinal optic flow as a Pyro program: where the eye looks and how it moves, where discs are and how they move, what the eye receives.

The causes have the laws of the data sets ``rofl/…`` (Vafaii, Yates & Butts 2023), the truncation by the acceptance rule among them, and the
likelihood's mean is the simulator: the true posterior of these causes is that of this program.
"""

from __future__ import annotations

import math
from functools import lru_cache

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from zoo.data.rofl import World, flow, sample, visible
from zoo.distributions import EndpointError, Isotropic, UniformDiamond
from zoo.models.normal_image import NormalImage

__all__ = ["OpticFlow"]

NOISES = ("gaussian", "endpoint")
SOFTNESS = 0.5  # pixels over which a soft acceptance rule rises
RATE_DRAWS = 1 << 17  # frames from which the acceptance rate is estimated: log Z has a standard error of about 0.001
TRIES = 1000


class OpticFlow(nn.Module):
    """A Pyro program with the latent sites ``fixation`` ``(2,)``, ``self_velocity`` ``(3,)``, ``object_position`` ``(n, 3)`` and
    ``object_velocity`` ``(n, 3)`` (those that the category has; units as in :func:`zoo.data.rofl.flow`) and the observation site ``x``.

    Arguments:
        category: ``"fixate-n"``, ``"transl-n"`` or ``"obj-n"``.
        resolution, residual: See :class:`zoo.data.rofl.World`. Angles are continuous.
        edge: Width of the discs' edges, m. At 0 the program is the data's own law; above, also the acceptance rule is smooth (a logistic
            function of the visible pixels, :data:`SOFTNESS` wide), so that gradients see where a disc ends.
        noise: ``"gaussian"``, or ``"endpoint"``: the likelihood of the endpoint error (:class:`zoo.distributions.EndpointError`).
        scale: Standard deviation of a pixel's component, or the endpoint law's b, rad/s.
        learn_scale: Whether it is a parameter.
        truncate: Whether only accepted frames exist. The density of the truncated prior, p(F) p(position) 1[accepted] / Z, is shared by the
            two sites that it couples: ``fixation`` has p(F) / Z, ``object_position`` the rest. Each is drawn from its true marginal and
            conditional law, whose one unknown factor, the acceptance rate at this F, cancels in their product.

    Raises:
        ValueError: for a category without such a program, an unknown noise, or a setting that is impossible.
    """

    def __init__(self, category: str = "fixate-1", *, resolution: int = 17, residual: bool = False, edge: float = 0.0,
                 noise: str = "gaussian", scale: float = 0.1, learn_scale: bool = False, truncate: bool = True) -> None:
        super().__init__()
        self.world = World(category, resolution, residual=residual)
        if self.world.kind not in ("fixate", "transl", "obj"):
            raise ValueError(f"there is no program for {category!r}; there is one for fixate-n, transl-n and obj-n")
        if noise not in NOISES:
            raise ValueError(f"unknown noise {noise!r}; known are: {', '.join(NOISES)}")
        if not 0.0 <= edge < math.inf or not 0.0 < scale < math.inf:
            raise ValueError(f"edge must be at least 0, scale positive, and both finite; not {edge} and {scale}")
        self.edge, self.noise, self.truncate = edge, noise, truncate and self.world.min_objects > 0
        self.event_shape = (2, resolution, resolution)
        log_scale = torch.tensor(math.log(scale))
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    @property
    def scale(self) -> Tensor:
        """Scale of the noise, rad/s, ``()``."""
        return self.log_scale.exp()

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """The program: conditions on images ``x`` ``(N, 2, H, W)``, or draws ``size`` images from the prior."""
        if x is None and size is None:
            raise ValueError("give images x to condition on, or size=n to draw n images from the prior")
        if x is not None and (x.dim() < 4 or tuple(x.shape[-3:]) != self.event_shape):
            raise ValueError(f"images of shape {tuple(x.shape)} do not end in the model's event shape {self.event_shape}")
        with pyro.plate("data", size if x is None else x.shape[-4]):
            causes = {"fixation": pyro.sample("fixation", self._fixation())}
            if self.world.self_moves:
                causes["self_velocity"] = pyro.sample("self_velocity", self._velocity())
            if self.world.objects:
                causes["object_position"] = pyro.sample("object_position", self._position(causes["fixation"]))
                causes["object_velocity"] = pyro.sample("object_velocity", self._velocity().expand((self.world.objects,)).to_event(1))
            return pyro.sample("x", self._likelihood(flow(causes, self.world, self.edge)), obs=x)

    def _fixation(self) -> Distribution:
        return AcceptedFixation(self.log_scale, self.world, self.edge) if self.truncate else UniformDiamond(self.log_scale)

    def _velocity(self) -> Isotropic:
        return Isotropic(*self.world.speed, like=self.log_scale)

    def _position(self, fixation: Tensor) -> Distribution:
        box = _box(self.world, fixation)
        return AcceptedPosition(box, fixation, self.world, self.edge) if self.truncate else box

    def _likelihood(self, mean: Tensor) -> Distribution:
        return EndpointError(mean, self.scale) if self.noise == "endpoint" else NormalImage(mean, self.scale, 3)


class AcceptedFixation(UniformDiamond):
    """Fixation points of accepted frames; ``log_prob`` is log p(F) − log Z (see :class:`OpticFlow` for the rest of it)."""

    def __init__(self, like: Tensor, world: World, edge: float, batch_shape: torch.Size = torch.Size()) -> None:  # noqa: B008
        self.world, self.edge = world, edge
        super().__init__(like, batch_shape, validate_args=False)

    has_rsample = False

    @property
    def variance(self) -> Tensor:
        raise NotImplementedError("accepted frames have no closed-form variance of their fixation")

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> AcceptedFixation:
        return AcceptedFixation(self.like, self.world, self.edge, torch.Size(batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)
        missing, parts = shape[:-1].numel(), []
        for _ in range(TRIES):
            causes = sample(self.world, 2 * missing + 16, dtype=self.like.dtype, device=self.like.device)
            parts.append(causes["fixation"][_accept(causes, self.world, self.edge)])
            missing -= len(parts[-1])
            if missing <= 0:
                return torch.cat(parts)[: shape[:-1].numel()].reshape(shape)
        raise ValueError(_too_few(self.world))

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) - log_acceptance_rate(self.world, self.edge)


class AcceptedPosition(dist.TorchDistribution):
    """Positions of discs for which a frame with this fixation is accepted; ``log_prob`` is log p(position) + log P(accepted)."""

    arg_constraints: dict = {}

    def __init__(self, box: Distribution, fixation: Tensor, world: World, edge: float) -> None:
        self.box, self.fixation, self.world, self.edge = box, fixation, world, edge
        super().__init__(fixation.shape[:-1], box.event_shape, validate_args=False)

    @property
    def support(self) -> object:
        return self.box.support

    @property
    def mean(self) -> Tensor:
        raise NotImplementedError("accepted frames have no closed-form mean of their discs' positions")

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> AcceptedPosition:
        return AcceptedPosition(self.box, self.fixation.expand(*batch_shape, 2), self.world, self.edge)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)
        fixation = self.fixation.expand(*shape[:-2], 2).reshape(-1, 2)
        position = fixation.new_empty(len(fixation), *self.event_shape)
        waiting = torch.arange(len(fixation), device=fixation.device)
        for _ in range(TRIES):
            proposed = self.box.sample((len(waiting),))
            good = _accept({"fixation": fixation[waiting], "object_position": proposed}, self.world, self.edge)
            position[waiting[good]] = proposed[good]
            waiting = waiting[~good]
            if len(waiting) == 0:
                return position.reshape(shape)
        raise ValueError(_too_few(self.world))

    def log_prob(self, value: Tensor) -> Tensor:
        fits = _log_accepted({"fixation": self.fixation, "object_position": value}, self.world, self.edge)
        return self.box.log_prob(value) + fits


def _box(world: World, like: Tensor) -> Distribution:
    """Uniform over the field's angles (radians) and the depths (m), event shape ``(n, 3)``."""
    angle = math.radians(world.fov)
    low = like.new_tensor([-angle, -angle, world.depth[0]]).expand(world.objects, 3)
    high = like.new_tensor([angle, angle, world.depth[1]]).expand(world.objects, 3)
    return dist.Uniform(low, high, validate_args=False).to_event(2)


def _log_accepted(causes: dict[str, Tensor], world: World, edge: float) -> Tensor:
    """Log of the probability that a frame is accepted, ``(…)``: 0 or −∞ with hard edges."""
    margin = visible(causes, world, edge) - world.min_size
    if edge > 0.0:
        return logsigmoid(margin / SOFTNESS)
    return torch.where(margin > 0.0, 0.0, -math.inf).to(margin.dtype)


def _accept(causes: dict[str, Tensor], world: World, edge: float) -> Tensor:
    chance = _log_accepted(causes, world, edge)
    return torch.rand_like(chance).log() < chance


@lru_cache(maxsize=16)
def log_acceptance_rate(world: World, edge: float) -> float:
    """log Z: of the share of the untruncated prior's frames that are accepted; an estimate from :data:`RATE_DRAWS` of them."""
    total = 0.0
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(RATE_DRAWS >> 12):
            causes = sample(world, 1 << 12, generator=generator)
            total += _log_accepted(causes, world, edge).exp().sum().item()
    return math.log(total / RATE_DRAWS)


def _too_few(world: World) -> str:
    return f"hardly any frame of {world.category} is accepted; lower min_size or min_objects"
