"""Relaxed Poisson counts against closed forms, quadrature and a dense sampler written from the paper."""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.latents.relaxed import arrival
from zoo.latents.relaxed.arrival import RAMPS, RelaxedPoisson, moments

RATES = torch.tensor([0.1, 1.0, 5.0, 20.0])
TEMPERATURES = [0.05, 0.1, 0.2, 0.5, 1.0]
DRAWS = 20_000


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def assert_within_errors(draws, expected, errors=4.0):
    """Means of ``draws (S, …)`` lie within so many standard errors of ``expected``, and are not all exactly equal."""
    draws = draws.double()
    standard_error = draws.std(0) / math.sqrt(len(draws))
    deviation = (draws.mean(0) - expected).abs() / standard_error
    assert (standard_error > 0).all()
    assert (deviation < errors).all(), f"{deviation} standard errors from {expected}"


def draw_with_slope(rate, temperature, ramp, count, straight_through=False):
    """``count`` samples and their derivatives in the rate, ``(count, …)`` each."""
    rate = rate.expand(count, *rate.shape).contiguous().requires_grad_()
    z = RelaxedPoisson(rate, temperature, ramp, straight_through).rsample()
    return z.detach(), torch.autograd.grad(z.sum(), rate)[0]


def dense_count(rate, temperature, ramp, most):
    """Algorithm 1 of Vafaii et al. 2024: running sums of exponential gaps, each arrival weighed; autograd takes the slope."""
    weigh = {"sigmoid": torch.sigmoid, "cubic": lambda s: (lambda u: u * u * (3 - 2 * u))(((s + 1) / 2).clamp(0, 1))}
    times = dist.Exponential(rate).rsample((most,)).cumsum(0)
    assert (times[-1] > 1 + 9 * temperature).all()
    return weigh[ramp]((1 - times) / temperature).sum(0)


# -- ramps

@pytest.mark.parametrize("ramp", RAMPS)
def test_ramps_climb_from_zero_to_one_with_the_stated_slope(ramp):
    shape = RAMPS[ramp]
    s = torch.linspace(-1.5, 1.5, 601, dtype=torch.float64).mul(shape.reach).requires_grad_()
    value = shape.value(s)
    inside = s.detach().abs() < shape.reach * 0.999
    step = 1e-6
    numeric = (shape.value(s.detach() + step) - shape.value(s.detach() - step)) / (2 * step)
    torch.testing.assert_close(shape.slope(s.detach())[inside], numeric[inside], atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(value + value.flip(0), torch.ones_like(value), atol=1e-7, rtol=0)
    assert (value.diff() >= 0).all()
    assert (value[s <= -shape.reach] == 0).all() and (value[s >= shape.reach] == 1).all()
    assert (shape.slope(s.detach())[s.abs() > shape.reach] == 0).all()
    edge = torch.tensor([-shape.reach * (1 - 1e-12)], dtype=torch.float64)
    assert shape.value(edge) < 1e-8


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize("temperature", [*TEMPERATURES, 1.7, 4.0])
def test_moments_match_quadrature(ramp, temperature):
    shape = RAMPS[ramp]

    def weight(t, power):
        return float(shape.value(torch.tensor((1 - t) / temperature, dtype=torch.float64))) ** power

    edges = [max(0.0, 1 - shape.reach * temperature), 1 + shape.reach * temperature]
    for power, moment in zip((1, 2), moments(ramp, temperature), strict=True):
        expected = edges[0] + integrate.quad(weight, *edges, args=(power,), points=[1.0], limit=200)[0]
        assert moment == pytest.approx(expected, rel=1e-6)


def test_moments_are_the_published_ones():
    # Variances of the compact ramps 1 − κτ; the sigmoid's from its closed form by hand, to four digits.
    for ramp, kappa in {"linear": 1 / 3, "cubic": 9 / 35, "cosine": 1 / 4, "quintic": 50 / 231}.items():
        assert moments(ramp, 0.7) == pytest.approx((1.0, 1 - 0.7 * kappa), abs=1e-12)
    assert moments("sigmoid", 0.5) == pytest.approx((1.0635, 0.6231), abs=5e-5)
    assert moments("sigmoid", 1.0) == pytest.approx((1.3133, 0.5822), abs=5e-5)
    assert moments("cubic", 0.0) == (1.0, 1.0)


# -- relaxed Poisson

@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_mean_variance_and_gradient_match_campbell(ramp, temperature):
    mean, variance = moments(ramp, temperature)
    z, slope = draw_with_slope(RATES, temperature, ramp, DRAWS)
    assert_within_errors(z, RATES * mean)
    assert_within_errors((z - RATES * mean) ** 2, RATES * variance)
    assert_within_errors(2 * z * slope, variance + 2 * RATES * mean**2)  # d E[z²] / dλ


def test_high_temperature_of_a_compact_ramp():
    mean, variance = moments("cubic", 2.5)
    z, slope = draw_with_slope(RATES, 2.5, "cubic", DRAWS)
    assert_within_errors(z, RATES * mean)
    assert_within_errors(2 * z * slope, variance + 2 * RATES * mean**2)


@pytest.mark.parametrize("ramp", ["cubic", "sigmoid"])
@pytest.mark.parametrize(("rate", "temperature"), [(0.3, 0.1), (3.0, 0.1), (3.0, 1.0), (15.0, 0.3)])
def test_law_is_that_of_the_dense_algorithm(ramp, rate, temperature):
    most = int(rate * (1 + 10 * temperature) + 8 * math.sqrt(rate * (1 + 10 * temperature)) + 12)
    rates = torch.full((4000,), rate, requires_grad=True)
    reference = dense_count(rates, temperature, ramp, most)
    (reference_slope,) = torch.autograd.grad(reference.sum(), rates)
    z, slope = draw_with_slope(torch.tensor(rate), temperature, ramp, 4000)
    # rounded, so that sums over arrivals that all weigh 0 or 1 tie whatever the order of addition
    for ours, theirs in ((z, reference.detach()), (slope, reference_slope), (z * slope, reference.detach() * reference_slope)):
        assert stats.ks_2samp(ours.numpy().round(4), theirs.numpy().round(4)).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.1, 0.3])
def test_groups_rounds_and_segment_sums_keep_the_law(monkeypatch, temperature):
    monkeypatch.setattr(arrival, "CELLS", (700, 10**9))
    monkeypatch.setattr(arrival, "ARRIVALS", (900, 10**9))
    monkeypatch.setattr(arrival, "_owners", lambda counts, number: None)  # the way sums are taken on a GPU
    mean, variance = moments("cubic", temperature)
    z, slope = draw_with_slope(RATES, temperature, "cubic", DRAWS)
    assert_within_errors(z, RATES * mean)
    assert_within_errors((z - RATES) ** 2, RATES * variance)
    assert_within_errors(2 * z * slope, variance + 2 * RATES * mean**2)


def test_cells_do_not_leak_into_each_other():
    rate = torch.tensor([0.0, 50.0, 0.0, 0.0, 0.3, 1e4, 0.0]).repeat(500, 1)
    z, slope = draw_with_slope(rate, 0.2, "cubic", 1)
    assert (z[0, rate == 0] == 0).all() and (slope[0, rate == 0] == 0).all()
    assert_within_errors(z[0][:, [1, 4, 5]], torch.tensor([50.0, 0.3, 1e4]))
    assert_within_errors(slope[0][:, [1, 4, 5]], torch.ones(3))


def test_cold_samples_are_counts_and_zero_temperature_is_exact():
    rate = RATES.clone().requires_grad_()
    exact = RelaxedPoisson(rate, 0.0).rsample((DRAWS,))
    assert not exact.requires_grad
    assert (exact == exact.round()).all()
    assert_within_errors(exact, RATES)
    assert_within_errors((exact - RATES) ** 2, RATES)
    cold = RelaxedPoisson(rate, 1e-30).rsample((DRAWS,))
    assert torch.isfinite(cold).all() and ((cold - cold.round()).abs() < 1e-3).float().mean() > 0.999
    assert_within_errors(cold.detach(), RATES)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_straight_through_is_a_poisson_count_with_the_relaxed_gradient(temperature):
    torch.manual_seed(3)
    soft, slope = draw_with_slope(RATES, temperature, "cubic", DRAWS)
    torch.manual_seed(3)
    hard, hard_slope = draw_with_slope(RATES, temperature, "cubic", DRAWS, straight_through=True)
    torch.testing.assert_close(slope, hard_slope)
    assert (hard == hard.round()).all()
    assert_within_errors(hard, RATES)
    assert_within_errors((hard - RATES) ** 2, RATES)
    # the same arrivals: E[(soft − hard)²] = λτ ∫ (f(s) − 1[s > 0])² ds, by quadrature
    area = integrate.quad(lambda s: (0.25 * (s + 1) ** 2 * (2 - s) - (s > 0)) ** 2, -1, 1, points=[0.0])[0]
    assert_within_errors((soft - hard) ** 2, RATES * temperature * area)


def test_shapes_expand_dtype_and_seed():
    rate = torch.rand(3, 1, dtype=torch.float64) * 4
    q = RelaxedPoisson(rate, 0.3, "quintic", straight_through=True).expand((2, 3, 5))
    assert q.batch_shape == (2, 3, 5) and isinstance(q, RelaxedPoisson)
    assert (q.temperature, q.ramp, q.straight_through) == (0.3, "quintic", True)
    first = q.rsample((7,))
    assert first.shape == (7, 2, 3, 5) and first.dtype == torch.float64
    torch.manual_seed(1)
    one = q.sample((4,))
    torch.manual_seed(1)
    assert (q.sample((4,)) == one).all()
    assert (q.sample((4,)) != one).any()
    assert RelaxedPoisson(torch.rand(0, 4), 0.5).rsample().shape == (0, 4)
    assert RelaxedPoisson(2.0, 0.5).rsample().shape == ()
    half = RelaxedPoisson(torch.full((9,), 3.0, dtype=torch.bfloat16), 0.5).rsample()
    assert half.dtype == torch.bfloat16
    transposed = torch.rand(40, 3).T.requires_grad_()
    gradient = torch.autograd.grad(RelaxedPoisson(transposed, 0.5).rsample((11,)).sum(), transposed)[0]
    assert gradient.shape == (3, 40)


def test_second_derivatives_are_refused():
    rate = torch.tensor([5.0], requires_grad=True)
    (slope,) = torch.autograd.grad(RelaxedPoisson(rate, 0.5).rsample().square().sum(), rate, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("validate", [True, False])
def test_bad_rates_are_one_clear_error(bad, temperature, validate):
    with pytest.raises(ValueError, match="rate"):
        RelaxedPoisson(torch.tensor([1.0, bad, 2.0]), temperature, validate_args=validate).rsample()


def test_bad_arguments():
    rate = torch.ones(2)
    with pytest.raises(ValueError, match="cubic"):
        RelaxedPoisson(rate, 0.5, "square")
    for temperature in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature"):
            RelaxedPoisson(rate, temperature)
    with pytest.raises(ValueError, match="bound the rates"):
        RelaxedPoisson(rate * 1e12, 0.5).rsample()


class LargestTensor(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operation returned."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def test_no_temporary_is_larger_than_the_output():
    rate = torch.full((600, 512), 3.0, requires_grad=True)
    rate.data[0, 0] = 1e6
    with LargestTensor() as largest:
        z = RelaxedPoisson(rate, 1.0, "cubic").rsample()
    assert largest.bytes <= 1.01 * z.nbytes
