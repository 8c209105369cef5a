"""KL by group against closed forms, enumeration and Monte Carlo; scores of hierarchies mean what their columns say."""

from __future__ import annotations

import math

import pytest
import torch

import guides
import inference
import zoo
from guides.bounds import elbo, exact_kl
from guides.lesioned import Lesioned
from inference.metrics.group_kl import active_units, group_kl
from inference.metrics.sparsity import fraction_of_zeros, population_sparsity
from zoo.latents.base import Family
from zoo.latents.deterministic import Deterministic
from zoo.latents.gaussian import Gaussian

FAMILIES = ("gaussian", "laplace", "poisson", "categorical")
TINY = {"channels": 4, "groups": (1, 1), "pre": (1, 1), "up": (1, 1), "down": (1, 1), "units": 3}
X = 0.3 * torch.randn(4, 2, 9, 9, generator=torch.Generator().manual_seed(11))


def pair(family="gaussian", amount=0.2, length=-0.5, **options):
    """A hierarchy and its guide far from where they start, so that all that is passed down and up counts."""
    model = zoo.build("hierarchy", (2, 9, 9), family=family, seed=1, **TINY | options)
    guide = guides.build("hierarchical", model, seed=2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in (model, guide):
            for parameter in module.parameters():
                parameter += amount * torch.randn(parameter.shape, generator=generator)
        for group in list(model.groups.values())[1:]:
            if group.prior_net is not None:
                group.prior_net.lognorm.fill_(length)
    return model, guide


@pytest.mark.parametrize("name", FAMILIES)
def test_of_one_layer_it_is_the_closed_form(name):
    model = zoo.build(name, (2, 9, 9), latents=4, init_scale=0.5, seed=1)
    guide = guides.build("amortized", model, init_scale=0.3, seed=2)
    found = group_kl(model, X, guide, draws=3, per_image=True)["z"]
    assert found.shape == (4, 4)
    torch.testing.assert_close(found, model.family.unit_kl(guide.posterior(X)["z"], model.prior))
    torch.testing.assert_close(found.sum(-1), exact_kl(model, guide.posterior(X)))
    torch.testing.assert_close(group_kl(model, X, guide)["z"], found.mean(0))


def test_it_is_the_expectation_over_what_is_above():
    """Over three categories, summed one by one; the draws come near it as their number says."""
    model, guide = pair("categorical,gaussian")
    conditional, truth, chances = guide.conditionals(X), 0.0, None
    for category in range(3):
        each = {}

        def walk(name, family, prior, above=None, category=category, each=each):
            params = conditional(name, family, prior, above)
            each[name] = params, family.unit_kl(params, prior)
            return torch.eye(3)[category].expand(4, 3)

        model.descend(walk)
        chances = each["z2"][0].squeeze(-2).softmax(-1)
        truth = truth + chances[:, category, None] * each["z1"][1]
    count = 200
    found = group_kl(model, X, guide, draws=count, per_image=True)
    torch.testing.assert_close(found["z2"].sum(-1), (chances * (3.0 * chances).log()).sum(-1) if not model.groups["z2"].initial.any()
                               else each["z2"][1].sum(-1))
    spread = torch.stack([group_kl(model, X, guide, draws=1, seed=seed, per_image=True)["z1"] for seed in range(40)]).std(0)
    assert ((found["z1"] - truth).abs() <= 4.5 * spread / math.sqrt(count) + 1e-5).all()
    assert (spread > 0.02 * truth).any()  # what is above matters
    posterior = guide.posterior(X)
    at_means = model.latents["z1"][0].unit_kl(posterior["z1"], torch.zeros_like(posterior["z1"]))
    assert not torch.allclose(at_means, truth, rtol=0.05)


@pytest.mark.parametrize("family", ["laplace", "poisson,gaussian", "gaussian,categorical"])
def test_it_sums_to_what_the_bound_pays(family):
    model, guide = pair(family)
    count = 250
    posterior = inference.infer(model, X, guide=guide, draws=count, seed=1)
    scored = inference.score(model, X, posterior, k=50)
    found = group_kl(model, X, guide, draws=120, per_image=True)
    total = sum(value.sum(-1) for value in found.values())
    ratio = posterior.log_q[0] - torch.stack([_log_prior(model, {k: v[0, d] for k, v in posterior.samples.items()}) for d in range(count)])
    spread = ratio.std(0) / math.sqrt(count)
    assert ((total - scored.per_image["kl"]).abs() <= 5.0 * spread).all()
    torch.testing.assert_close(ratio.mean(0), scored.per_image["kl"], rtol=1e-3, atol=1e-3)


def _log_prior(model, z):
    terms = []

    def walk(name, family, prior, above=None):
        terms.append(family.distribution(prior).log_prob(z[name]))
        return z[name]

    model.descend(walk)
    return sum(terms)


def test_seeds_repeat_and_leave_the_generator_alone(unchanged_generator):
    model, guide = pair()
    with unchanged_generator():
        one, same, other = (group_kl(model, X, guide, draws=2, seed=seed)["z1"] for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_points_have_none():
    model, guide = pair()
    found = group_kl(model, X, Lesioned(guide, {"z2": "group"}), draws=2)
    assert found["z2"].isnan().all() and found["z1"].isfinite().all()
    assert math.isnan(active_units(found)["z2"]) and 0.0 < active_units(found)["z1"] <= 1.0
    assert active_units({"a": torch.tensor([0.02, 0.005, 1.0, 0.0])}) == {"a": 0.5}
    assert active_units({"a": torch.tensor([0.02, 0.005, 1.0, 0.0])}, 0.5) == {"a": 0.25}
    coded = pair(Deterministic())
    assert all(value.isnan().all() for value in group_kl(coded[0], X, coded[1]).values())


def test_a_family_without_a_closed_form_is_sampled():
    class Odd(Family):
        def distribution(self, params):
            return Gaussian().distribution(params)

        def unit_kl(self, q, p):
            return None

    model, guide = pair(Odd())
    plain, same = pair(Gaussian())
    exact, found = group_kl(plain, X, same, draws=150), group_kl(model, X, guide, draws=150)
    assert found["z2"].shape == (1,)
    for site in ("z2", "z1"):  # a log-ratio of Normals near each other has a variance of about twice their KL
        total = exact[site].sum().item()
        assert found[site].sum().item() == pytest.approx(total, abs=4.5 * math.sqrt(2.0 * total / (150 * len(X))))


def test_what_has_no_conditionals_is_refused():
    model, guide = pair()
    with pytest.raises(ValueError, match="draws must be at least 1"):
        group_kl(model, X, guide, draws=0)
    guide.temperature = 0.5
    with pytest.raises(ValueError, match="relaxed"):
        group_kl(model, X, guide)
    flat = zoo.build("gaussian", (2, 9, 9), latents=3)
    with pytest.raises(ValueError, match="conditionals"):
        group_kl(flat, X, guides.build("full", flat))


# Scores of hierarchies


@pytest.mark.parametrize("family", ["gaussian", "poisson,categorical"])
def test_scores_of_a_hierarchy(family):
    model, guide = pair(family)
    posterior = inference.infer(model, X, guide=guide, draws=200, seed=2)
    scored = inference.score(model, X, posterior, k=100, guide=guide)
    values = scored.values
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        bounds = torch.stack([elbo(model, guide, X).value for _ in range(150)])
    error = (bounds.std(0) / math.sqrt(150)).max().item()
    assert (scored.per_image["elbo"] - bounds.mean(0)).abs().max() < 8.0 * error
    assert values["nelbo"] == pytest.approx(values["distortion"] + values["kl"], rel=1e-5)
    images = model.observation(model.decode({name: value[0] for name, value in posterior.samples.items()})).mean
    assert values["mse"] == pytest.approx((X - images).square().flatten(2).sum(-1).mean().item(), rel=1e-4)
    lengths = (X - images).norm(dim=2).flatten(2).sum(-1)  # endpoint errors
    assert values["distortion"] == pytest.approx((lengths / model.scale).mean().item(), rel=1e-4)
    assert values["elbo"] <= values["log_px_bound"] + 4.0 * values["log_px_bound_se"]
    torch.testing.assert_close(scored.unit_kl, torch.cat(list(group_kl(model, X, guide).values())))
    assert values["active"] == pytest.approx((scored.unit_kl > 0.01).float().mean().item())
    without = inference.score(model, X, posterior, k=10)
    assert without.unit_kl is None and math.isnan(without.values["active"]) and without.values["elbo"] == values["elbo"]


@pytest.mark.parametrize("activation", ["identity", "relu", "exp"])
def test_sparsity_and_mean_images_are_of_codes(activation):
    model, guide = pair(Gaussian(activation), amount=0.05)
    posterior = inference.infer(model, X, guide=guide, draws=20)
    values = inference.score(model, X, posterior, k=5).values
    codes = {name: model.latents[name][0].code(value) for name, value in posterior.samples.items()}
    first = torch.cat([value[0, 0] for value in codes.values()], 1)
    assert values["zeros"] == pytest.approx(fraction_of_zeros(first).item())
    assert (values["zeros"] > 0.1) == (activation == "relu")
    assert values["population_sparsity"] == pytest.approx(population_sparsity(first).mean().item(), rel=1e-5)
    plain, _ = pair(Gaussian())
    plain.load_state_dict(model.state_dict())  # of the same weights, its latents are the codes
    image = plain.observation(plain.decode({name: value.mean((0, 1)) for name, value in codes.items()})).mean
    assert values["mse_mean"] == pytest.approx((X - image).square().flatten(1).sum(1).mean().item(), rel=1e-4)


@pytest.mark.parametrize("groups", [(1,), (1, 1)])
def test_an_autoencoder_has_errors_but_no_bounds(groups):
    model, guide = pair(Deterministic(), groups=groups)
    posterior = inference.infer(model, X, guide=guide, draws=2)
    values = inference.score(model, X, posterior, guide=guide).values
    assert values["mse"] == pytest.approx(values["mse_mean"], rel=1e-5) and math.isfinite(values["distortion"])
    for name in ("kl", "nelbo", "elbo", "log_px_bound", "active"):
        assert math.isnan(values[name]), name
    means = inference.infer(model, X, guide=guide, propagate="means")
    for name, value in posterior.samples.items():
        torch.testing.assert_close(means.samples[name][0, 0], value[0, 0])
