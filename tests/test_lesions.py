"""Lesions of a guide and posterior means in the place of draws: against walks by hand, for every family."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from test_group_kl import pair as hierarchy_pair

import guides
import inference
import zoo
from guides.bounds import elbo
from guides.lesioned import LESIONS, Lesioned
from inference import cells
from inference.methods.amortized import Means
from inference.metrics.decodability import mean_code, mean_codes, scales
from inference.metrics.group_kl import group_kl
from zoo.data.base import Data, Dataset
from zoo.latents.gaussian import Gaussian

FAMILIES = ("gaussian", "laplace", "poisson", "categorical")
SITES = ("z3", "z2", "z1")
GENERIC = torch.Generator().manual_seed(11)
X = 0.3 * torch.randn(5, 2, 9, 9, generator=GENERIC)


def called(family):
    return family if isinstance(family, str) else f"gaussian, {family.activation}"


pair = partial(hierarchy_pair, length=-1.0, groups=(1, 2))


def one_layer(name="gaussian", decoder="mlp", **options):
    model = zoo.build(name, (2, 9, 9), latents=4, decoder=decoder, init_scale=0.5, seed=1, **options)
    return model.eval(), guides.build("amortized", model, init_scale=0.3, seed=2).eval()


def zeros_of(model, x):
    """Every site's conditional arguments at some draw: {site: (prior, above)}."""
    seen = {}

    def keep(name, family, prior, above=None):
        seen[name] = prior, above
        return family.distribution(prior.expand(len(x), *prior.shape[-2:])).sample()

    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(4)
        model.descend(keep)
    return seen


# Lesions


@pytest.mark.parametrize("family", FAMILIES)
def test_without_evidence_a_group_costs_exactly_nothing(family):
    model, guide = pair(family)
    for site in SITES:
        kl = group_kl(model, X, Lesioned(guide, {site: "bottom_up"}), draws=2)
        assert (kl[site] == 0.0).all()
        assert all((kl[other] > 1e-6).any() for other in SITES if other != site)
    everywhere = dict.fromkeys(SITES, "bottom_up")
    bound = elbo(model, Lesioned(guide, everywhere), X)
    assert (bound.kl == 0.0).all() and bound.value.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_images_do_not_reach_the_law_of_a_group_without_evidence(family):
    model, guide = pair(family)
    given = zeros_of(model, X)
    kind = model.latents["z2"][0]
    for lesions, same in (({"z2": "bottom_up"}, True), ({}, False)):
        one, other = (Lesioned(guide, lesions).conditionals(x)("z2", kind, *given["z2"]) for x in (X, X.flip(0) + 1.0))
        assert torch.equal(one, other) == same
        assert one.shape == (5, len(kind.parameters), 3)


def test_without_evidence_anywhere_images_are_not_seen_at_all():
    model, guide = pair("poisson")
    found = [inference.infer(model, x, guide=guide, draws=3, lesions=dict.fromkeys(SITES, "bottom_up")) for x in (X, X + 1.0)]
    for site in SITES:
        assert torch.equal(found[0].samples[site], found[1].samples[site])
    whole = [inference.infer(model, x, guide=guide, draws=3, lesions={"z1": "bottom_up"}) for x in (X, X + 1.0)]
    assert not torch.equal(whole[0].samples["z3"], whole[1].samples["z3"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_group_that_hears_the_image_alone_is_read_by_hand(family):
    """The tap alone, added to the prior at features of zero, which is the bias of the prior's network."""
    model, guide = pair(family)
    given, taps = zeros_of(model, X), guide.taps(X)
    for site in ("z2", "z1"):
        kind, group = model.latents[site][0], model.groups[site]
        prior = kind.bounded(group.prior_net.bias.reshape(len(kind.parameters), 3))
        delta = guide.readers[site](taps[site]).reshape(5, len(kind.parameters), 3)
        found = Lesioned(guide, {site: "top_down"}).conditionals(X)(site, kind, *given[site])
        torch.testing.assert_close(found, kind.posterior(prior, delta))
        assert not torch.allclose(found, guide.conditionals(X)(site, kind, *given[site]), atol=1e-3)


def test_a_group_that_hears_the_image_alone_pays_from_the_models_own_prior():
    model, guide = pair()
    lesioned = Lesioned(guide, {"z1": "top_down"})
    conditional, paid = lesioned.conditionals(X), {}

    def walk(name, family, prior, above=None):
        q, p = (family.distribution(params).base_dist for params in (conditional(name, family, prior, above), prior))
        paid[name] = torch.distributions.kl_divergence(q, p).expand(5, 3)
        return q.sample()

    with torch.random.fork_rng():
        torch.manual_seed(7)
        model.descend(walk)
    found = group_kl(model, X, lesioned, draws=1, seed=7, per_image=True)
    for site in SITES:
        torch.testing.assert_close(found[site], paid[site], rtol=1e-4, atol=1e-4)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        torch.testing.assert_close(elbo(model, lesioned, X).kl, sum(value.sum(-1) for value in paid.values()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_where_nothing_comes_down_nothing_is_lost_without_it(family):
    model, guide = pair(family)
    with torch.no_grad():
        for group in list(model.groups.values())[1:]:
            group.prior_net.lognorm.fill_(-200.0)
        for conv in guide.from_above.values():
            conv.lognorm.fill_(-200.0)
    whole = inference.infer(model, X, guide=guide, draws=3)
    lesioned = inference.infer(model, X, guide=guide, draws=3, lesions=dict.fromkeys(SITES, "top_down"))
    for site in SITES:
        torch.testing.assert_close(whole.samples[site], lesioned.samples[site])
    torch.testing.assert_close(whole.log_q, lesioned.log_q)


def test_the_first_group_has_nothing_above_it_to_lose():
    model, guide = pair("poisson,gaussian")
    whole, lesioned = (inference.infer(model, X, guide=guide, draws=3, lesions=lesions) for lesions in (None, {"z3": "top_down"}))
    assert torch.equal(whole.samples["z3"], lesioned.samples["z3"]) and torch.equal(whole.samples["z1"], lesioned.samples["z1"])


@pytest.mark.parametrize("family", [*FAMILIES, Gaussian("relu"), Gaussian("exp")], ids=called)
def test_a_silent_group_sends_down_a_code_of_zero(family):
    model, guide = pair(family)
    posterior = inference.infer(model, X, guide=guide, draws=2, lesions={"z2": "group"})
    assert (model.latents["z2"][0].code(posterior.samples["z2"]) == 0.0).all()
    assert set(posterior.params) == {"z3", "z1"} and posterior.log_q is None
    assert (mean_codes(model, posterior)["z2"] == 0.0).all()
    scores = inference.score(model, X, posterior, guide=Lesioned(guide, {"z2": "group"}))
    assert all(math.isnan(scores.values[name]) for name in ("nelbo", "elbo", "kl", "log_px_bound", "nelbo_se"))
    assert scores.unit_kl[3:6].isnan().all() and scores.unit_kl[:3].isfinite().all() and 0.0 <= scores.values["active"] <= 1.0
    squares = (X - model.observation(model.decode(posterior.samples)).mean).square().flatten(3).sum(-1)
    torch.testing.assert_close(scores.per_image["mse"], squares.mean((0, 1)))


def test_no_bound_is_defined_with_a_silent_group():
    model, guide = pair()
    bound = elbo(model, Lesioned(guide, {"z3": "group"}), X)
    assert bound.value.isnan().all() and bound.log_likelihood.isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_one_layer_can_lose_its_evidence_or_its_voice(name):
    model, guide = one_layer(name)
    deaf = inference.infer(model, X, guide=guide, draws=2, lesions={"z": "bottom_up"})
    assert torch.equal(deaf.params["z"], model.prior.expand(5, *model.prior.shape))
    assert inference.score(model, X, deaf, k=2).values["kl"] == 0.0
    silent = inference.infer(model, X, guide=guide, draws=2, lesions={"z": "group"})
    assert (silent.samples["z"] == 0.0).all() and silent.params is None
    assert math.isnan(inference.score(model, X, silent).values["elbo"])


def test_a_lesioned_guide_serves_wherever_guides_do():
    """Handed over as the guide, it keeps its lesions; what it wraps stays whole."""
    model, guide = pair()
    before = guide.posterior(X)
    by_option = inference.infer(model, X, guide=guide, draws=2, lesions={"z1": "bottom_up", "z3": "group"})
    by_hand = inference.infer(model, X, guide=Lesioned(guide, {"z1": "bottom_up", "z3": "group"}), draws=2)
    for site in SITES:
        assert torch.equal(by_option.samples[site], by_hand.samples[site])
    nested = Lesioned(Lesioned(guide, {"z3": "group"}), {"z1": "bottom_up"})
    assert (inference.infer(model, X, guide=nested, draws=2).samples["z3"] == 0.0).all()
    assert all(torch.equal(value, guide.posterior(X)[name]) for name, value in before.items())


@pytest.mark.parametrize(("lesions", "words"), [
    ({"z9": "group"}, "no latent 'z9'.*z3, z2, z1"), ({"z1": "sideways"}, "unknown lesion 'sideways'.*bottom_up, top_down, group")])
def test_unknown_sites_and_lesions_are_refused(lesions, words):
    model, guide = pair()
    with pytest.raises(ValueError, match=words):
        inference.infer(model, X, guide=guide, lesions=lesions)


def test_lesions_that_make_no_sense_are_refused():
    model, guide = one_layer()
    with pytest.raises(ValueError, match="no hierarchy.*bottom_up, group"):
        inference.infer(model, X, guide=guide, lesions={"z": "top_down"})
    with pytest.raises(ValueError, match="conditionals"):
        inference.infer(model, X, guide=guides.build("full", model), lesions={"z": "group"})
    with pytest.raises(ValueError, match="no option lesions"):
        inference.infer(model, X, "map", lesions={"z": "group"})
    assert set(LESIONS) == {"bottom_up", "top_down", "group"}


# Means


@pytest.mark.parametrize("family", [*FAMILIES, "poisson,gaussian", Gaussian("relu")], ids=called)
def test_means_are_those_of_a_walk_by_hand(family, unchanged_generator):
    model, guide = pair(family)
    with unchanged_generator():
        found = inference.infer(model, X, guide=guide, draws=7, propagate="means")
    conditional, truth = guide.conditionals(X), {}

    def walk(name, kind, prior, above=None):
        truth[name] = kind.distribution(conditional(name, kind, prior, above)).mean
        return truth[name]

    model.descend(walk)
    assert isinstance(found, Means) and isinstance(found.first(2), Means) and found.log_q is None
    for site in SITES:
        assert found.samples[site].shape[:3] == (1, 1, 5)
        torch.testing.assert_close(found.samples[site][0, 0], truth[site])
        torch.testing.assert_close(found.params[site], guide.posterior(X)[site])


def test_means_under_lesions_are_those_of_the_lesioned_guide():
    model, guide = pair("poisson")
    found = inference.infer(model, X, guide=guide, propagate="means", lesions={"z3": "group", "z1": "bottom_up"})
    assert (found.samples["z3"] == 0.0).all() and set(found.params) == {"z2", "z1"}
    prior = {}

    def walk(name, family, params, above=None):
        prior[name] = family.distribution(params).mean
        return found.samples[name][0, 0]

    model.descend(walk)
    torch.testing.assert_close(found.samples["z1"][0, 0], prior["z1"])


@pytest.mark.parametrize("kind", ["full", "lowrank", "flow", "natural", "local", "iterative"])
def test_every_guide_has_means(kind):
    model = zoo.build("laplace" if kind == "natural" else "gaussian", (2, 9, 9), latents=4, init_scale=0.5, seed=1)
    guide = guides.build(kind, model, X)
    found = inference.infer(model, X, guide=guide, propagate="means")
    assert isinstance(found, Means) and found.samples["z"].shape == (1, 1, 5, 4)
    draws = inference.infer(model, X, guide=guide, draws=4000).samples["z"][0]
    away = (draws.mean(0) - found.samples["z"][0, 0]).abs() / (draws.std(0) / math.sqrt(4000))
    assert away.max() < 5.0


@pytest.mark.parametrize(("name", "decoder"), [("gaussian", "lin"), ("poisson", "lin"), ("poisson", "mlp"), ("categorical", "mlp")])
def test_means_are_never_scored_as_draws(name, decoder):
    model, guide = one_layer(name, decoder)
    found = inference.infer(model, X, guide=guide, propagate="means")
    values = inference.score(model, X, found).values
    point = (X - model.mean(found.samples["z"][0, 0])).square().flatten(1).sum(1).mean().item()
    assert values["mse"] == pytest.approx(point, rel=1e-5) == values["mse_mean"]
    for what in ("nelbo", "elbo", "kl", "log_px_bound", "zeros", "lifetime_sparsity", "population_sparsity", "active"):
        assert math.isnan(values[what]), what
    assert not math.isnan(inference.score(model, X, inference.infer(model, X, guide=guide, draws=3), k=2).values["elbo"])


def test_means_of_a_hierarchy_are_never_scored_as_draws():
    model, guide = pair("poisson,gaussian")
    values = inference.score(model, X, inference.infer(model, X, guide=guide, propagate="means")).values
    assert math.isfinite(values["mse"]) and math.isnan(values["nelbo"]) and math.isnan(values["zeros"])


def test_other_ways_of_propagating_are_refused():
    model, guide = pair()
    with pytest.raises(ValueError, match="propagate must be 'draws' or 'means', not 'modes'"):
        inference.infer(model, X, guide=guide, propagate="modes")
    with pytest.raises(ValueError, match="trained guide"):
        inference.infer(model, X, propagate="means")


# Mean codes


@pytest.mark.parametrize("family", ["gaussian", "poisson,categorical", Gaussian("relu")], ids=called)
def test_the_mean_code_of_a_hierarchy_has_all_groups_top_down(family):
    model, guide = pair(family)
    posterior = inference.infer(model, X, guide=guide, propagate="means")
    parts = [model.latents[name][0].moments(posterior.params[name])[0] for name in SITES]
    torch.testing.assert_close(mean_code(model, posterior), torch.cat(parts, 1))
    by_scale = mean_codes(model, posterior, "scale")
    assert {name: tuple(value.shape) for name, value in by_scale.items()} == {"4 × 4": (5, 3), "8 × 8": (5, 6)}
    torch.testing.assert_close(by_scale["8 × 8"], torch.cat(parts[1:], 1))
    drawn = inference.infer(model, X, guide=guide, draws=3)
    torch.testing.assert_close(mean_code(model, drawn), mean_code(model, posterior))  # temperature zero either way


def test_scales_of_one_size_are_numbered():
    model, _ = pair(cells="mlp", groups=(1, 1))
    assert scales(model) == {"scale 1": ["z2"], "scale 2": ["z1"]}
    flat, guide = one_layer()
    with pytest.raises(ValueError, match="no hierarchy"):
        mean_codes(flat, inference.infer(flat, X, guide=guide, draws=2), "scale")
    with pytest.raises(ValueError, match="'site' or by 'scale'"):
        mean_codes(flat, inference.infer(flat, X, guide=guide, draws=2), "level")


def test_a_comparison_reads_hierarchies_out_at_temperature_zero(monkeypatch):
    model, guide = pair()
    asked = []

    def infer(*arguments, **options):
        asked.append(options)
        return inference.infer(*arguments, **options)

    x = 0.3 * torch.randn(40, 2, 9, 9, generator=GENERIC)
    part = Data(x, factors={"cause": x[:, 0, 0, 0]})
    data = Dataset("made", part, part, "", validation=part, targets=("cause",))
    monkeypatch.setattr(cells, "infer", infer)
    monkeypatch.setattr(cells, "load_data", lambda name, options: data)
    description = {"data": "made", "data_options": {}, "probe": 40, "device": "cpu", "method": "amortized", "draws": 2, "seed": 0,
                   "options": {}}
    assert set(cells._readout(model, guide, description)) == {"cause"}
    assert [options.get("propagate") for options in asked] == ["means", "means"]
    flat, encoder = one_layer()
    cells._readout(flat, encoder, description)
    assert "propagate" not in asked[-1]
