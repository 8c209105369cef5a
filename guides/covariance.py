r"""Amortized Normal posteriors with correlated latents: a full covariance, and a low-rank one.

In unconstrained coordinates, with location and scales from one encoder,

.. math:: u = \mathrm{loc}(x) + \mathrm{scale}(x) \cdot (F \varepsilon), \qquad \text{or} \qquad
          u = \mathrm{loc}(x) + \mathrm{scale}(x) \cdot (\varepsilon + W \eta),

with :math:`F` unit lower triangular and :math:`W` of few columns. The factor is a parameter that all images share plus, if ``per_image``,
what the encoder adds to it. Under a linear decoder and Normal noise the exact posterior covariance is the same for all images (Tipping &
Bishop 1999), so a shared factor can be exact there.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from guides.coordinates import Coordinates, JointGuide, sizes_of
from guides.correlated import CorrelatedNormal, times, unit_lower

__all__ = ["FullCovariance", "LowRank", "given_above"]

MOST_PER_IMAGE = 64  # coordinates up to which the triangular factor is each image's own: 2016 outputs; for 512 it would be 130,816
START = 0.1  # a low-rank factor has no slope at zero


class FullCovariance(JointGuide):
    """A Normal posterior with any covariance.

    Arguments:
        model: The model; all its latents real-valued.
        per_image: Whether the encoder adds to the shared triangular factor, M (M − 1) / 2 outputs for M coordinates; if None, up to
            64 of them. Without it correlations are the same for all images, locations and scales are not.
        encoder, bias, init_scale, seed: As of :class:`~guides.amortized.Amortized`.

    It starts without correlations, as close to the prior as :class:`~guides.amortized.Amortized` does.

    Raises:
        ValueError: if a latent is discrete.
    """

    def __init__(self, model: nn.Module, data: object = None, *, per_image: bool | None = None, encoder: str = "lin", bias: bool = True,
                 init_scale: float = 0.05, seed: int = 0) -> None:
        size = 0 if self.misfit(model) else sum(sizes_of(model).values())
        self_made = size <= MOST_PER_IMAGE if per_image is None else per_image
        entries = size * (size - 1) // 2
        super().__init__(model, extra=entries if self_made else 0, encoder=encoder, bias=bias, init_scale=init_scale, seed=seed)
        self.below = nn.Parameter(torch.zeros(entries))
        self.gain = nn.Parameter(torch.zeros(())) if self.extra else None  # of what the encoder adds: none at the start
        rows, columns = torch.tril_indices(size, size, -1)
        self.register_buffer("places", rows * size + columns, persistent=False)
        self.register_buffer("eye", torch.eye(size), persistent=False)

    def prepare(self, extra: Tensor) -> Tensor:
        below = self.below if self.gain is None else self.below + self.gain * extra
        flat = below.new_zeros(*below.shape[:-1], self.eye.numel())
        return flat.index_copy(-1, self.places, below).unflatten(-1, self.eye.shape) + self.eye

    def law(self, index: int, here: Coordinates, prepared: Tensor, above: Tensor) -> Distribution:
        return given_above(prepared, here, above)


class LowRank(JointGuide):
    """A Normal posterior with covariance ``diag(scale) (I + W Wᵀ) diag(scale)``.

    Arguments:
        model: The model; all its latents real-valued.
        rank: Columns of ``W``.
        per_image: Whether the encoder adds to the shared ``W``, M × rank outputs for M coordinates.
        encoder, bias, init_scale, seed: As of :class:`~guides.amortized.Amortized`.

    Raises:
        ValueError: if a latent is discrete, or ``rank`` is below 1.
    """

    def __init__(self, model: nn.Module, data: object = None, *, rank: int = 8, per_image: bool = True, encoder: str = "lin",
                 bias: bool = True, init_scale: float = 0.05, seed: int = 0) -> None:
        if rank < 1:
            raise ValueError(f"rank must be at least 1, not {rank}")
        size = 0 if self.misfit(model) else sum(sizes_of(model).values())
        super().__init__(model, extra=size * rank if per_image else 0, encoder=encoder, bias=bias, init_scale=init_scale, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        self.wide = nn.Parameter(START / rank**0.5 * torch.randn(size, rank, generator=generator))
        self.gain = nn.Parameter(torch.zeros(())) if self.extra else None

    def prepare(self, extra: Tensor) -> Tensor:
        return self.wide if self.gain is None else self.wide + self.gain * extra.unflatten(-1, self.wide.shape)

    def law(self, index: int, here: Coordinates, prepared: Tensor, above: Tensor) -> Distribution:
        first = above.shape[-1]
        wide, loc = prepared[..., first:first + here.loc.shape[-1], :], here.loc
        if first > 0:  # what the sites above tell of the common factors η: Normal, with precision I + WᵀW of their rows
            seen = prepared[..., :first, :]
            root = torch.linalg.cholesky(torch.eye(seen.shape[-1]).to(seen) + seen.mT @ seen)
            pull = times(torch.cholesky_inverse(root), times(seen.mT, above))
            loc = loc + here.scale * times(wide, pull)
            wide = torch.linalg.solve_triangular(root.mT, wide, upper=True, left=False)
        loc, scale = torch.broadcast_tensors(loc, here.scale)
        wide = scale.unsqueeze(-1) * wide
        return dist.LowRankMultivariateNormal(loc, wide, scale.square(), validate_args=False)


def given_above(factor: Tensor, here: Coordinates, above: Tensor) -> CorrelatedNormal:
    """Law of one site's ``u`` under the joint unit lower triangular ``factor`` ``(…, M, M)``, given the residuals of the sites above it.

    Its rows of ``F ε`` are known as far as ε is that of the sites above.
    """
    first, last = above.shape[-1], above.shape[-1] + here.loc.shape[-1]
    loc = here.loc
    if first > 0:
        noise = unit_lower(factor[..., :first, :first], above)
        loc = loc + here.scale * times(factor[..., first:last, :first], noise)
    return CorrelatedNormal(loc, here.scale, factor[..., first:last, first:last])
