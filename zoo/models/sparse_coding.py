r"""Sparse coding: an image is a weighted sum of few atoms, :math:`z_k \sim \mathrm{Laplace}(0, b)`, :math:`x \sim N(\Phi z, \sigma^2)`.

With atoms (columns of :math:`\Phi`) of length 1 (Olshausen & Field 1996). The most probable code is
:math:`\arg\min_z \tfrac12 \|x - \Phi z\|^2 + \lambda \sum_k |z_k|` with the penalty :math:`\lambda = \sigma^2 / b`, which has exact zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.parametrize import register_parametrization

from zoo.latents.laplace import Laplace
from zoo.models.image_model import UNIT_SCALE
from zoo.models.one_layer import OneLayer
from zoo.networks.lin import LinearDecoder

__all__ = ["SparseCoding"]


class SparseCoding(OneLayer):
    """A :class:`~zoo.models.one_layer.OneLayer` with fixed Laplace latents and a linear decoder whose atoms keep length 1, however trained.

    Otherwise a point estimate could make the penalty vanish: by longer atoms and smaller codes.

    Arguments:
        event_shape: Shape of one image.
        latents: Number of atoms ``K``.
        penalty: The penalty λ, in the unit of ``x`` (codes have it, too); the prior's scale is b = σ² / λ.
        scale: Standard deviation σ of a pixel. The most probable code depends on λ alone, a whole posterior on σ, too.
        seed: Seed of the first atoms, directions drawn uniformly.

    Raises:
        ValueError: if the shape of the images is missing, or a setting is not positive.
    """

    def __init__(self, event_shape: tuple[int, ...] | None = None, latents: int = 512, *, penalty: float = 0.5, scale: float = UNIT_SCALE,
                 seed: int = 0) -> None:
        if event_shape is None:
            raise ValueError("the model 'sparse_coding' needs data (or an event shape) to know the size of its images")
        if latents < 1 or not penalty > 0 or not scale > 0:
            raise ValueError(f"latents must be at least 1, penalty and scale positive; got {latents}, {penalty} and {scale}")
        decoder = LinearDecoder(latents, tuple(event_shape))
        directions = torch.randn(decoder.weight.shape, generator=torch.Generator().manual_seed(seed))
        decoder.weight = nn.Parameter(directions)
        register_parametrization(decoder, "weight", UnitColumns())
        loc = torch.zeros(latents)
        prior = torch.stack([loc, torch.full_like(loc, scale**2 / penalty).log()])
        super().__init__(Laplace(), latents, decoder, tuple(event_shape), prior=prior, learn_prior=False, scale=scale)

    @property
    def penalty(self) -> Tensor:
        """λ = σ² / b, of shape ``()``."""
        return self.scale.square() / self.prior[1, 0].exp()


class UnitColumns(nn.Module):
    """Columns of length 1 from columns of any length."""

    def forward(self, weight: Tensor) -> Tensor:
        return normalize(weight, dim=0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return normalize(weight, dim=0)
