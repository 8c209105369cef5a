"""A guide some of whose groups have lost what tells them of the image, of the groups above, or of both: what each way is good for."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from guides.base import Conditionals, Guide, center
from zoo.latents.base import Family
from zoo.models.hierarchy import Hierarchy

__all__ = ["LESIONS", "Lesioned", "check_density"]

LESIONS = {
    "bottom_up": "no evidence from the image: the posterior is the prior given the groups above, and costs 0 nats",
    "top_down": "nothing from the groups above: posterior and the prior it starts from are read as if their features were zero",
    "group": "no word at all: the code that goes down is zero",
}


class Lesioned(Guide):
    """A guide with lesions at some of its latent sites; guide and model themselves stay as they are.

    ``"bottom_up"``: the latent follows its prior given those above; images still reach it through what they make of those.
    ``"top_down"``, in hierarchies: with zero features from above the guide hears the image alone, and adds what it says to the prior at
    zero features; the KL divergence is still from the model's own prior. The first group, which nothing is above, stays as it is.
    ``"group"``: a point, whose code is zero. It has no parameters (:meth:`conditionals` says NaN, :meth:`posterior` leaves it out), and no
    evidence bound is defined: bounds are NaN.

    Arguments:
        guide: Any guide of the zoo that has ``conditionals``; not one that draws latents from a joint law (flows, full covariances). One
            that is lesioned already keeps its lesions at other sites.
        lesions: ``{site: lesion}``, see :data:`LESIONS`.

    Raises:
        ValueError: for a guide without conditionals, a site that the model does not have, an unknown lesion, or ``"top_down"`` in a model
            that is no hierarchy.
    """

    mean_field = False

    def __init__(self, guide: Guide, lesions: Mapping[str, str]) -> None:
        _check(guide, lesions)
        super().__init__(guide.model)
        whole, earlier = (guide.guide, guide.lesions) if isinstance(guide, Lesioned) else (guide, {})
        self.guide, self.lesions, self.temperature = whole, {**earlier, **lesions}, guide.temperature

    def settle(self, x: Tensor) -> Lesioned:
        return Lesioned(self.guide.settle(x), self.lesions)

    def conditionals(self, x: Tensor) -> Conditionals:
        whole = self.guide.conditionals(x)

        def conditional(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
            lesion = self.lesions.get(name)
            if lesion == "top_down" and above is not None:
                silence = torch.zeros_like(above)
                return whole(name, family, self.model.groups[name].prior(silence), silence)
            if lesion in (None, "top_down"):
                return whole(name, family, prior, above)
            prior = prior.expand(*torch.broadcast_shapes(prior.shape[:-2], (len(x),)), *prior.shape[-2:])
            return prior if lesion == "bottom_up" else torch.full_like(prior, torch.nan)

        return conditional

    def posterior(self, x: Tensor) -> dict[str, Tensor]:
        """Parameters of the sites that have any, ``{site: (N, P, K)}``, given the means of the latents above."""
        conditional, params = self.conditionals(x), {}

        def keep(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
            here = conditional(name, family, prior, above)
            if self.lesions.get(name) == "group":
                return self.distribution(family, here).mean
            params[name] = here
            return center(family.distribution(here))

        self.model.descend(keep, x)
        return params

    def distribution(self, family: Family, params: Tensor) -> Distribution:
        """As of every guide; of a silent group, whose parameters are NaN, the point at which the code is zero."""
        if not params.isnan().all():
            return super().distribution(family, params)
        law = family.distribution(torch.zeros_like(params))
        return dist.Delta(_without_code(family, params.new_zeros(law.batch_shape + law.event_shape)), event_dim=len(law.event_shape))


def _without_code(family: Family, zeros: Tensor) -> Tensor:
    """The latent whose code is zero: 0, or −∞ where the code is its exponential."""
    for value in (zeros, torch.full_like(zeros, -torch.inf)):
        if (family.code(value) == 0).all():
            return value
    raise ValueError(f"no latent of the family {type(family).__name__} has a code of zero, so it cannot be silenced")


def _check(guide: nn.Module, lesions: Mapping[str, str]) -> None:
    if not hasattr(guide, "conditionals") or not hasattr(guide.model, "observation"):
        raise ValueError(f"lesions are of guides that infer one latent given those above (conditionals), of a model of the zoo; "
                         f"{type(guide).__name__} is not one of them")
    sites = guide.model.latents
    for name, lesion in lesions.items():
        if name not in sites:
            raise ValueError(f"the model has no latent {name!r} to lesion; it has {', '.join(sites)}")
        if lesion not in LESIONS:
            raise ValueError(f"unknown lesion {lesion!r} of {name!r}; known are: {', '.join(LESIONS)}")
        if lesion == "top_down" and not isinstance(guide.model, Hierarchy):
            raise ValueError(f"nothing comes down to {name!r} in a model that is no hierarchy; lesions of it are: bottom_up, group")


def check_density(guide: object) -> None:
    """Raises ``ValueError`` for a guide with silent groups, whose draws have no density to be weighted by."""
    silent = [name for name, lesion in getattr(guide, "lesions", {}).items() if lesion == "group"]
    if silent:
        raise ValueError(f"the groups {', '.join(silent)} are silenced: draws of such a guide have no density to be weighted by")
