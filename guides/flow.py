r"""Normalizing flows as amortized posteriors (Rezende & Mohamed 2015), with the transforms of zuko.

Each site's residual is noise carried through monotonic maps, :math:`t_i = f(\varepsilon_i; h(\varepsilon_{<i}, x, t_\mathrm{above}))`,
whose parameters come from masked networks (Germain et al. 2015). The masks run over the noise, so that a draw with its density takes one
pass of each network; the density of values from elsewhere takes as many as there are coordinates (two, for couplings).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform, constraints
from torch.distributions.transforms import AffineTransform

from guides.coordinates import Coordinates, JointGuide

__all__ = ["Flow"]

TRANSFORMS = {
    "iaf": "affine maps, each coordinate given all noise before it: inverse autoregressive flow (Kingma et al. 2016)",
    "nsf": "the same with rational-quadratic splines under the affine maps: neural spline flow (Durkan et al. 2019)",
    "affine": "affine maps of one half of the coordinates given the other: affine couplings (Dinh et al. 2017)",
}


class Flow(JointGuide):
    """A normalizing-flow posterior.

    Arguments:
        model: The model; all its latents real-valued.
        transform: ``"iaf"``, ``"nsf"`` or ``"affine"`` (:data:`TRANSFORMS`).
        transforms: How many of them, one after the other; the order of the coordinates is reversed between them.
        hidden: Sizes of the hidden layers of each network, by default two of twice a site's coordinates, at least 64; ``[]`` makes the
            maps' parameters linear in noise and context. An autoregressive network needs as many units as coordinates in a layer: with
            fewer, masks would hide the noise of the last ones.
        context: Numbers that the encoder tells the networks of an image, besides location and log-scale.
        bins: Bins of a spline, which is the identity outside of ±5.
        encoder, bias, init_scale, seed: As of :class:`~guides.amortized.Amortized`.

    It starts with identity maps, as close to the prior as :class:`~guides.amortized.Amortized` does.

    Raises:
        ValueError: if a latent is discrete, or a setting is not one of those above.
    """

    def __init__(self, model: nn.Module, data: object = None, *, transform: str = "iaf", transforms: int = 2,
                 hidden: Sequence[int] | None = None, context: int = 16, bins: int = 8, encoder: str = "lin", bias: bool = True,
                 init_scale: float = 0.05, seed: int = 0) -> None:
        if transform not in TRANSFORMS:
            raise ValueError(f"unknown transform {transform!r}; known are: {', '.join(TRANSFORMS)}")
        if transforms < 1 or context < 1 or bins < 2:
            raise ValueError(f"transforms and context must be at least 1, and bins at least 2; not {transforms}, {context} and {bins}")
        super().__init__(model, extra=context, encoder=encoder, bias=bias, init_scale=init_scale, seed=seed)
        univariate, shapes = _univariate(transform, bins)
        passes = 2 if transform == "affine" else None
        masked = _zuko().flows.autoregressive.MaskedAutoregressiveTransform
        self.flows = nn.ModuleList()
        above = 0
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for size in self.sizes.values():
                layers = _layers(hidden, size, min(size, passes or size))
                orders = (torch.arange(size), torch.arange(size).flip(0))
                self.flows.append(nn.ModuleList(
                    masked(size, context + above, passes=passes, order=orders[step % 2], univariate=univariate, shapes=shapes,
                           hidden_features=layers, activation=nn.SiLU) for step in range(transforms)))
                above += size
        for stack in self.flows:
            for layer in stack:
                last = [part for part in layer.hyper.modules() if hasattr(part, "weight")][-1]
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def law(self, index: int, here: Coordinates, prepared: Tensor, above: Tensor) -> Distribution:
        told = torch.cat([prepared.expand(*above.shape[:-1], -1), above], dim=-1)
        maps = [_Remembering(layer(told)) for layer in self.flows[index]]
        outer = AffineTransform(here.loc, here.scale, event_dim=1, cache_size=1)
        return dist.TransformedDistribution(here.noise.expand(above.shape[:-1]), [*maps, outer])


class _Remembering(Transform):
    """A map of zuko's that keeps the last point it mapped, with the log-determinant that came with it."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, inner: Transform) -> None:
        super().__init__(cache_size=1)
        self.inner = inner
        self._point: Tensor | None = None
        self._log_det: Tensor | None = None

    def _call(self, x: Tensor) -> Tensor:
        y, self._log_det = self.inner.call_and_ladj(x)
        self._point = x
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inner.inv(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self._log_det if x is self._point else self.inner.call_and_ladj(x)[1]

    def with_cache(self, cache_size: int = 1) -> _Remembering:
        return self


def _layers(hidden: Sequence[int] | None, size: int, least: int) -> list[int]:
    layers = 2 * [max(64, 2 * size)] if hidden is None else list(hidden)
    if any(width < least for width in layers):
        raise ValueError(f"hidden layers of this flow need at least {least} units each, not {layers}")
    return layers


def _univariate(transform: str, bins: int) -> tuple[Callable[..., Transform], list[tuple[int, ...]]]:
    """From parameters of these shapes to the monotonic map of one coordinate; the identity at zeros."""
    maps = _zuko().transforms
    if transform != "nsf":
        return maps.MonotonicAffineTransform, [(), ()]

    def spline(widths: Tensor, heights: Tensor, derivatives: Tensor, shift: Tensor, scale: Tensor) -> Transform:
        return maps.ComposedTransform(maps.MonotonicRQSTransform(widths, heights, derivatives), maps.MonotonicAffineTransform(shift, scale))

    return spline, [(bins,), (bins,), (bins - 1,), (), ()]


def _zuko() -> ModuleType:
    """zuko, whose import turns the validation of torch's distributions off for everybody: it is as before afterwards."""
    before = Distribution._validate_args
    try:
        import zuko
    finally:
        Distribution.set_default_validate_args(before)
    return zuko
