r"""Unconstrained coordinates of real-valued latents, and what guides with dependent latents share.

Each site's value is :math:`z = T(u)` with :math:`T` the bijection onto its support, and :math:`u = \mathrm{loc} + \mathrm{scale} \cdot t`:
location and log-scale are the prior's plus :math:`\delta(x)`, as in every guide; what the latents' dependence adds is the law of the
residual :math:`t`. Sites are drawn one by one, top-down, each given the residuals of those above it,
:math:`q(z \mid x) = \prod_l q(z_l \mid z_{<l}, x)`: by the chain rule no dependence is lost, and every sample site has its own density,
so that a guide can be replayed, conditioned and scored like any other, and a support may depend on the sites above.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import ComposeTransform, Distribution, Transform, constraints
from torch.distributions.transforms import ReshapeTransform

from guides.base import seen
from zoo import networks
from zoo.latents.base import Family
from zoo.latents.support import support_kind
from zoo.program import Adopted, Unconstrained

__all__ = ["Coordinates", "JointGuide", "RealGuide", "coordinates", "real_misfit", "sizes_of", "walk"]

KINDS = {"count": "a count", "one_hot": "one-hot"}


@dataclass(frozen=True)
class Coordinates:
    """One site's unconstrained coordinates ``u`` of ``M`` numbers.

    Attributes:
        loc, scale: Of ``u = loc + scale · t``, each ``(…, M)``.
        noise: The law that a residual ``t`` has where there is nothing else: the family's own at location 0 and scale 1 (so that the
            prior is in reach), or a standard Normal. Batch shape ``(…)``, event shape ``(M,)``.
        to_site: From ``u`` to the site's value; None where they are the same.
    """

    loc: Tensor
    scale: Tensor
    noise: Distribution
    to_site: Transform | None

    def residual(self, value: Tensor) -> Tensor:
        """``t`` of a site's value ``(…, *event)``: ``(…, M)``."""
        u = value if self.to_site is None else self.to_site.inv(value)
        return (u - self.loc) / self.scale

    def law(self, of_u: Distribution) -> Distribution:
        """The law of the site's value, if that of ``u`` is ``of_u``."""
        return of_u if self.to_site is None else dist.TransformedDistribution(of_u, [self.to_site])


def coordinates(family: Family, prior: Tensor, delta: Tensor) -> Coordinates:
    """Coordinates of a site at the prior's parameters ``(…, P, K)`` plus ``delta`` ``(…, 2, M)``.

    A family with the parameters ``loc`` and ``log_scale`` on the real line keeps its own noise. Any other continuous law starts at
    a standard Normal in its support's unconstrained space, as sites of programs from outside the zoo do.
    """
    if _location_scale(family):
        params = family.posterior(prior, delta)
        noise, to_site = family.distribution(torch.zeros_like(params)), None
    else:
        family, prior = _unconstrained(family, prior)
        params = family.posterior(prior.to(delta), delta)
        noise = dist.Normal(torch.zeros_like(params[..., 0, :]), 1.0).to_event(1)
        to_site = ComposeTransform([ReshapeTransform(delta.shape[-1:], family.inner_shape), family.transform]).with_cache()
    loc, log_scale = params.unbind(-2)
    return Coordinates(loc, log_scale.exp(), noise, to_site)


def sizes_of(model: nn.Module) -> dict[str, int]:
    """The number ``M`` of unconstrained coordinates of every site, top-down."""
    sizes = {}
    for name, (family, units) in model.latents.items():
        if not isinstance(family, Unconstrained) and not _location_scale(family):
            family, _ = _unconstrained(family, _example(family, units))
            units = prod(family.inner_shape)
        sizes[name] = units
    return sizes


def real_misfit(model: nn.Module) -> str | None:
    """Which latent is not real-valued, in a phrase; None if all are."""
    for name, (family, units) in model.latents.items():
        if not isinstance(family, Unconstrained):
            kind = support_kind(family.distribution(_example(family, units)).support)
            if kind != "real":
                return f"the latent {name!r} is {KINDS[kind]}"
    return None


class RealGuide(nn.Module):
    """A guide of real-valued latents that may depend on one another.

    It has no factorized parameters, hence neither ``delta`` nor ``posterior``: its densities are those of its sample sites.

    Attributes:
        sizes: Number of unconstrained coordinates of every site, top-down.

    Raises:
        ValueError: if a latent is discrete.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        reason = real_misfit(model)
        if reason is not None:
            raise ValueError(f"{type(self).__name__} is for real-valued latents, and {reason}")
        self._program = (model,)  # in a tuple, which nn.Module does not register
        self.temperature = 0.0  # nothing is relaxed
        self.sizes = sizes_of(model)

    @staticmethod
    def misfit(model: nn.Module) -> str | None:
        """Why the guide does not fit a model, in a phrase; None if it does."""
        return real_misfit(model)

    @property
    def model(self) -> nn.Module:
        """The model whose latents this guide infers."""
        return self._program[0]


class JointGuide(RealGuide):
    """An amortized guide whose latents depend on one another given the image; subclasses give :meth:`law`, and may give :meth:`prepare`.

    Arguments:
        model: The model; all its latents real-valued.
        extra: Outputs that the encoder gives besides location and log-scale of every coordinate.
        encoder, bias, init_scale, seed: As of :class:`~guides.amortized.Amortized`.

    Raises:
        ValueError: if a latent is discrete.
    """

    def __init__(self, model: nn.Module, *, extra: int, encoder: str, bias: bool, init_scale: float, seed: int) -> None:
        super().__init__(model)
        self.extra = extra
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            outputs = 2 * sum(self.sizes.values()) + extra
            self.encoder = networks.encoder(encoder, model.event_shape, outputs, bias=bias, init_scale=init_scale)

    def prepare(self, extra: Tensor) -> Tensor:
        """What :meth:`law` needs of the encoder's extra outputs ``(N, E)``."""
        return extra

    def law(self, index: int, here: Coordinates, prepared: Tensor, above: Tensor) -> Distribution:
        """Law of ``u`` ``(…, M)`` of the site number ``index``, given the residuals ``(…, M_above)`` of the sites above it."""
        raise NotImplementedError(f"{type(self).__name__} must define law(index, here, prepared, above)")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Draws every latent; one sample site for each, in the model's own order."""
        parts = self.encoder(seen(self.model, x)).split([*(2 * size for size in self.sizes.values()), self.extra], dim=-1)
        deltas = {name: part.unflatten(-1, (2, size)) for (name, size), part in zip(self.sizes.items(), parts[:-1], strict=True)}
        prepared = self.prepare(parts[-1])
        return walk(self.model, x, lambda name, family, prior: coordinates(family, prior, deltas[name]),
                    lambda index, here, above: self.law(index, here, prepared, above))


def walk(model: nn.Module, x: Tensor, place: Callable[[str, Family, Tensor], Coordinates],
         law: Callable[[int, Coordinates, Tensor], Distribution]) -> dict[str, Tensor]:
    """Draws the model's latents top-down, each given the residuals of those above it; ``{site: value}``.

    Arguments:
        place: Coordinates of a site, from its name, its family and the prior's parameters.
        law: Law of its ``u``, from its index, its coordinates and the residuals above it.
    """
    residuals: list[Tensor] = [x.new_zeros(len(x), 0)]

    def draw(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
        here = place(name, family, prior)
        value = pyro.sample(name, here.law(law(len(residuals) - 1, here, _joined(residuals))))
        residuals.append(here.residual(value))
        return value

    with nullcontext() if isinstance(model, Adopted) else pyro.plate("data", len(x)):  # a plain program enters its plate itself
        return model.descend(draw, x)


def _joined(parts: list[Tensor]) -> Tensor:
    batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*batch, -1) for part in parts], dim=-1)


def _location_scale(family: Family) -> bool:
    if isinstance(family, Unconstrained) or tuple(family.parameters) != ("loc", "log_scale"):
        return False
    law = family.distribution(torch.zeros(2, 1))
    return law.has_rsample and isinstance(_innermost(law.support), type(constraints.real))


def _unconstrained(family: Family, prior: Tensor) -> tuple[Unconstrained, Tensor]:
    """The family (itself, if it is one) that stands for a continuous law in unconstrained space, with the parameters it starts from."""
    if isinstance(family, Unconstrained):
        return family, prior
    law = family.distribution(prior)
    stands = Unconstrained(law.support, tuple(law.event_shape))
    return stands, stands.read(law)


def _example(family: Family, units: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        return family.initial_prior(units)


def _innermost(support: constraints.Constraint) -> constraints.Constraint:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support
