"""Bounds of programs with several latents: the order in which a guide draws decides what may be taken in closed form."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch.distributions import Normal

from guides.bounds import _trace, elbo, iwae


def mean_and_error(draws):
    """Mean over dimension 0 and its standard error."""
    return draws.mean(0), draws.std(0) / math.sqrt(len(draws))


# A chain z2 → z1 → x of three numbers, whose posterior and evidence are Normal and known.
SLOPE, NOISE, READ = 0.8, 0.5, 0.6


def chain(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x)):
        z2 = pyro.sample("z2", dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1))
        z1 = pyro.sample("z1", dist.Normal(SLOPE * z2, NOISE).to_event(1))
        return pyro.sample("x", dist.Normal(z1, READ).to_event(1), obs=x)


def chain_evidence(x):
    return Normal(0.0, math.sqrt(SLOPE**2 + NOISE**2 + READ**2)).log_prob(x).squeeze(-1)


def bottom_up(x):
    """The exact posterior, drawn from the data upward."""
    prior = SLOPE**2 + NOISE**2
    gain = prior / (prior + READ**2)
    back = SLOPE / prior
    with pyro.plate("data", len(x)):
        z1 = pyro.sample("z1", dist.Normal(gain * x, math.sqrt(gain) * READ).to_event(1))
        pyro.sample("z2", dist.Normal(back * z1, math.sqrt(1 - back * SLOPE)).to_event(1))


def top_down(x):
    """The exact posterior, drawn in the model's order."""
    total = SLOPE**2 + NOISE**2 + READ**2
    gain = NOISE**2 / (NOISE**2 + READ**2)
    with pyro.plate("data", len(x)):
        z2 = pyro.sample("z2", dist.Normal(SLOPE / total * x, math.sqrt(1 - SLOPE**2 / total)).to_event(1))
        pyro.sample("z1", dist.Normal(SLOPE * z2 + gain * (x - SLOPE * z2), math.sqrt(gain) * READ).to_event(1))


@pytest.mark.parametrize("particles", [1, 3])
def test_a_bottom_up_guide_is_scored_by_its_draws(particles):
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(elbo(chain, bottom_up, x, particles=particles).value, chain_evidence(x))
    torch.testing.assert_close(iwae(chain, bottom_up, x, particles=particles).value, chain_evidence(x))


def test_a_top_down_guide_takes_the_closed_form():
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).unsqueeze(1)
    torch.manual_seed(1)
    bound = elbo(chain, top_down, x)
    torch.manual_seed(1)
    assert -bound.value.sum().item() == pytest.approx(TraceMeanField_ELBO().loss(chain, top_down, x), rel=1e-9)
    log_likelihood, kl, _ = _trace(chain, top_down, x, 20_000)
    mean, error = mean_and_error(log_likelihood - kl)
    assert error.min() > 0 and (mean - chain_evidence(x)).abs().le(4 * error).all()


def test_discrete_then_real_latents_in_one_guide():
    """Score-function and reparameterized gradients together, against enumeration and quadrature."""
    means = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    locs = torch.tensor([-0.5, 0.2, 0.4], dtype=torch.float64, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(logits=torch.zeros(3, dtype=torch.float64)))
            s = pyro.sample("s", dist.Normal((c @ means).unsqueeze(-1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(s.square(), 1.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(logits=logits.expand(len(x), 3)))
            pyro.sample("s", dist.Normal((c @ locs).unsqueeze(-1), 0.7).to_event(1))

    nodes = torch.linspace(-7, 7, 4001, dtype=torch.float64)
    q_s = Normal(locs.unsqueeze(1), 0.7)
    inner = (Normal(nodes.square(), 1.5).log_prob(torch.tensor(1.3)) + Normal(means.unsqueeze(1), 1.0).log_prob(nodes)
             - q_s.log_prob(nodes)) * q_s.log_prob(nodes).exp()
    probs = logits.softmax(0)
    truth = (probs * (torch.trapezoid(inner, nodes) - math.log(3) - probs.log())).sum()
    wanted = torch.autograd.grad(truth, (logits, locs))

    runs, x = 400, torch.full((200, 1), 1.3, dtype=torch.float64)
    torch.manual_seed(2)
    got = [torch.autograd.grad(elbo(model, guide, x).surrogate.mean(), (logits, locs)) for _ in range(runs)]
    for index, right in enumerate(wanted):
        mean, error = mean_and_error(torch.stack([gradients[index] for gradients in got]))
        assert (mean - right).abs().le(4.5 * error).all()
        assert right.abs().max() > 10 * error.max()
