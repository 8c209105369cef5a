r"""A model behind a flow: latents explain the whitened image y, and the flow carries y to what is seen, x (Marino 2022).

:math:`\log p(x \mid z) = \log p(y \mid z) + \log|\det dy/dx|` with y = flow⁻¹(x). The determinant is the same for all latents, so that the
posterior is the inner model's, p(z | x) = p(z | y), and bounds on log p(x) are those on log p(y) plus the determinant.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from zoo.flows import build as build_flow
from zoo.flows.base import Flow
from zoo.flows.law import Carried
from zoo.latents.base import Family
from zoo.models.image_model import Draw, ImageModel

__all__ = ["Transformed", "transformed"]


class Transformed(nn.Module):
    """A Pyro program with the latent sites of ``model`` and the observation site ``"x"``, inside the plate ``"data"``.

    Arguments:
        model: A model of the zoo, of whitened images y; its likelihood must be a density.
        flow: From y to x, of the same event shape; learned along with the model.

    Raises:
        ValueError: if the shapes differ, or for a likelihood of zeros and ones or of labels, which no flow can carry.
    """

    linear = False  # code that reads a linear decoder's weights takes them for images, which they are not

    def __init__(self, model: nn.Module, flow: Flow) -> None:
        super().__init__()
        if tuple(model.event_shape) != flow.event_shape:
            raise ValueError(f"a flow over {flow.event_shape} does not fit a model of images {tuple(model.event_shape)}")
        if model.observation(torch.zeros(flow.event_shape)).support.is_discrete:
            raise ValueError(f"a flow carries densities: the likelihood {model.likelihood!r} has none")
        self.model, self.flow = model, flow

    forward = ImageModel.forward

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self.flow.event_shape

    @property
    def latents(self) -> dict[str, tuple[Family, int]]:
        """The inner model's, ``{site: (family, number of units)}``."""
        return self.model.latents

    @property
    def likelihood(self) -> str:
        """The inner model's, of y."""
        return self.model.likelihood

    @property
    def scale(self) -> Tensor:
        """The inner model's, of a pixel of y."""
        return self.model.scale

    @property
    def expected_log_prob(self) -> Callable[[Tensor, dict[str, Tensor]], Tensor]:
        """The inner model's closed form (of models that have one) plus the determinant, ``(x, params) -> (N,)``."""
        inner = self.model.expected_log_prob

        def carried(x: Tensor, params: dict[str, Tensor]) -> Tensor:
            y, log_det = self.flow.whiten(x)
            return inner(y, params) + log_det

        return carried

    def normalize(self, x: Tensor) -> Tensor:
        """y, which encoders are given in the place of the image, ``(…, *event_shape)``."""
        return self.flow.whiten(x)[0]

    def sample_latents(self, given: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """As of the inner model."""
        return self.model.sample_latents(given)

    def descend(self, draw: Draw, x: Tensor | None = None) -> dict[str, Tensor]:
        """The inner model's walk."""
        return self.model.descend(draw, x)

    def decode(self, latents: dict[str, Tensor]) -> Tensor:
        """The inner model's, in y: what :meth:`observation` takes."""
        return self.model.decode(latents)

    def observation(self, decoded: Tensor) -> Distribution:
        """The law of x; its ``mean`` is the point that the mean of y is carried to, which is the mean of x under an affine flow."""
        return Carried(self.model.observation(decoded), self.flow)


def transformed(event_shape: tuple[int, ...] | None = None, inner: str = "gaussian", flow: str = "zca", latents: int = 64,
                decoder: str = "lin", scale: float = 1.0, learn_scale: bool | str = True, past: int = 1, seed: int = 0) -> Transformed:
    """A one-layer model behind a flow, which starts as the identity: give it its closed form by ``model.flow.fit(data.train.x)``.

    Arguments:
        event_shape: Shape of one image or one sequence.
        inner: Latent family of the one-layer model.
        flow: A name, or several joined, as :func:`zoo.flows.build` takes them: ``"zca"``, ``"ar+zca"``, ….
        latents, decoder, scale, learn_scale: Of the one-layer model; the scale is that of y, whose pixels have variance 1 once the flow is
            fitted.
        past: Frames that temporal flows predict from.
        seed: Seed of the one-layer model's weights.

    Raises:
        ValueError: without an event shape, or for names and options that the family or the flows do not have.
    """
    from zoo.construct import build

    if event_shape is None:
        raise ValueError("the model 'transformed' needs data (or an event shape) to know the size of its images")
    model = build(inner, tuple(event_shape), latents=latents, decoder=decoder, scale=scale, learn_scale=learn_scale, seed=seed)
    temporal = {"past": past} if {part.strip() for part in flow.split("+")} & {"ar", "var", "conv"} else {}
    return Transformed(model, build_flow(flow, event_shape, **temporal))
