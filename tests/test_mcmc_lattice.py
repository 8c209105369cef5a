"""Moves of counts and one-hots under any likelihood, and programs that mix them with real latents, against enumeration."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import zoo
from inference import infer, log_joint
from inference.mcmc import lattice as lattice_module
from inference.mcmc.diagnostics import ess
from inference.mcmc.lattice import Landscape, transition
from zoo.density import latent_sites
from zoo.oracles import fixture_image, mixture, poisson_fixture

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def errors(values, expected):
    """Standard errors between the mean of draws ``(C, S, …)`` and what is expected, by effective samples or by the chains' spread."""
    values = values.double()
    by_ess, by_chains = values.flatten(0, 1).std(0) / ess(values).sqrt(), values.mean(1).std(0) / math.sqrt(len(values))
    return (values.mean((0, 1)) - expected).abs() / torch.maximum(by_ess, by_chains)


def nonlinear(x=None, size=None):
    """Two counts that an image of three pixels shows through an exponential."""
    weight = torch.tensor([[0.3, -0.2], [0.1, 0.4], [-0.3, 0.2]])
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Poisson(torch.tensor([1.5, 0.7])).to_event(1))
        return pyro.sample("x", dist.Normal((z @ weight.T).exp(), 0.5).to_event(1), obs=x)


def hots(x=None, size=None):
    """Two groups of three categories, not equally probable, whose codes are multiplied."""
    one, two = torch.tensor([0.2, 1.0, -0.5]), torch.tensor([0.5, 1.5, -1.0])
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.OneHotCategorical(logits=torch.tensor([[0.0, 1.0, -1.0], [0.5, 0.0, 0.0]])).to_event(1))
        mean = ((z[..., 0, :] @ one) * (z[..., 1, :] @ two)).unsqueeze(-1)
        return pyro.sample("x", dist.Normal(mean, 0.7).to_event(1), obs=x)


def few(x=None, size=None):
    """A count of at most three."""
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Binomial(3, torch.tensor([0.3, 0.6])).to_event(1))
        return pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).sqrt(), 0.3).to_event(1), obs=x)


def states_of(name):
    if name == "hots":
        eye = torch.eye(3)
        return torch.stack([torch.stack([a, b]) for a in eye for b in eye])
    top = {"nonlinear": 12, "few": 3}[name]
    return torch.cartesian_prod(torch.arange(top + 1.0), torch.arange(top + 1.0))


PROGRAMS = {"nonlinear": nonlinear, "hots": hots, "few": few}


def exact(name, x):
    """All states ``(M, *event)`` and their posterior probabilities ``(M, N)``."""
    states = states_of(name)
    joint = log_joint(PROGRAMS[name], {"z": states.unsqueeze(1).expand(-1, len(x), *states.shape[1:])}, x)
    return states, joint.double().softmax(0)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("name", PROGRAMS)
def test_one_move_leaves_the_exact_law_as_it_is(name, alpha):
    program = PROGRAMS[name]
    x = pyro.poutine.trace(program).get_trace(None, size=3).nodes["x"]["value"]
    states, probs = exact(name, x)
    z = states[torch.multinomial(probs.T, 20_000, replacement=True)].transpose(0, 1)  # (C, N, *event)
    landscape = Landscape(program, x, "z", latent_sites(program, x)["z"]["fn"], {})
    moved, chance, taken = transition(landscape, landscape(z), torch.full((3,), alpha))
    assert 0.02 < (moved.z != z).flatten(2).any(-1).float().mean() < 1.0 and torch.equal(moved.value, landscape(moved.z).value)
    torch.testing.assert_close(taken.float().mean(), chance.mean(), atol=0.01, rtol=0)
    for image in range(3):
        index = (moved.z[:, image, None] == states).flatten(2).all(-1).float().argmax(1)
        seen, expected = torch.bincount(index, minlength=len(states)).double(), 20_000 * probs[:, image]
        common = expected > 5
        seen, expected = (torch.cat([part[common], part[~common].sum(0, keepdim=True)]) for part in (seen, expected))
        assert stats.chisquare(seen + 1e-9, (expected + 1e-9) * (seen.sum() + 1e-9 * len(seen)) / (expected + 1e-9).sum()).pvalue > 1e-4


def test_moves_that_are_always_accepted_do_not(monkeypatch):
    monkeypatch.setattr(torch, "rand_like", torch.zeros_like)
    x = torch.tensor([[1.0, 2.0, 0.7]])
    states, probs = exact("nonlinear", x)
    z = states[torch.multinomial(probs.T, 20_000, replacement=True)].transpose(0, 1)
    landscape = Landscape(nonlinear, x, "z", latent_sites(nonlinear, x)["z"]["fn"], {})
    moved, *_ = transition(landscape, landscape(z), torch.full((1,), 5.0))
    gap = moved.z.mean(0) - (probs.T @ states.double().flatten(1)).float()
    assert (gap.abs() > 0.05).any()


@pytest.mark.parametrize("name", PROGRAMS)
def test_chains_find_the_posterior_from_the_prior(name):
    x = pyro.poutine.trace(PROGRAMS[name]).get_trace(None, size=6).nodes["x"]["value"]
    states, probs = exact(name, x)
    posterior = infer(PROGRAMS[name], x, "mcmc", draws=600, warmup=150, chains=8)
    mean = torch.einsum("mn,m...->n...", probs, states.double())
    variance = torch.einsum("mn,m...->n...", probs, states.double().square()) - mean.square()
    moving = variance > 0.02
    assert errors(posterior.samples["z"], mean)[moving].max() < 4.5
    assert (posterior.stats["rhat"] < 1.1).all() and (posterior.stats["step_size_z"] > 0).all()
    assert ((posterior.stats["accepted"] > 0.4) & (posterior.stats["accepted"] <= 1.0)).all()
    expected = log_joint(PROGRAMS[name], posterior.samples, x).mean((0, 1))
    torch.testing.assert_close(posterior.stats["log_joint"], expected, rtol=1e-4, atol=1e-4)


def test_the_fixtures_have_their_known_numbers():
    posterior = infer(poisson_fixture(), fixture_image(), "mcmc", sampler="lattice", draws=1000, warmup=100, chains=32)
    z = posterior.samples["z"].double()
    assert errors(z, torch.tensor([0.650267, 0.248782], dtype=DOUBLE)).max() < 4
    mean = torch.tensor([0.650267, 0.248782], dtype=DOUBLE)
    assert errors(((z[..., :1] - mean[0]) * (z[..., 1:] - mean[1])), 0.056873).max() < 4
    model = mixture()
    x = torch.randn(4, *model.event_shape)
    z = infer(model, x, "mcmc", sampler="lattice", draws=800, warmup=100, chains=16).samples["z"]
    probs = model.posterior_moments(x)[0]
    common = probs > 0.01
    assert errors(z, probs.detach())[common].max() < 4.5


def levels(x=None, size=None):
    """A switch between two scales, a count, and a real level that both act on."""
    with pyro.plate("data", size if x is None else len(x)):
        switch = pyro.sample("switch", dist.OneHotCategorical(logits=torch.tensor([0.0, 0.5])))
        spikes = pyro.sample("spikes", dist.Poisson(2.0))
        level = pyro.sample("level", dist.Normal(spikes, 1.0))
        scale = switch @ torch.tensor([0.5, 1.5])
        return pyro.sample("x", dist.Normal(level[..., None] * torch.tensor([1.0, -1.0]), scale[..., None]).to_event(1), obs=x)


def test_mixed_programs_move_block_by_block():
    x = torch.tensor([[1.0, -2.0], [3.0, -3.5], [0.0, 0.5]])
    posterior = infer(levels, x, "mcmc", draws=500, warmup=150, chains=16)
    # Level given count and scale is Gaussian; the rest is summed.
    counts, scales = torch.arange(25.0, dtype=DOUBLE)[:, None, None], torch.tensor([0.5, 1.5], dtype=DOUBLE)[:, None]
    prior = dist.Poisson(torch.tensor(2.0, dtype=DOUBLE)).log_prob(counts) + torch.tensor([0.0, 0.5], dtype=DOUBLE).log_softmax(0)[:, None]
    signs, pixels = torch.tensor([1.0, -1.0], dtype=DOUBLE), x.double()
    seen = (pixels * signs).mean(1)  # of two pixels, their mean is sufficient for the level
    evidence = dist.Normal(counts, (1 + scales.square() / 2).sqrt()).log_prob(seen)
    residual = dist.Normal(0.0, scales * math.sqrt(2.0)).log_prob((pixels * signs)[:, 0] - (pixels * signs)[:, 1])
    weight = (prior + evidence + residual).flatten(0, 1).softmax(0).view(25, 2, 3)
    gain = 1 / (1 + scales.square() / 2)
    expected = {"spikes": (weight * counts).sum((0, 1)), "switch": weight.sum(0).T,
                "level": (weight * (counts + gain * (seen - counts))).sum((0, 1))}
    for name, value in expected.items():
        assert errors(posterior.samples[name], value).max() < 4.5, name
    stats_ = posterior.stats
    assert {"accepted", "divergences", "step_size", "step_size_spikes", "step_size_switch", "rhat", "ess"} <= set(stats_)
    torch.testing.assert_close(stats_["log_joint"], log_joint(levels, posterior.samples, x).mean((0, 1)))


def ranks_of(model, count=400, **options):
    """p-values of the uniformity of the truth's ranks: simulation-based calibration (Talts et al. 2018)."""
    program = pyro.poutine.trace(model).get_trace(None, size=count)
    x = program.nodes["x"]["value"].detach()
    draws = infer(model, x, "mcmc", chains=1, **options).samples
    p_values = []
    for name, value in draws.items():
        truth, drawn = program.nodes[name]["value"].reshape(count, -1), value[0].reshape(len(value[0]), count, -1)
        ties = (drawn == truth).sum(0)
        ranks = (drawn < truth).sum(0) + (torch.rand(truth.shape) * (ties + 1)).floor()
        p_values += [stats.chisquare(torch.histc(column.float(), 7, -0.5, len(drawn) + 0.5).numpy()).pvalue for column in ranks.T]
    return p_values


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("program", [nonlinear, hots, levels])
def test_lattice_moves_are_calibrated_unless_all_is_accepted(program, broken, monkeypatch):
    if broken:
        monkeypatch.setattr(lattice_module, "ACCEPT", 0.574)
        monkeypatch.setattr(torch, "rand_like", torch.zeros_like)
    p_values = ranks_of(program, draws=20, warmup=150, thin=10)
    assert min(p_values) < 1e-6 if broken else min(p_values) > 1e-3, p_values


def test_a_deep_decoder_of_counts_is_sampled_like_its_plain_program():
    model = zoo.build("poisson", (1, 3, 3), latents=3, decoder="mlp")
    with torch.no_grad():
        x = model(None, size=4).detach()
    first, second = (infer(model, x, "mcmc", draws=400, warmup=200, chains=8, start=start, seed=seed).samples["z"]
                     for start, seed in (("prior", 0), ("map", 1)))
    both = torch.stack([first.mean((0, 1)), second.mean((0, 1))])
    spread = torch.stack([z.mean(1).var(0) / len(z) for z in (first, second)]).sum(0).sqrt()
    assert ((both[0] - both[1]).abs() < 4.5 * spread + 0.01).all()


def multinomial(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
        return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(("program", "options", "words"), [
    (nonlinear, {"sampler": "mala"}, "'mala' moves real latents; others here are z"),
    (multinomial, {"sampler": "lattice"}, "'lattice' moves count or one-hot latents; others here are z"),
    (levels, {"sampler": "gibbs"}, "others here are level"),
    (nonlinear, {"steps": 3.0}, "steps: settings of samplers for real-valued latents"),
    (nonlinear, {"sampler": "slice"}, "unknown sampler 'slice'; known are: auto"),
])
def test_samplers_that_do_not_fit_are_refused(program, options, words):
    x = torch.zeros(2, 2 if program in (multinomial, levels) else 3)
    with pytest.raises(ValueError, match=words):
        infer(program, x, "mcmc", draws=4, warmup=4, **options)


def test_a_start_without_a_density_and_a_reach_of_nothing_are_refused():
    x = torch.tensor([[1.0, 2.0, 0.7], [math.inf, 0.0, 0.0]])
    law = latent_sites(nonlinear, x)["z"]["fn"]
    with pytest.raises(ValueError, match="reach must be at least 1"):
        Landscape(nonlinear, x, "z", law, {}, reach=0)
    with pytest.raises(ValueError, match=r"start of image 1 is not finite \(1 of 2 images; site 'z'\)"):
        lattice_module.Lattice(Landscape(nonlinear, x, "z", law, {}), torch.zeros(3, 2, 2), 5)
