"""Filtering against the published closed form, the Kalman filter, an iterated extended Kalman filter in gain form, and autograd."""

import math

import pytest
import torch
from pyro import poutine
from torch.distributions import MultivariateNormal, Normal

import zoo
from inference.filtering import filter
from inference.frame_energy import FrameEnergy
from zoo.oracles.kalman import LinearDynamicalSystem, steady_state

DOUBLE = torch.float64


def general(activation="identity", frames=6, units=3, shape=(2, 2), seed=0):
    """A model in which nothing is 0 or 1: drift, offset, one variance for each unit and pixel, a first state of its own."""
    model = zoo.build("temporal", (frames, *shape), units=units, activation=activation, learn_scale="pixel", learn_state_scale=True,
                      learn_prior=True, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.double().requires_grad_(False)


def sequences(model, count, frames=None, seed=1):
    """Sequences that a model makes, of its own number of frames or of another."""
    if frames is not None:
        model = lengthened(model, frames)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        return model(size=count)


def lengthened(model, frames):
    longer = zoo.build("temporal", (frames, *model.frame_shape), units=model.units, activation=model.activation, learn_scale="pixel",
                       learn_state_scale=True, learn_prior=True).double()
    longer.load_state_dict(model.state_dict())
    return longer


def close(found, expected, atol):
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@pytest.mark.parametrize(("descent", "steps"), [("gradient", 2000), ("newton", 1)])
def test_the_point_filter_is_the_published_closed_form(descent, steps):
    """z = (Q⁻¹ + Cᵀ R⁻¹ C)⁻¹ (Q⁻¹ (A z' + a) + Cᵀ R⁻¹ (x − c)), from its own estimate before."""
    model = general()
    x, system = sequences(model, 4), model.dynamics()
    found = filter(model, x, "point", descent=descent, steps=steps)
    weighted = system.emission / system.noise_variance.unsqueeze(1)
    predicted, variance = system.first_mean.expand(4, -1), system.first_variance
    for t in range(6):
        close(found.predicted[:, t], predicted, 1e-6)
        total = torch.diag(1 / variance) + system.emission.T @ weighted
        z = torch.linalg.solve(total, (predicted / variance + (x[:, t].flatten(1) - system.offset) @ weighted).T).T
        close(found.mean[:, t], z, 1e-6)
        close(found.covariance[:, t], torch.linalg.inv(total).expand(4, -1, -1), 1e-10)
        close(found.error[:, t].flatten(1), x[:, t].flatten(1) - z @ system.emission.T - system.offset, 1e-6)
        close(found.temporal_error[:, t], z - predicted, 1e-6)
        predicted, variance = z @ system.transition.T + system.drift, system.state_variance
    close(found.next_frame.flatten(1), predicted @ system.emission.T + system.offset, 1e-6)
    assert found.slope.max() < 1e-6


@pytest.mark.parametrize(("descent", "steps"), [("gradient", 2000), ("newton", 1)])
def test_with_the_curvature_it_is_the_kalman_filter(descent, steps):
    model = general()
    x, exact = sequences(model, 4), LinearDynamicalSystem.of(model).filtered(sequences(model, 4))
    found = filter(model, x, "curvature", descent=descent, steps=steps)
    close(found.mean, exact.mean, 1e-6)
    close(found.covariance, exact.covariance.expand(4, -1, -1, -1), 1e-10)
    close(found.predicted, exact.predicted, 1e-6)
    close(found.predicted_covariance, exact.predicted_covariance.expand(4, -1, -1, -1), 1e-10)
    close(found.predicted_frames.flatten(2), exact.frames, 1e-6)
    close(found.log_density, exact.log_evidence, 1e-6)
    # Laplace's approximation of each frame is exact: log p(x_t | before) = −F + (K/2) log 2π − ½ log|H|
    laplace = -found.energy + 1.5 * math.log(2 * math.pi) + 0.5 * torch.linalg.slogdet(found.covariance)[1]
    close(laplace, exact.log_evidence, 1e-6)


def test_with_the_steady_precision_it_settles_to_the_kalman_filter():
    model = general()
    model.transition.weight.mul_(0.7)  # states that stay
    x = sequences(model, 4, frames=150)
    exact = LinearDynamicalSystem.of(model).filtered(x)
    found = filter(model, x, "precision")
    close(found.predicted_covariance[:, 1:], steady_state(model.dynamics())[0].expand(4, 149, -1, -1), 1e-10)
    close(found.mean[:, 100:], exact.mean[:, 100:], 1e-8)
    close(found.log_density[:, 100:], exact.log_evidence[:, 100:], 1e-8)
    assert (found.mean[:, :10] - exact.mean[:, :10]).abs().max() > 1e-4  # not from the start
    given = filter(model, x, "precision", precision=torch.linalg.inv(steady_state(model.dynamics())[0]))
    close(given.mean, found.mean, 1e-10)
    q = filter(model, x, "precision", precision=torch.diag(1 / model.dynamics().state_variance))
    close(q.mean, filter(model, x, "point").mean, 1e-10)


def extended_kalman(model, x, rounds=60):
    """An iterated extended Kalman filter in gain form, with Jacobians by autograd: (D, D) is inverted, and no energy is descended."""
    system = model.dynamics()
    noise, means, densities = torch.diag(system.noise_variance), [], []

    def seen(z):
        return model.rate(z) @ system.emission.T + system.offset

    def ahead(z):
        return model.rate(z) @ system.transition.T + system.drift

    predicted, covariance = system.first_mean, torch.diag(system.first_variance)
    for frame in x.flatten(1):
        z = predicted
        jacobian = torch.autograd.functional.jacobian(seen, z)
        densities.append(MultivariateNormal(seen(z), jacobian @ covariance @ jacobian.T + noise).log_prob(frame))
        for _ in range(rounds):
            jacobian = torch.autograd.functional.jacobian(seen, z)
            gain = covariance @ jacobian.T @ torch.linalg.inv(jacobian @ covariance @ jacobian.T + noise)
            z = 0.5 * z + 0.5 * (predicted + gain @ (frame - seen(z) - jacobian @ (predicted - z)))  # damped: whole steps may circle
        means.append(z)
        left = covariance - gain @ jacobian @ covariance
        forward = torch.autograd.functional.jacobian(ahead, z)
        predicted, covariance = ahead(z), forward @ left @ forward.T + torch.diag(system.state_variance)
    return torch.stack(means), torch.stack(densities), covariance


def test_with_the_curvature_it_is_the_iterated_extended_kalman_filter():
    model = general("tanh")
    x = sequences(model, 3)
    found = filter(model, x, "curvature")
    for n in range(3):
        means, densities, _ = extended_kalman(model, x[n])
        close(found.mean[n], means, 1e-6)
        close(found.log_density[n], densities, 1e-6)
    assert found.covariance[0].sub(found.covariance[1]).abs().max() > 1e-3  # each sequence has its own
    assert found.slope.max() < 1e-6
    slow = filter(model, x, "curvature", descent="gradient", steps=4000)
    close(slow.mean, found.mean, 1e-6)


@pytest.mark.parametrize("activation", ["identity", "tanh", "relu"])
def test_force_energy_and_density_of_a_frame_are_autograds(activation):
    model = general(activation)
    generator = torch.Generator().manual_seed(3)
    frame, predicted, z = (torch.randn(5, size, generator=generator, dtype=DOUBLE) for size in (4, 3, 3))
    root = torch.randn(5, 3, 3, generator=generator, dtype=DOUBLE)
    covariance = root @ root.mT + torch.eye(3)
    level, system = FrameEnergy(model, model.dynamics(), frame, predicted, torch.linalg.inv(covariance)), model.dynamics()
    z.requires_grad_(True)
    mean = model.rate(z) @ system.emission.T + system.offset
    log_joint = (Normal(mean, system.noise_variance.sqrt()).log_prob(frame).sum(-1)
                 + MultivariateNormal(predicted, covariance).log_prob(z))
    close(-(level.energy(z) + level.constant()), log_joint, 1e-10)
    slope, = torch.autograd.grad(log_joint.sum(), z)
    close(level.force(z), slope, 1e-10)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda u: model.rate(u) @ system.emission.T, u) for u in z.detach()])
    information = jacobian.mT @ torch.diag(1 / system.noise_variance) @ jacobian
    close(level.curvature(z).expand(5, 3, 3), torch.linalg.inv(covariance) + information, 1e-10)


def test_the_free_energy_only_falls():
    model = general("tanh")
    x = sequences(model, 50, seed=5) * 2.0
    energies = [filter(model, x[:, :1], steps=steps).energy for steps in (1, 2, 4, 20)]
    for before, after in zip(energies, energies[1:], strict=False):
        assert (after <= before + 1e-12).all()
    slow = filter(model, x[:, :1], descent="gradient", steps=3).energy
    assert (slow >= energies[-1] - 1e-9).all()


def test_errors_fall_in_the_order_of_what_is_carried():
    """Squared errors of the point filter exceed those of the Kalman filter by many standard errors; 200 sequences."""
    model = zoo.build("temporal", (60, 2), units=2, scale=0.5, state_scale=0.3, radius=0.95, seed=4).double().requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trace = poutine.trace(model).get_trace(size=200)
    x, z = trace.nodes["x"]["value"], torch.stack([trace.nodes[f"z{t}"]["value"] for t in range(1, 61)], 1)
    errors = {carry: (filter(model, x, carry).mean - z).square().sum(-1)[:, 30:].mean(1) for carry in ("point", "precision", "curvature")}
    excess = errors["point"] - errors["curvature"]
    assert excess.mean() > 5 * excess.std() / math.sqrt(200)
    close(errors["precision"].mean(), errors["curvature"].mean(), 5e-3)  # the one is as good, once it has settled
    expected = torch.trace(steady_state(model.dynamics())[1])
    assert (errors["curvature"].mean() - expected).abs() < 4 * errors["curvature"].std() / math.sqrt(200)
    densities = {carry: filter(model, x, carry).log_density.mean() for carry in ("point", "curvature")}
    assert densities["point"] < densities["curvature"]


def test_sequences_do_not_see_one_another_and_estimates_not_the_future():
    model = general("tanh")
    x = sequences(model, 4)
    whole = filter(model, x, "curvature")
    close(filter(model, x[2:3], "curvature").mean, whole.mean[2:3], 1e-10)
    close(filter(model, x[:, :3], "curvature").mean, whole.mean[:, :3], 1e-10)
    close(filter(model, x[:, :3], "curvature").next_frame, whole.predicted_frames[:, 3], 1e-10)
    assert whole.error.shape == x.shape == whole.predicted_frames.shape


def test_what_does_not_fit_is_refused():
    model, x = general(), sequences(general(), 2)
    asymmetric = torch.eye(3)
    asymmetric[0, 1] = 1.0
    for call, words in ((lambda: filter(model, x, "kalman"), "carry must be one of point, precision, curvature"),
                        (lambda: filter(model, x, descent="adam"), "gradient, newton"),
                        (lambda: filter(model, x, steps=0), "at least 1"),
                        (lambda: filter(model, x, lr=0.1), "descent='gradient'"),
                        (lambda: filter(model, x, precision=torch.eye(3)), "carry='precision'"),
                        (lambda: filter(model, x, "precision", precision=torch.eye(2)), r"shape \(3, 3\)"),
                        (lambda: filter(model, x, "precision", precision=asymmetric), "symmetric"),
                        (lambda: filter(model, x, "precision", precision=-torch.eye(3)), "positive definite"),
                        (lambda: filter(general("tanh"), x, "precision"), "give the precision"),
                        (lambda: filter(zoo.build("gaussian", (2, 2), latents=2), x), "OneLayer"),
                        (lambda: filter(model, x[0]), r"expected sequences \(N, T, 2, 2\)")):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(FloatingPointError, match="at frame 1"):
        filter(model, x, descent="gradient", lr=1e9, steps=100)
