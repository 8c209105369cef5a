"""Diagnostics against ArviZ, one variable at a time, and the tuning of warm-up against closed forms."""

import math
import warnings

import numpy as np
import pytest
import torch

from inference.mcmc import diagnostics as diagnostics_module
from inference.mcmc.adaptation import DualAveraging, Moments, TrajectoryLength, pooled, windows
from inference.mcmc.diagnostics import diagnose, ess, rhat
from inference.mcmc.hmc import Hamiltonian, hmc

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


def test_diagnostics_in_parts_and_together_are_those_of_all_at_once(monkeypatch):
    draws = chains(31)
    draws[..., 2, 1], draws[1, 3, 4, 0] = 2.5, math.inf
    expected = rhat(draws), ess(draws)
    torch.testing.assert_close(diagnose(draws), expected, rtol=0, atol=0, equal_nan=True)
    assert expected[0].isnan().sum() == expected[1].isnan().sum() == 2
    seen = []
    right = diagnostics_module._normal_scores
    monkeypatch.setattr(diagnostics_module, "_normal_scores", lambda *args: seen.append(args[0].numel()) or right(*args))
    monkeypatch.setattr(diagnostics_module, "AT_ONCE", 5 * 4 * 31)
    torch.testing.assert_close(diagnose(draws), expected, rtol=1e-12, atol=0, equal_nan=True)
    assert max(seen) <= 5 * 4 * 31 and len(seen) == 10, "24 numbers, 5 at once; scores of location and of scale"
    monkeypatch.setattr(diagnostics_module, "AT_ONCE", 1)
    torch.testing.assert_close(diagnose(draws), expected, rtol=1e-12, atol=0, equal_nan=True)
    assert diagnose(draws[..., :0, :])[1].shape == (0, 3)


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
    np.testing.assert_allclose(moments.variance.numpy(), every.var(0, ddof=1), rtol=1e-9)


def test_windows_double_and_leave_time_for_step_sizes_at_both_ends():
    assert windows(0) == windows(19) == []
    for warmup in range(20, 1500):
        start, *ends = windows(warmup)
        assert 0.1 * warmup < start < ends[0] and 0.6 * warmup <= ends[-1] <= 0.95 * warmup
        widths = np.diff([start, *ends])
        assert (widths >= 5).all() and all(b == 2 * a for a, b in zip(widths[:-1], widths[1:-1], strict=False))
        assert len(widths) < 2 or widths[-1] >= 2 * widths[-2]


def test_the_first_metric_knows_nothing_of_where_the_chains_came_from():
    start, first, *_ = windows(100)
    kernel = Hamiltonian(standard_normal(torch.ones(4, 3)), 1e3 + torch.randn(4, 4, 3), 100)
    for _ in range(first):
        kernel.move()
    assert start >= 15 and (kernel.scale < 10).all(), kernel.scale  # not hundreds


def by_image_and_latent(images=32, size=40):
    """Variances over many decades: an effect of each image, one of each latent."""
    return torch.exp(3 * torch.randn(images, 1, dtype=DOUBLE) + torch.randn(size, dtype=DOUBLE))


def sampled(variance, draws):
    return variance * torch.distributions.Chi2(torch.tensor(draws - 1.0, dtype=DOUBLE)).sample(variance.shape) / (draws - 1)


def off(estimate, variance):
    return (estimate / variance).log().square().mean().sqrt().item()


@pytest.mark.parametrize("draws", [10, 100])
def test_images_and_latents_lend_each_other_what_they_have_in_common(draws):
    truth = by_image_and_latent()
    found = sampled(truth, draws)
    assert off(pooled(found, draws), truth) < 0.5 * off(found, truth)
    alone = sampled(truth.new_full((1, 400), 1e6), draws)
    assert off(pooled(alone, draws), truth.new_full((1, 400), 1e6)) < 0.5 * off(alone, 1e6), "latents of a single image"
    torch.testing.assert_close(pooled(1e-4 * found, draws), 1e-4 * pooled(found, draws))


def test_images_and_latents_that_differ_in_truth_keep_what_is_theirs():
    truth = torch.exp(3 * torch.randn(32, 40, dtype=DOUBLE))
    found = sampled(truth, 40)
    assert off(pooled(found, 40), found) < 0.02
    same = torch.ones(32, 40, dtype=DOUBLE)
    same[3, 5] = 1e-4  # one that stands out among equals
    for draws in (40, 4000):
        kept = pooled(same, draws)
        assert abs((kept / same)[3, 5].log().item()) <= 4 * math.sqrt(2 / draws) + 1e-9, "two standard errors of rest and of effect"
    lonely = sampled(torch.ones(7, 1, dtype=DOUBLE) * torch.logspace(-4, 4, 7, dtype=DOUBLE)[:, None], 10)
    torch.testing.assert_close(pooled(lonely, 10), lonely, msg="an image's single latent has nobody to borrow from")
    assert pooled(torch.zeros(2, 3), 10).isfinite().all() and torch.equal(pooled(torch.ones(2, 3), 1e9), torch.ones(2, 3))


def test_each_image_gets_a_metric_of_its_own():
    scale = torch.logspace(-2, 2, 12, dtype=DOUBLE).reshape(4, 3)[[2, 0, 3, 1]]
    run = hmc(standard_normal(scale), scale * torch.randn(8, 4, 3, dtype=DOUBLE), 10, warmup=400, steps=4.0)
    assert ((run.scale / scale).log().abs() < math.log(1.5)).all(), run.scale / scale


def test_few_draws_give_a_metric_by_what_images_have_in_common():
    scale = torch.logspace(-1, 1, 32, dtype=DOUBLE).expand(64, 32)
    run = hmc(standard_normal(scale), scale * torch.randn(4, 64, 32, dtype=DOUBLE), 1, warmup=40)
    assert (run.scale / scale).log().std() < 0.1, "about 0.2 without"


def test_step_sizes_follow_the_metric_and_trajectories_are_short_before_there_is_one():
    counts, steps = [0], []

    def density(u):
        counts[-1] += 1
        return -0.5 * (u / 1e-3).square().sum(-1), -u / 1e-6

    kernel = Hamiltonian(density, 1e-3 * torch.randn(4, 16, 5), 100)
    for _ in range(100):
        counts.append(0)
        kernel.move()
        steps.append(kernel.step.median().item())
    first = windows(100)[1]
    assert max(counts[1: first + 1]) <= 12 and steps[first - 2] < 0.01, "a quarter of the period of a standard Normal is far"
    assert steps[first - 1] > 0.5 * steps[-1] > 0.1, steps[first - 1]


# -- the length of trajectories

def quarter_turns(length, before, momentum, slowness, updates):
    """Tunes by the exact flow of Normals of standard deviations ``slowness`` (…, K), in units of the metric; jitter as in the sampler."""
    images = before.shape[1]
    for i in range(updates):
        time = length.length * (0.5 + (i * 0.618) % 1.0)
        turn = torch.as_tensor(time / slowness)
        after = before * turn.cos() + slowness * momentum * turn.sin()
        velocity = momentum * turn.cos() - before / slowness * turn.sin()
        length.update(before, after, velocity, torch.full((images,), time), torch.ones(before.shape[:2]), (1e-3, 1e3))


@pytest.mark.parametrize("slowness", [0.6, 1.0, 3.0])
def test_trajectories_of_a_normal_come_to_last_about_a_quarter_of_a_period(slowness):
    length = TrajectoryLength(torch.zeros(()), start=1.5)
    quarter_turns(length, slowness * torch.randn(64, 16, 10), torch.randn(64, 16, 10), torch.tensor(slowness), 400)
    assert 0.8 < length.length / (slowness * math.pi / 2) < 1.0, "less, as length has a price"


def test_a_new_metric_takes_length_from_trajectories_that_followed_latents_it_has_widened():
    length, old = TrajectoryLength(torch.zeros(())), torch.ones(16, 10)
    assert length.length == pytest.approx(math.pi / 2)
    new = old.clone()
    new[:, 3] = 8.0
    slow, state = new.clone(), torch.randn(64, 16, 10)
    quarter_turns(length, slow * state, torch.randn(64, 16, 10), slow, 400)
    long = length.length
    assert long > 4 * math.pi / 2
    length.rescale(old, old * (1 + 0.05 * torch.randn(16, 10)))
    assert length.length == pytest.approx(long, rel=0.05), "what is learned stays where the metric does"
    length.rescale(old, 0.01 * old)
    assert length.length == pytest.approx(long, rel=0.05), "nor does it grow of itself"
    length.rescale(old, new)
    assert length.length == pytest.approx(max(long / 8, math.pi / 2), rel=0.1)
    quarter_turns(length, state, torch.randn(64, 16, 10), old, 100)
    before = length.length
    length.rescale(old, 100 * old)
    assert length.length == pytest.approx(before) and before < math.pi / 2


def test_trajectories_ignore_divergent_ends_and_stay_within_bounds():
    before = torch.randn(8, 4, 3)
    for bad, accepted in ((1e30, 0.5), (math.nan, 0.0)):
        length, after, chance = TrajectoryLength(before), 100.0 * before.sign(), torch.ones(8, 4)
        after[0], chance[0] = bad, accepted
        for _ in range(400):
            length.update(before, after, after, torch.full((4,), 100.0), chance, (0.1, 6.0))
        assert length.length == pytest.approx(6.0, rel=0.05)
        length.update(before, after, after, torch.ones(4), torch.zeros(8, 4), (0.1, 6.0))
        for _ in range(400):
            length.update(before, after, -after, torch.ones(4), chance, (0.1, 6.0))
        assert length.length == pytest.approx(0.1, rel=0.05)


def test_what_is_learned_of_length_survives_new_step_sizes_and_metrics():
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=DOUBLE))[0]
    precision = (turn / torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 400.0], dtype=DOUBLE)) @ turn.T  # a slow direction that no diagonal sees
    kernel = Hamiltonian(lambda u: (-0.5 * ((u @ precision) * u).sum(-1), -u @ precision), 5 * torch.randn(8, 16, 6, dtype=DOUBLE), 300)
    lengths = []
    for _ in range(300):
        kernel.move()
        lengths.append(kernel.length.length)
    ends = windows(300)[1:]
    assert lengths[ends[0] - 1] == pytest.approx(math.pi / 2), "there is no metric yet"
    assert lengths[ends[-1] - 1] > 2 and all(lengths[end] > 0.6 * lengths[end - 1] for end in ends[-2:]), lengths


@pytest.mark.parametrize(("steps", "expected"), [(1.0, {1}), (2.0, {1, 2, 3}), (5.0, {3, 4, 5, 6, 7})])
def test_the_number_of_steps_that_is_asked_for_is_the_mean(steps, expected):
    evaluations = []

    def density(u):
        evaluations.append(1)
        return -0.5 * u.square().sum(-1), -u

    counts = []
    run = hmc(density, torch.randn(2, 3, 4), 64, warmup=30, steps=steps, report=lambda *args: counts.append(len(evaluations)))
    made = np.diff(counts)[-64:]
    assert set(made) == expected
    assert run.steps == pytest.approx(made.mean()) and run.steps == pytest.approx(steps, abs=0.05)
    tuned = hmc(density, torch.randn(2, 3, 4), 64, warmup=30, report=lambda *args: counts.append(len(evaluations)))
    assert tuned.steps == pytest.approx(np.diff(counts)[-64:].mean())


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
