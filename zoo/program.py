"""Programs from outside the zoo: gives a plain Pyro model what guides ask of the zoo's own models.

What a guide must know of a latent it reads from the program's own site. A Normal, Laplace, Poisson or one-hot categorical site
becomes a latent of that family, its prior read off the site; any other continuous site becomes a Gaussian in unconstrained
space, carried to the site's support by ``biject_to``.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, biject_to, constraints

from zoo.data.base import images_of
from zoo.latents.base import Family
from zoo.latents.location_scale import natural_gradient
from zoo.latents.support import support_kind

__all__ = ["Adopted", "Unconstrained", "adopt"]


def adopt(model: Callable, data: object = None) -> nn.Module:
    """``model`` itself if it is one of the zoo's, else the plain Pyro program wrapped as :class:`Adopted`.

    Arguments:
        model: ``model(x)`` with the plate ``"data"`` and the observation site ``"x"``.
        data: Images, a data set or a stream of them, on which the program is run once to see its sites. Not needed for a program that has
            an ``event_shape``, of which two images are drawn then.

    Raises:
        ValueError: if a plain program comes without data, or has no latents, or has one that no family can stand for.
    """
    if hasattr(model, "descend"):
        return model
    if data is None and not hasattr(model, "event_shape"):
        raise ValueError("a Pyro program from outside the zoo is run once to see its sites: give data")
    if data is None:
        return Adopted(model, None)
    return Adopted(model, data.images(0, 2) if hasattr(data, "images") else images_of(data)[:2])


class Adopted(nn.Module):
    """A plain Pyro program with the zoo's interface: ``latents``, ``event_shape``, ``descend`` and the program itself."""

    def __init__(self, program: Callable, x: Tensor | None) -> None:
        super().__init__()
        self.program = program  # registered as a submodule if it is one
        self.event_shape = tuple(program.event_shape if x is None else x.shape[1:])
        with torch.random.fork_rng(), torch.no_grad():
            trace = poutine.trace(self.forward).get_trace(x, **({"size": 2} if x is None else {}))
        self.latents: dict[str, tuple[Family, int]] = {}
        for name, site in trace.nodes.items():
            latent = site["type"] == "sample" and not site["is_observed"] and not poutine.util.site_is_subsample(site)
            if latent and not (x is None and name == "x"):
                family = family_of(name, site["fn"])
                self.latents[name] = (family, prod(getattr(family, "inner_shape", site["fn"].event_shape)))
        if not self.latents:
            raise ValueError("the program has no latent sample sites to infer")

    def forward(self, x: Tensor | None = None, **options: object) -> object:
        with pyro.settings.context(module_local_params=True):  # a PyroModule keeps its weights out of the global store
            return self.program(x, **options)

    def descend(self, draw: Callable[[str, Family, Tensor], Tensor], x: Tensor | None = None) -> dict[str, Tensor]:
        """Runs the program with ``draw`` in the place of each latent, the observation hidden from outer handlers."""
        walk = _Walk(self.latents, draw, x)
        with walk:
            self.forward(x)
        return walk.values


class _Walk(Messenger):
    """Answers each latent site with ``draw``'s value, and hides the sites that the program observes."""

    def __init__(self, latents: dict, draw: Callable, like: Tensor | None) -> None:
        super().__init__()
        self.latents, self.draw, self.like, self.values, self.inside = latents, draw, like, {}, False

    def _pyro_sample(self, message: dict) -> None:
        if self.inside or poutine.util.site_is_subsample(message):
            return
        message["stop"] = True
        if message["name"] not in self.latents:
            message["done"] = True
            return
        family, _ = self.latents[message["name"]]
        if isinstance(family, Unconstrained):  # the bounds of its support are where the program is now
            family = Unconstrained(message["fn"].support, tuple(message["fn"].event_shape))
        prior = family.read(message["fn"])
        self.inside = True
        try:
            message["value"] = self.draw(message["name"], family, prior if self.like is None else prior.to(self.like))
        finally:
            self.inside = False
        message["done"] = True
        self.values[message["name"]] = message["value"]


def family_of(name: str, site: Distribution) -> Family:
    """The family that a sample site's distribution belongs to.

    Raises:
        ValueError: for a discrete distribution of no registered family.
    """
    from zoo.latents.categorical import Categorical
    from zoo.latents.gaussian import Gaussian
    from zoo.latents.laplace import Laplace
    from zoo.latents.poisson import Poisson

    base = site.base_dist if isinstance(site, Independent) else site
    if len(site.event_shape) == 1:
        for law, family in ((dist.Normal, Gaussian), (dist.Laplace, Laplace), (dist.Poisson, Poisson)):
            if isinstance(base, law):
                return family()
        if isinstance(base, dist.OneHotCategorical):
            return Categorical()
    if support_kind(site.support) != "real":
        raise ValueError(f"the latent {name!r} has the discrete law {type(base).__name__}, event shape {tuple(site.event_shape)}; "
                         "a guide can be built for Poisson and OneHotCategorical sites with one event dimension")
    return Unconstrained(site.support, tuple(site.event_shape))


class Unconstrained(Family):
    """Gaussian in unconstrained space, for a continuous site of any support and event shape.

    Its "prior" parameters are zeros: where guides start, not the site's law; the KL divergence is estimated by sampling.
    """

    parameters = ("loc", "log_scale")

    def __init__(self, support: constraints.Constraint, event_shape: tuple[int, ...]) -> None:
        self.transform = biject_to(support)
        self.event_shape = event_shape
        self.inner_shape = self.transform.inverse_shape(event_shape) if event_shape else ()

    def distribution(self, params: Tensor) -> Distribution:
        loc, log_scale = (part.unflatten(-1, self.inner_shape) if self.inner_shape else part.squeeze(-1)
                          for part in params.unbind(-2))
        normal = dist.Normal(loc, log_scale.exp()).to_event(len(self.inner_shape))
        return dist.TransformedDistribution(normal, [self.transform.with_cache()])  # a sample's density needs no inverse

    def read(self, distribution: Distribution) -> Tensor:
        return torch.zeros(2, max(prod(self.inner_shape), 1))

    def unit_kl(self, q: Tensor, p: Tensor) -> None:
        """None: the KL divergence is from the site's own law, which these parameters do not tell."""

    def natural(self, params: Tensor, gradient: Tensor) -> Tensor:
        return natural_gradient(params, gradient, scale=2.0)
