r"""The posterior of each image as a density on :math:`\mathbb R^K`: what every gradient-based sampler here moves in.

Constrained sites are carried over by ``biject_to`` and the log Jacobian is added; all sites stand side by side in one vector. Chains and
images are batch dimensions: states are ``(C, N, K)``, densities ``(C, N)``, and one backward pass gives all gradients, as images are
independent given the model.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import ComposeTransform, IndependentTransform, Transform

from inference.mcmc.traced import traced
from zoo.density import count, latent_sites, log_terms, uncounted
from zoo.latents.base import Family
from zoo.latents.support import support_kind
from zoo.program import Unconstrained, adopt

__all__ = ["Target", "annealed", "blend"]


class Target:
    """Per-image log density of a program's real-valued latents, in unconstrained coordinates.

    Arguments:
        model: A Pyro program ``model(x)``; its parameters are taken as they are.
        x: Images ``(N, *event_shape)``.
        given: Values of its other latents ``{site: (…, N, *event)}``, which are held fixed.
        initial: A program over the same latents, such as a guide, that ``beta`` = 0 stands for; the model's prior if None.
        compiled: Whether :meth:`value_and_grad` is compiled (:func:`inference.mcmc.traced.traced`).
        of_values: Whether the density is that of the values z, as for modes, not that of u: without log |det dz/du|.

    Attributes:
        size: K, unconstrained numbers for each image.
        given: The values of other latents; may be exchanged for others of the same shapes.
        beta: In :meth:`value_and_grad`, the power of the joint density, one number or one for each image, ``(N,)``; that of the initial law
            is ``1 - beta``.

    Raises:
        ValueError: if a latent that is not given has a discrete support, or, unless the density is of values, one that depends on other
            latents; names it.
    """

    def __init__(self, model: Callable, x: Tensor, given: dict[str, Tensor] | None = None, *,
                 initial: Callable | None = None, compiled: bool = False, of_values: bool = False) -> None:
        self.model, self.x, self.given, self.beta = model, x, dict(given or {}), 1.0
        self.of_values = of_values
        self.initial, self.transforms, self.shapes = initial, {}, {}
        self._evaluate = traced(self.through_handlers, compiled)
        for name, site in latent_sites(model, x).items():
            if name in self.given:
                continue
            _check_place(name, site, len(x))
            if support_kind(site["fn"].support) != "real":
                raise ValueError(f"the latent {name!r} has the discrete support {site['fn'].support}; gradient-based samplers move "
                                 "real-valued latents only: give its values, or choose a sampler for counts and one-hots")
            try:
                self.transforms[name] = biject_to(site["fn"].support)
            except NotImplementedError:
                raise ValueError(f"the latent {name!r} has the support {site['fn'].support}, to which no one-to-one map from "
                                 "unconstrained coordinates is known") from None
            event_shape = site["fn"].event_shape
            self.shapes[name] = tuple(self.transforms[name].inverse_shape(event_shape)) if event_shape else ()
        self.moving = self._moving_support()
        if self.moving and not of_values:
            raise ValueError(f"the support of the latent {self.moving!r} depends on other latents; samplers here need fixed supports")
        self.size = sum(prod(shape) for shape in self.shapes.values())

    def _moving_support(self) -> str | None:
        """A latent whose support depends on other latents, so that the way to it changes with every state; None if there is none."""
        for name, site in latent_sites(self.model, self.x, seed=1).items():
            if name in self.transforms:
                origin = self.x.new_zeros(len(self.x), *self.shapes[name])
                here, there = (transform(origin) for transform in (self.transforms[name], biject_to(site["fn"].support)))
                if not torch.equal(here, there):
                    return name
        return None

    def constrain(self, u: Tensor) -> dict[str, Tensor]:
        """Values ``{site: (…, N, *event)}`` of a state ``(…, N, K)``."""
        if self.moving:
            return self._walked(self._parts(u), lambda transform, part: (transform(part),) * 2)
        return {name: self.transforms[name](part) for name, part in self._parts(u).items()}

    def unconstrain(self, values: dict[str, Tensor]) -> Tensor:
        """The state ``(…, N, K)`` that stands for values of all sites."""
        parts = []
        walked = self._walked(values, lambda transform, value: (value, transform.inv(value))) if self.moving else {}
        for name, shape in self.shapes.items():
            free = walked[name] if self.moving else self.transforms[name].inv(values[name])
            parts.append(free.flatten(free.dim() - len(shape)) if shape else free.unsqueeze(-1))
        return torch.cat(parts, -1)

    def log_prob(self, u: Tensor) -> Tensor:
        """Log density of states ``(…, N, K)``: log p(x, z) + log |det dz/du|, the latter unless it is of values, ``(…, N)``."""
        prior, likelihood = self.log_terms(u)
        return prior + likelihood

    def log_terms(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms of :meth:`log_prob`, each ``(…, N)``: the prior density of the state, and log p(x | z)."""
        values, volume = self._carried(u)
        prior, likelihood = log_terms(self.model, self.given | values, self.x)
        return prior + volume, likelihood

    def log_volume(self, u: Tensor) -> Tensor:
        """log |det dz/du| of states ``(…, N, K)``, ``(…, N)``."""
        return self._carried(u)[1]

    def value_and_grad(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log density ``(…, N)`` and its gradient ``(…, N, K)``; both detached."""
        value, gradient = self._evaluate(u.detach(), torch.as_tensor(self.beta, dtype=u.dtype, device=u.device), *self.given.values())
        count(value, gradient=True)
        return value, gradient

    def through_handlers(self, u: Tensor, beta: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        """What :meth:`value_and_grad` records: the same, through Pyro's handlers at each call, for given values in their order."""
        u = u.detach().requires_grad_(True)
        with torch.enable_grad(), uncounted():
            values, volume = self._carried(u)
            value = volume + annealed(self.model, self.initial, dict(zip(self.given, given, strict=True)) | values, self.x, beta)
            gradient, = torch.autograd.grad(value.sum(), u)
        return value.detach(), gradient

    def _carried(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        if self.moving:  # of values, so that there is no volume
            return self.constrain(u), u.new_zeros(u.shape[:-1])
        values, volume = self._parts(u), u.new_zeros(u.shape[:-1])
        for name, transform in self.transforms.items():
            if not _is_identity(transform):
                part, values[name] = values[name], transform(values[name])
                if self.of_values:
                    continue
                change = transform.log_abs_det_jacobian(part, values[name])
                volume = volume + (change.flatten(volume.dim()).sum(-1) if change.dim() > volume.dim() else change)
        return values, volume

    def _walked(self, parts: dict[str, Tensor], move: Callable[[Transform, Tensor], tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """What ``move`` makes of each part by the way to its site's support as it is below the values above: (its value, what is kept)."""
        kept: dict[str, Tensor] = {}

        def draw(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
            if name in self.given:
                return self.given[name]
            transform = family.transform if isinstance(family, Unconstrained) else biject_to(family.distribution(prior).support)
            value, kept[name] = move(transform, parts[name])
            return value

        adopt(self.model, self.x).descend(draw, self.x)
        return kept

    def _parts(self, u: Tensor) -> dict[str, Tensor]:
        sizes = [prod(shape) for shape in self.shapes.values()]
        pieces = u.split(sizes, -1) if len(sizes) > 1 else [u]
        return {name: piece.unflatten(-1, shape) if len(shape) > 1 else piece if shape else piece.squeeze(-1)
                for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}


def annealed(model: Callable, initial: Callable | None, latents: dict[str, Tensor], x: Tensor, beta: Tensor | float) -> Tensor:
    """``(1 - beta)`` log q(z) + ``beta`` log p(x, z), ``(…, N)``, with q the program ``initial``, or the model's prior if None."""
    prior, likelihood = log_terms(model, latents, x)
    if initial is None:
        return prior + beta * likelihood
    return blend(sum(log_terms(initial, latents, x)), prior + likelihood, beta)


def blend(first: Tensor, last: Tensor, beta: Tensor | float) -> Tensor:
    """``(1 - beta)`` first + ``beta`` last, −∞ where either is."""
    none = first.isneginf() | last.isneginf()
    return torch.where(none, -torch.inf, (1.0 - beta) * first + beta * last)


def _is_identity(transform: Transform) -> bool:
    if isinstance(transform, IndependentTransform):
        return _is_identity(transform.base_transform)
    return isinstance(transform, ComposeTransform) and all(map(_is_identity, transform.parts))


def _check_place(name: str, site: dict, images: int) -> None:
    plates = [frame.name for frame in site["cond_indep_stack"]]
    if plates != ["data"] or tuple(site["fn"].batch_shape) != (images,):
        raise ValueError(f"the latent {name!r} must lie in the plate 'data' alone, with a batch shape ({images},) and event dimensions "
                         f"(to_event) for the rest; it lies in {', '.join(plates) or 'no plate'} with {tuple(site['fn'].batch_shape)}")
