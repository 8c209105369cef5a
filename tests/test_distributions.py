"""Laws over the diamond, the shell of velocities and fields of vectors: against quadrature, known marginals, autograd and SciPy."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch.distributions import biject_to, transform_to

from zoo.distributions import EndpointError, Isotropic, UniformDiamond

LEAST_P = 1e-3  # of a test that holds; seeds are fixed
N = 20_000
LOW, HIGH = 0.01, 1.0
SHELLS = [(LOW, HIGH), (0.0, 2.0), (0.5, 0.7)]
TYPES = [torch.float32, torch.float64]


def like(dtype=torch.float64):
    return torch.zeros((), dtype=dtype)


def law(name, dtype=torch.float64, **options):
    """One of the laws under test, at settings where nothing is 0 or 1 by accident."""
    if name == "diamond":
        return UniformDiamond(like(dtype), **options)
    if name == "isotropic":
        return Isotropic(LOW, HIGH, like(dtype), **options)
    mean = torch.arange(12, dtype=dtype).reshape(2, 2, 3) / 7.0
    return EndpointError(mean, torch.tensor(0.3, dtype=dtype), **options)


LAWS = ["diamond", "isotropic", "endpoint"]


def draws(distribution, *shape, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return distribution.sample(shape)


def assert_law(values, cdf):
    assert stats.kstest(np.asarray(values), cdf).pvalue > LEAST_P


def assert_independent(*columns):
    """No pair of columns is related monotonically, nor are the distances from their medians, by ranks."""
    ranks = np.stack([stats.rankdata(column) / len(column) - 0.5 for column in columns])
    correlation = np.corrcoef(np.concatenate([ranks, np.abs(ranks)]))
    itself = np.tile(np.eye(len(columns), dtype=bool), (2, 2))
    assert np.abs(correlation[~itself]).max() < 4.5 / np.sqrt(len(columns[0]))


def directions(n, size=3):
    """Unit vectors (n, size), double precision."""
    x = torch.randn(n, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


# Densities


def test_the_diamonds_density_integrates_to_one():
    inside = [[0.0, 0.0], [0.5, 0.4999], [-0.999, 0.0], [0.3, -0.6]]
    expected = torch.full((4,), -math.log(2.0), dtype=torch.float64)  # the diamond's diagonals are 2 long, so its area is 2
    torch.testing.assert_close(law("diamond").log_prob(torch.tensor(inside, dtype=torch.float64)), expected, atol=1e-15, rtol=1e-15)
    side = (torch.arange(500, dtype=torch.float64) + 0.5) / 250.0 - 1.0
    cells = torch.cartesian_prod(side, side)
    total = law("diamond", validate_args=False).log_prob(cells).exp().sum() / 250.0**2
    assert abs(total - 1.0) < 0.005  # half the cells that the rim crosses


@pytest.mark.parametrize(("low", "high"), SHELLS)
def test_the_isotropic_density_integrates_to_one_and_has_no_direction(low, high):
    nodes, weights = np.polynomial.legendre.leggauss(20)
    lengths = torch.tensor(low + (high - low) * (nodes + 1.0) / 2.0)
    density = Isotropic(low, high, like()).log_prob(directions(50)[:, None] * lengths[:, None]).exp()
    torch.testing.assert_close(density, density[:1].expand_as(density), rtol=1e-10, atol=0.0)
    shells = 4.0 * math.pi * lengths.square() * density[0] * torch.tensor(weights) * (high - low) / 2.0
    torch.testing.assert_close(shells.sum(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-12, atol=0.0)


def test_the_endpoint_density_integrates_to_one_and_multiplies_over_pixels():
    mean, scale = torch.tensor([0.3, -0.2], dtype=torch.float64).reshape(2, 1, 1), torch.tensor(0.15, dtype=torch.float64)
    pixel = EndpointError(mean, scale)
    nodes, weights = np.polynomial.laguerre.laggauss(30)
    angle = torch.arange(12, dtype=torch.float64) * math.pi / 6.0
    length = scale * torch.tensor(nodes)
    points = mean.flatten() + length[:, None, None] * torch.stack([angle.cos(), angle.sin()], -1)
    density = pixel.log_prob(points[..., None, None]).exp() * torch.tensor(np.exp(nodes))[:, None]
    total = (density * length[:, None] * torch.tensor(weights)[:, None]).sum() * scale * math.pi / 6.0
    torch.testing.assert_close(total, torch.tensor(1.0, dtype=torch.float64), rtol=1e-10, atol=0.0)

    field = law("endpoint")
    value = draws(field, 3)
    one_by_one = [EndpointError(field.loc[:, i:i + 1, j:j + 1], field.scale).log_prob(value[..., i:i + 1, j:j + 1])
                  for i in range(2) for j in range(3)]
    torch.testing.assert_close(field.log_prob(value), torch.stack(one_by_one).sum(0))


@pytest.mark.parametrize(("name", "outside"), [
    ("diamond", [[0.5, 0.5], [1.0, 0.0], [0.7, -0.4], [-3.0, 0.0], [math.nan, 0.0]]),
    ("isotropic", [[0.0, 0.0, 0.0], [0.005, 0.0, 0.0], [0.6, 0.6, 0.6], [0.0, 0.0, -1.01], [math.nan, 0.0, 0.0]])])
@pytest.mark.parametrize("dtype", TYPES)
def test_there_is_nothing_outside_the_support(name, outside, dtype):
    outside = torch.tensor(outside, dtype=dtype)
    assert (law(name, dtype, validate_args=False).log_prob(outside) == -math.inf).all()
    what = {"diamond": "Diamond", "isotropic": "Shell"}[name]
    for value in outside:
        with pytest.raises(ValueError, match=rf"within the support \({what}"):
            law(name, dtype, validate_args=True).log_prob(value)


@pytest.mark.parametrize("name", LAWS)
def test_every_draw_is_in_the_support(name):
    """In single precision, where rounding could put it outside."""
    distribution = law(name, torch.float32)
    value = draws(distribution, 200_000)
    assert distribution.support.check(value).all()
    assert distribution.log_prob(value).isfinite().all()


# Draws


def test_draws_fill_the_diamond_evenly():
    x, y = draws(law("diamond"), N).numpy().T
    assert_law(x + y, stats.uniform(-1, 2).cdf)
    assert_law(x - y, stats.uniform(-1, 2).cdf)
    assert_independent(x + y, x - y)


@pytest.mark.parametrize(("low", "high"), SHELLS)
def test_isotropic_draws_have_a_uniform_length_and_any_direction(low, high):
    v = draws(Isotropic(low, high, like()), N).numpy()
    norm = np.linalg.norm(v, axis=-1)
    azimuth = np.arctan2(v[:, 1], v[:, 0])
    assert_law(norm, stats.uniform(low, high - low).cdf)
    assert_law(v[:, 2] / norm, stats.uniform(-1, 2).cdf)
    assert_law(azimuth, stats.uniform(-np.pi, 2 * np.pi).cdf)
    assert_independent(norm, v[:, 2] / norm, azimuth)


def test_endpoint_errors_have_gamma_lengths_and_any_direction():
    field = law("endpoint")
    error = (draws(field, N) - field.loc).numpy()
    length, angle = np.hypot(error[:, 0], error[:, 1]), np.arctan2(error[:, 1], error[:, 0])
    for i, j in ((0, 0), (1, 2)):
        assert_law(length[:, i, j], stats.gamma(2, scale=0.3).cdf)
        assert_law(angle[:, i, j], stats.uniform(-np.pi, 2 * np.pi).cdf)
    assert_independent(length[:, 0, 0], angle[:, 0, 0], length[:, 0, 1], angle[:, 0, 1], length[:, 1, 0], angle[:, 1, 0])


@pytest.mark.parametrize("name", LAWS)
def test_moments_are_those_of_the_draws(name):
    distribution = law(name)
    value = draws(distribution, N, seed=3)
    error = value - distribution.mean
    assert (error.mean(0).abs() < 4.5 * (distribution.variance / N).sqrt()).all()
    squares = error.square()
    assert ((squares.mean(0) - distribution.variance).abs() < 4.5 * squares.std(0) / math.sqrt(N)).all()
    assert distribution.mean.shape == distribution.variance.shape == distribution.event_shape
    batch = distribution.expand((4,))
    assert batch.mean.shape == batch.variance.shape == (4, *distribution.event_shape)


def test_endpoint_draws_follow_mean_and_scale():
    mean = torch.zeros(5, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        value = EndpointError(mean, scale).rsample()
    weight = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    by_mean, by_scale = torch.autograd.grad((weight * value).sum(), (mean, scale))
    torch.testing.assert_close(by_mean, weight)
    torch.testing.assert_close(by_scale, (weight * value).sum().detach() / 0.3)  # errors are proportional to the scale


def test_the_endpoint_density_has_its_gradient_and_a_finite_one_at_its_cusp():
    field = law("endpoint")
    value = draws(field)

    def density(value, mean, scale):
        return EndpointError(mean, scale, validate_args=False).log_prob(value)

    inputs = [part.clone().requires_grad_() for part in (value, field.loc, field.scale)]
    assert torch.autograd.gradcheck(density, inputs)
    for dtype in TYPES:
        at_mean = field.loc.to(dtype).requires_grad_()
        gradient, = torch.autograd.grad(density(at_mean, field.loc.to(dtype), field.scale.to(dtype)), at_mean)
        assert gradient.isfinite().all()


# The way to unconstrained coordinates


def reached(name, low=LOW, high=HIGH, dtype=torch.float64):
    """A law's transform and unconstrained points of every usual length."""
    distribution = Isotropic(low, high, like(dtype)) if name == "isotropic" else law(name, dtype)
    size = torch.logspace(-1, math.log10(4.0), 40, dtype=torch.float64)
    points = directions(40, *distribution.event_shape) * size[:, None]
    return distribution, biject_to(distribution.support), points.to(dtype)


WAYS = [("diamond", LOW, HIGH)] + [("isotropic", *shell) for shell in SHELLS]


@pytest.mark.parametrize(("name", "low", "high"), WAYS)
def test_there_and_back(name, low, high):
    distribution, transform, points = reached(name, low, high)
    value = transform(points)
    assert distribution.support.check(value).all()
    torch.testing.assert_close(transform.inv(value), points, atol=1e-9, rtol=1e-9)
    own = draws(distribution, 2000)
    torch.testing.assert_close(transform(transform.inv(own)), own, atol=1e-9, rtol=1e-9)
    assert type(transform_to(distribution.support)) is type(transform)


@pytest.mark.parametrize(("name", "low", "high"), WAYS)
def test_there_and_back_in_single_precision(name, low, high):
    distribution, transform, points = reached(name, low, high, torch.float32)
    value = transform(points)
    assert value.dtype == torch.float32 and distribution.support.check(value).all()
    torch.testing.assert_close(value.double(), biject_to(distribution.support)(points.double()), atol=2e-7, rtol=1e-6)
    torch.testing.assert_close(transform.inv(value), points, atol=3e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["diamond", "isotropic"])
def test_far_out_in_single_precision_the_support_is_not_left(name):
    """There the transform saturates: everything beyond some length lands next to the rim, and comes back from there."""
    distribution, transform, _ = reached(name, dtype=torch.float32)
    points = torch.cat([size * directions(50, *distribution.event_shape) for size in (6.0, 15.0, 40.0, 1e3, 1e6)]).float()
    points.requires_grad_()
    value = transform(points)
    back = transform.inv(value)
    assert distribution.support.check(value).all() and distribution.log_prob(value).isfinite().all()
    assert back.isfinite().all() and ((back.norm(dim=-1) > 4.5) & (back.norm(dim=-1) < 25.0)).all()
    torch.testing.assert_close(transform(back), value, atol=1e-6, rtol=1e-6)
    density = distribution.log_prob(value) + transform.log_abs_det_jacobian(points, value)
    gradient, = torch.autograd.grad(density.sum(), points)
    assert density.isfinite().all() and gradient.isfinite().all()
    # The density still falls, at the rate of the logistic or the normal law: an optimizer out there finds its way back.
    assert ((gradient * points).sum(-1) < 0.0).all()


@pytest.mark.parametrize(("name", "size", "error"), [("diamond", 20.0, 1e-7), ("isotropic", 6.0, 1e-7), ("isotropic", 7.0, 1e-4)])
def test_the_tail_comes_back_in_double_precision(name, size, error):
    distribution = law(name)
    points = size * directions(200, *distribution.event_shape)
    transform = biject_to(distribution.support)
    assert (transform.inv(transform(points)) - points).norm(dim=-1).max() < error


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
def test_lengths_are_quantiles_of_the_chi_law(dtype, error):
    """Also where it is near 0, and the difference that gives it cancels."""
    size = torch.logspace(-3, 0.9, 200, dtype=torch.float64)
    points = (directions(200) * size[:, None]).to(dtype)
    length = biject_to(Isotropic(0.0, 1.0, like(dtype)).support)(points).norm(dim=-1)
    np.testing.assert_allclose(length.numpy(), stats.chi(3).cdf(size.numpy()), rtol=error)


@pytest.mark.parametrize(("low", "high"), SHELLS)
@pytest.mark.parametrize("dtype", TYPES)
def test_the_origin_is_carried_into_the_shell(low, high, dtype):
    """It is where point estimates and guides start."""
    transform = biject_to(Isotropic(low, high, like(dtype)).support)
    assert transform.codomain.check(transform(torch.zeros(3, dtype=dtype)))


@pytest.mark.parametrize(("name", "low", "high"), WAYS)
def test_the_jacobian_is_autograds(name, low, high):
    _, transform, points = reached(name, low, high)
    jacobian = torch.func.vmap(torch.func.jacrev(transform))(points)
    sizes = transform.log_abs_det_jacobian(points, transform(points))
    torch.testing.assert_close(sizes, torch.linalg.slogdet(jacobian).logabsdet, atol=1e-6, rtol=1e-6)
    value = transform(points).requires_grad_()
    weight = directions(40, points.shape[-1])
    gradient, = torch.autograd.grad((weight * transform.inv(value)).sum(), value)
    expected = torch.linalg.solve(jacobian.mT, weight)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("low", "high"), SHELLS)
def test_the_isotropic_law_is_standard_normal_in_unconstrained_coordinates(low, high):
    distribution, transform, points = reached("isotropic", low, high)
    value = transform(points)
    density = distribution.log_prob(value) + transform.log_abs_det_jacobian(points, value)
    torch.testing.assert_close(density, dist.Normal(0.0, 1.0).expand((3,)).to_event(1).log_prob(points), atol=1e-6, rtol=1e-6)
    free = transform.inv(draws(distribution, N)).numpy()
    for column in free.T:
        assert_law(column, stats.norm.cdf)
    assert_law(np.linalg.norm(free, axis=-1), stats.chi(3).cdf)
    assert_independent(*free.T)


def test_the_diamond_is_logistic_in_unconstrained_coordinates():
    distribution, transform, points = reached("diamond")
    value = transform(points)
    density = distribution.log_prob(value) + transform.log_abs_det_jacobian(points, value)
    torch.testing.assert_close(density, torch.tensor(stats.logistic.logpdf(points.numpy()).sum(-1)), atol=1e-8, rtol=1e-8)
    for column in transform.inv(draws(distribution, N)).numpy().T:
        assert_law(column, stats.logistic.cdf)


@pytest.mark.parametrize("name", ["diamond", "isotropic"])
def test_several_vectors_are_one_event(name):
    """What a guide does with a site of more than one vector: the base law carried over, with and without a cache."""
    law_of_two = law(name).expand((2,)).to_event(1)
    transform = biject_to(law_of_two.support)
    size = law_of_two.event_shape
    points = torch.randn(7, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    base = dist.Normal(torch.full(size, 0.3, dtype=torch.float64), 0.5).to_event(2)
    one = biject_to(law(name).support)
    expected = base.log_prob(points) - one.log_abs_det_jacobian(points, one(points)).sum(-1)
    torch.testing.assert_close(dist.TransformedDistribution(base, [transform]).log_prob(transform(points)), expected)
    cached = dist.TransformedDistribution(base, [transform.with_cache()])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        value = cached.rsample((5,))
    plain = dist.TransformedDistribution(base, [transform]).log_prob(value.clone())
    torch.testing.assert_close(cached.log_prob(value), plain)
    assert value.shape == (5, *size) and law_of_two.log_prob(value).shape == (5,)


# Shapes, types, validation


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("dtype", TYPES)
def test_shapes_and_types(name, dtype):
    distribution = law(name, dtype)
    event = distribution.event_shape
    assert distribution.batch_shape == () and distribution.sample().shape == event
    for batch in ((4,), (3, 4), (3, 1)):
        wide = distribution.expand(batch)
        value = wide.sample((5,))
        assert type(wide) is type(distribution) and wide.batch_shape == batch and wide.event_shape == event
        assert value.shape == (5, *batch, *event) and value.dtype == dtype
        assert wide.log_prob(value).shape == (5, *batch) and wide.log_prob(value).dtype == dtype
        torch.testing.assert_close(wide.log_prob(value), distribution.log_prob(value))
        assert wide.log_prob(value[0]).shape == batch
        assert wide.log_prob(draws(distribution)).shape == batch  # one value for the whole batch
        joint = wide.to_event(1)
        assert joint.event_shape == (*batch[-1:], *event)
        torch.testing.assert_close(joint.log_prob(value), wide.log_prob(value).sum(-1))
        assert joint.support.check(value).shape == (5, *batch[:-1])
    assert len(wide.sample((6,)).flatten(0, 2).unique(dim=0)) == 18  # all different
    assert not wide.sample().requires_grad and wide.rsample().dtype == dtype


@pytest.mark.parametrize("name", LAWS)
def test_seeds_decide(name):
    assert torch.equal(draws(law(name), 5, seed=1), draws(law(name), 5, seed=1))
    assert not torch.equal(draws(law(name), 5, seed=1), draws(law(name), 5, seed=2))


@pytest.mark.parametrize("name", LAWS)
def test_plates_expand_a_law(name):
    distribution = law(name)

    def program():
        with pyro.plate("draws", 3, dim=-2), pyro.plate("data", 4):
            return pyro.sample("v", distribution)

    with pyro.validation_enabled(True):
        trace = poutine.trace(program).get_trace()
        trace.compute_log_prob()
    site = trace.nodes["v"]
    assert site["value"].shape == (3, 4, *distribution.event_shape) and site["fn"].has_rsample
    torch.testing.assert_close(site["log_prob"], distribution.log_prob(site["value"]))


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("validate", [True, False])
def test_expanding_keeps_the_choice_of_validation(name, validate):
    wide = law(name, validate_args=validate).expand((3,))
    wrong = torch.full(wide.event_shape, math.nan, dtype=torch.float64)
    if validate:
        with pytest.raises(ValueError, match="within the support"):
            wide.log_prob(wrong)
    else:
        assert not wide.log_prob(wrong).isfinite().any()


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (1.0, 0.5), (-0.1, 1.0), (math.nan, 1.0), (0.0, math.nan)])
def test_lengths_out_of_order_are_refused(low, high):
    with pytest.raises(ValueError, match="0 ≤ low < high"):
        Isotropic(low, high, like())


@pytest.mark.parametrize("shape", [(2,), (2, 3), (3, 4, 4), (2, 3, 4, 4)])
def test_what_is_no_field_is_refused(shape):
    with pytest.raises(ValueError, match=r"mean must be a field \(…, 2, H, W\)"):
        EndpointError(torch.zeros(shape), torch.tensor(1.0))


def test_a_scale_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="scale"):
        EndpointError(torch.zeros(2, 3, 3), torch.tensor(0.0), validate_args=True)
