"""The temporal model against its formulas written out, and every guide and method against the exact smoother."""

import math

import pytest
import torch
from torch.distributions import Normal

import guides
import inference
import zoo
from inference.methods import fitting
from zoo.oracles.kalman import LinearDynamicalSystem
from zoo.testing import check_model

DOUBLE = torch.float64
SETTINGS = ({}, {"activation": "tanh", "learn_scale": "pixel", "learn_state_scale": True, "learn_prior": True},
            {"activation": "relu", "learn_scale": True, "decoder_bias": False, "scale": 0.3})


def sequences(model, count, seed=1):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        return model(size=count)


def perturbed(seed=0, **settings):
    model = zoo.build("temporal", (4, 2, 3), units=5, **settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.double()


@pytest.mark.parametrize("settings", SETTINGS)
def test_it_is_a_model_of_the_zoo(settings, unchanged_generator):
    with unchanged_generator():
        model = zoo.build("temporal", (4, 2, 3), units=5, **settings)
    check_model(model, sequences(model, 4))


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_density_is_the_formula(settings):
    model = perturbed(**settings)
    z = torch.randn(3, 6, 4, 5, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)  # draws, sequences, time, units
    x = torch.randn(6, 4, 2, 3, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    f = {"identity": lambda u: u, "tanh": torch.tanh, "relu": torch.relu}[model.activation]
    weight, drift = model.transition.weight, model.transition.bias
    offset = 0.0 if model.emission.bias is None else model.emission.bias
    system = model.dynamics()
    total = Normal(model.first[0], model.first[1].exp()).log_prob(z[:, :, 0]).sum(-1)
    for t in range(1, 4):
        total = total + Normal(f(z[:, :, t - 1]) @ weight.T + drift, system.state_variance.sqrt()).log_prob(z[:, :, t]).sum(-1)
    for t in range(4):
        mean = f(z[:, :, t]) @ model.emission.weight.T + offset
        total = total + Normal(mean, system.noise_variance.sqrt()).log_prob(x[:, t].flatten(1)).sum(-1)
    found = inference.log_joint(model, {f"z{t + 1}": z[:, :, t] for t in range(4)}, x)
    torch.testing.assert_close(found, total)


def test_slopes_are_autograds():
    z = torch.linspace(-2.0, 2.0, 20, dtype=DOUBLE).requires_grad_(True)
    for activation in ("identity", "tanh", "relu"):
        model = zoo.build("temporal", (2, 3), units=2, activation=activation)
        slope, = torch.autograd.grad(model.rate(z).sum(), z)
        torch.testing.assert_close(model.slope(z), slope)


def test_it_starts_stationary_with_variance_1():
    model = zoo.build("temporal", (200, 2), units=6, radius=0.98, seed=3)
    weight = model.transition.weight.double()
    torch.testing.assert_close(torch.linalg.eigvals(weight).abs(), torch.full((6,), 0.98, dtype=DOUBLE), atol=1e-5, rtol=0)
    carried = weight @ weight.T + torch.diag(model.state_scale.double().square())
    torch.testing.assert_close(carried, torch.eye(6, dtype=DOUBLE), atol=1e-5, rtol=0)  # of states with covariance I
    again, other = zoo.build("temporal", (200, 2), units=6, radius=0.98, seed=3), zoo.build("temporal", (200, 2), units=6, seed=4)
    assert torch.equal(model.emission.weight, again.emission.weight) and not torch.equal(model.emission.weight, other.emission.weight)


def test_scales_start_where_told_and_stay_above_their_floor():
    for learned in (False, True, "pixel"):
        model = zoo.build("temporal", (3, 4), units=2, scale=0.2, learn_scale=learned, state_scale=0.3, learn_state_scale=bool(learned),
                          floor=0.1)
        assert model.scale.flatten()[0].item() == pytest.approx(0.2, rel=1e-6)
        assert model.state_scale[0].item() == pytest.approx(0.3, rel=1e-6)
        assert model.scale.shape == ((3, 4) if learned == "pixel" else ())
        assert len(list(model.parameters())) == (6 if learned else 4)
        if learned:
            with torch.no_grad():
                model.log_scale.fill_(-20.0)
                model.state_log_scale.fill_(-20.0)
            torch.testing.assert_close(model.scale.flatten()[0], torch.tensor(0.1))
            torch.testing.assert_close(model.state_scale, torch.tensor([0.1, 0.1]))
            slopes = torch.autograd.grad(model.scale.sum() + model.state_scale.sum(), [model.log_scale, model.state_log_scale])
            assert all(slope.isfinite().all() for slope in slopes)
            assert all(math.isfinite(value) for value in inference.log_joint(
                model.requires_grad_(False), {f"z{t}": torch.zeros(2, 2) for t in (1, 2, 3)}, torch.zeros(2, 3, 4)))
    frozen = zoo.build("temporal", (3, 4), units=2, scale=0.2, learn_scale=True, floor=0.1).requires_grad_(False)
    assert frozen.scale.item() == pytest.approx(0.2, rel=1e-6)


def test_guides_train_on_it():
    model = zoo.build("temporal", (3, 2), units=2, activation="tanh", learn_scale=True, learn_state_scale=True)
    x = sequences(zoo.build("temporal", (3, 2), units=2, activation="tanh", seed=5), 300)
    guide = guides.build("amortized", model)
    before = inference.elbo(model, guide, x).value.mean()
    inference.fit(model, guide, x, steps=60, batch_size=100, lr=2e-2, progress=False)
    assert inference.elbo(model, guide, x).value.mean() > before + 0.1


OPTIONS = {"map": {"steps": 300}, "laplace_approximation": {"steps": 50, "draws": 400}, "local": {"steps": 150, "draws": 50},
           "natural": {"draws": 50}, "mcmc": {"draws": 100, "warmup": 100, "chains": 4}}


@pytest.mark.parametrize("method", OPTIONS)
def test_methods_smooth(method):
    """Means of all states given all frames, against the Rauch–Tung–Striebel smoother."""
    model = zoo.build("linear_dynamical_system", (3, 2), units=2)
    x = sequences(model, 4)
    smoothed = model.smoothed(x)
    posterior = inference.infer(model, x, method, seed=0, **OPTIONS[method])
    means = torch.stack([posterior.samples[f"z{t}"].mean((0, 1)) for t in (1, 2, 3)], 1).double()
    scale = smoothed.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((means - smoothed.mean).abs() / scale).max() < (0.01 if method == "map" else 0.5)
    assert ((means - smoothed.mean).abs() / scale).mean() < 0.15


def test_what_fits():
    """Every method of real-valued latents infers it; methods of sparse codes, which read one layer, do not."""
    model = zoo.build("temporal", (3, 2), units=2, activation="tanh")
    found = fitting(model)
    assert set(OPTIONS) | {"amortized", "iterative", "semi", "full", "lowrank", "flow"} <= set(found)
    assert not {"ista", "fista", "lca"} & set(found)


@pytest.mark.parametrize("name", ["amortized", "iterative", "semi", "full", "lowrank", "flow"])
def test_trained_guides_run(name):
    model = zoo.build("temporal", (3, 2), units=2, activation="tanh")
    x = sequences(model, 40)
    guide = guides.build(name, model)
    inference.fit(model, guide, x, steps=2, batch_size=20, progress=False)
    posterior = inference.infer(model, x, name, guide=guide, draws=3)
    assert [posterior.samples[f"z{t}"].shape for t in (1, 2, 3)] == [(1, 3, 40, 2)] * 3
    assert all(value.isfinite().all() for value in posterior.samples.values())


@pytest.mark.parametrize(("settings", "words"), [
    ({"activation": "sine"}, "unknown activation 'sine'"), ({"units": 0}, "at least 1"), ({"radius": 1.0}, r"radius in \[0, 1\)"),
    ({"state_scale": -1.0}, "must be positive"), ({"learn_scale": True, "scale": 0.005}, "above floor"),
    ({"learn_state_scale": True, "state_scale": 0.005}, "above floor"), ({"learn_scale": "frame"}, "learn_scale must be")])
def test_what_makes_no_sense_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        zoo.build("temporal", (3, 4), **settings)


def test_sequences_are_needed():
    for shape in (None, (5,)):
        with pytest.raises(ValueError, match="sequences"):
            zoo.build("temporal", shape)
    assert isinstance(zoo.build("linear_dynamical_system"), LinearDynamicalSystem)


@pytest.mark.parametrize("method", ["map", "local", "mcmc"])
def test_sequences_are_scored_and_followed(method):
    model = zoo.build("temporal", (4, 1, 2, 2), units=3)
    x = torch.randn(3, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    options = {"map": {"steps": 50}, "local": {"steps": 20}, "mcmc": {"warmup": 10, "chains": 2}}[method]
    posterior = inference.infer(model, x, method, draws=8, **options)
    squares = (posterior.predict(model) - x).flatten(1).square().sum(1).mean().item()
    found = inference.score(model, x, posterior).values["mse"]
    assert found == pytest.approx(squares, rel=1e-4) if method == "map" else found > squares
