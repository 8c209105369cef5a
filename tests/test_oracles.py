"""Oracles against other derivations of the same numbers, and every guide and method against the oracles."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import guides
import inference
import zoo
from guides.bounds import exact_elbo, exact_kl
from inference.comparison import TRAINED
from inference.methods import misfit
from inference.metrics.evidence import iwae_bound
from zoo import oracles
from zoo.testing import check_model

DOUBLE = torch.float64
ORACLES = ("linear_gaussian", "poisson_fixture", "mixture")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def images(model, count, seed=1):
    """Images drawn from the model, ``(count, *event_shape)``."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        return model(size=count)


def elbo_of(model, x, params):
    with torch.no_grad():
        return model.expected_log_prob(x, params) - exact_kl(model, params)


def general_linear_gaussian():
    """A linear-Gaussian model in which nothing is 0 or 1: prior, bias, one σ for each pixel."""
    model = zoo.build("gaussian", (1, 3, 4), latents=5, init_scale=0.6, decoder_bias=True, learn_scale="pixel", learn_prior=True)
    for parameter in (model.prior, model.decoder.bias, model.log_scale):
        torch.nn.init.normal_(parameter, std=0.4)
    return oracles.LinearGaussian.of(model.double())


# -- conventions

@pytest.mark.parametrize("name", ORACLES)
def test_oracles_are_models_of_the_zoo(name, unchanged_generator):
    x = images(zoo.build(name), 4)
    with unchanged_generator():
        check_model(zoo.build(name), x)


@pytest.mark.parametrize("name", ["linear_gaussian", "mixture"])
def test_oracles_follow_their_seed(name):
    weights = [zoo.models.registry[name](seed=seed).decoder.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_oracles_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"expected images \(N, 1, 4, 4\)"):
        oracles.linear_gaussian().posterior(torch.zeros(2, 1, 5, 5))
    for make in (lambda: oracles.linear_gaussian(latents=0), lambda: oracles.mixture(components=1)):
        with pytest.raises(ValueError, match="at least"):
            make()
    for weight, rates, most, words in ((torch.ones(3, 2), torch.tensor([1.0, -1.0]), 30, "positive rates"),
                                       (torch.ones(3, 2), torch.ones(3), 30, "positive rates"),
                                       (torch.ones(3, 5), torch.ones(5), 30, "states are accepted")):
        with pytest.raises(ValueError, match=words):
            oracles.enumerable_poisson(weight, rates, max_count=most)
    with pytest.raises(ValueError, match="linear decoder"):
        oracles.LinearGaussian.of(zoo.build("gaussian", (1, 3, 4), latents=5, decoder="mlp"))
    with pytest.raises(ValueError, match="without activation"):
        oracles.LinearGaussian.of(zoo.build("gaussian", (1, 3, 4), latents=5, activation="relu"))


# -- the linear-Gaussian oracle

def test_linear_gaussian_evidence_and_posterior_are_those_of_the_joint_normal():
    model, x = general_linear_gaussian(), torch.randn(4, 1, 3, 4, dtype=DOUBLE)
    loc, scale = model.prior[0], model.prior[1].exp()
    weight, noise = model.decoder.weight, model.scale.flatten().square()
    mean = weight @ loc + model.decoder.bias
    covariance = weight @ torch.diag(scale.square()) @ weight.T + torch.diag(noise)
    expected = MultivariateNormal(mean, covariance).log_prob(x.flatten(1))
    torch.testing.assert_close(model.log_evidence(x), expected)
    constant = 0.5 * (2 * math.pi * noise).log().sum()
    torch.testing.assert_close(model.log_evidence(x, constant=False), expected + constant)
    gain = torch.diag(scale.square()) @ weight.T @ torch.linalg.inv(covariance)  # the Kalman gain: (D, D) is inverted, not (K, K)
    means, shared = model.posterior(x)
    torch.testing.assert_close(means, loc + (x.flatten(1) - mean) @ gain.T)
    torch.testing.assert_close(shared, torch.diag(scale.square()) - gain @ weight @ torch.diag(scale.square()))


def test_linear_gaussian_joint_density_is_posterior_times_evidence():
    model, x = general_linear_gaussian(), torch.randn(4, 1, 3, 4, dtype=DOUBLE)
    z = torch.randn(7, 4, 5, dtype=DOUBLE)
    means, shared = model.posterior(x)
    expected = MultivariateNormal(means, shared).log_prob(z) + model.log_evidence(x)
    torch.testing.assert_close(inference.log_joint(model, {"z": z}, x), expected)


def test_best_mean_field_posterior_and_its_elbo():
    model, x = general_linear_gaussian(), torch.randn(4, 1, 3, 4, dtype=DOUBLE)
    params = model.mean_field(x)
    q = MultivariateNormal(params["z"][:, 0], torch.diag_embed(params["z"][:, 1].exp().square()))
    gap = kl_divergence(q, MultivariateNormal(*model.posterior(x)))
    best = model.mean_field_elbo(x)
    torch.testing.assert_close(best, model.log_evidence(x) - gap)
    torch.testing.assert_close(elbo_of(model, x, params), best)
    assert (gap > 0.01).all()
    for _ in range(20):
        other = {"z": params["z"] + 0.05 * torch.randn_like(params["z"])}
        assert (elbo_of(model, x, other) < best).all()


def test_exact_answers_at_the_size_of_a_published_model():
    model = zoo.build("gaussian", (1, 28, 28), latents=512)
    oracle, x = oracles.LinearGaussian.of(model), images(model, 20)
    weight = model.decoder.weight.detach().double()
    expected = MultivariateNormal(torch.zeros(784, dtype=DOUBLE), weight @ weight.T + 0.5 * torch.eye(784, dtype=DOUBLE))
    torch.testing.assert_close(oracle.log_evidence(x), expected.log_prob(x.flatten(1).double()), rtol=1e-7, atol=1e-4)
    assert oracle.decoder.weight.data_ptr() == model.decoder.weight.data_ptr()


def test_local_inference_reaches_the_best_mean_field_elbo_of_every_image():
    model = oracles.linear_gaussian()
    x = images(model, 20)
    posterior = inference.infer(model, x, "local", objective="exact")
    short = model.mean_field_elbo(x) - elbo_of(model, x, posterior.params)
    assert (short < 1e-3).all() and (short > -1e-4).all(), short
    expected = model.mean_field(x)["z"].float()
    torch.testing.assert_close(posterior.params["z"], expected, atol=5e-3, rtol=0)


def test_a_linear_encoder_has_no_amortization_gap():
    model = oracles.linear_gaussian(latents=4, event_shape=(1, 2, 3))
    x = images(model, 512)
    guide = guides.build("amortized", model, encoder="lin")
    inference.fit(model, guide, x, objective="exact", steps=400, batch_size=512, lr=0.05, beta_start=1.0, freeze_model=True,
                  progress=False)
    with torch.no_grad():
        short = model.mean_field_elbo(x) - exact_elbo(model, guide, x).value
    assert short.min() > -1e-4 and short.mean() < 1e-3, (short.min(), short.mean())


def test_importance_weighted_bounds_tighten_towards_the_evidence():
    model = oracles.linear_gaussian()
    x = images(model, 200)
    params = {name: value.float().detach() for name, value in model.mean_field(x).items()}
    truth = model.log_evidence(x).detach()
    gaps = [(truth - iwae_bound(model, x, params, k)) for k in (1, 10, 100, 1000)]
    errors = [gap.std().item() / len(x) ** 0.5 for gap in gaps]
    means = [gap.mean().item() for gap in gaps]
    best = (truth - model.mean_field_elbo(x)).mean().item()
    assert abs(means[0] - best) < 5 * errors[0], "one draw gives the ELBO"
    assert means[0] > means[1] > means[2] > means[3] > -5 * errors[3]
    assert means[3] < 0.1 * means[0]


# -- the Poisson fixture

def test_poisson_fixture_has_its_known_numbers():
    model, x = oracles.poisson_fixture(), oracles.fixture_image()
    assert model.missing_mass.abs() < 1e-7
    assert -model.log_evidence(x, constant=False).item() == pytest.approx(1.3963487, abs=1e-6)
    with_constant = -model.log_evidence(x).item()
    assert with_constant == pytest.approx(1.3963487 + 1.5 * math.log(math.pi), abs=1e-6)
    mean, covariance = model.posterior_moments(x)
    torch.testing.assert_close(mean[0], torch.tensor([0.650267, 0.248782], dtype=DOUBLE), atol=1e-6, rtol=0)
    expected = torch.tensor([[0.311883, 0.056873], [0.056873, 0.190917]], dtype=DOUBLE)
    torch.testing.assert_close(covariance[0], expected, atol=1e-6, rtol=0)
    for z, probability in (((0, 0), 0.338358), ((1, 0), 0.395819), ((1, 1), 0.169274)):
        assert model.posterior_probability(x, torch.tensor(z)).item() == pytest.approx(probability, abs=1e-6)


def test_enumeration_is_the_sum_of_the_joint_density():
    torch.manual_seed(3)
    model = oracles.enumerable_poisson(torch.randn(4, 3), torch.tensor([0.3, 1.0, 2.0]), (1, 2, 2), scale=0.8, max_count=20)
    x = images(model, 5)
    joint = inference.log_joint(model, {"z": model.states.unsqueeze(1).expand(-1, 5, -1)}, x).detach()
    torch.testing.assert_close(joint.logsumexp(0).double(), model.log_evidence(x), atol=1e-4, rtol=0)
    torch.testing.assert_close(joint.softmax(0).T.double(), model.posterior_probabilities(x), atol=1e-5, rtol=0)
    z = model.states[[5, 17, 300, 2, 41]]
    chosen = model.posterior_probabilities(x)[torch.arange(5), [5, 17, 300, 2, 41]]
    torch.testing.assert_close(model.posterior_probability(x, z), chosen, atol=1e-6, rtol=1e-4)


def test_missing_mass_is_the_probability_of_higher_counts():
    model = oracles.enumerable_poisson(torch.ones(1, 1), torch.tensor([2.0]), max_count=3)
    kept = math.exp(-2) * (1 + 2 + 2 + 8 / 6)
    assert model.missing_mass.item() == pytest.approx(1 - kept, abs=1e-6)


def test_local_inference_finds_the_best_factorized_poisson():
    model, x = oracles.poisson_fixture(), oracles.fixture_image()
    posterior = inference.infer(model, x, "local", objective="exact")
    torch.testing.assert_close(posterior.params["z"].exp().flatten(), torch.tensor([0.445883, 0.150157]), atol=1e-4, rtol=0)
    with torch.no_grad():
        reconstruction = -(model.expected_log_prob(x, posterior.params) + oracles.likelihood_constant(model)).item()
        kl = exact_kl(model, posterior.params).item()
    assert reconstruction == pytest.approx(1.655577, abs=1e-4) and kl == pytest.approx(0.009843, abs=1e-4)
    assert reconstruction + kl == pytest.approx(1.665420, abs=1e-4)


# -- the mixture

def test_mixture_follows_from_bayes_rule():
    model = oracles.mixture(components=4)
    x = images(model, 6)
    weights = model.prior[0].softmax(0).double()
    likelihood = Normal(model.decoder.weight.T.double(), model.scale.double()).log_prob(x.flatten(1).double().unsqueeze(1)).sum(-1)
    joint = likelihood + weights.log()
    torch.testing.assert_close(model.log_evidence(x), joint.logsumexp(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(model.responsibilities(x), joint.softmax(1), atol=1e-6, rtol=0)


def test_a_linear_encoder_is_exact_for_the_mixture():
    model = oracles.mixture()
    x = images(model, 50)
    guide = guides.build("amortized", model, encoder="lin")
    head = next(module for module in guide.modules() if isinstance(module, torch.nn.Linear))
    with torch.no_grad():
        means, variance = model.decoder.weight.T, model.scale.square()
        head.weight.copy_(means / variance)
        head.bias.copy_(-0.5 * means.square().sum(1) / variance)
        posterior = inference.infer(model, x, guide=guide)
        bound = exact_elbo(model, guide, x).value
    torch.testing.assert_close(bound.double(), model.log_evidence(x), atol=1e-4, rtol=0)
    torch.testing.assert_close(posterior.params["z"].softmax(-1).squeeze(1).double(), model.responsibilities(x), atol=1e-5, rtol=0)


def test_local_inference_is_exact_for_the_mixture():
    model = oracles.mixture()
    x = images(model, 20)
    posterior = inference.infer(model, x, "local", draws=2000, steps=1500)
    probabilities = posterior.params["z"].softmax(-1).squeeze(1).double()
    torch.testing.assert_close(probabilities, model.responsibilities(x).detach(), atol=1e-3, rtol=0)
    assert (model.log_evidence(x) - elbo_of(model, x, posterior.params)).max() < 5e-3
    error = (posterior.mean["z"] - probabilities).abs() / (probabilities * (1 - probabilities) / 2000).sqrt().clamp(min=1e-3)
    assert error.max() < 5


# -- every guide and method on every oracle

@pytest.mark.parametrize("objective", ["elbo", "exact", "iwae"])
@pytest.mark.parametrize("name", ORACLES)
def test_fitting_a_guide_raises_its_elbo_and_never_past_the_evidence(name, objective, unchanged_generator):
    model = zoo.build(name)
    x = images(model, 200)
    guide = guides.build("amortized", model, encoder="lin")
    before = elbo_of(model, x, guide.posterior(x))
    with unchanged_generator():
        inference.fit(model, guide, x, objective=objective, particles=4, steps=60, batch_size=200, lr=0.05, freeze_model=True,
                      progress=False)
    after = elbo_of(model, x, guide.posterior(x))
    assert after.mean() > before.mean() + 0.05
    assert (after <= model.log_evidence(x) + 1e-4).all()


@pytest.mark.parametrize("method", inference.methods.registry)
@pytest.mark.parametrize("name", ORACLES)
def test_every_method_respects_the_evidence_of_every_oracle_or_refuses_it(name, method, unchanged_generator):
    model = zoo.build(name)
    x = images(model, 12)
    if misfit(method, model) is not None:
        with pytest.raises(ValueError, match=f"{method}' does not fit the model: .*; methods that fit it: amortized"):
            inference.infer(model, x, method, guide=guides.build("amortized", model), draws=20)
        return
    guide = guides.build(method if method in TRAINED else "amortized", model)
    with unchanged_generator():
        posterior = inference.infer(model, x, method, guide=guide, draws=20)
    z = posterior.samples["z"]
    assert z.shape[2:] == (12, model.units) and z.isfinite().all() and len(posterior) == 12
    evidence = model.log_evidence(x).detach()
    joint = inference.log_joint(model, {"z": z}, x).detach()
    if name != "linear_gaussian":
        assert (joint <= evidence + 1e-4).all(), "log p(x, z) of a discrete latent cannot exceed log p(x)"
    if posterior.params is not None:
        assert (elbo_of(model, x, posterior.params) <= evidence + 1e-4).all()


@pytest.mark.parametrize("name", ["poisson_fixture", "mixture"])
def test_map_finds_the_most_probable_state(name):
    model = zoo.build(name)
    x = images(model, 40)
    found = inference.infer(model, x, "map").samples["z"][0, 0]
    best = model.posterior_probabilities(x).max(1).values
    torch.testing.assert_close(model.posterior_probability(x, found), best, atol=1e-6, rtol=1e-4)


def test_map_finds_the_exact_mean_of_normals():
    model = oracles.linear_gaussian()
    x = images(model, 20)
    found = inference.infer(model, x, "map").samples["z"][0, 0]
    torch.testing.assert_close(found.double(), model.posterior(x)[0].detach(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ORACLES)
def test_guides_of_every_kind_have_the_sites_of_the_oracle(name):
    model = zoo.build(name)
    x = images(model, 3)
    for kind in ("amortized", "local", "map"):
        drawn = guides.build(kind, model, x)(x)
        assert list(drawn) == ["z"] and drawn["z"].shape == (3, model.units)
