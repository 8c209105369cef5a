"""Objectives beside the ELBO: doubly reparameterized gradients and wake–sleep against quadrature and enumeration."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import guides
import zoo
from guides.base import Fixed
from guides.bounds import OBJECTIVES, WITHOUT_KL, dreg, elbo, exact_elbo, iwae, rws, rws_sleep, sleep
from guides.objectives.wake_sleep import dream
from inference.training import fit
from zoo.density import counting
from zoo.oracles import fixture_image, linear_gaussian, mixture, poisson_fixture


def mean_and_error(draws):
    """Mean over dimension 0 and its standard error."""
    return draws.mean(0), draws.std(0) / math.sqrt(len(draws))


def copies_of_one(name, copies, latents=3, **options):
    """A model, and a local guide over copies of one image: gradients of the copies are independent estimates of one truth."""
    model = zoo.build(name, (1, 2, 2), latents=latents, init_scale=0.5, seed=1, **options).double()
    x = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    encoder = guides.build("amortized", model, init_scale=0.4, seed=2).double()
    many = x.expand(copies, -1, -1, -1)
    return model, guides.build("local", model, many, start=encoder), many


def gradients(objective, model, guide, x, particles, seed=4):
    torch.manual_seed(seed)
    return torch.autograd.grad(objective(model, guide, x, particles=particles).surrogate.sum(), guide.deltas["z"])[0]


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
@pytest.mark.parametrize("particles", [1, 8, 64])
def test_dreg_has_the_gradient_of_iwae_with_less_variance(name, particles):
    model, guide, x = copies_of_one(name, 3000)
    plain, doubly = (gradients(objective, model, guide, x, particles) for objective in (iwae, dreg))
    (mean, error), (other, other_error) = mean_and_error(plain), mean_and_error(doubly)
    assert (mean - other).abs().le(4.5 * (error.square() + other_error.square()).sqrt()).all()
    assert other.abs().max() > 10 * other_error.max()  # so that zero is no answer
    assert doubly.var(0).sum() < {1: 0.8, 8: 0.6, 64: 0.3}[particles] * plain.var(0).sum()
    if particles == 1:
        truth, = torch.autograd.grad(exact_elbo(model, guide, x).value.sum(), guide.deltas["z"])
        assert (other - truth[0]).abs().le(4.5 * other_error).all()


def test_dreg_of_all_parameters_against_quadrature():
    """One latent, two particles: the bound's expectation is an integral over two numbers, its gradient autograd's."""
    model, guide, x = copies_of_one("gaussian", 200, latents=1, learn_prior=True)
    everything = [guide.deltas["z"], model.prior, model.decoder.weight]
    assert all(value.requires_grad for value in everything)
    noise, step = torch.linspace(-6, 6, 121, dtype=torch.float64), 0.1
    params = model.family.posterior(model.prior, guide.deltas["z"][0])
    z = params[0] + params[1].exp() * noise.unsqueeze(1)
    log_weight = (model.observation(model.decode({"z": z})).log_prob(x[:1]) + model.family.distribution(model.prior).log_prob(z)
                  - model.family.distribution(params).log_prob(z))
    density = (-0.5 * noise.square()).exp() / math.sqrt(2 * math.pi) * step
    bound = torch.logaddexp(log_weight.unsqueeze(1), log_weight) - math.log(2)
    truth = torch.autograd.grad((density.unsqueeze(1) * density * bound).sum(), everything)

    torch.manual_seed(5)
    found = [torch.autograd.grad(dreg(model, guide, x, particles=2).surrogate.mean(), everything) for _ in range(250)]
    for right, estimates in zip(truth, zip(*found, strict=True), strict=True):
        estimates = torch.stack(estimates)
        if estimates.shape[1] == 200:  # of the copies' own
            estimates, right = estimates.sum(1), right[0]
        mean, error = mean_and_error(estimates)
        assert (mean - right).abs().le(4.5 * error).all()
        assert right.abs().max() > 10 * error.max()
    torch.manual_seed(6)
    value, error = mean_and_error(torch.cat([dreg(model, guide, x, particles=2).value for _ in range(50)]))
    assert abs(value - (density.unsqueeze(1) * density * bound).sum()) < 4 * error


def chain(x):
    with pyro.plate("data", len(x)):
        z2 = pyro.sample("z2", dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1))
        z1 = pyro.sample("z1", dist.Normal(0.8 * z2.sin(), 0.5).to_event(1))
        pyro.sample("x", dist.Normal(z1, 0.6).to_event(1), obs=x)


@pytest.mark.parametrize("particles", [1, 4])
def test_dreg_of_latents_that_are_drawn_one_given_another(particles):
    copies = 15_000
    free = torch.tensor([0.6, -0.4, 0.7, 0.3], dtype=torch.float64).repeat(copies, 1).requires_grad_(True)

    def guide(x):
        top, log_scale, slope, shift = free.unsqueeze(-1).unbind(1)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(top, log_scale.exp()).to_event(1))
            pyro.sample("z1", dist.Normal(slope * z2 + shift, (log_scale + 0.2 * z2).exp()).to_event(1))

    x = torch.full((copies, 1), 1.3, dtype=torch.float64)
    results = []
    for objective in (iwae, dreg):
        torch.manual_seed(1)
        bound = objective(chain, guide, x, particles=particles)
        results.append((bound.value.detach(), *mean_and_error(torch.autograd.grad(bound.surrogate.sum(), free)[0])))
    (value, mean, error), (other_value, other, other_error) = results
    torch.testing.assert_close(value, other_value)
    assert (mean - other).abs().le(4.5 * (error.square() + other_error.square()).sqrt()).all()
    assert (other.abs() > 10 * other_error)[:3].all()


def test_dreg_of_a_bounded_latent():
    def program(x):
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Beta(2.0 * torch.ones(1, dtype=torch.float64), 3.0).to_event(1))
            pyro.sample("x", dist.Normal(p, 0.2).to_event(1), obs=x)

    x = torch.full((8000, 1), 0.7, dtype=torch.float64)
    guide = guides.build("local", program, x).double()
    results = []
    for objective in (iwae, dreg):
        torch.manual_seed(1)
        bound = objective(program, guide, x, particles=4)
        results.append(mean_and_error(torch.autograd.grad(bound.surrogate.sum(), guide.deltas["p"])[0]))
    (mean, error), (other, other_error) = results
    assert (mean - other).abs().le(4.5 * (error.square() + other_error.square()).sqrt()).all()
    assert other.abs().min() > 10 * other_error.max()


def test_training_by_dreg_on_the_linear_gaussian_oracle():
    oracle = linear_gaussian(latents=4, event_shape=(1, 2, 2), scale=0.3)
    torch.manual_seed(6)
    x = oracle(None, size=200).detach()
    evidence, best_elbo = oracle.log_evidence(x).mean(), oracle.mean_field_elbo(x).mean()
    guide = guides.build("amortized", oracle)
    fit(oracle, guide, x, objective="dreg", steps=200, batch_size=200, lr=0.05, freeze_model=True, progress=False)
    with torch.no_grad():
        bounds = [torch.cat([iwae(oracle, guide, x, particles=k).value.unsqueeze(0) for _ in range(40)]).mean() for k in (8, 64)]
    assert best_elbo + 0.1 < bounds[0] < bounds[1] < evidence + 0.01


def with_learned_prior(oracle):
    prior = oracle.prior
    del oracle._buffers["prior"]
    oracle.register_parameter("prior", nn.Parameter(prior))
    return oracle.double()


def enumerated_wake_phase(oracle, x, delta, particles):
    """What reweighted wake–sleep ascends, in expectation over all tuples of draws: (of the guide, of the model)."""
    delta = delta.detach().requires_grad_(True)
    with torch.no_grad():
        keep = oracle.states.sum(1) <= 6  # counts beyond have no weight here
    states = oracle.states[keep].double()
    log_q = oracle.family.distribution(oracle.family.posterior(oracle.prior.detach(), delta)).log_prob(states)
    log_p = oracle._log_joint(x)[0][keep]
    tuples = torch.cartesian_prod(*[torch.arange(len(states))] * particles)
    chance = log_q.detach()[tuples].sum(1).exp()
    weight = chance.unsqueeze(1) * (log_p - log_q).detach()[tuples].softmax(1)
    for_guide, = torch.autograd.grad((weight * log_q[tuples]).sum(), delta)
    return for_guide, torch.autograd.grad((weight * log_p[tuples]).sum(), [oracle.prior, oracle.decoder.weight])


@pytest.mark.parametrize(("oracle", "particles"), [(mixture, 2), (mixture, 3), (poisson_fixture, 2)])
def test_wake_phases_against_enumeration(oracle, particles):
    model = with_learned_prior(oracle())
    x = fixture_image().double() if oracle is poisson_fixture else torch.tensor([[[[0.5, -1.0], [0.2, 0.8]]]], dtype=torch.float64)
    copies = x.expand(200, -1, -1, -1)
    guide = guides.build("local", model, copies).double()
    with torch.no_grad():
        guide.deltas["z"].copy_(torch.tensor([0.5, -0.3, 0.2][: model.units], dtype=torch.float64).expand_as(guide.deltas["z"]))
    for_guide, (for_prior, for_weight) = enumerated_wake_phase(model, x, guide.deltas["z"][0], particles)
    guide.temperature = 0.7  # draws are exact all the same
    torch.manual_seed(5)
    found = [torch.autograd.grad(rws(model, guide, copies, particles=particles).surrogate.mean(),
                                 [guide.deltas["z"], model.prior, model.decoder.weight]) for _ in range(150)]
    assert guide.temperature == 0.7
    of_guide, of_prior, of_weight = (torch.stack(parts) for parts in zip(*found, strict=True))
    for right, estimates in ((for_guide, of_guide.sum(1)), (for_prior, of_prior), (for_weight, of_weight)):
        mean, error = mean_and_error(estimates)
        assert (mean - right).abs().le(4.5 * error).all()
        assert right.abs().max() > 10 * error.max()


def test_wake_sleep_has_the_bound_of_iwae_and_counts_its_cost():
    model, x = poisson_fixture(), fixture_image().expand(7, -1, -1, -1)
    guide = guides.build("amortized", model, init_scale=0.3)
    torch.manual_seed(1)
    bound = iwae(model, guide, x, particles=3)
    torch.manual_seed(1)
    torch.testing.assert_close(rws(model, guide, x, particles=3).value, bound.value)
    for objective, particles, wanted in ((rws, 3, (21, 21)), (rws_sleep, 3, (28, 28)), (sleep, 2, (21, 14))):
        with counting() as cost:
            objective(model, guide, x, particles=particles)
        assert (cost.evaluations, cost.gradients) == wanted
    gaussian = linear_gaussian(event_shape=(1, 1, 3))
    with counting() as cost:
        dreg(gaussian, guides.build("amortized", gaussian), x, particles=5)
    assert (cost.evaluations, cost.gradients) == (35, 35)


def test_dreams_follow_the_model():
    model = poisson_fixture()
    torch.manual_seed(1)
    latents, x = dream(model, 40_000)
    mean, error = mean_and_error(latents["z"].double())
    assert (mean - torch.tensor([0.5, 0.2])).abs().le(4 * error).all()
    noise = x.flatten(1) - latents["z"] @ model.decoder.weight.T
    assert noise.std(0).sub(math.sqrt(0.5)).abs().max() < 0.01 and noise.mean(0).abs().max() < 0.02
    assert not x.requires_grad


def test_sleep_phase_against_quadrature():
    """Images of one pixel: the expectation over dreams is an integral over one number and a sum."""
    model = with_learned_prior(mixture(event_shape=(1, 1, 1)))
    guide = guides.build("amortized", model, init_scale=0.5, seed=3).double()
    x = torch.linspace(-8, 8, 3201, dtype=torch.float64).reshape(-1, 1, 1, 1)
    with torch.no_grad():
        joint = model.posterior_probabilities(x) * model.log_evidence(x).exp().unsqueeze(1) * 0.005
    assert joint.sum() == pytest.approx(1.0, abs=1e-6)
    log_q = model.family.distribution(guide.posterior(x)["z"]).probs.log()
    parameters = list(guide.parameters())
    truth = torch.autograd.grad((joint * log_q).sum(), parameters)
    torch.manual_seed(2)
    found = []
    for _ in range(150):
        surrogate = sleep(model, guide, torch.zeros(50, 1, 1, 1, dtype=torch.float64), particles=4).surrogate
        assert surrogate.shape == (50,)
        gradient = torch.autograd.grad(surrogate.mean(), [*parameters, model.prior, model.decoder.weight], allow_unused=True)
        assert gradient[-1] is None and gradient[-2] is None  # the model stands still
        found.append(gradient[:-2])
    for right, estimates in zip(truth, zip(*found, strict=True), strict=True):
        mean, error = mean_and_error(torch.stack(estimates))
        assert (mean - right).abs().le(4.5 * error).all()
        assert right.abs().max() > 10 * error.max()


def test_wake_and_sleep_are_half_each():
    model = with_learned_prior(mixture())
    guide = guides.build("amortized", model, init_scale=0.5).double()
    x = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mine, models = list(guide.parameters()), [model.prior, model.decoder.weight]
    torch.manual_seed(3)
    awake = torch.autograd.grad(rws(model, guide, x).surrogate.sum(), [*mine, *models])
    asleep = torch.autograd.grad(sleep(model, guide, x).surrogate.sum(), mine)
    torch.manual_seed(3)
    both = torch.autograd.grad(rws_sleep(model, guide, x).surrogate.sum(), [*mine, *models])
    for a, b, c in zip(awake, asleep, both, strict=False):
        torch.testing.assert_close(c, 0.5 * (a + b))
    for a, c in zip(awake[len(mine):], both[len(mine):], strict=True):
        torch.testing.assert_close(a, c)


def test_sleep_phase_of_a_guide_that_infers_in_steps():
    model = zoo.build("gaussian", (1, 2, 2), latents=3, init_scale=0.5, seed=1)
    guide = guides.build("iterative", model, steps=3, seed=2)
    torch.manual_seed(1)
    found = sleep(model, guide, torch.zeros(5, 1, 2, 2)).surrogate
    torch.manual_seed(1)
    latents, x = dream(model, 5)
    steps = [deltas for step, deltas in enumerate(guide.path(x)) if step in guide.scored]
    params = [model.family.posterior(model.prior, deltas["z"]) for deltas in steps]
    wanted = sum(model.family.distribution(each).log_prob(latents["z"]) for each in params) / len(params)
    torch.testing.assert_close(found, wanted)
    before = [value.clone() for value in guide.parameters()]
    fit(model, guide, torch.zeros(20, 1, 2, 2), objective="sleep", steps=2, batch_size=10, freeze_model=True, progress=False)
    assert not all(map(torch.equal, before, guide.parameters()))
    with pytest.raises(ValueError, match="'rws_sleep' one without steps"):
        fit(model, guide, torch.zeros(20, 1, 2, 2), objective="rws_sleep", steps=2, batch_size=10, progress=False)


def test_wake_phase_trains_to_the_moments_of_the_posterior():
    """Of factorized Poisson laws the nearest in KL(p || q) has the posterior's means; in KL(q || p) it has not."""
    oracle, x = poisson_fixture(), fixture_image().expand(100, -1, -1, -1)
    guide = guides.build("local", oracle, x)
    fit(oracle, guide, x, objective="rws", particles=50, steps=200, batch_size=100, lr=0.05, freeze_model=True, progress=False)
    wanted, _ = oracle.posterior_moments(fixture_image())
    with torch.no_grad():
        rates = guide.posterior(x)["z"].exp().mean(0)
    torch.testing.assert_close(rates.double(), wanted, rtol=0.02, atol=0.0)
    assert (wanted / torch.tensor([0.445883, 0.150157]) - 1).abs().max() > 0.04  # the best ELBO's rates are others


def test_sleep_phase_trains_to_the_exact_posterior():
    """Responsibilities of a mixture are a softmax of a linear map, so a linear encoder comes to them from dreams alone."""
    oracle = mixture()
    guide = guides.build("amortized", oracle)
    before = oracle.decoder.weight.clone()
    history = fit(oracle, guide, torch.zeros(400, 1, 2, 2), objective="sleep", steps=250, batch_size=400, lr=0.2, freeze_model=True,
                  progress=False)
    _, x = dream(oracle, 2000)
    right = oracle.responsibilities(x)
    with torch.no_grad():
        q = oracle.family.distribution(guide.posterior(x)["z"]).probs
    assert (right * (right.log() - q.log())).sum(1).mean() < 0.01
    assert torch.equal(oracle.decoder.weight, before)
    evidence = oracle.log_evidence(torch.zeros(1, 1, 2, 2)).item()
    assert evidence - 0.15 < history.rows[-1]["elbo"] < evidence + 0.01  # of the images, not of the dreams


@pytest.mark.parametrize(("objective", "name"), [("dreg", "laplace"), ("rws", "poisson"), ("rws_sleep", "categorical")])
def test_training_by_name(objective, name, monkeypatch, unchanged_generator):
    seen, inner = [], OBJECTIVES[objective]

    def noting(model, guide, x, *, beta=1.0, particles=5):
        seen.append((beta, particles, guide.temperature))
        return inner(model, guide, x, beta=beta, particles=particles)

    monkeypatch.setitem(OBJECTIVES, objective, noting)
    x = torch.randn(20, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    results = []
    for seed in (1, 1, 2):
        model = zoo.build(name, (1, 3, 3), latents=4, seed=1)
        guide = guides.build("amortized", model, seed=2)
        before = [value.clone() for value in (*model.parameters(), *guide.parameters())]
        with unchanged_generator():
            history = fit(model, guide, x, objective=objective, steps=4, batch_size=10, seed=seed, progress=False)
        results.append([value.clone() for value in (*model.parameters(), *guide.parameters())])
        assert not any(map(torch.equal, before, results[-1])) and math.isnan(history.rows[-1]["kl"])
    assert all(map(torch.equal, *results[:2])) and not all(map(torch.equal, *results[1:]))
    assert set(seen) == {(1.0, 5, 0.0)}  # the objective's own number of particles; exact draws; beta does not warm up


def no_images(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def test_bad_input_is_refused():
    model, x = poisson_fixture(), fixture_image()
    guide = guides.build("amortized", model)
    for temperature in (0.0, 0.5):
        guide.temperature = temperature
        with pytest.raises(ValueError, match="'z' does not have .its law is Poisson.: use 'iwae' or 'rws'"):
            dreg(model, guide, x)
        assert guide.temperature == temperature
    one_hot = mixture(event_shape=(1, 1, 3))
    with pytest.raises(ValueError, match="OneHotCategorical"):
        dreg(one_hot, guides.build("amortized", one_hot), x)
    for name in WITHOUT_KL:
        with pytest.raises(ValueError, match=r"no KL term to weigh by beta = 0.5; use beta = 1"):
            OBJECTIVES[name](model, guide, x, beta=0.5)
        with pytest.raises(ValueError, match="particles must be at least 1, not 0"):
            OBJECTIVES[name](model, guide, x, particles=0)
    for objective in (rws, rws_sleep):
        with pytest.raises(ValueError, match="at least 2 particles, not 1"):
            objective(model, guide, x, particles=1)
    for fixed in (guides.build("local", model, x), Fixed(model, guide.delta(x))):
        with pytest.raises(ValueError, match="dreams new images"):
            sleep(model, fixed, x)
    with pytest.raises(ValueError, match="cannot be drawn"):
        sleep(no_images, no_images, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="teaches the guide alone: fit with freeze_model=True"):
        fit(model, guide, x, objective="sleep", steps=1, progress=False)
    with pytest.raises(ValueError, match="no KL term to weigh by beta = 2"):
        fit(model, guide, x, objective="rws", beta=2.0, steps=1, progress=False)


def test_nothing_is_asked_for_gradients_where_there_are_none():
    model, guide, x = copies_of_one("gaussian", 3)
    with torch.no_grad():
        for objective in (dreg, rws):
            assert not objective(model, guide, x).surrogate.requires_grad
    assert elbo(model, guide, x).surrogate.requires_grad
