"""A model whose highest latent is given: the input of a supervised network, or a label that an image is generated from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from zoo.latents.base import Family
from zoo.models.image_model import Draw, ImageModel

__all__ = ["Clamped"]


class Clamped(nn.Module):
    """The program p(x, z | top) of a model's other latents, for images of which the value of the highest latent is known.

    Its weights are the model's. Images are the ones whose values these are, in their order: other than of other models, a batch cannot be
    taken apart.

    Arguments:
        model: A model of the zoo with at least two latents.
        top: ``{site: (N, *event)}``: values of the model's first latent site, and of no other: the density of a site further down would
            be left out.

    Raises:
        ValueError: for another site, a model with no other latent, or values of another shape or not finite.
    """

    linear = False

    def __init__(self, model: ImageModel, top: dict[str, Tensor]) -> None:
        super().__init__()
        sites = list(model.latents)
        if list(top) != sites[:1] or len(sites) < 2:
            raise ValueError(f"what can be clamped is the highest latent {sites[0]!r}, of a model with others below it; the model has "
                             f"{', '.join(sites)}; given was {', '.join(top) or 'nothing'}")
        family, units = model.latents[sites[0]]
        shape = tuple(family.distribution(family.initial_prior(units)).event_shape)
        if tuple(top[sites[0]].shape[1:]) != shape or not torch.isfinite(top[sites[0]]).all():
            raise ValueError(f"values of {sites[0]!r} must be finite, of shape (N, {', '.join(map(str, shape))}), not "
                             f"{tuple(top[sites[0]].shape)}")
        self.model, self.site, self.event_shape = model, sites[0], model.event_shape
        self.register_buffer("top", top[self.site])

    @property
    def latents(self) -> dict[str, tuple[Family, int]]:
        """Those of the model that are not given."""
        return {name: told for name, told in self.model.latents.items() if name != self.site}

    @property
    def floors(self) -> dict[str, float]:
        """As of the model."""
        return getattr(self.model, "floors", {})

    def descend(self, draw: Draw, x: Tensor | None = None) -> dict[str, Tensor]:
        """The model's walk below its highest latent."""

        def answer(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
            return self.top if name == self.site else draw(name, family, prior, above)

        values = dict(self.model.descend(answer, x))
        del values[self.site]
        return values

    def sample_latents(self) -> dict[str, Tensor]:
        """Draws the other latents from their priors; one sample site for each."""
        values = dict(self.model.sample_latents({self.site: self.top}))
        del values[self.site]
        return values

    def decode(self, latents: dict[str, Tensor]) -> Tensor:
        """As of the model."""
        return self.model.decode({self.site: self.top} | latents)

    def observation(self, decoded: Tensor) -> Distribution:
        """As of the model."""
        return self.model.observation(decoded)

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """The program, for as many images as there are values of the highest latent."""
        if size is not None and size != len(self.top):
            raise ValueError(f"the highest latent is given for {len(self.top)} images, not for {size}")
        return ImageModel.forward(self, x, size)

    @torch.no_grad()
    def predict(self) -> Tensor:
        """What the network predicts of the image from the top alone, every latent at its prediction: the forward pass of a supervised
        network, ``(N, *event_shape)``, as a mean."""
        values = self.descend(lambda name, family, prior, above=None: family.distribution(prior).mean)
        return self.observation(self.decode(values)).mean
