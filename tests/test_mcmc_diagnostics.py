"""Diagnostics against ArviZ, one variable at a time, and the tuning of warm-up against closed forms."""

import math
import warnings

import numpy as np
import pytest
import torch

from inference.mcmc.adaptation import DualAveraging, Moments, TrajectoryLength, windows
from inference.mcmc.diagnostics import ess, rhat
from inference.mcmc.hmc import hmc

DOUBLE = torch.float64
COEFFICIENTS = (-0.95, -0.4, 0.0, 0.3, 0.7, 0.9, 0.97, 0.995)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def chains(length, count=4):
    """Draws ``(count, length, 8, 3)``: autoregressive series; the same with different means; the same, rounded to small integers."""
    noise, coefficient = torch.randn(count, length, 8, dtype=DOUBLE), torch.tensor(COEFFICIENTS, dtype=DOUBLE)
    series = noise.clone()
    for t in range(1, length):
        series[:, t] = coefficient * series[:, t - 1] + noise[:, t]
    apart = series + 2.0 * torch.arange(count, dtype=DOUBLE)[:, None, None]
    return torch.stack([series, apart, (2.0 * series).round()], -1)


def by_arviz(name, draws, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz

        found = getattr(arviz, name)(arviz.from_dict(posterior={"z": draws.numpy()}), **options)
    return torch.as_tensor(found["z"].values)


# -- diagnostics

@pytest.mark.parametrize("length", [4, 5, 6, 7, 10, 13, 50, 51, 200])
def test_rhat_is_that_of_arviz(length):
    draws = chains(length)
    torch.testing.assert_close(rhat(draws), by_arviz("rhat", draws), rtol=1e-9, atol=0)


@pytest.mark.parametrize("length", [4, 5, 6, 7, 10, 13, 50, 51, 52, 53, 200])
def test_ess_is_that_of_arviz(length):
    for count in (2, 4):
        draws = chains(length, count)
        torch.testing.assert_close(ess(draws), by_arviz("ess", draws, method="bulk"), rtol=1e-9, atol=0)


def test_ess_is_that_of_arviz_where_autocorrelations_die_out_within_the_series():
    draws = chains(2000, 3)[..., :6, ::2]
    torch.testing.assert_close(ess(draws), by_arviz("ess", draws, method="bulk"), rtol=1e-9, atol=0)


def test_effective_sample_size_of_independent_and_of_autoregressive_draws():
    draws = torch.randn(50, 400, 3, dtype=DOUBLE)
    for t in range(1, 400):
        draws[:, t, 1] = 0.6 * draws[:, t - 1, 1] + 0.8 * draws[:, t, 1]  # of unit variance; n (1 − a) / (1 + a) effective draws
        draws[:, t, 2] = -0.4 * draws[:, t - 1, 2] + math.sqrt(0.84) * draws[:, t, 2]
    found = ess(draws) / 20_000
    torch.testing.assert_close(found[:2], torch.tensor([1.0, 0.25], dtype=DOUBLE), rtol=0.12, atol=0)
    assert found[2].item() == pytest.approx(7 / 3, rel=0.3), "a sum of noisy terms, cut off"
    assert (rhat(draws) < 1.01).all()


def test_rhat_sees_location_and_scale():
    draws = torch.randn(4, 500, 3)
    draws[0, :, 1] += 1.0
    draws[0, :, 2] *= 5.0
    same, shifted, wide = rhat(draws).tolist()
    assert same < 1.01 and shifted > 1.05 and wide > 1.05


@pytest.mark.parametrize("diagnostic", [rhat, ess])
def test_diagnostics_of_a_batch_are_those_of_its_members_in_any_dtype(diagnostic):
    draws = chains(31).float()
    found = diagnostic(draws)
    assert found.shape == (8, 3)
    for i in range(8):
        torch.testing.assert_close(diagnostic(draws[:, :, i]), found[i])
    torch.testing.assert_close(diagnostic(3.0 - 0.5 * draws), found)
    torch.testing.assert_close(diagnostic(draws[..., 0, 0]), found[0, 0])


@pytest.mark.parametrize("diagnostic", [rhat, ess])
def test_what_never_moves_has_no_diagnostics_and_harms_no_neighbour(diagnostic):
    draws = torch.randn(4, 20, 3)
    alone = diagnostic(draws)
    draws[..., 1] = 2.5
    found = diagnostic(draws)
    assert found.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(found[::2], alone[::2])
    with pytest.raises(ValueError, match="at least 4 draws"):
        diagnostic(torch.zeros(4, 3, 2))


def test_chains_stuck_at_different_places_have_not_converged():
    draws = torch.arange(4.0)[:, None, None].expand(4, 20, 2)
    assert (rhat(draws) > 100).all()


def test_draws_that_are_not_numbers_have_no_rhat():
    draws = torch.randn(4, 20, 2)
    draws[1, 3, 0] = math.nan
    assert rhat(draws).isnan().tolist() == [True, False]
    assert ess(draws).isnan().tolist() == [True, False]


# -- step sizes

@pytest.mark.parametrize("wanted", [0.6, 0.8, 0.95])
def test_dual_averaging_reaches_the_wanted_acceptance_of_every_image(wanted):
    width = torch.logspace(-4, 4, 9, dtype=DOUBLE)
    start = width * torch.tensor([1, 4, 0.25] * 3, dtype=DOUBLE)

    def acceptance(step):
        return torch.special.erfc((step / width) ** 2)

    tuner = DualAveraging(start, wanted)
    for _ in range(1000):
        tuner.update(acceptance(tuner.step))
    torch.testing.assert_close(acceptance(tuner.average), torch.full_like(width, wanted), atol=0.015, rtol=0)
    tuner.restart(tuner.average)
    torch.testing.assert_close(tuner.average, tuner.step, msg="nothing is learned yet")


def standard_normal(scale):
    """Log density and gradient of independent Normals of scales ``(N, K)``."""
    return lambda u: (-0.5 * (u / scale).square().sum(-1), -u / scale**2)


@pytest.mark.parametrize("wanted", [0.65, 0.8])
def test_acceptance_after_warm_up_is_the_wanted_one(wanted):
    run = hmc(standard_normal(torch.ones(64, 5)), torch.randn(4, 64, 5), 100, warmup=200, accept=wanted, steps=5.0)
    assert abs(run.accepted.mean() - wanted) < 0.05, run.accepted.mean()


@pytest.mark.parametrize("warmup", [20, 30])
def test_a_short_warm_up_leaves_chains_that_move(warmup):
    run = hmc(standard_normal(torch.ones(64, 5)), torch.randn(4, 64, 5), 50, warmup=warmup)
    assert run.accepted.mean() > 0.6 and run.accepted.min() > 0.2, run.accepted


# -- the metric

def test_moments_are_those_of_all_states_at_once():
    moments, states = Moments(), [1e3 + torch.randn(chains, 3, 2, dtype=DOUBLE) for chains in (1, 4, 4, 7)]
    for u in states:
        moments.update(u)
    every = np.concatenate([u.numpy() for u in states])
    assert moments.count == 16
    np.testing.assert_allclose(moments.mean.numpy(), every.mean(0), rtol=1e-12)
    shrunk = 16 / 21 * every.var(0, ddof=1) + 5 / 21 * 1e-3
    np.testing.assert_allclose(moments.variance.numpy(), shrunk, rtol=1e-9)


def test_windows_double_and_leave_time_for_step_sizes_at_both_ends():
    assert windows(0) == windows(19) == []
    for warmup in range(20, 1500):
        ends = windows(warmup)
        first, last = 0.1 * warmup, warmup - 0.05 * warmup
        assert first < ends[0] and 0.6 * warmup <= ends[-1] <= last and ends[-1] < warmup
        widths = np.diff(ends)
        assert (widths >= 5).all() and all(b == 2 * a for a, b in zip(widths[:-1], widths[1:-1], strict=False))
        assert len(widths) < 2 or widths[-1] >= 2 * widths[-2]


def test_each_image_gets_a_metric_of_its_own():
    scale = torch.logspace(-2, 2, 12, dtype=DOUBLE).reshape(4, 3)[[2, 0, 3, 1]]
    run = hmc(standard_normal(scale), scale * torch.randn(8, 4, 3, dtype=DOUBLE), 10, warmup=400, steps=4.0)
    assert ((run.scale / scale).log().abs() < math.log(1.5)).all(), run.scale / scale


# -- the length of trajectories

@pytest.mark.parametrize("start", [2.0, 28.0])
def test_trajectories_of_a_normal_come_to_last_a_quarter_of_a_period(start):
    before, momentum, step = torch.randn(64, 16, 10), torch.randn(64, 16, 10), torch.full((16,), 0.1)
    length = TrajectoryLength(start, 100, before)
    for _ in range(200):
        time = 0.1 * length.steps  # no jitter: the flow of a standard Normal is a rotation, and a quarter turn forgets the most
        after, velocity = before * math.cos(time) + momentum * math.sin(time), momentum * math.cos(time) - before * math.sin(time)
        length.update(before, after, velocity, torch.zeros(16, 10), length.steps * step, torch.ones(64, 16))
    assert length.steps == pytest.approx(10 * math.pi / 2, rel=0.1)


def test_trajectories_ignore_divergent_ends_and_stay_within_bounds():
    before = torch.randn(8, 4, 3)
    length = TrajectoryLength(4.0, 6, before)
    after = before + 100.0
    after[0] = 1e30
    chance = torch.ones(8, 4)
    chance[0] = 0.0
    for _ in range(50):
        length.update(before, after, torch.ones_like(before), torch.zeros(4, 3), torch.ones(4), chance)
    assert length.steps == pytest.approx(6.0)
    length.update(before, after, torch.ones_like(before), torch.zeros(4, 3), torch.ones(4), torch.zeros(8, 4))
    assert math.isfinite(length.steps)


def test_a_slow_direction_takes_longer_trajectories():
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=DOUBLE))[0]
    steps = []
    for longest in (1.0, 10.0):
        precision = (turn / torch.tensor([1.0, 1.0, 1.0, 1.0, longest**2], dtype=DOUBLE)) @ turn.T
        run = hmc(lambda u, p=precision: (-0.5 * ((u @ p) * u).sum(-1), -u @ p), torch.randn(8, 16, 5, dtype=DOUBLE), 10, warmup=400)
        steps.append(run.steps)
    assert steps[1] > 2.0 * steps[0], steps


def test_trajectories_are_short_once_the_metric_is_right():
    scale = torch.logspace(-2, 2, 5, dtype=DOUBLE).expand(16, 5)
    run = hmc(standard_normal(scale), scale * torch.randn(4, 16, 5, dtype=DOUBLE), 10, warmup=400)
    assert run.steps < 25, run.steps
