"""Checks of how gradients pass through a family's samples: its relaxed twin, or the score function."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from zoo.latents.base import Family
from zoo.testing.laws import covariance_of, kind_of
from zoo.testing.tools import DRAWS, expect, near, worst

__all__ = ["check_relaxed"]

COLD = 0.01  # a temperature at which a twin must have the exact moments
BIAS = 0.02  # … up to this fraction, above 5 standard errors


def check_relaxed(family: Family, q: Tensor, p: Tensor) -> None:
    """Checks :meth:`Family.relaxed` at parameters ``(B, P, K)`` of a posterior and a prior.

    Raises:
        AssertionError: with one sentence about the first promise that is broken.
    """
    exact, twin = family.distribution(q), family.relaxed(q, COLD)
    _check_gradient(family, q)
    if _law(twin) is _law(exact):
        return
    name, prior = _law(twin).__name__, family.distribution(p)
    if kind_of(exact) != "real" or family.unit_kl(q, p) is not None:
        try:
            divergence = kl_divergence(twin, prior)
        except NotImplementedError:
            raise AssertionError(
                f"the relaxed {name} has no KL divergence from the exact {_law(prior).__name__}, so an ELBO would score relaxed "
                "values under exact densities: register a closed form with torch.distributions.kl.register_kl, or return the exact "
                "distribution from relaxed() to train with the score-function estimator") from None
        unit_kl = family.unit_kl(q, p)
        if unit_kl is not None:
            total = unit_kl.sum(-1)
            expect(near(divergence, total), f"the KL divergence of the relaxed {name} is {worst(divergence, total):.4g} nats off "
                                            "that of the exact distribution")
    _check_limit(family, q, twin, name)


def _check_gradient(family: Family, q: Tensor) -> None:
    free = q.clone().requires_grad_()
    twin = family.relaxed(free, 0.5)
    with torch.enable_grad():
        if twin.has_rsample:
            code = family.code(twin.rsample((500,)))
            value = (code * torch.randn(code.shape[1:], dtype=code.dtype)).sum()
            source = "relaxed samples"
        else:
            value = twin.log_prob(twin.sample((500,))).sum()
            source = "log_prob (the score function)"
        gradient, = torch.autograd.grad(value, free, allow_unused=True) if value.requires_grad else (None,)
    if gradient is None:
        raise AssertionError(f"no gradient passes through {source} to the parameters")
    names = [name for index, name in enumerate(family.parameters) if not (gradient[:, index] != 0).any(0).all()]
    expect(gradient.isfinite().all(), f"the gradient through {source} is not finite")
    expect(not names, f"the gradient through {source} does not reach every unit's {', '.join(names)}")


def _check_limit(family: Family, q: Tensor, twin: Distribution, name: str) -> None:
    truth = covariance_of(family, q)
    mean, variance = family.moments(q) if truth is None else (truth[0], truth[1].diagonal(dim1=-2, dim2=-1))
    code = family.code(twin.sample((DRAWS,))).double()
    squares = (code - mean).square()
    for what, draws, exact in (("mean", code, mean), ("variance", squares, variance)):
        error = (draws.mean(0) - exact).abs()
        allowed = 5 * draws.std(0) / DRAWS**0.5 + BIAS * (exact.abs() + variance)
        expect((error <= allowed).all(), f"the relaxed {name} does not become the exact distribution as its temperature falls: at "
                                         f"{COLD} its {what} is still off by {error.max():.3g}")


def _law(distribution: Distribution) -> type:
    return type(distribution.base_dist if isinstance(distribution, Independent) else distribution)
