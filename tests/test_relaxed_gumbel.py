"""Gumbel-softmax counts and one-hot vectors against known moments and exact laws; closed-form KL divergences of relaxed latents."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from test_relaxed import DRAWS, RATES, assert_within_errors
from torch.distributions import kl_divergence

from zoo.latents.relaxed.arrival import RelaxedPoisson
from zoo.latents.relaxed.gumbel import RelaxedCount, RelaxedOneHot


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# (λ, τ, mean/λ, variance/λ) of counts 0 … floor(λ + 4√λ + 5) − 1: Monte Carlo of the formula in NumPy, 4 million draws for λ ≤ 1;
# the last decimal is uncertain.
GUMBEL_MOMENTS = [(0.1, 0.1, 1.012, 0.911), (0.1, 0.5, 1.301, 0.688), (0.1, 1.0, 2.067, 0.544), (1.0, 0.1, 1.003, 0.903),
                  (1.0, 0.5, 1.050, 0.581), (1.0, 1.0, 1.195, 0.344), (20.0, 0.5, 1.00, 0.53), (20.0, 1.0, 1.005, 0.235)]


@pytest.mark.parametrize(("rate", "temperature", "mean", "variance"), GUMBEL_MOMENTS)
def test_gumbel_counts_have_the_known_moments(rate, temperature, mean, variance):
    top = int(rate + 4 * math.sqrt(rate) + 5) - 1
    draws = 400_000 if rate < 20 else 50_000
    z = RelaxedCount(dist.Poisson(torch.tensor(rate)), temperature, max_count=top).sample((draws,))
    assert float(z.mean()) / rate == pytest.approx(mean, abs=0.02)  # 4 standard errors or more
    assert float(z.var()) / rate == pytest.approx(variance, abs=0.02)


def test_gumbel_counts_include_the_highest():
    base = dist.Binomial(2, torch.tensor([0.9, 0.5]))
    q = RelaxedCount(base, 0.4, max_count=2, straight_through=True)
    hard = q.sample((DRAWS,))
    assert hard.unique().tolist() == [0.0, 1.0, 2.0]
    assert_within_errors((hard == 2).float(), torch.tensor([0.81, 0.25]))
    beyond = RelaxedCount(base, 0.4, max_count=9)  # counts that the base cannot reach have probability 0
    assert beyond.sample((DRAWS,)).max() <= 2
    assert RelaxedCount(dist.Poisson(torch.tensor([1.0, 100.0])), 0.4).max_count == 170


def test_gumbel_straight_through_is_an_exact_count_with_a_gradient():
    rate = RATES.clone().requires_grad_()
    torch.manual_seed(5)
    soft = RelaxedCount(dist.Poisson(rate), 0.5).rsample((DRAWS,))
    (slope,) = torch.autograd.grad(soft.sum(), rate)
    torch.manual_seed(5)
    hard = RelaxedCount(dist.Poisson(rate), 0.5, straight_through=True).rsample((DRAWS,))
    torch.testing.assert_close(torch.autograd.grad(hard.sum(), rate)[0], slope)
    assert_within_errors(hard.detach(), RATES)
    assert_within_errors((hard.detach() - RATES) ** 2, RATES)
    torch.testing.assert_close(slope[2:] / DRAWS, torch.ones(2), atol=0.02, rtol=0)  # d E[z] / dλ = 1 where bias is small


def test_gumbel_shapes_temperature_zero_and_other_bases():
    base = dist.NegativeBinomial(torch.tensor([2.0, 3.0]), torch.tensor(0.5)).expand((4, 2))
    q = RelaxedCount(base, 0.2).expand((5, 4, 2))
    assert isinstance(q, RelaxedCount) and q.batch_shape == (5, 4, 2)
    assert q.rsample((3,)).shape == (3, 5, 4, 2)
    assert_within_errors(RelaxedCount(base, 0.02).sample((DRAWS,))[:, 0], torch.tensor([2.0, 3.0]))
    exact = RelaxedCount(base, 0.0).rsample((6,))
    assert (exact == exact.round()).all() and exact.shape == (6, 4, 2)
    assert RelaxedCount(dist.Poisson(torch.rand(3, dtype=torch.float64)), 0.5).rsample().dtype == torch.float64


def test_gumbel_refuses_what_it_cannot_relax():
    poisson = dist.Poisson(torch.ones(3))
    with pytest.raises(ValueError, match="event shape"):
        RelaxedCount(poisson.to_event(1), 0.5)
    with pytest.raises(ValueError, match="counts"):
        RelaxedCount(dist.Normal(torch.zeros(3), 1.0), 0.5)
    with pytest.raises(ValueError, match="temperature"):
        RelaxedCount(poisson, -1.0)
    for bad in (0, 2.5):
        with pytest.raises(ValueError, match="max_count"):
            RelaxedCount(poisson, 0.5, max_count=bad)
    with pytest.raises(ValueError, match="too many"):
        RelaxedCount(dist.Poisson(torch.tensor([1.0, 1e9])), 0.5)
    with pytest.raises(ValueError, match="too many"):
        RelaxedCount(dist.Poisson(torch.tensor([1.0, float("nan")]), validate_args=False), 0.5)


def test_one_hot_vectors():
    logits = torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 2.0]], requires_grad=True)
    with pytest.raises(ValueError, match="temperature"):
        RelaxedOneHot(logits, -0.1)
    probs = logits.detach().softmax(-1)
    soft = RelaxedOneHot(logits, 0.5).rsample((DRAWS,))
    assert soft.shape == (DRAWS, 2, 3)
    torch.testing.assert_close(soft.sum(-1), torch.ones(DRAWS, 2))
    assert not ((soft == 0) | (soft == 1)).all()
    # the largest entry has the categorical's probabilities at any temperature
    assert_within_errors(torch.nn.functional.one_hot(soft.argmax(-1), 3).float(), probs)
    torch.manual_seed(7)
    twin = RelaxedOneHot(logits, 0.5).rsample()
    soft_gradient = torch.autograd.grad((twin * torch.arange(3.0)).sum(), logits)[0]
    torch.manual_seed(7)
    hard = RelaxedOneHot(logits, 0.5, straight_through=True).rsample()
    assert (hard.detach() == torch.nn.functional.one_hot(twin.argmax(-1), 3)).all()
    torch.testing.assert_close(torch.autograd.grad((hard * torch.arange(3.0)).sum(), logits)[0], soft_gradient)
    assert soft_gradient.abs().sum() > 0
    exact = RelaxedOneHot(logits, 0.0).rsample((DRAWS,))
    assert not exact.requires_grad
    assert_within_errors(exact, probs)
    tiny = RelaxedOneHot(logits, 1e-30).rsample((100,))
    assert torch.isfinite(tiny).all()
    expanded = RelaxedOneHot(logits, 0.5, straight_through=True).expand((4, 2))
    assert isinstance(expanded, RelaxedOneHot) and expanded.straight_through and expanded.rsample().shape == (4, 2, 3)
    torch.testing.assert_close(RelaxedOneHot(logits, 0.5).log_prob(exact[0]), (exact[0] * probs.log()).sum(-1))


# -- KL divergences and ELBOs

def programs(q, p):
    def model():
        with pyro.plate("data", 3):
            pyro.sample("z", p)

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", q)

    return model, guide


def poisson_pair():
    q_rate, p_rate = torch.tensor([[0.5, 2.0]] * 3), torch.tensor([[1.0, 0.3]] * 3)
    kl = (p_rate - q_rate + q_rate * (q_rate / p_rate).log()).sum()
    return q_rate, p_rate, kl


@pytest.mark.parametrize("kind", ["arrival", "gumbel"])
def test_mean_field_elbo_takes_the_closed_form_for_counts(kind):
    q_rate, p_rate, kl = poisson_pair()
    if kind == "arrival":
        q, p = RelaxedPoisson(q_rate, 0.5).to_event(1), RelaxedPoisson(p_rate, 0.0).to_event(1)
    else:
        q = RelaxedCount(dist.Poisson(q_rate), 0.5).to_event(1)
        p = RelaxedCount(dist.Poisson(p_rate), 0.0).to_event(1)
    with pyro.validation_enabled(True):
        losses = [TraceMeanField_ELBO().loss(*programs(q, p)) for _ in range(5)]
    assert losses == pytest.approx([float(kl)] * 5, rel=1e-5)


@pytest.mark.parametrize("relaxed", [lambda rate: RelaxedPoisson(rate, 0.5), lambda rate: RelaxedCount(dist.Poisson(rate), 0.5)])
def test_closed_form_against_a_plain_poisson_prior(relaxed):
    q_rate, p_rate, kl = poisson_pair()
    assert float(kl_divergence(relaxed(q_rate), dist.Poisson(p_rate)).sum()) == pytest.approx(float(kl), rel=1e-5)
    event = kl_divergence(relaxed(q_rate).to_event(1), dist.Poisson(p_rate).to_event(1))
    assert event.shape == (3,) and float(event.sum()) == pytest.approx(float(kl), rel=1e-5)


def test_kl_without_a_closed_form_is_not_implemented():
    base = dist.NegativeBinomial(torch.tensor(3.0), torch.tensor(0.4))
    with pytest.raises(NotImplementedError):
        kl_divergence(RelaxedCount(base, 0.5), dist.Poisson(torch.tensor(2.0)))


def test_mean_field_elbo_takes_the_closed_form_for_one_hot_vectors():
    q_logits, p_logits = torch.randn(3, 4), torch.randn(3, 4)
    q_log, p_log = q_logits.log_softmax(-1), p_logits.log_softmax(-1)
    kl = float((q_log.exp() * (q_log - p_log)).sum())
    with pyro.validation_enabled(True):
        q, p = RelaxedOneHot(q_logits, 0.5), RelaxedOneHot(p_logits, 0.5)
        losses = [TraceMeanField_ELBO().loss(*programs(q, p)) for _ in range(5)]
    assert losses == pytest.approx([kl] * 5, rel=1e-5)


def test_log_prob_is_that_of_exact_counts():
    counts = torch.tensor([0.0, 1.0, 4.0])
    expected = torch.tensor([k * math.log(2.5) - 2.5 - math.lgamma(k + 1) for k in (0, 1, 4)])
    for q in (RelaxedPoisson(torch.tensor(2.5), 0.3), RelaxedCount(dist.Poisson(torch.tensor(2.5)), 0.3)):
        torch.testing.assert_close(q.log_prob(counts), expected)
