"""Annealed importance sampling against evidence that is known exactly."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_mcmc_lattice import PROGRAMS, levels, states_of

from inference import log_joint
from inference.mcmc.annealing import ais, betas
from zoo.oracles import linear_gaussian, poisson_fixture
from zoo.oracles.enumerable import fixture_image


def drawn(model, n):
    """Images that the model drew, and the latents it drew them with."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        trace = pyro.poutine.trace(model).get_trace(None, size=n)
    return trace.nodes["x"]["value"], {"z": trace.nodes["z"]["value"]}


def test_temperatures_rise_from_prior_to_posterior():
    for schedule in (betas(50), betas(50, from_guide=True)):
        assert len(schedule) == 51 and schedule[0] == 0 and schedule[-1] == 1 and (schedule.diff() > 0).all()


@pytest.mark.parametrize("temperatures", [5, 30])
def test_evidence_of_counts(temperatures, unchanged_generator):
    model, x = poisson_fixture(), fixture_image().float()
    with unchanged_generator():
        found = ais(model, x, chains=4000, temperatures=temperatures)
    assert 0 < found.se < 0.01
    assert (found.log_evidence - model.log_evidence(x)).abs().item() < 4 * found.se.item()


def test_evidence_of_real_values_is_bracketed():
    model = linear_gaussian(latents=4, event_shape=(1, 4, 4), scale=0.5)
    x, truth = drawn(model, 60)
    exact = model.log_evidence(x).detach()
    below, above = ais(model, x, chains=32, temperatures=60), ais(model, x, chains=32, temperatures=60, truth=truth)
    for found, sign in ((below, -1.0), (above, 1.0)):
        error = sign * (found.log_evidence - exact)  # both bounds hold on average over chains
        assert error.abs().max() < 1.0 and error.mean() > -3 * error.std() / 60**0.5
        assert (error.abs() < 5 * found.se + 0.05).float().mean() > 0.95


def test_what_it_cannot_do_is_refused():
    model, x = poisson_fixture(), fixture_image().float()
    with pytest.raises(ValueError, match="chains and temperatures must be at least 2, not 1 and 10"):
        ais(model, x, chains=1, temperatures=10)


@pytest.mark.parametrize("name", PROGRAMS)
def test_evidence_of_counts_and_one_hots_under_any_likelihood(name):
    program, states = PROGRAMS[name], states_of(name)
    torch.manual_seed(1)
    trace = pyro.poutine.trace(program).get_trace(None, size=20)
    x, truth = trace.nodes["x"]["value"], {"z": trace.nodes["z"]["value"]}
    exact = log_joint(program, {"z": states.unsqueeze(1).expand(-1, 20, *states.shape[1:])}, x).logsumexp(0)
    below, above = ais(program, x, chains=64, temperatures=40), ais(program, x, chains=64, temperatures=40, truth=truth)
    for found, sign in ((below, -1.0), (above, 1.0)):
        error = sign * (found.log_evidence - exact)
        assert error.abs().max() < 1.2 and error.mean() > -3 * error.std() / 20**0.5
        assert (error.abs() < 5 * found.se + 0.05).float().mean() >= 0.9


def test_evidence_of_a_mixed_program():
    x = torch.tensor([[1.0, -2.0], [3.0, -3.5], [0.0, 0.5]])
    counts, scales = torch.arange(25.0)[:, None, None], torch.tensor([0.5, 1.5])[:, None]
    prior = dist.Poisson(2.0).log_prob(counts) + torch.tensor([0.0, 0.5]).log_softmax(0)[:, None]
    # With the level summed out, the two pixels' difference and sum are independent Gaussians.
    plus, minus = (x[:, 0] + x[:, 1]) / 2**0.5, (x[:, 0] - x[:, 1]) / 2**0.5
    law = dist.Normal(0.0, scales).log_prob(plus) + dist.Normal(counts * 2**0.5, (2.0 + scales.square()).sqrt()).log_prob(minus)
    exact = (prior + law).flatten(0, 1).logsumexp(0)
    found = ais(levels, x, chains=200, temperatures=40)
    assert found.se.max() < 0.1
    assert ((found.log_evidence - exact).abs() < 4.5 * found.se + 0.01).all(), (found.log_evidence - exact, found.se)


def line(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


def test_weights_are_unbiased_also_with_few_chains():
    found = ais(line, torch.zeros(40_000, 1), chains=2, temperatures=3)
    weights = (found.log_weights - dist.Normal(0.0, 1.25**0.5).log_prob(torch.tensor(0.0))).exp().mean(0)
    assert (weights.mean() - 1.0).abs() < 4 * weights.std() / 40_000**0.5


def silent(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Poisson(torch.full((1,), 2.0)).to_event(1))
        return pyro.sample("x", dist.Poisson(0.5 * z).to_event(1), obs=x)


def test_chains_that_start_where_the_image_is_impossible_weigh_nothing():
    x, states = torch.tensor([[0.0], [1.0], [3.0]]), torch.arange(1.0, 60.0)[:, None]
    exact = (dist.Poisson(2.0).log_prob(states) + dist.Poisson(0.5 * states).log_prob(x.T)).logsumexp(0)
    exact[0] = torch.logaddexp(exact[0], torch.tensor(-2.0))  # no spike, no signal
    found = ais(silent, x, chains=200, temperatures=40)
    assert ((found.log_evidence - exact).abs() < 4.5 * found.se + 0.01).all()
