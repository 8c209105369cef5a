"""Kalman filter, smoother and steady state against the one Normal that all states and frames make together."""

import dataclasses

import pytest
import torch
from torch.distributions import MultivariateNormal

import guides
import inference
import zoo
from zoo.oracles.kalman import LinearDynamicalSystem, kalman_filter, linear_dynamical_system, rts_smoother, steady_state
from zoo.testing import check_model

DOUBLE = torch.float64


def general(frames=4, units=3, shape=(2, 2), seed=0):
    """A linear model in which nothing is 0 or 1: drift, offset, one variance for each unit and pixel, a first state of its own."""
    model = zoo.build("temporal", (frames, *shape), units=units, learn_scale="pixel", learn_state_scale=True, learn_prior=True, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return LinearDynamicalSystem.of(model.double())


def sequences(model, count, seed=1):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        return model(size=count)


def stacked(model, frames):
    """Mean and covariance of all states, then all frames, written out as one long vector: from z = (I − shifted A)⁻¹ (noise)."""
    system = model.dynamics()
    size, pixels = len(system.drift), len(system.offset)
    back = torch.eye(frames * size, dtype=DOUBLE)
    for t in range(1, frames):
        back[t * size:(t + 1) * size, (t - 1) * size:t * size] = -system.transition
    unfold = torch.linalg.inv(back)
    mean = unfold @ torch.cat([system.first_mean, system.drift.repeat(frames - 1)])
    covariance = unfold @ torch.diag(torch.cat([system.first_variance, system.state_variance.repeat(frames - 1)])) @ unfold.T
    seen = torch.block_diag(*[system.emission] * frames)
    frame_mean = seen @ mean + system.offset.repeat(frames)
    noise = torch.diag(system.noise_variance.repeat(frames))
    return mean, covariance, frame_mean, seen @ covariance @ seen.T + noise, covariance @ seen.T, (size, pixels)


def conditioned(model, x, until):
    """Means ``(N, T K)`` and covariance of all states, given the first ``until`` frames."""
    flat = x.flatten(2)
    mean, covariance, frame_mean, frame_covariance, cross, (_, pixels) = stacked(model, x.shape[1])
    cut = until * pixels
    gain = torch.linalg.solve(frame_covariance[:cut, :cut], cross[:, :cut].T).T
    return mean + (flat.flatten(1)[:, :cut] - frame_mean[:cut]) @ gain.T, covariance - gain @ cross[:, :cut].T


def block(covariance, t, size, s=None):
    s = t if s is None else s
    return covariance[t * size:(t + 1) * size, s * size:(s + 1) * size]


def test_the_evidence_is_that_of_the_joint_normal():
    model = general()
    x = sequences(model, 5)
    _, _, frame_mean, frame_covariance, _, _ = stacked(model, 4)
    expected = MultivariateNormal(frame_mean, frame_covariance).log_prob(x.flatten(1))
    torch.testing.assert_close(model.log_evidence(x), expected, atol=1e-8, rtol=0)
    shorter = MultivariateNormal(frame_mean[:12], frame_covariance[:12, :12]).log_prob(x[:, :3].flatten(1))
    torch.testing.assert_close(model.filtered(x).log_evidence[:, :3].sum(1), shorter, atol=1e-8, rtol=0)
    torch.testing.assert_close(model.log_evidence(x[:, :3]), shorter, atol=1e-8, rtol=0)  # of any number of frames


def test_the_filter_conditions_on_the_frames_so_far_and_predicts_from_those_before():
    model = general()
    x, size = sequences(model, 5), 3
    filtered, system = model.filtered(x), model.dynamics()
    for t in range(4):
        mean, covariance = conditioned(model, x, t + 1)
        torch.testing.assert_close(filtered.mean[:, t], mean[:, t * size:(t + 1) * size], atol=1e-8, rtol=0)
        torch.testing.assert_close(filtered.covariance[t], block(covariance, t, size), atol=1e-8, rtol=0)
        mean, covariance = conditioned(model, x, t) if t else stacked(model, 4)[:2]
        here = mean[..., t * size:(t + 1) * size].expand(5, -1)
        torch.testing.assert_close(filtered.predicted[:, t], here, atol=1e-8, rtol=0)
        torch.testing.assert_close(filtered.predicted_covariance[t], block(covariance, t, size), atol=1e-8, rtol=0)
        torch.testing.assert_close(filtered.frames[:, t], here @ system.emission.T + system.offset, atol=1e-8, rtol=0)


def test_the_smoother_conditions_on_all_frames():
    model = general()
    x, size = sequences(model, 5), 3
    smoothed = model.smoothed(x)
    mean, covariance = conditioned(model, x, 4)
    torch.testing.assert_close(smoothed.mean.flatten(1), mean, atol=1e-8, rtol=0)
    for t in range(4):
        torch.testing.assert_close(smoothed.covariance[t], block(covariance, t, size), atol=1e-8, rtol=0)
    for t in range(3):
        torch.testing.assert_close(smoothed.lagged[t], block(covariance, t + 1, size, t), atol=1e-8, rtol=0)
    assert rts_smoother(model.dynamics(), model.filtered(x[:, :1])).lagged.shape == (0, 3, 3)


def test_the_evidence_and_the_posterior_make_the_programs_density():
    """log p(x, z) = log p(z | x) + log p(x) at any z: ties the oracle's matrices to the program."""
    model = general()
    x = sequences(model, 5)
    z = torch.randn(7, 5, 4, 3, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    mean, covariance = conditioned(model, x, 4)
    expected = MultivariateNormal(mean, covariance).log_prob(z.flatten(2)) + model.log_evidence(x)
    found = inference.log_joint(model, {f"z{t + 1}": z[:, :, t] for t in range(4)}, x)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)


def test_more_pixels_than_units_and_the_other_way_round():
    for units, shape in ((2, (3, 3)), (7, (2,))):
        model = general(units=units, shape=shape)
        x = sequences(model, 3)
        _, _, frame_mean, frame_covariance, _, _ = stacked(model, 4)
        expected = MultivariateNormal(frame_mean, frame_covariance).log_prob(x.flatten(1))
        torch.testing.assert_close(model.log_evidence(x), expected, atol=1e-8, rtol=0)


def test_the_filter_settles_to_the_steady_state():
    model = general(frames=200)
    filtered, system = model.filtered(sequences(model, 1)), model.dynamics()
    predicted, left = steady_state(system)
    torch.testing.assert_close(filtered.predicted_covariance[-1], predicted, atol=1e-10, rtol=0)
    torch.testing.assert_close(filtered.covariance[-1], left, atol=1e-10, rtol=0)
    innovations = system.emission @ predicted @ system.emission.T + torch.diag(system.noise_variance)
    gain = predicted @ system.emission.T @ torch.linalg.inv(innovations)
    riccati = system.transition @ (predicted - gain @ system.emission @ predicted) @ system.transition.T + torch.diag(system.state_variance)
    torch.testing.assert_close(riccati, predicted, atol=1e-10, rtol=0)


def test_a_growing_state_settles_only_if_it_is_seen():
    system = linear_dynamical_system(units=2).dynamics()
    growing = dataclasses.replace(system, transition=1.1 * torch.eye(2, dtype=DOUBLE))
    assert steady_state(growing)[0].isfinite().all()
    with pytest.raises(ValueError, match="must be seen"):
        steady_state(dataclasses.replace(growing, emission=0.0 * system.emission), most=2000)


def test_the_evidence_can_be_differentiated():
    model = zoo.build("temporal", (3, 2), units=2, learn_scale=True, learn_state_scale=True).double()
    x = sequences(model, 4)
    value = kalman_filter(model.dynamics(), model.frames(x)).log_evidence.sum()
    slopes = torch.autograd.grad(value, list(model.parameters()))
    for parameter, slope in zip(model.parameters(), slopes, strict=True):
        with torch.no_grad():
            before = parameter.flatten()[0].item()
            ends = []
            for step in (1e-6, -1e-6):
                parameter.flatten()[0] = before + step
                ends.append(kalman_filter(model.dynamics(), model.frames(x)).log_evidence.sum())
            parameter.flatten()[0] = before
        torch.testing.assert_close((ends[0] - ends[1]) / 2e-6, slope.flatten()[0], atol=1e-5, rtol=1e-6)


def test_the_oracle_is_a_model_of_the_zoo(unchanged_generator):
    with unchanged_generator():
        model = zoo.build("linear_dynamical_system")
    check_model(model, sequences(model, 4))
    again = zoo.build("linear_dynamical_system", seed=1)
    assert not torch.equal(model.emission.weight, again.emission.weight)


def test_laplaces_approximation_of_the_program_is_the_oracles_answer():
    """Autograd's curvature of the program's density, over all frames at once, knows nothing of filters."""
    model = general()
    x, smoothed = sequences(model, 5), model.smoothed(sequences(model, 5))
    guide = guides.build("laplace_approximation", model, x)
    torch.testing.assert_close(guide.log_evidence, model.log_evidence(x), atol=1e-8, rtol=0)
    torch.testing.assert_close(guide.loc.unflatten(1, (4, 3)), smoothed.mean, atol=1e-8, rtol=0)
    covariance = (guide.scale_tril @ guide.scale_tril.mT)[0]
    for t in range(4):
        torch.testing.assert_close(block(covariance, t, 3), smoothed.covariance[t], atol=1e-8, rtol=0)


def test_the_oracle_shares_memory_and_refuses_what_is_not_linear():
    model = zoo.build("temporal", (3, 4), units=2)
    oracle, x = LinearDynamicalSystem.of(model), sequences(model, 4)
    before = oracle.log_evidence(x)
    with torch.no_grad():
        model.transition.weight.mul_(0.5)
    assert not torch.equal(oracle.log_evidence(x), before)
    with pytest.raises(ValueError, match="activation='identity', not 'tanh'"):
        LinearDynamicalSystem.of(zoo.build("temporal", (3, 4), units=2, activation="tanh"))
    with pytest.raises(ValueError, match=r"expected sequences \(N, T, 4\)"):
        oracle.log_evidence(torch.zeros(2, 3, 5))
