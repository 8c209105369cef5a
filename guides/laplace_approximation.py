r"""Laplace's approximation of each image's posterior: a Normal at the mode, with the inverse curvature as covariance.

In unconstrained coordinates ``u`` (MacKay 2003, ch. 27): with :math:`f(u) = \log p(x, T(u)) + \log|\partial T / \partial u|`, its summit
:math:`\hat u` and :math:`H = -\nabla^2 f(\hat u)`,

.. math:: q(u) = N(\hat u, H^{-1}), \qquad \log p(x) \approx f(\hat u) + \tfrac{M}{2} \log 2\pi - \tfrac12 \log\det H,

exact where the posterior is Normal.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from guides.coordinates import Coordinates, RealGuide, coordinates, walk
from guides.covariance import given_above
from guides.curvature import summits
from guides.point import start_values
from zoo.data.base import images_of
from zoo.latents.base import Family

__all__ = ["LaplaceApproximation"]


class LaplaceApproximation(RealGuide):
    """A Normal posterior around each image's mode, for a fixed batch of images.

    Arguments:
        model: The model; all its latents real-valued.
        data: The images ``(N, *event_shape)``.
        values: Where the ascent starts, ``{site: (N, *event)}``, best near a mode already; near the prior's mean if None, and for images
            whose density of ``u`` is higher there (a mode over ``z`` may lie on the border of its support, where ``u`` is infinite).
        newton: Largest number of Newton steps of the ascent.
        floor: Smallest curvature that counts, in units of the prior's scale.

    A direction (eigenvector of H, coordinates in the prior's scales) whose curvature is not above ``floor`` tells no width: a saddle, a
    plateau, no information under a prior with a kink. Along it the posterior gets the scale of the prior (for a site that is no family's,
    a standard Normal's), in the covariance and the evidence alike; :attr:`replaced` counts such directions.

    Attributes:
        loc: Modes ``(N, M)``, the sites side by side, top-down.
        scale_tril: Cholesky factors ``(N, M, M)`` of the covariances.
        log_evidence: Estimates of log p(x) in nats, ``(N,)``.
        promise: What the last Newton step that was looked at promised to gain, nats, ``(N,)``: about 0 at a smooth mode.
        replaced: Directions without curvature, ``(N,)``.

    Raises:
        ValueError: if a latent is discrete, no images are given, a setting is out of range, or the log density or a derivative of it is
            not finite; on call, if a batch of another size comes.
    """

    per_image = True

    def __init__(self, model: nn.Module, data: object = None, *, values: dict[str, Tensor] | None = None, newton: int = 20,
                 floor: float = 1e-3) -> None:
        super().__init__(model)
        if data is None:
            raise ValueError("Laplace's approximation is made for each image: give the images as data")
        if newton < 0 or not 0.0 < floor < 1.0:
            raise ValueError(f"newton must be at least 0 and floor between 0 and 1, not {newton} and {floor}")
        x = images_of(data)
        starts = [start_values(model, x)] if values is None else [values, start_values(model, x)]
        found = summits(model, x, starts, newton=newton, floor=floor)
        diagonal = found.scale_tril.diagonal(dim1=-2, dim2=-1)
        self.register_buffer("loc", found.loc)
        self.register_buffer("scale_tril", found.scale_tril)
        self.register_buffer("promise", found.promise)
        self.register_buffer("replaced", found.replaced)
        self.register_buffer("log_evidence", found.log_density + (0.5 * math.log(2.0 * math.pi) + diagonal.log()).sum(-1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Draws every latent; one sample site for each, in the model's own order."""
        if len(x) != len(self.loc):
            raise ValueError(f"this Laplace approximation was made for {len(self.loc)} images, not for {len(x)}; build one for these")
        scale = self.scale_tril.diagonal(dim1=-2, dim2=-1)
        factor = self.scale_tril / scale.unsqueeze(-1)
        names = list(self.sizes)
        locs, scales = (dict(zip(names, part.split(list(self.sizes.values()), dim=-1), strict=True)) for part in (self.loc, scale))

        def place(name: str, family: Family, prior: Tensor) -> Coordinates:
            return replace(coordinates(family, prior, torch.zeros_like(locs[name]).unsqueeze(-2).repeat(1, 2, 1)),
                           loc=locs[name], scale=scales[name])

        def law(index: int, here: Coordinates, above: Tensor) -> Distribution:
            return given_above(factor, here, above)

        return walk(self.model, x, place, law)
