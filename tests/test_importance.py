"""Importance sampling of the evidence against exact evidence, and its diagnostics against laws whose tails are known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import guides
import zoo
from inference import Posterior, infer
from inference.arviz import pareto_k
from inference.metrics.evidence import iwae_bound
from inference.metrics.importance import importance, log_importance_weights, weight_diagnostics
from zoo.oracles import linear_gaussian, mixture, poisson_fixture

DOUBLE = torch.float64


def test_the_exact_posterior_as_proposal_has_no_error(unchanged_generator):
    model = linear_gaussian(1, (1, 2, 2)).double()
    x = model(size=5).detach()
    exact = Posterior("exact", {"z": torch.zeros(1, 1, 5, 1)}, params=model.mean_field(x))
    with unchanged_generator():
        found = importance(model, x, exact, 50)
    torch.testing.assert_close(found["log_px"], model.log_evidence(x), atol=1e-9, rtol=0)
    torch.testing.assert_close(found["ess"], torch.full((5,), 50.0, dtype=DOUBLE))
    assert found["se"].max() < 1e-9 and (found["pareto_k"] == -math.inf).all() and found["reliable"].all()


@pytest.mark.parametrize("make", [lambda: linear_gaussian(4, (1, 2, 3)), poisson_fixture])
def test_evidence_is_found_within_its_standard_errors(make):
    torch.manual_seed(0)
    model = make()
    x = model(size=200).detach()
    posterior = infer(model, x, "local", draws=10, steps=100)
    found = importance(model, x, posterior, 2000)
    z = ((found["log_px"] - model.log_evidence(x)) / found["se"])[found["reliable"]]
    assert len(z) > 150 and z.abs().max() < 5 and 0.7 < z.std() < 1.25, (len(z), z.abs().max(), z.std())
    assert (found["ess"] <= 2000 + 1e-6).all() and all(value.shape == (200,) for value in found.values())


def test_one_of_few_states_is_found_by_a_posterior_that_can_be_exact():
    torch.manual_seed(0)
    model = mixture()
    x = model(size=50).detach()
    found = importance(model, x, infer(model, x, "local", draws=10, steps=300), 2000)
    assert found["reliable"].double().mean() > 0.9 and (found["log_px"] - model.log_evidence(x)).abs().max() < 0.01


def test_it_is_the_bound_of_as_many_draws_and_guides_are_proposals_like_their_posteriors():
    torch.manual_seed(0)
    model = poisson_fixture()
    guide, x = guides.build("amortized", model, encoder="lin"), model(size=6).detach()
    with torch.no_grad():
        params = guide.posterior(x)
    posterior = Posterior("amortized", {"z": torch.zeros(1, 1, 6, 2)}, params=params)
    torch.testing.assert_close(importance(model, x, posterior, 300, seed=4)["log_px"].float(), iwae_bound(model, x, params, 300, seed=4))
    of_guide, of_posterior = importance(model, x, guide, 20_000), importance(model, x, posterior, 20_000, seed=1)
    error = (of_guide["se"].square() + of_posterior["se"].square()).sqrt()
    assert ((of_guide["log_px"] - of_posterior["log_px"]) / error).abs().max() < 4
    assert ((of_guide["log_px"] - model.log_evidence(x)) / of_guide["se"]).abs().max() < 4


def program(x=None, size=None):
    """A plain program: two latents, one given the other; x is Normal(0, 3) whatever is between."""
    with pyro.plate("data", size if x is None else len(x)):
        top = pyro.sample("top", dist.Normal(0.0, 1.0))
        low = pyro.sample("low", dist.Normal(top, 1.0))
        return pyro.sample("x", dist.Normal(low[..., None], 1.0).to_event(1), obs=x)


def test_any_program_and_any_guide_of_its_latents():
    def guide(x):
        with pyro.plate("data", len(x)):
            low = pyro.sample("low", dist.Normal(2 / 3 * x[:, 0], 0.9))
            pyro.sample("top", dist.Normal(low / 2, 0.8))

    x = torch.tensor([[-1.0], [0.5], [3.0]])
    found = importance(program, x, guide, 4000)
    truth = dist.Normal(0.0, math.sqrt(3)).log_prob(x[:, 0])
    assert found["reliable"].all() and ((found["log_px"] - truth) / found["se"]).abs().max() < 4
    assert found["se"].max() < 0.02
    again = log_importance_weights(program, x, guide, 7, seed=3)
    assert again.shape == (7, 3) and torch.equal(again, log_importance_weights(program, x, guide, 7, seed=3))
    assert not torch.equal(again, log_importance_weights(program, x, guide, 7, seed=4))


def test_draws_in_parts_are_as_good(monkeypatch):
    model = poisson_fixture()
    x = torch.zeros(3, 1, 1, 3)
    posterior = Posterior("local", {"z": torch.zeros(1, 1, 3, 2)}, params={"z": model.prior.expand(3, 1, 2)})
    monkeypatch.setattr("inference.metrics.importance.CHUNK", 9 * 30)
    assert log_importance_weights(model, x, posterior, 100).shape == (100, 3)
    found = importance(model, x, posterior, 1000)
    assert ((found["log_px"] - model.log_evidence(x)) / found["se"]).abs().max() < 4


def test_the_tail_of_a_pareto_law_is_found():
    torch.manual_seed(0)
    shapes = torch.tensor([0.2, 0.5, 1.0, 1.5], dtype=DOUBLE).repeat_interleave(50)
    draws = -shapes * torch.rand(5000, 200, dtype=DOUBLE).log()  # log of a Pareto with tail exponent 1 / shape
    found = weight_diagnostics(draws)
    by_shape = found["pareto_k"].reshape(4, 50).mean(1)
    tail = math.ceil(3 * math.sqrt(5000))
    shrunk = (tail * torch.tensor([0.2, 0.5, 1.0, 1.5], dtype=DOUBLE) + 5) / (tail + 10)  # by a prior of 10 draws at 1/2
    torch.testing.assert_close(by_shape, shrunk, atol=0.06, rtol=0)
    reliable = found["reliable"].reshape(4, 50).double().mean(1)
    assert reliable[0] == 1 and reliable[1] > 0.9 and (reliable[2:] < 0.1).all()


def test_a_proposal_that_is_too_narrow_is_flagged_and_a_wide_one_is_not():
    x = torch.zeros(20, 1)

    def guide(scale):
        def program(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.0, scale))
        return program

    def model(x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z[..., None] * 0, 1.0).to_event(1), obs=x)

    narrow, wide = (importance(model, x, guide(scale), 5000) for scale in (0.3, 1.5))
    assert narrow["reliable"].double().mean() < 0.2 and wide["reliable"].all()
    # E w² / (E w)² of a Normal of scale s as the proposal of a standard one is s² / √(2 s² − 1).
    expected = 5000 * math.sqrt(2 * 1.5**2 - 1) / 1.5**2
    torch.testing.assert_close(wide["ess"], torch.full((20,), expected, dtype=DOUBLE), rtol=0.03, atol=0)
    expected = math.sqrt((5000 / expected - 1) / 5000)
    torch.testing.assert_close(wide["se"], torch.full((20,), expected, dtype=DOUBLE), rtol=0.03, atol=0)


def test_small_samples_have_a_lower_threshold():
    torch.manual_seed(0)
    found = weight_diagnostics(-0.6 * torch.rand(100, 400, dtype=DOUBLE).log())
    assert torch.equal(found["reliable"], found["pareto_k"] < 0.5) and 0.02 < found["reliable"].double().mean() < 0.7


def test_weights_of_zero_and_bounded_weights():
    weights = torch.randn(1000, 3, dtype=DOUBLE)
    weights[:900, 0] = -math.inf
    weights[:, 1] = torch.where(torch.rand(1000) < 0.4, 0.0, -3.0)  # two states, as discrete latents have
    found = weight_diagnostics(weights)
    assert found["ess"][0] < 100 and found["se"].isfinite().all()
    assert found["pareto_k"][1] == -math.inf and found["reliable"][1]
    shifted = weight_diagnostics(weights + 500.0)
    for name, value in found.items():
        torch.testing.assert_close(shifted[name], value, msg=name)
    assert pareto_k(torch.zeros(10, 2)).tolist() == [-math.inf] * 2


def test_bad_input_is_refused():
    model, x = poisson_fixture(), torch.zeros(3, 1, 1, 3)
    params = {"z": model.prior.expand(3, 1, 2)}
    posterior = Posterior("local", {"z": torch.zeros(1, 1, 3, 2)}, params=params)
    with pytest.raises(ValueError, match="k must be at least 2, not 1"):
        importance(model, x, posterior, 1)
    with pytest.raises(ValueError, match="'mcmc' has no parameters to draw from"):
        importance(model, x, Posterior("mcmc", {"z": torch.zeros(1, 1, 3, 2)}), 10)
    with pytest.raises(ValueError, match="of 3 images"):
        importance(model, x[:2], posterior, 10)
    with pytest.raises(ValueError, match="latents w; the model"):
        importance(model, x, Posterior("local", {"w": torch.zeros(1, 1, 3, 2)}, params={"w": params["z"]}), 10)
    guide = guides.build("amortized", zoo.build("poisson", (1, 1, 3), latents=2), encoder="lin")
    guide.temperature = 0.1
    with pytest.raises(ValueError, match=r"temperature 0\.1"):
        importance(guide.model, x, guide, 10)
    with pytest.raises(ValueError, match=r"\(k, N\) with k at least 2, not \(5,\)"):
        weight_diagnostics(torch.zeros(5))
    for bad in (math.nan, math.inf):
        weights = torch.zeros(5, 3)
        weights[2, 1] = bad
        with pytest.raises(ValueError, match="image 1 must be below infinity"):
            weight_diagnostics(weights)
    with pytest.raises(ValueError, match="image 2"):
        weight_diagnostics(torch.tensor([[0.0, 0.0, -math.inf]]).expand(4, 3))
