"""Populations led from the prior to the posterior: moments, evidence and the shares of modes against exact answers."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import mixed

import guides
import zoo
from guides.stepwise import settled
from inference import infer
from inference.mcmc import population as module
from inference.mcmc.annealed_moves import annealed_blocks
from inference.mcmc.population import population
from zoo.density import drawn_latents, latent_sites
from zoo.oracles import fixture_image, likelihood_constant, linear_gaussian, poisson_fixture


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def folded(x=None, size=None):
    """Of z only the square is seen, and the prior's mean is not 0: two modes, of unequal mass."""
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.full((1,), 0.15), 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(z.square(), 0.1).to_event(1), obs=x)


def standard_errors(values, expected):
    """Of a mean over (independent) images, in standard errors."""
    away = (values - expected).double()
    return (away.mean(0) / (away.std(0) / len(away) ** 0.5)).abs().max().item()


def test_a_linear_gaussian_model():
    model = linear_gaussian(6, (1, 4, 4))
    x = model(size=200).detach()
    mean, covariance = (value.detach() for value in model.posterior(x))
    found = population(model, x, 128)
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    z = (found.values["z"] - mean) / sd
    assert standard_errors(z.mean(0), 0.0) < 4.0
    assert (z.var((0, 1)) - 1.0).abs().max() < 0.05  # 128 × 200 particles, of which some stem from one another
    off = found.log_evidence - model.log_evidence(x).detach()  # not unbiased, but with 128 particles by less than can be seen here
    assert off.abs().max() < 1.5 and standard_errors(off.exp(), 1.0) < 4.0
    assert (found.temperatures >= 1).all() and (found.temperatures < 30).all()


def test_counts():
    model, x = poisson_fixture(), fixture_image().expand(200, -1, -1, -1)
    mean = model.posterior_moments(x[:1])[0][0].detach()
    found = population(model, x, 64)
    assert standard_errors(found.values["z"].mean(0), mean) < 4.0
    off = found.log_evidence + likelihood_constant(model) + 1.39635
    assert standard_errors(off.exp(), 1.0) < 4.0


def test_mixed_supports():
    x = torch.full((200, 1), 4.0)
    found = population(mixed, x, 64)
    spikes = torch.arange(30.0)
    weight = (dist.Poisson(2.0).log_prob(spikes) + dist.Normal(spikes, 2.0**0.5).log_prob(torch.tensor(4.0))).exp()
    expected = (weight * spikes).sum() / weight.sum(), (weight * (spikes + 4.0) / 2.0).sum() / weight.sum()
    for name, value in zip(("spikes", "level"), expected, strict=True):
        assert standard_errors(found.values[name].mean(0), value) < 4.0, name
    assert standard_errors((found.log_evidence - weight.sum().log()).exp(), 1.0) < 4.0


def unseen(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1), obs=x)


def test_images_that_say_nothing_leave_the_prior():
    x = torch.arange(100.0)[:, None] / 50.0
    found = population(unseen, x, 64)
    torch.testing.assert_close(found.log_evidence.float(), dist.Normal(0.0, 1.0).log_prob(x[:, 0]))
    assert (found.temperatures == 1).all() and standard_errors(found.values["z"].square().mean(0), 1.0) < 4.0


@pytest.mark.parametrize("name", ["gaussian", "poisson", "categorical"])
@pytest.mark.parametrize("with_guide", [False, True])
def test_a_temperature_for_each_image(name, with_guide):
    model = zoo.build(name, (1, 4, 4), latents=3, decoder="mlp").eval()  # no dropout
    x = model(size=3).detach()
    guide = guides.build("amortized", model, encoder="lin")
    values = drawn_latents(model, x, 5)
    beta = torch.tensor([0.2, 0.7, 1.0])

    def look(x, values, beta, program):
        block, = annealed_blocks(model, program, x, values)
        if name == "gaussian":
            return block._state(values, beta)
        block.landscape.beta = beta
        return block.landscape(values["z"])

    program = settled(guide, x) if with_guide else None
    together = look(x, values, beta, program)
    for i in range(3):
        one = look(x[i : i + 1], {"z": values["z"][:, i : i + 1]}, beta[i].item(), settled(guide, x[i : i + 1]) if with_guide else None)
        for all_of_them, alone in zip(together, one, strict=True):
            torch.testing.assert_close(all_of_them[:, i : i + 1], alone, rtol=1e-4, atol=1e-4)


def exact_share(x):
    """Probability that z is positive."""
    z = torch.linspace(-6.0, 6.0, 24_001, dtype=torch.float64)
    weight = (dist.Normal(0.15, 1.0).log_prob(z) + dist.Normal(z.square(), 0.1).log_prob(torch.tensor(x, dtype=torch.float64))).exp()
    return (weight[z > 0].sum() / weight.sum()).item()


def test_modes_have_their_shares():
    x = torch.full((300, 1), 2.0)
    share = exact_share(2.0)
    assert 0.55 < share < 0.65
    values = population(folded, x, 32).values["z"]
    assert standard_errors((values > 0).double().mean(0)[:, 0], share) < 4.0
    draws = infer(folded, x, "mcmc", start="annealed", draws=20, warmup=20, chains=4, seed=0).samples["z"]
    assert standard_errors((draws > 0).double().mean((0, 1))[:, 0], share) < 4.0
    of_chains = (draws > 0).double().mean(1)[..., 0]
    assert (of_chains.remainder(1.0) == 0).double().mean() > 0.9  # chains stay in their modes
    assert (of_chains.std(0) > 0).double().mean() > 0.7  # and do not all start in the same: .84 expected


@pytest.mark.parametrize("name", zoo.latents.registry)
def test_every_family(name):
    model = zoo.build(name, (1, 4, 4), latents=3, decoder="mlp").eval()
    x = model(size=3).detach()
    found = population(model, x, 16, moves=1)
    assert found.values["z"].shape[:2] == (16, 3) and found.log_evidence.isfinite().all()
    assert latent_sites(model, x)["z"]["fn"].support.check(found.values["z"]).all()
    assert (infer(model, x, "mcmc", start="annealed", draws=4, warmup=2, chains=2).samples["z"]).isfinite().all()


def test_temperatures_keep_the_share_of_particles():
    fit = 50.0 * torch.randn(64, 20, dtype=torch.float64)
    rise = module._rise(fit, torch.ones(20, dtype=torch.float64), 0.5)
    weights = (rise * fit).softmax(0)
    torch.testing.assert_close(1.0 / weights.square().sum(0), torch.full((20,), 32.0, dtype=torch.float64), rtol=1e-6, atol=0.0)
    assert torch.equal(module._rise(fit, torch.full((20,), 1e-9, dtype=torch.float64), 0.5), torch.full((20,), 1e-9, dtype=torch.float64))
    far = torch.cat([torch.full((63, 1), -1e9, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)])
    assert 0.0 < module._rise(far, torch.ones(1, dtype=torch.float64), 0.5).item() < 1e-6
    lost = torch.tensor([[-torch.inf]] * 60 + [[0.0]] * 4, dtype=torch.float64)  # of which most have no likelihood
    assert module._rise(lost, torch.ones(1, dtype=torch.float64), 0.5).item() == 1.0


def test_particles_are_drawn_as_often_as_their_weights_say():
    weights = torch.rand(16, 50, dtype=torch.float64).square()
    weights /= weights.sum(0)
    values = torch.arange(16.0)[:, None, None].expand(16, 50, 2)
    drawn = module._resampled({"z": values}, weights.log())["z"]
    assert torch.equal(drawn[..., 0], drawn[..., 1])
    times = torch.stack([(drawn[..., 0] == i).sum(0) for i in range(16)])
    due = 16 * weights
    assert (times >= due.floor() - 1e-9).all() and (times <= due.ceil() + 1e-9).all()
    even = module._resampled({"z": values}, torch.zeros_like(weights))["z"]
    assert torch.equal(even, values)


def test_bad_settings_and_likelihoods(monkeypatch):
    x = torch.zeros(3, 1)
    for settings in ({"particles": 1}, {"moves": 0}, {"share": 1.0}):
        with pytest.raises(ValueError, match="at least 2 particles"):
            population(folded, x, **settings)
    x[1] = torch.inf
    with pytest.raises(ValueError, match=r"no particle of image 1 \(1 of 3 images\)"):
        population(folded, x)
    with pytest.raises(ValueError, match="a particle of image 0 has a likelihood that is infinite"):
        module._check(torch.tensor([[torch.inf], [0.0]]))
    monkeypatch.setattr(module, "MOST", 1)
    with pytest.raises(ValueError, match="image 0 did not reach its posterior within 1 temperatures"):
        population(folded, torch.full((2, 1), 30.0))
