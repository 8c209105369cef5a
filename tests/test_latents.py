"""Latent families: the conformance test for every registered one, and their formulas against torch and Monte Carlo."""

import math

import my_prior  # noqa: F401  a newcomer: once imported it is covered like the others
import pytest
import torch
from torch.distributions import Laplace, Normal, OneHotCategorical, kl_divergence
from torch.distributions import Poisson as TorchPoisson

import zoo
from zoo import oracles
from zoo.latents.base import softclamp
from zoo.latents.categorical import Categorical
from zoo.latents.gaussian import Gaussian
from zoo.latents.poisson import ESTIMATORS, Poisson
from zoo.testing import check_family, check_model

DOUBLE = torch.float64
VARIANTS = {
    "categorical, 3 groups": Categorical(groups=3),
    "categorical, straight-through": Categorical(straight_through=True),
    "gaussian, relu": Gaussian("relu"),
    "gaussian, exp": Gaussian("exp"),
    "poisson, straight-through": Poisson(straight_through=True),
    **{f"poisson, {estimator}": Poisson(estimator) for estimator in ESTIMATORS if estimator != "cubic"},
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def some_params(family, units=6, spread=0.4, count=3):
    return spread * torch.randn(count, len(family.parameters), units, dtype=DOUBLE)


# -- conformance

@pytest.mark.parametrize("name", zoo.latents.registry)
def test_every_registered_family_conforms(name, unchanged_generator):
    with unchanged_generator():
        check_family(name)


@pytest.mark.parametrize("family", VARIANTS.values(), ids=VARIANTS)
def test_every_option_of_the_families_conforms(family):
    check_family(family)


@pytest.mark.parametrize("decoder", ["lin", "mlp"])
@pytest.mark.parametrize("name", zoo.latents.registry)
def test_one_layer_models_of_every_family_conform(name, decoder, unchanged_generator):
    x = torch.randn(4, 1, 3, 4)
    with unchanged_generator():
        check_model(zoo.build(name, (1, 3, 4), latents=6, decoder=decoder, learn_prior=True), x)


# -- KL divergences, against torch and the published formulas

def test_kl_divergences_are_those_of_torch():
    for family, law in ((Gaussian(), Normal), (zoo.latents.registry["laplace"](), Laplace)):
        q, p = some_params(family), some_params(family)
        expected = kl_divergence(law(q[:, 0], q[:, 1].exp()), law(p[:, 0], p[:, 1].exp()))
        torch.testing.assert_close(family.unit_kl(q, p), expected)
    q, p = some_params(Poisson()), some_params(Poisson())
    expected = kl_divergence(TorchPoisson(q[:, 0].exp()), TorchPoisson(p[:, 0].exp()))
    torch.testing.assert_close(Poisson().unit_kl(q, p), expected)
    for groups in (1, 3):
        family = Categorical(groups)
        q, p = some_params(family), some_params(family)
        expected = kl_divergence(*(OneHotCategorical(logits=side[:, 0].unflatten(-1, (groups, -1))) for side in (q, p))).sum(-1)
        torch.testing.assert_close(family.unit_kl(q, p).sum(-1), expected)


def test_kl_of_poissons_is_the_prior_rate_times_a_function_of_the_gain():
    prior, gain = some_params(Poisson()), some_params(Poisson())
    expected = prior.exp() * (1 + gain.exp() * (gain - 1))
    torch.testing.assert_close(Poisson().unit_kl(prior + gain, prior), expected.squeeze(-2))


def test_kl_of_a_deterministic_category_is_the_log_of_their_number():
    q = torch.zeros(1, 512, dtype=DOUBLE)
    q[0, 7] = 500.0
    assert Categorical().unit_kl(q, torch.zeros_like(q)).sum().item() == pytest.approx(math.log(512))


@pytest.mark.parametrize("name", ["gaussian", "laplace", "categorical", "poisson"])
def test_no_evidence_costs_exactly_nothing(name):
    family = zoo.latents.registry[name]()
    prior = family.initial_prior(6)
    posterior = family.posterior(prior, torch.zeros(3, *prior.shape))
    assert torch.equal(posterior, prior.expand_as(posterior))
    assert (family.unit_kl(posterior, prior) == 0).all()


# -- posteriors

def test_softclamp_is_zero_at_zero_rises_and_saturates():
    limit = 10.0
    a = torch.linspace(-60, 60, 1201, dtype=DOUBLE)
    clamped = softclamp(a, limit)
    assert softclamp(torch.zeros(3), limit).abs().max() == 0
    assert (clamped.diff() > -1e-8).all() and (clamped[a < 10].diff() > 0).all()  # torch's softplus jumps by 2e-9 at 20
    assert clamped.max() <= limit + math.log1p(math.exp(-limit)) + 1e-12
    torch.testing.assert_close(clamped[a < -5], a[a < -5] + math.log1p(math.exp(-limit)), atol=1e-6, rtol=0)
    published = limit - torch.nn.functional.softplus(limit - a)  # Vafaii et al. 2024, before the shift
    torch.testing.assert_close(clamped, published + math.log1p(math.exp(-limit)), atol=1e-8, rtol=0)


def test_posterior_rates_stay_bounded_with_finite_gradients():
    for prior in (-6.0, 0.0, 5.0):
        delta = torch.tensor([-80.0, -5.0, 0.0, 5.0, 80.0, 1e4]).requires_grad_()
        params = Poisson().posterior(torch.full((1, 6), prior), delta)
        assert (params <= min(5.3, prior + 10) + 0.7).all()  # softplus(0) = log 2 is the most that the shift adds
        gradient, = torch.autograd.grad(params.sum(), delta)
        assert gradient.isfinite().all() and (gradient >= 0).all()


def test_posterior_scales_stay_within_5_3_of_the_prior_and_means_are_free():
    for name in ("gaussian", "laplace"):
        delta = torch.tensor([[3.0, 40.0], [-1e3, 1e3]])
        params = zoo.latents.registry[name]().posterior(torch.full((2, 2), 0.5), delta)
        torch.testing.assert_close(params, torch.tensor([[3.5, 40.5], [0.5 - 5.3, 0.5 + 5.3]]))


# -- the closed-form reconstruction

@pytest.mark.parametrize("name, options", [
    ("gaussian", {}), ("gaussian", {"activation": "relu"}), ("gaussian", {"activation": "exp"}), ("laplace", {}),
    ("categorical", {}), ("categorical", {"groups": 3}), ("poisson", {}), ("negative_binomial", {})])
@pytest.mark.parametrize("learn_scale", [False, "pixel"])
def test_exact_reconstruction_is_the_mean_over_samples(name, options, learn_scale):
    model = zoo.build(name, (1, 2, 3), latents=6, init_scale=0.5, decoder_bias=True, learn_scale=learn_scale, **options).double()
    model.requires_grad_(False)
    model.decoder.bias.normal_()
    if learn_scale:
        model.log_scale.uniform_(-0.7, 0.3)
    x, params = torch.randn(3, 1, 2, 3, dtype=DOUBLE), some_params(model.family)
    if options.get("activation") == "exp":
        params[:, 1] -= 1.5  # samples do not reach the mean of a log-normal with a large scale
    draws = model.family.distribution(params).sample((20_000,))
    sampled = model.observation(model.decode({"z": draws})).log_prob(x)
    error = (sampled.mean(0) - model.expected_log_prob(x, {"z": params})).abs() / (sampled.std(0) / len(draws) ** 0.5)
    assert (error < 4).all(), error


def test_exact_reconstruction_of_the_fixture_with_its_slopes_and_curvature():
    model, x = oracles.poisson_fixture(), oracles.fixture_image()
    log_rate = torch.tensor([0.7, 0.3]).log()

    def reconstruction(log_rate):
        return -(model.expected_log_prob(x, {"z": log_rate.reshape(1, 1, 2)}) + oracles.likelihood_constant(model)).sum()

    assert reconstruction(log_rate).item() == pytest.approx(1.8071, abs=2e-6)
    slopes = torch.autograd.functional.jacobian(reconstruction, log_rate)
    torch.testing.assert_close(slopes, torch.tensor([0.42, 0.1572]), atol=2e-6, rtol=0)
    curvature = torch.autograd.functional.hessian(reconstruction, log_rate)
    torch.testing.assert_close(curvature, torch.tensor([[1.645, -0.21], [-0.21, 0.4524]]), atol=2e-6, rtol=0)
    assert model.family.unit_kl(log_rate.unsqueeze(0), model.prior).sum().item() == pytest.approx(0.0571701, abs=1e-7)


def test_exact_reconstruction_refuses_other_decoders():
    model = zoo.build("gaussian", (1, 3, 4), latents=6, decoder="mlp")
    with pytest.raises(ValueError, match="linear decoder"):
        model.expected_log_prob(torch.zeros(1, 1, 3, 4), {"z": torch.zeros(1, 2, 6)})


# -- the literature's numbers

@pytest.mark.parametrize("pixels, constant", [((1, 16, 16), 146.525), ((1, 28, 28), 448.734)])
def test_the_default_likelihood_is_a_sum_of_squares_plus_a_known_constant(pixels, constant):
    model = zoo.build("poisson", pixels, latents=6)
    assert oracles.likelihood_constant(model).item() == pytest.approx(constant, abs=1e-3)
    x, y = torch.randn(2, 3, *pixels)
    squares = (x - y).square().flatten(1).sum(1)
    torch.testing.assert_close(-model.observation(y).log_prob(x), squares + constant, atol=2e-3, rtol=0)


def test_the_excess_of_sampled_over_decoded_mean_error_is_the_decoded_variance():
    family, weight, x = Poisson(), torch.randn(5, 6, dtype=DOUBLE), torch.randn(3, 5, dtype=DOUBLE)
    params = some_params(family)
    counts = family.distribution(params).sample((20_000,))
    sampled = (x - counts @ weight.T).square().sum(-1)
    at_mean = (x - family.moments(params)[0] @ weight.T).square().sum(-1)
    error = (sampled.mean(0) - at_mean - family.decoded_variance(params, weight)).abs() / (sampled.std(0) / len(counts) ** 0.5)
    assert (error < 4).all(), error


@pytest.mark.parametrize("lead", [((), (4,)), ((4,), (4,)), ((3, 1), (4,)), ((3, 4), (4,))])
def test_the_written_out_gradients_of_gaussian_latents(lead):
    """Residual and KL against finite differences, whatever of prior and delta is broadcast."""
    generator = torch.Generator().manual_seed(0)
    prior, delta = (torch.randn(*shape, 2, 5, dtype=torch.double, generator=generator).requires_grad_() for shape in lead)
    family = zoo.latents.registry["gaussian"]()
    assert torch.autograd.gradcheck(family.posterior, (prior, delta))
    assert torch.autograd.gradcheck(family.unit_kl, (delta, prior))
    assert torch.autograd.gradgradcheck(family.unit_kl, (delta, prior))


# -- below networks


def test_computed_priors_stay_where_they_make_sense():
    raw = torch.stack([torch.tensor([-30.0, 0.1, 30.0]), torch.tensor([-30.0, 0.1, 30.0])])
    for name in ("gaussian", "laplace"):
        loc, log_scale = zoo.latents.registry[name]().bounded(raw)
        assert torch.equal(loc, raw[0])
        torch.testing.assert_close(log_scale, torch.tensor([-4.0, 0.1, 4.0]), atol=1e-3, rtol=0)
    log_rate = Poisson().bounded(torch.tensor([[-30.0, -1.0, 30.0]]))
    torch.testing.assert_close(log_rate, torch.tensor([[-30.0, -1.0, 5.3]]), atol=3e-3, rtol=0)
    assert torch.equal(Categorical().bounded(raw), raw)


def test_copies_of_one_hots_are_one_hot_each():
    family = Categorical(groups=2, straight_through=True).copies(3)
    assert family.groups == 6 and family.straight_through
    assert family.distribution(torch.zeros(1, 24)).sample().sum(-1).tolist() == [1.0] * 6
    gaussian = Gaussian()
    assert gaussian.copies(3) is gaussian
