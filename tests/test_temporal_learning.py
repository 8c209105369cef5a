"""Local learning: the precision's fixed point against Riccati's equation, updates of weights against autograd of the program."""

import pytest
import torch

import zoo
from inference import log_joint
from inference.filtering import filter
from inference.temporal_learning import learn, weight_updates
from inference.temporal_precision import expected_covariance, innovation_likelihood, learn_precision
from zoo.oracles.kalman import steady_state

DOUBLE = torch.float64


def build(frames=60, pixels=4, units=2, activation="identity", **settings):
    options = {"scale": 0.5, "state_scale": 0.4, "radius": 0.9, "init_scale": 1.0} | settings
    return zoo.build("temporal", (frames, pixels), units=units, activation=activation, **options).double().requires_grad_(False)


def sequences(model, count, seed=1):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        return model(size=count)


def close(found, expected, atol):
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def population(system, covariance):
    """⟨e₁ e₁ᵀ⟩ + H⁻¹ over all sequences of a linear system, once a filter with the precision Σ⁻¹ has settled: the covariance M of what
    is predicted solves a Lyapunov equation in the filter's gain G, and e₁ = G (frame's error)."""
    noise = torch.diag(system.noise_variance)
    gain = covariance @ system.emission.T @ torch.linalg.inv(system.emission @ covariance @ system.emission.T + noise)
    keep = system.transition @ (torch.eye(len(covariance)) - gain @ system.emission)
    moved = system.transition @ gain
    forced = moved @ noise @ moved.T + torch.diag(system.state_variance)
    size = len(covariance)
    true = torch.linalg.solve(torch.eye(size**2, dtype=DOUBLE) - torch.kron(keep, keep), forced.flatten()).reshape(size, size)
    errors = system.emission @ true @ system.emission.T + noise
    return gain @ errors @ gain.T + covariance - gain @ system.emission @ covariance


def test_the_fixed_point_of_the_local_rule_is_the_steady_state():
    system = build(units=3, pixels=9, scale=0.8).dynamics()
    covariance = torch.diag(system.state_variance)
    for _ in range(300):
        covariance = population(system, covariance)
    close(covariance, steady_state(system)[0], 1e-9)


def test_what_the_local_rule_averages_is_that_population():
    """At a precision that is not the fixed point, so that each term counts."""
    model = build(frames=80)
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=DOUBLE)
    found = filter(model, sequences(model, 400), "precision", precision=torch.linalg.inv(covariance))
    parts = torch.stack([expected_covariance(filter(model, sequences(model, 50, seed), "precision", precision=found.predicted_covariance[
        0, 1].inverse()), 20) for seed in range(8)])
    expected = population(model.dynamics(), covariance)
    assert ((parts.mean(0) - expected).abs() < 4 * parts.std(0) / 8**0.5).all()
    close(expected_covariance(found, 20), expected, 0.01)
    assert (expected - covariance).abs().max() > 0.05


@pytest.mark.parametrize("rule", ["local", "likelihood"])
def test_a_learned_precision_filters_almost_as_the_kalman_filter(rule):
    model = build(frames=40)
    x = sequences(model, 200)
    precision = learn_precision(model, x, rule=rule, skip=10, tolerance=1e-3)
    close(precision, precision.T, 1e-12)
    close(torch.linalg.inv(precision), steady_state(model.dynamics())[0], 0.03)
    fresh = sequences(model, 50, seed=2)
    exact, learned, point = (filter(model, fresh, carry, precision=value).mean[:, 20:] for carry, value in (
        ("curvature", None), ("precision", precision), ("point", None)))
    assert (learned - exact).square().mean() < 0.02 * (point - exact).square().mean()


def test_the_innovation_likelihood_is_the_filters_and_rises_to_what_is_learned():
    model = build(frames=12)
    x = sequences(model, 40)
    for precision in (torch.eye(2, dtype=DOUBLE), learn_precision(model, x, rule="likelihood", skip=2)):
        found = filter(model, x, "precision", precision=precision).log_density[:, 2:].sum()
        close(innovation_likelihood(model.dynamics(), model.frames(x), torch.linalg.inv(precision), 2), found, 1e-8)
    covariance = torch.linalg.inv(precision)
    best = innovation_likelihood(model.dynamics(), model.frames(x), covariance, 2)
    for direction in ([[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]):
        for step in (0.01, -0.01):
            assert innovation_likelihood(model.dynamics(), model.frames(x), covariance + step * torch.tensor(direction), 2) < best


def test_fewer_pixels_than_units_are_learned_by_the_likelihood():
    """The gain, which is all that filtering needs, comes near the steady state's; two pixels, four units."""
    model = build(frames=60, pixels=2, units=4, seed=2)
    x = sequences(model, 200)
    precision = learn_precision(model, x, rule="likelihood", skip=10)
    exact, learned, point = (filter(model, x, carry, precision=value).mean[:, 20:] for carry, value in (
        ("curvature", None), ("precision", precision), ("point", None)))
    assert (learned - exact).square().mean() < 0.05 * (point - exact).square().mean()


def test_the_local_rule_learns_under_any_activation():
    model = build(frames=15, activation="tanh", scale=1.0, state_scale=0.2)
    x = sequences(model, 60)
    precision = learn_precision(model, x, skip=5, tolerance=2e-2)
    density = {carry: filter(model, x, carry, precision=value).log_density[:, 5:].mean() for carry, value in (
        ("point", None), ("precision", precision), ("curvature", None))}
    assert density["point"] < density["precision"] and density["point"] < density["curvature"]


@pytest.mark.parametrize("activation", ["identity", "tanh"])
def test_weight_updates_are_slopes_of_the_programs_density(activation):
    """Under "point" the free energies of all frames add up to −log p(x, z) of the program, at the estimates."""
    model = build(frames=7, activation=activation).requires_grad_(True)
    x = sequences(model, 5)
    found = filter(model, x, "point")
    density = log_joint(model, {f"z{t + 1}": found.mean[:, t] for t in range(7)}, x)
    close(-found.energy.sum(1), density.detach(), 1e-9)
    updates = weight_updates(model, found)
    assert set(updates) == {name for name, _ in model.named_parameters()}
    slopes = torch.autograd.grad(density.mean() / 7, [model.get_parameter(name) for name in updates])
    for update, slope in zip(updates.values(), slopes, strict=True):
        close(update, slope, 1e-10)


def test_weight_updates_weigh_temporal_errors_by_what_is_carried():
    model = build(frames=5, activation="tanh").requires_grad_(True)
    found = filter(model, sequences(model, 4), "curvature")
    predicted = model.transition(model.rate(found.mean[:, :-1]))
    weight = torch.linalg.inv(found.predicted_covariance[:, 1:])
    error = (found.mean[:, 1:] - predicted).unsqueeze(-1)
    energy = 0.5 * (error.mT @ weight @ error).sum() / 20
    slope, = torch.autograd.grad(-energy, model.transition.weight)
    close(weight_updates(model, found)["transition.weight"], slope, 1e-10)
    assert "emission.bias" not in weight_updates(build(frames=5, decoder_bias=False), found)


def test_learning_comes_near_the_truth(unchanged_generator):
    """From C at the truth's lengths but turned, and another A: at least 80 % of the way to the true model's one-step densities."""
    truth = build(frames=8, scale=0.3)
    x, fresh = sequences(truth, 200), sequences(truth, 100, seed=2)
    model = build(frames=8, scale=0.3, seed=1)
    start, best = (filter(one, fresh, "curvature").log_density.mean() for one in (model, truth))
    lengths = model.emission.weight.norm(dim=0)
    with unchanged_generator():
        history = learn(model, x, carry="curvature", steps=60, batch_size=50, lr=0.05, log_every=30)
    end = filter(model, fresh, "curvature").log_density.mean()
    assert end > start + 0.8 * (best - start)
    close(model.emission.weight.norm(dim=0), lengths, 1e-6)
    assert [row["step"] for row in history.rows] == [30, 60]
    assert history.rows[-1]["log_density"] > history.rows[0]["log_density"]


def test_what_does_not_fit_is_refused():
    model = build(frames=5)
    x = sequences(model, 4)
    for call, words in ((lambda: learn_precision(model, x, rule="hebb"), "local, likelihood"),
                        (lambda: learn_precision(model, x, skip=5), "skip from 1"), (lambda: learn_precision(model, x, skip=0), "skip"),
                        (lambda: learn_precision(build(activation="tanh"), x, rule="likelihood"), "rule='local'"),
                        (lambda: learn(model, x, steps=0), "at least 1"), (lambda: learn(model, x, lr=-1.0), "positive")):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(RuntimeError, match="not settled in 1 pass"):
        learn_precision(model, x, iterations=1)
