"""What the author of a new prior runs: everything that models, guides and metrics rely on, at random parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from zoo import latents
from zoo.latents.base import Family
from zoo.testing.laws import covariance_of, kind_of, law_of, log_prob_at, one_by_one, units_stand_alone
from zoo.testing.relaxations import check_relaxed
from zoo.testing.tools import DRAWS, expect, near, worst

__all__ = ["check_family"]

SPREAD = 0.6  # standard deviation of the random parameters: scales, rates and odds within about a factor of 4


@dataclass(frozen=True)
class Case:
    """A family at random parameters ``q`` and ``p`` of shape ``(B, P, K)``, float64."""

    family: Family
    units: int
    q: Tensor
    p: Tensor


def check_family(family: str | Family | type[Family], *, units: int = 6, seed: int = 0, device: str = "cpu") -> None:
    """Checks that a latent family keeps its promises, at random parameters near 0.

    Shapes, dtype and device; a density that sums or integrates to one; samples that follow it; moments; KL divergences; the
    way back from distributions to parameters; the posterior at ``delta = 0``; gradients; the relaxed twin. Truth is by
    enumeration or quadrature of single units and of one-hot vectors; other joint distributions are compared with samples of
    their own. Samples are held to 5 standard errors of 20,000 draws. The global random generator is left as it was found.

    Arguments:
        family: The family, its class (built without arguments), or its registered name.
        units: Number of latents ``K`` that it is checked with; for one-hot vectors, keep the number of states small.
        seed: Seed of parameters and samples.
        device: Where shapes, dtypes and devices are checked as well as on the CPU.

    Raises:
        AssertionError: with one sentence about the first promise that is broken.
        ValueError: for an unknown name.
    """
    family = latents.registry[family] if isinstance(family, str) else family
    family = family() if isinstance(family, type) else family
    with torch.random.fork_rng(), pyro.validation_enabled(True):
        torch.manual_seed(seed)
        q, p = SPREAD * torch.randn(2, 3, len(family.parameters), units, dtype=torch.float64)
        case = Case(family, units, q, p)
        try:
            for check in CHECKS:
                check(case)
            if device != "cpu":
                _check_shapes(case, device)
        except AssertionError as error:
            raise AssertionError(f"{type(family).__name__}: {error}") from error


def _check_prior(case: Case) -> None:
    family, shape = case.family, (len(case.family.parameters), case.units)
    prior = family.initial_prior(case.units)
    expect(tuple(prior.shape) == shape and prior.isfinite().all(),
           f"initial_prior({case.units}) must be finite with shape {shape}, (parameters, units), not {tuple(prior.shape)}")
    start, end = family.anneal
    expect(start >= end > 0, f"anneal must be (start, end) with start ≥ end > 0, not {family.anneal}")
    for point in (prior, case.p):
        expect(torch.equal(family.posterior(point, torch.zeros_like(point)), point),
               "posterior(prior, 0) must be the prior itself, number for number: no evidence changes nothing")
    delta = case.q.expand(2, *case.q.shape)
    expect(family.posterior(prior.double(), delta).shape == delta.shape,
           "posterior(prior, delta) must broadcast a prior (P, K) against delta (…, P, K)")


def _check_shapes(case: Case, device: str = "cpu") -> None:
    family, units = case.family, case.units
    for dtype in (torch.float32, torch.float64):
        weight = torch.randn(5, units, dtype=dtype, device=device)
        for lead in ((), (4,), (2, 3)):
            q = (SPREAD * torch.randn(*lead, len(family.parameters), units)).to(device, dtype)
            exact = family.distribution(q)
            for kind, law in (("distribution", exact), ("relaxed", family.relaxed(q, 0.5))):
                expect(tuple(law.batch_shape) == lead and law.event_shape == exact.event_shape and len(law.event_shape) > 0,
                       f"{kind}(params) for parameters {tuple(q.shape)} must have batch shape {lead} and the units in the event "
                       f"shape (use to_event(1)), not {tuple(law.batch_shape)} and {tuple(law.event_shape)}")
                wider = law.expand((7, *lead))
                expect(wider.sample().shape == (7, *lead, *law.event_shape), f"samples of {kind}(params) do not follow expand()")
                expect(law.sample((5,)).shape == (5, *lead, *law.event_shape), f"samples of {kind}(params) have a wrong shape")
            z = exact.sample()
            results = {"sample": (z, (*lead, *exact.event_shape)), "log_prob": (exact.log_prob(z), lead),
                       "code": (family.code(z), (*lead, units)), "moments (mean)": (family.moments(q)[0], (*lead, units)),
                       "moments (variance)": (family.moments(q)[1], (*lead, units)),
                       "decoded_variance": (family.decoded_variance(q, weight), lead)}
            unit_kl = family.unit_kl(q, q)
            if unit_kl is not None:
                last = unit_kl.shape[-1] if unit_kl.dim() else 0
                results["unit_kl"] = (unit_kl, (*lead, units if last != 1 else 1))
            for name, (value, shape) in results.items():
                expect(tuple(value.shape) == shape, f"{name} for parameters {tuple(q.shape)} must have shape {shape}, "
                                                    f"not {tuple(value.shape)}")
                expect(value.dtype == dtype and value.device == q.device,
                       f"{name} must follow the parameters' {dtype} on {q.device}, not be {value.dtype} on {value.device}")


def _check_density(case: Case) -> None:
    single = kind_of(case.family.distribution(case.q)) != "one_hot"
    law = law_of(case.family, one_by_one(case.q) if single else case.q)
    total = law.mass.sum(0)
    what = "the density of a unit integrates" if law.kind == "real" else "the probabilities of a latent sum"
    expect(near(total, torch.ones_like(total)), f"{what} to {worst(total, torch.ones_like(total)):.4g}, not to 1")
    if units_stand_alone(case.family, case.q):
        z = case.family.distribution(case.q).sample((3,))
        units = case.family.distribution(one_by_one(case.q)).log_prob(z.flatten(-2).unsqueeze(-1)).unflatten(-1, z.shape[-2:])
        expect(near(case.family.distribution(case.q).log_prob(z), units.sum(-1)), "log_prob of K units is not the sum of theirs")


def _check_samples(case: Case) -> None:
    family = case.family
    exact = family.distribution(case.q)
    z = exact.sample((DRAWS,))
    expect(bool(exact.support.check(z).all()), "samples of distribution(params) lie outside its support")
    expect(bool(exact.log_prob(z).isfinite().all()), "log_prob of exact samples must be finite")
    if kind_of(exact) != "one_hot" and units_stand_alone(family, case.q):
        law = law_of(family, one_by_one(case.q))
        points = law.points.flatten().expand(law.mass.shape[1], -1).contiguous()
        below = torch.searchsorted(z.double().flatten(1).mT.contiguous().sort(-1).values, points, right=True) / DRAWS
        apart = (below - law.mass.cumsum(0).mT).abs().max().item()
        expect(apart < 2.5 / DRAWS**0.5, f"samples do not follow log_prob: their distribution functions are {apart:.3g} apart")
    code = family.code(z)
    mean, variance = family.moments(case.q)
    error = (code.mean(0) - mean).abs() / (variance / DRAWS).sqrt().clamp(min=1e-9)
    expect(error.max() < 5, f"the mean of the samples' code is {error.max():.1f} standard errors from moments(params)")


def _check_moments(case: Case) -> None:
    family, weight = case.family, torch.randn(5, case.units, dtype=torch.float64)
    mean, variance = family.moments(case.q)
    decoded = family.decoded_variance(case.q, weight)
    truth = covariance_of(family, case.q)
    if truth is None:
        code = family.code(family.distribution(case.q).sample((DRAWS,)))
        squares = (code - mean).square()
        spread = ((code - mean) @ weight.mT).square().sum(-1)
        for name, draws, value in (("the variance in moments(params)", squares, variance), ("decoded_variance", spread, decoded)):
            error = ((draws.mean(0) - value).abs() / (draws.std(0) / DRAWS**0.5)).max()
            expect(error < 5, f"{name} is {error:.1f} standard errors from that of samples")
        return
    expect(near(mean, truth[0]), f"the mean in moments(params) is {worst(mean, truth[0]):.4g} off that of the density")
    exact = truth[1].diagonal(dim1=-2, dim2=-1)
    expect(near(variance, exact), f"the variance in moments(params) is {worst(variance, exact):.4g} off that of the density")
    exact = torch.einsum("dk,bkj,dj->b", weight, truth[1], weight)
    expect(near(decoded, exact), f"decoded_variance is {worst(decoded, exact):.4g} off tr(Φ Cov Φᵀ) of the density; units that "
                                 "depend on one another need their covariances")


def _check_read(case: Case) -> None:
    exact = case.family.distribution(case.q)
    try:
        params = case.family.read(exact)
    except NotImplementedError:
        return
    expect(params.shape == case.q.shape, f"read() must return parameters {tuple(case.q.shape)}, not {tuple(params.shape)}")
    z = exact.sample((10,))
    expect(near(case.family.distribution(params).log_prob(z), exact.log_prob(z)),
           "distribution(read(d)) is another distribution than d")


def _check_kl(case: Case) -> None:
    family, q, p = case.family, case.q, case.p
    unit_kl = family.unit_kl(q, p)
    if unit_kl is None:
        return
    expect(bool((unit_kl > -1e-9).all()), f"a unit's KL divergence is negative: {unit_kl.min():.4g} nats")
    expect(bool((family.unit_kl(p, p).abs() < 1e-9).all()), "the KL divergence of a distribution from itself must be 0")
    total = unit_kl.sum(-1)
    single = units_stand_alone(family, q)
    if single or kind_of(family.distribution(q)) == "one_hot":
        split = one_by_one if single else torch.Tensor.clone
        law = law_of(family, split(q))
        log_ratio = log_prob_at(family, split(q), law.points) - log_prob_at(family, split(p), law.points)
        exact = law.expect(log_ratio)
        if single and unit_kl.shape[-1] == case.units:
            per_unit = exact.reshape(len(q), -1)
            expect(near(unit_kl, per_unit), f"unit_kl is {worst(unit_kl, per_unit):.4g} nats off Σ q log(q/p) of the densities")
        exact = exact.reshape(len(q), -1).sum(-1)
        expect(near(total, exact), f"unit_kl sums to {worst(total, exact):.4g} nats off Σ q log(q/p) of the densities")
    else:
        z = family.distribution(q).sample((DRAWS,))
        log_ratio = family.distribution(q).log_prob(z) - family.distribution(p).log_prob(z)
        error = ((log_ratio.mean(0) - total).abs() / (log_ratio.std(0) / DRAWS**0.5)).max()
        expect(error < 5, f"unit_kl sums to {error:.1f} standard errors off the mean of log q − log p over samples")
    try:
        registered = kl_divergence(family.distribution(q), family.distribution(p))
    except NotImplementedError:
        return
    expect(near(registered, total), f"unit_kl sums to {worst(total, registered):.4g} nats off the KL registered with torch")


def _check_twin(case: Case) -> None:
    check_relaxed(case.family, case.q, case.p)


CHECKS: tuple[Callable[[Case], None], ...] = (
    _check_prior, _check_shapes, _check_density, _check_samples, _check_moments, _check_read, _check_kl, _check_twin)
