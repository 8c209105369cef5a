"""Ways of inferring, against closed forms, enumeration and the guide's own law."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import guides
import zoo
from guides.bounds import exact_elbo
from inference import infer, log_joint
from zoo.oracles import linear_gaussian, poisson_fixture

FAMILIES = [("gaussian", {}), ("laplace", {}), ("categorical", {}), ("categorical", {"groups": 2}), ("poisson", {}),
            ("gaussian", {"activation": "relu"})]


def pair(name, options=None, latents=6, n=20):
    model = zoo.build(name, (1, 3, 3), latents=latents, init_scale=0.6, seed=1, **(options or {}))
    x = torch.randn(n, 1, 3, 3, generator=torch.Generator().manual_seed(2))
    return model, guides.build("amortized", model, init_scale=0.2, seed=3), x


@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_amortized_draws_follow_the_guide(name, options):
    model, guide, x = pair(name, options, n=3)
    posterior = infer(model, x, "amortized", guide=guide, draws=20_000)
    params = guide.posterior(x)["z"]
    torch.testing.assert_close(posterior.params["z"], params)
    law, z = model.family.distribution(params), posterior.samples["z"]
    assert z.shape == (1, 20_000, 3, *law.event_shape)
    error = law.stddev.clamp(min=1e-9) / math.sqrt(20_000)
    assert ((z[0].mean(0) - law.mean).abs() < 4.5 * error).all()
    fourth = (z[0] - law.mean).pow(4).mean(0)
    spread = ((fourth - law.variance.square()).clamp(min=0) / 20_000).sqrt()
    assert ((z[0].var(0) - law.variance).abs() < 5 * spread + 1e-6).all()


@pytest.mark.parametrize("method", ["amortized", "local", "map"])
@pytest.mark.parametrize("name", ["laplace", "poisson", "categorical"])
def test_seeds_decide_and_nothing_else_changes(method, name, unchanged_generator):
    model, guide, x = pair(name)
    model.train()
    model.prior.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    options = {} if method == "amortized" else {"steps": 5}
    with unchanged_generator():
        first, again, other = (infer(model, x, method, guide=guide, draws=4, seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(first.samples["z"], again.samples["z"])
    assert (method == "map") == torch.equal(first.samples["z"], other.samples["z"])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in [*model.parameters(), *guide.parameters()])
    assert not any(value.requires_grad for value in first.samples.values())
    assert first.method == method and len(first) == 20


@pytest.mark.parametrize(("name", "options"), FAMILIES)
@pytest.mark.parametrize("start", ["guide", "prior"])
def test_local_inference_improves_every_image(name, options, start):
    model, guide, x = pair(name, options)
    posterior = infer(model, x, "local", guide=guide, start=start, steps=200, draws=2)
    with torch.no_grad():
        found = model.expected_log_prob(x, posterior.params) - guides.bounds.exact_kl(model, posterior.params)
        begun = exact_elbo(model, guide if start == "guide" else guides.build("local", model, x), x).value
    assert (found > begun - 1e-3).all() and (found - begun).mean() > 0.1
    assert posterior.stats["elbo_trace"].shape == (200,)
    assert abs(posterior.stats["elbo_trace"][0] - begun.mean()) < 1e-3
    assert posterior.samples["z"].shape[:3] == (1, 2, 20)


def test_local_inference_finds_the_best_member_in_closed_form():
    oracle = linear_gaussian(latents=4, event_shape=(1, 3, 3), scale=0.5)
    torch.manual_seed(6)
    x = oracle(None, size=16).detach()
    best = oracle.mean_field(x)["z"]
    posterior = infer(oracle, x, "local", steps=400, draws=1)
    assert (posterior.params["z"] - best).abs().max() < 5e-3
    sampled = infer(oracle, x, "local", steps=2000, lr=0.02, objective="elbo", draws=1)
    assert (sampled.params["z"] - best).abs().mean() < 0.08


def test_sampled_objectives_of_local_inference_come_near_the_exact_one():
    model, guide, x = pair("poisson", {"log_rate_init": (-1.0, 0.0)})
    values = {}
    for objective in ("exact", "elbo", "iwae"):
        posterior = infer(model, x, "local", objective=objective, steps=500, lr=0.05, draws=1)
        values[objective] = (model.expected_log_prob(x, posterior.params)
                             - guides.bounds.exact_kl(model, posterior.params)).mean().item()
    assert values["exact"] - 2.5 < values["elbo"] < values["exact"]  # one noisy, slightly biased sample a step
    assert values["exact"] - 3.0 < values["iwae"] < values["exact"]  # another bound, whose best member is wider


def test_map_of_linear_gaussian_latents():
    oracle = linear_gaussian(latents=4, event_shape=(1, 3, 3), scale=0.5)
    torch.manual_seed(6)
    x = oracle(None, size=16).detach()
    mean, _ = oracle.posterior(x)
    posterior = infer(oracle, x, "map", steps=600)
    assert (posterior.samples["z"][0, 0] - mean).abs().max() < 1e-4
    torch.testing.assert_close(posterior.stats["log_joint"], log_joint(oracle, {"z": mean.float()}, x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("categories", [5, 12, 40])
def test_map_of_a_categorical_by_brute_force(categories):
    model, _, x = pair("categorical", latents=categories, n=60)
    with torch.no_grad():
        model.prior.copy_(torch.randn(1, categories, generator=torch.Generator().manual_seed(5)))
        every = torch.eye(categories).unsqueeze(1).expand(-1, len(x), -1)
        values = log_joint(model, {"z": every}, x)
    posterior = infer(model, x, "map")
    torch.testing.assert_close(posterior.stats["log_joint"], values.max(0).values)
    assert torch.equal(posterior.samples["z"][0, 0].argmax(-1), values.argmax(0))


def test_map_of_groups_by_brute_force():
    model, _, x = pair("categorical", {"groups": 2}, latents=8, n=60)
    hot = torch.eye(4)
    every = torch.stack([torch.stack([hot[a], hot[b]]) for a in range(4) for b in range(4)]).unsqueeze(1).expand(-1, 60, -1, -1)
    with torch.no_grad():
        values = log_joint(model, {"z": every}, x)
    posterior = infer(model, x, "map")
    z, found = posterior.samples["z"][0, 0], posterior.stats["log_joint"]
    assert z.shape == (60, 2, 4) and torch.equal(z.sum(-1), torch.ones(60, 2))
    assert ((values.max(0).values - found).abs() < 1e-4).float().mean() > 0.85  # single moves can end in a local maximum
    pairs = torch.stack([(every[i] == z).all(-1).sum(-1) for i in range(16)])  # groups that agree with what was found
    assert (values.masked_fill(pairs == 0, -math.inf).max(0).values <= found + 1e-4).all()  # … but in nothing less


def test_map_of_counts_by_brute_force():
    oracle = poisson_fixture()
    torch.manual_seed(3)
    x = oracle(None, size=100).detach()
    counts = torch.cartesian_prod(torch.arange(12.0), torch.arange(12.0)).unsqueeze(1).expand(-1, 100, -1)
    with torch.no_grad():
        values = log_joint(oracle, {"z": counts}, x)
    posterior = infer(oracle, x, "map")
    z, found = posterior.samples["z"][0, 0], posterior.stats["log_joint"]
    best = values.max(0).values
    assert (found <= best + 1e-4).all() and ((best - found) < 1e-4).float().mean() > 0.9
    near = (counts - z).abs().sum(-1) <= 1
    assert (values.masked_fill(~near, -math.inf).max(0).values <= found + 1e-4).all()


def test_map_of_real_and_count_latents_together():
    """A Normal gain and counts: for given counts the best gain is known in closed form, so a grid of counts is the truth."""
    weight, spikes = torch.tensor([1.0, -0.5, 0.3, 0.8]), torch.tensor([[1.0, 0.2], [0.0, 1.0], [-0.5, 0.4], [0.3, 0.0]])
    rates = torch.tensor([1.0, 2.0])

    def program(x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            gain = pyro.sample("gain", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            z = pyro.sample("z", dist.Poisson(rates).to_event(1))
            mean = (gain * weight + z @ spikes.T).unflatten(-1, (1, 2, 2))
            return pyro.sample("x", dist.Normal(mean, 0.5).to_event(3), obs=x)

    torch.manual_seed(4)
    x = program(size=40)
    z = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0)).unsqueeze(1)
    residual = x.flatten(1) - z @ spikes.T
    gain = (residual @ weight / 0.25 / (1 + weight.square().sum() / 0.25)).unsqueeze(-1)
    values = log_joint(program, {"gain": gain, "z": z.expand(-1, 40, -1)}, x)
    best = values.max(0)
    posterior = infer(program, x, "map", steps=300)
    found = posterior.stats["log_joint"]
    assert (found <= best.values + 1e-4).all() and ((best.values - found) < 1e-3).float().mean() > 0.8
    ends = (best.values - found) < 1e-3
    assert (posterior.samples["gain"][0, 0][ends] - gain[best.indices, torch.arange(40)][ends]).abs().max() < 1e-2


def test_costs_are_what_was_spent():
    model, guide, x = pair("gaussian")
    cost = infer(model, x, "amortized", guide=guide, draws=50).cost
    assert cost["gradient_evaluations"] == cost["evaluations"] == 0 and cost["seconds"] > 0 and cost["device"] == "cpu"
    for objective, spent in (("exact", 7), ("elbo", 7 * 4)):  # elbo: four draws a step
        cost = infer(model, x, "local", objective=objective, steps=7, draws=3).cost
        assert cost["gradient_evaluations"] == cost["evaluations"] == spent
    assert infer(model, x, "local", objective="iwae", steps=2, draws=3).cost["gradient_evaluations"] == 2 * 4
    cost = infer(model, x, "map", steps=9).cost
    assert (cost["gradient_evaluations"], cost["evaluations"]) == (10, 11)  # a gradient at the start and after each step


def test_costs_of_discrete_ascent_count_every_candidate():
    model, _, x = pair("categorical", latents=5, n=1)

    calls = []

    class Watched(torch.nn.Module):
        event_shape, latents, linear = model.event_shape, model.latents, model.linear
        decoder, scale, descend = model.decoder, model.scale, model.descend

        def forward(self, images=None, size=None):
            with pyro.poutine.trace() as seen:
                model(images, size)
            calls.append(seen.trace.nodes["x"]["fn"].batch_shape.numel())

    cost = infer(Watched(), x, "map").cost
    probes = 1  # the program is run once to see its sites
    assert cost["evaluations"] == sum(calls[probes:])
    assert cost["gradient_evaluations"] == calls[probes:].count(1) - 1


@pytest.mark.parametrize(("change", "words"), [
    ({"method": "nuts"}, "unknown methods 'nuts'; known are: amortized"),
    ({"stepz": 3}, "has no option stepz; it accepts: steps"), ({"guide": None, "method": "amortized"}, "give guide"),
    ({"draws": 0}, "draws must be at least 1"), ({"steps": 0}, "steps must be"),
    ({"start": "middle"}, "start must be 'guide' or 'prior'"), ({"objective": "exat"}, "unknown objective 'exat'; known are: elbo"),
    ({"x": torch.zeros(3, 1, 2, 3)}, r"expected images \(N, 1, 3, 3\), got \(3, 1, 2, 3\)"), ({"x": torch.zeros(0, 1, 3, 3)},
                                                                                              "no images")])
def test_bad_requests_are_refused(change, words):
    model, guide, x = pair("gaussian")
    request = {"method": "local", "guide": guide, "x": x} | change
    with pytest.raises(ValueError, match=words):
        infer(model, request.pop("x"), request.pop("method"), **request)


def test_an_image_that_is_not_finite_is_named():
    model, guide, x = pair("gaussian")
    x[13, 0, 1, 1] = math.nan
    with pytest.raises(ValueError, match="image 13 has values that are not finite"):
        infer(model, x, guide=guide)


def test_exact_inference_needs_a_linear_decoder():
    model = zoo.build("gaussian", (1, 3, 3), latents=4, decoder="mlp")
    with pytest.raises(ValueError, match="use objective 'elbo'"):
        infer(model, torch.zeros(2, 1, 3, 3), "local", objective="exact")
    assert all(p.requires_grad for p in model.parameters())
