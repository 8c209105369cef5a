"""Bounds against Pyro's own ELBO, closed forms, exact evidence and exactly enumerated gradients."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

import guides
import zoo
from guides.bounds import _trace, _walk, elbo, exact_elbo, iwae
from zoo.density import counting
from zoo.models.one_layer import OneLayer
from zoo.networks.lin import LinearDecoder
from zoo.oracles import fixture_image, linear_gaussian, mixture, poisson_fixture

FAMILIES = [
    ("gaussian", {}), ("gaussian", {"activation": "relu"}), ("gaussian", {"activation": "exp"}), ("laplace", {}),
    ("categorical", {}), ("categorical", {"groups": 2}), ("categorical", {"straight_through": True}),
    ("poisson", {}), ("poisson", {"relaxation": "sigmoid"}), ("poisson", {"relaxation": "gumbel"}), ("poisson",
                                                                                                     {"relaxation": "score"})]
NAMES = [" ".join([name, *map(str, options.values())]) for name, options in FAMILIES]


def pair(name, options, latents=6, n=5):
    """A double-precision model, an encoder that says something, and images."""
    model = zoo.build(name, (1, 3, 3), latents=latents, learn_scale="pixel", init_scale=0.5, seed=1, **options)
    guide = guides.build("amortized", model, init_scale=0.3, seed=2)
    x = torch.randn(n, 1, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return model.double(), guide.double(), x


def mean_and_error(draws):
    """Mean over dimension 0 and its standard error."""
    return draws.mean(0), draws.std(0) / math.sqrt(len(draws))


@pytest.mark.parametrize(("name", "options"), FAMILIES, ids=NAMES)
@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("particles", [1, 3])
def test_walk_trace_and_pyro_give_the_same_numbers(name, options, temperature, particles):
    model, guide, x = pair(name, options)
    guide.temperature = temperature
    if temperature == 0 and particles > 1:  # multinomial's stream depends on how it is asked; ask alike
        exact = guide.distribution
        guide.distribution = lambda family, params: (law := exact(family, params)).expand((particles, *law.batch_shape[-1:]))
    values = []
    for parts in (_walk, _trace):
        torch.manual_seed(7)
        log_likelihood, kl, score = parts(model, guide, x, particles)
        values.append((log_likelihood, kl.expand_as(log_likelihood), score))
    (walked, walked_kl, walked_score), (traced, traced_kl, traced_score) = values
    assert walked.shape == ((particles, 5) if particles > 1 else (5,))
    torch.testing.assert_close(walked, traced)
    torch.testing.assert_close(walked_kl, traced_kl)
    assert (walked_score is None) == (traced_score is None)
    if walked_score is not None:
        torch.testing.assert_close(walked_score, traced_score)
    torch.manual_seed(7)
    pyros = TraceMeanField_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1)
    with pyro.validation_enabled(False):
        loss = pyros.loss(model, guide, x)
    torch.manual_seed(7)
    assert -elbo(model, guide, x, particles=particles).value.sum().item() == pytest.approx(loss, rel=1e-9)


@pytest.mark.parametrize(("name", "options"), FAMILIES[:6] + FAMILIES[7:8], ids=NAMES[:6] + NAMES[7:8])
def test_exact_elbo_is_the_mean_of_sampled_ones(name, options):
    model, guide, x = pair(name, options)
    torch.manual_seed(0)
    with torch.no_grad():
        if options.get("activation") == "exp":  # a log-normal of scale 1 has no usable Monte Carlo mean of its square
            guide.encoder.body[1].weight *= 0.2
            guide.encoder.body[1].bias[6:] = -1.5
        log_likelihood, kl, _ = _walk(model, guide, x, 6000)
        exact = exact_elbo(model, guide, x)
        sampled, error = mean_and_error(log_likelihood - kl)
    assert (sampled - exact.value).abs().le(4 * error).all()
    torch.testing.assert_close(exact.value, exact.log_likelihood - exact.kl)


def test_beta_weighs_the_kl_and_nothing_else():
    model, guide, x = pair("laplace", {})
    for bound_of in (elbo, exact_elbo):
        torch.manual_seed(0)
        plain = bound_of(model, guide, x)
        torch.manual_seed(0)
        weighed = bound_of(model, guide, x, beta=3.0)
        torch.testing.assert_close(weighed.kl, plain.kl)
        torch.testing.assert_close(weighed.value, plain.log_likelihood - 3 * plain.kl)


def one_image_many_times(name, options, copies):
    """A local guide over copies of one image: the gradients of the copies are independent estimates of one truth."""
    model, encoder, x = pair(name, options, latents=4, n=1)
    one = guides.build("local", model, x, start=encoder)
    return model, one, x, guides.build("local", model, x.expand(copies, -1, -1, -1), start=encoder), x.expand(copies, -1, -1, -1)


SCORED = [("poisson", {"relaxation": "score", "log_rate_init": (-1.0, 0.0)}), ("categorical", {}), ("categorical", {"groups": 2})]


@pytest.mark.parametrize(("name", "options"), SCORED)
@pytest.mark.parametrize("particles", [1, 2, 4])
def test_score_function_gradients_are_unbiased(name, options, particles):
    model, one, x, many, copies = one_image_many_times(name, options, 20_000)
    truth = torch.autograd.grad(exact_elbo(model, one, x).value.sum(), one.deltas["z"])[0]
    torch.manual_seed(4)
    estimates = torch.autograd.grad(elbo(model, many, copies, particles=particles).surrogate.sum(), many.deltas["z"])[0]
    mean, error = mean_and_error(estimates)
    assert (mean - truth[0]).abs().le(4.5 * error).all()
    assert truth.abs().max() > 20 * error.max()  # a missing or self-including baseline would show


def test_reparameterized_gradients_are_unbiased():
    model, one, x, many, copies = one_image_many_times("laplace", {}, 20_000)
    truth = torch.autograd.grad(exact_elbo(model, one, x).value.sum(), one.deltas["z"])[0]
    torch.manual_seed(4)
    mean, error = mean_and_error(torch.autograd.grad(elbo(model, many, copies).surrogate.sum(), many.deltas["z"])[0])
    assert (mean - truth[0]).abs().le(4.5 * error).all()


@pytest.mark.parametrize("particles", [2, 3])
def test_vimco_gradients_against_enumeration(particles):
    oracle = mixture().double()
    x = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    copies = x.expand(20_000, -1, -1, -1)
    delta = torch.tensor([[[0.5, -0.3, 0.2]]], dtype=torch.float64)
    guide = guides.build("local", oracle, copies).double()
    with torch.no_grad():
        guide.deltas["z"].copy_(delta.expand(20_000, -1, -1))

    logits = (oracle.prior + delta[0]).requires_grad_(True)
    log_q = logits.log_softmax(-1)[0]
    log_w = oracle._log_joint(x)[0].detach() - 0.5 * 4 * math.log(2 * math.pi * 0.5) - log_q
    tuples = torch.cartesian_prod(*[torch.arange(3)] * particles)
    truth = (log_q[tuples].sum(1).exp() * (log_w[tuples].logsumexp(1) - math.log(particles))).sum()
    gradient, = torch.autograd.grad(truth, logits)

    torch.manual_seed(5)
    bound = iwae(oracle, guide, copies, particles=particles)
    mean, error = mean_and_error(torch.autograd.grad(bound.surrogate.sum(), guide.deltas["z"])[0])
    assert (mean - gradient).abs().le(4.5 * error).all()
    assert gradient.abs().max() > 10 * error.max()
    value, error = mean_and_error(bound.value.detach())
    assert abs(value - truth) < 4 * error


def test_iwae_between_elbo_and_evidence_gaussian():
    oracle = linear_gaussian(latents=4, event_shape=(1, 2, 2), scale=0.3)
    torch.manual_seed(6)
    x = oracle(None, size=6).detach()
    guide = guides.build("amortized", oracle, init_scale=0.2, seed=1)
    copies = x.repeat(1500, 1, 1, 1)
    evidence = oracle.log_evidence(x).mean()
    means, errors = [], []
    torch.manual_seed(0)
    with torch.no_grad():
        for k in (1, 4, 16):
            mean, error = mean_and_error(iwae(oracle, guide, copies, particles=k).value.reshape(1500, 6).mean(1))
            means.append(mean)
            errors.append(error)
        exact = exact_elbo(oracle, guide, x).value.mean()
    assert abs(means[0] - exact) < 4 * errors[0]
    assert means[0] + 4 * errors[0] < means[1] < means[1] + 4 * errors[1] < means[2] < evidence


def test_iwae_approaches_the_evidence_of_counts():
    oracle, x = poisson_fixture(), fixture_image().expand(2000, -1, -1, -1)
    guide = guides.build("local", oracle, x)
    torch.manual_seed(0)
    with torch.no_grad():
        few, many = (mean_and_error(iwae(oracle, guide, x, particles=k).value) for k in (2, 200))
    evidence = oracle.log_evidence(fixture_image())[0]
    assert few[0] < many[0] - 4 * many[1]
    assert -0.02 < many[0] - evidence < 4 * many[1]


def test_costs_count_every_draw_of_every_image():
    model, guide, x = pair("poisson", {"relaxation": "score"})
    for bound_of, particles, wanted in ((elbo, 1, 5), (elbo, 3, 15), (exact_elbo, 1, 5), (iwae, 4, 20)):
        with counting() as cost:
            bound_of(model, guide, x, particles=particles)
        assert (cost.evaluations, cost.gradients) == (wanted, wanted)
    with counting() as cost, torch.no_grad():
        elbo(model, guide, x, particles=2)
    assert (cost.evaluations, cost.gradients) == (10, 0)


def elsewhere(x):
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def test_bad_input_is_refused():
    model, guide, x = pair("poisson", {})
    with pytest.raises(ValueError, match="particles must be at least 1, not 0"):
        elbo(model, guide, x, particles=0)
    with pytest.raises(ValueError, match="particles must be at least 1"):
        iwae(model, guide, x, particles=0)
    with pytest.raises(ValueError, match="no KL term"):
        iwae(model, guide, x, beta=0.5)
    with pytest.raises(ValueError, match="at least 2 particles"):
        iwae(model, guide, x, particles=1)
    with pytest.raises(ValueError, match="the guide draws y, the model has z"):
        elbo(model, elsewhere, x)
    with pytest.raises(ValueError, match="use 'elbo'"):
        exact_elbo(elsewhere, elsewhere, x)
    deep = zoo.build("gaussian", (1, 3, 3), latents=4, decoder="mlp").double()
    with pytest.raises(ValueError, match="linear decoder"):
        exact_elbo(deep, guides.build("amortized", deep).double(), x)


def test_a_family_without_closed_form_is_sampled_not_exact():
    class Student(zoo.latents.Family):
        def distribution(self, params):
            loc, log_scale = params.unbind(-2)
            return dist.StudentT(torch.full_like(loc, 5.0), loc, log_scale.exp()).to_event(1)

    family = Student()
    model = OneLayer(family, 3, LinearDecoder(3, (1, 3, 3)), (1, 3, 3), prior=family.initial_prior(3), learn_prior=False)
    guide, x = guides.build("amortized", model, init_scale=0.3), torch.randn(5, 1, 3, 3)
    with pytest.raises(ValueError, match="no closed-form KL"):
        exact_elbo(model, guide, x)
    torch.manual_seed(0)
    walked = _walk(model, guide, x, 2)
    torch.manual_seed(0)
    traced = _trace(model, guide, x, 2)
    torch.testing.assert_close(walked[1], traced[1])
    assert walked[1].shape == (2, 5)  # one log ratio for each draw
