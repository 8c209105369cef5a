"""Hierarchies: the published sizes, one walk for model and guide, any family at any group, every way of inferring."""

import math
from types import SimpleNamespace

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import guides
import inference
import zoo
from guides.base import Fixed
from guides.bounds import _trace, elbo
from guides.lesioned import Lesioned
from inference.mcmc.annealing import ais
from inference.metrics.importance import log_importance_weights
from inference.trajectory import path_of
from zoo.data.rofl import Stream
from zoo.latents.base import Family
from zoo.latents.deterministic import Deterministic
from zoo.latents.poisson import Poisson
from zoo.models.hierarchy import COUPLINGS, Hierarchy, Plan
from zoo.networks.blocks import Residual
from zoo.testing import check_model

FAMILIES = tuple(zoo.latents.registry)
TINY = {"channels": 8, "groups": (1, 2), "pre": (1, 1), "up": (1, 1), "down": (1, 1)}
SHAPES = {"conv": (1, 8, 8), "mlp": (1, 3, 3), "lin": (7,)}


def size(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def tiny(family="gaussian", cells="conv", units=4, seed=0, **options):
    model = zoo.build("hierarchy", SHAPES[cells], family=family, units=units, cells=cells, seed=seed, **TINY | options)
    return model, guides.build("hierarchical", model, seed=seed)


def shaken(module, amount=0.3, seed=5):
    """Parameters away from where they start, where priors hardly depend on what is above."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return module


def drawn(model, count, seed=1):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        return model(None, size=count)


@pytest.mark.parametrize("name, parameters, latents, digits", [
    ("cnvae", 25_515_862, 420, 0), ("nvae", 21.6e6, 17_520, -5), ("vae", 23.5e6, 420, -5), ("cnae", 21.7e6, 420, -5),
    ("ae", 23.0e6, 420, -5)])
def test_the_published_sizes(name, parameters, latents, digits):
    model = zoo.build(name, (2, 17, 17))
    guide = guides.build("hierarchical", model)
    assert round(size(model, guide), digits) == parameters
    assert sum(units for _, units in model.latents.values()) == latents
    assert model.likelihood == "endpoint"


def test_the_published_groups():
    model = zoo.build("cnvae", (2, 17, 17))
    assert [len(scale) for scale in model.scales] == [3, 6, 12] and list(model.latents)[0] == "z21"
    assert model.plan.sizes == [(2, 2), (4, 4), (8, 8)] and model.plan.widths == [256, 128, 64]
    assert {units for _, units in model.latents.values()} == {20}
    assert zoo.build("vae", (2, 17, 17)).plan.sizes == [(2, 2)]
    assert float(model.scale) == pytest.approx(0.15) and float(zoo.build("vae", (2, 17, 17)).scale) == pytest.approx(1.5)


@pytest.mark.parametrize("name, rival, latents", [("cnvae_s", "vae_s", 420), ("cnvae_maps_s", "vae_maps_s", 60)])
def test_small_rivals_are_of_one_size(name, rival, latents):
    sizes = {}
    for each in (name, rival):
        model = zoo.build(each, (2, 17, 17))
        sizes[each] = size(model, guides.build("hierarchical", model)), sum(units for _, units in model.latents.values())
    assert sizes[name][1] == sizes[rival][1] == latents
    assert sizes[name][0] == pytest.approx(sizes[rival][0], rel=0.02)


def test_the_small_vector_hierarchies():
    """What their published numbers are of."""
    for name, parameters, groups, coupling in (("cnvae_s", 2_022_076, (2, 1), "gain"), ("vae_s", 2_002_674, (1,), "add")):
        model = zoo.build(name, (2, 17, 17))
        assert size(model, guides.build("hierarchical", model)) == parameters
        assert model.plan.groups == groups and model.plan.coupling == coupling and model.plan.layer_norm
        assert model.likelihood == "normal"


def test_noise_that_data_speak_of_is_the_scale_of_a_normal_likelihood():
    for name, options in (("cnvae_s", {}), ("cnvae", {"likelihood": "normal", "channels": 8}), ("gaussian", {}), ("predictive_coding", {})):
        for noise in (0.3, None):
            data = SimpleNamespace(event_shape=(2, 17, 17), noise=noise)
            assert float(zoo.build(name, data, **options).scale) == pytest.approx(noise or math.sqrt(0.5))
            assert float(zoo.build(name, data, scale=0.2, **options).scale) == pytest.approx(0.2)
    assert float(zoo.build("cnvae_maps_s", Stream("fixate-1")).scale) == pytest.approx(0.15), "an endpoint error's own"


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("cells", list(SHAPES))
def test_but_for_a_bias_what_is_above_a_gain_shows_in_what_is_below_alone(cells, spatial):
    model, _ = tiny(cells=cells, spatial=spatial, coupling="gain")
    shaken(model)
    z = {name: torch.randn(5, units) for name, (_, units) in model.latents.items()}
    names = list(z)
    with torch.no_grad():
        image = model.decode(z)
        for name in names:
            assert not torch.allclose(model.decode(z | {name: torch.zeros_like(z[name])}), image)
        gate = model.groups[names[1]]
        nn.init.zeros_(gate.spread.bias)
        below = z | {names[1]: torch.zeros_like(z[names[1]])}
        shut = model.decode(below)
        # With nothing drawn below, whatever is above has no way to the image: there is no path beside the product.
        torch.testing.assert_close(model.decode(below | {names[0]: 3.0 * z[names[0]]}), shut)


def test_gains_are_products_of_both():
    model, _ = tiny(coupling="gain")
    group = model.groups["z2"]
    features, z = torch.randn(4, model.plan.widths[1], *group.size), torch.randn(4, 4)
    with torch.no_grad():
        maps = torch.nn.functional.conv_transpose2d(z[:, :, None, None], group.spread.weight, group.spread.bias)
        heard = torch.nn.functional.conv2d(torch.nn.functional.silu(features), group.gain[1].weight, group.gain[1].bias)
        torch.testing.assert_close(group.take(features, z), torch.nn.functional.conv2d(heard * maps, group.join.weight))


def test_with_gains_and_no_cell_after_them_the_image_is_bilinear():
    model, _ = tiny(cells="mlp", coupling="gain", groups=(2, 1), post=(0, 0), units=(3, 5), layer_norm=True)
    shaken(model)
    above = {name: torch.randn(6, 3) for name in ("z3", "z2")}
    a, b = torch.randn(2, 6, 5)
    with torch.no_grad():
        image = lambda z: model.decode(above | {"z1": z})  # noqa: E731
        torch.testing.assert_close(image(a + b) - image(b), image(a) - image(torch.zeros_like(a)))
        other = lambda z: model.decode({"z3": above["z3"] + 1.0, "z2": above["z2"], "z1": z})  # noqa: E731
        assert not torch.allclose(other(a) - other(b), image(a) - image(b)), "but what z1 paints is not the same whatever is above"


def test_a_guide_reads_what_a_gain_multiplies_by_a_product_of_image_and_features():
    model, guide = tiny(cells="mlp", coupling="gain")
    assert list(guide.gains) == [name for name, group in model.groups.items() if group.gain is not None] == ["z2"]
    shaken(guide)
    tap, above = torch.randn(2, 4, model.plan.widths[1], 1, 1)
    with torch.no_grad():
        read = guide.readers["z2"]
        heard = guide.gains["z2"](above) * tap + guide.from_above["z2"](above)
        torch.testing.assert_close(guide.read("z2", tap, above), read(heard).reshape(4, 2, 4))
    assert not tiny(cells="mlp")[1].gains, "what is added has none"


@pytest.mark.parametrize("units, expected", [(4, (4, 4, 4)), ((4,), (4, 4, 4)), ((5, 2), (5, 5, 2)), ([1, 2, 3], (1, 2, 3))])
def test_units_of_all_groups_of_a_scale_or_of_each(units, expected):
    model, guide = tiny(cells="mlp", groups=(2, 1), units=units)
    assert tuple(count for _, count in model.latents.values()) == expected
    assert {name: value.shape[-1] for name, value in guide.posterior(drawn(model, 3)).items()} == dict(zip(model.latents, expected,
                                                                                                           strict=True))


@pytest.mark.parametrize("cells", list(SHAPES))
def test_normalized_cells_and_gains_do_not_hear_the_size_or_the_mean_of_features(cells):
    model, guide = tiny(cells=cells, coupling="gain", layer_norm=True)
    shaken(model)
    group = model.groups["z2"]
    cells_in = [each.branch for part in (model, guide) for each in part.modules() if isinstance(each, Residual)]
    parts = [group.gain, guide.gains["z2"], *cells_in]
    assert len(parts) == sum(isinstance(each, nn.GroupNorm) for part in (model, guide) for each in part.modules())
    assert cells == "lin" or len(parts) > 5
    for part in parts:
        features = 3.0 * torch.randn(4, part[0].num_channels, *((4, 4) if cells == "conv" else (1, 1)))
        loud = torch.tensor([1.0, 2.0, 5.0, 10.0])[:, None, None, None]  # of each image its own: images are not mixed
        with torch.no_grad():
            torch.testing.assert_close(part(loud * features + 2.0 * loud), part(features), rtol=1e-3, atol=1e-4)
            by_hand = nn.functional.layer_norm(features, features.shape[1:]) * part[0].weight[:, None, None] + part[0].bias[:, None, None]
            torch.testing.assert_close(part(features), part[1:](by_hand))


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("cells", list(SHAPES))
@pytest.mark.parametrize("family", FAMILIES)
def test_any_family_in_any_hierarchy(family, cells, spatial, coupling):
    # Where no count is ever above zero, nothing flows through what spreads counts.
    model, guide = tiny(Poisson(log_rate_init=(0.0, 1.0)) if family == "poisson" else family, cells, spatial=spatial, coupling=coupling,
                        layer_norm=coupling == "gain")  # together, as in "cnvae_s"
    shaken(model)
    x = drawn(model, 3)
    check_model(model, x)
    guide.temperature = 0.5
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bound = elbo(model, guide, x, particles=2 if family == "poisson" else 1)
    bound.surrogate.sum().backward()
    assert torch.isfinite(bound.value).all()
    silent = [name for name, p in [*model.named_parameters(), *guide.named_parameters()] if p.grad is None or not p.grad.abs().sum() > 0]
    assert not [name for name in silent if "gate" not in name]  # the hidden units of a gate may all rest


@pytest.mark.parametrize("shape, sizes", [
    ((1, 28, 28), [(4, 4), (7, 7)]), ((1, 11, 14), [(3, 4), (5, 7)]), ((3, 32, 32), [(4, 4), (8, 8)])])
def test_images_of_any_size(shape, sizes):
    model = zoo.build("hierarchy", shape, units=3, **TINY)
    assert model.plan.sizes == sizes
    x = drawn(model, 2)
    assert x.shape == (2, *shape)
    posterior = guides.build("hierarchical", model).posterior(x)
    assert {name: params.shape for name, params in posterior.items()} == {name: (2, 2, 3) for name in ("z3", "z2", "z1")}


@pytest.mark.parametrize("coupling, layer_norm", [("add", False), ("add", True), ("gain", False), ("gain", True)])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_evidence_leaves_the_prior(family, coupling, layer_norm):
    model, guide = tiny(family, coupling=coupling, layer_norm=layer_norm)
    shaken(model)
    x = drawn(model, 4)
    for reader in guide.readers.values():
        nn.init.zeros_(reader.bias)
        nn.init.constant_(reader.lognorm, -torch.inf)
    for temperature in (0.0, 0.5):
        guide.temperature = temperature
        bound = elbo(model, guide, x)
        assert (bound.kl == 0.0).all()
        torch.testing.assert_close(bound.value, bound.log_likelihood)


@pytest.mark.parametrize("coupling, layer_norm", [("add", False), ("gain", True)])
@pytest.mark.parametrize("family", [*FAMILIES, ["gaussian", "poisson"], ["laplace", "categorical", "poisson"]])
def test_one_walk_gives_what_two_traces_give(family, coupling, layer_norm):
    model, guide = tiny(family, coupling=coupling, layer_norm=layer_norm)
    shaken(model), shaken(guide, 0.1)
    x = drawn(model, 3)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        walked = elbo(model, guide, x)
        torch.manual_seed(2)
        log_likelihood, kl, _ = _trace(model, guide, x, 1)
    torch.testing.assert_close(walked.log_likelihood, log_likelihood)
    torch.testing.assert_close(walked.kl, kl, rtol=1e-3, atol=1e-3)


def test_a_training_step_walks_once():
    model, guide = tiny()
    calls = []
    for name, module in (("model", model.groups["z2"].prior_net), ("post", model.post), ("tower", guide.tower["z2"])):
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    elbo(model, guide, torch.randn(2, 1, 8, 8))
    assert sorted(calls) == ["model", "post", "tower"]


def test_decoding_a_plain_dictionary_walks_again():
    model, _ = tiny("laplace")
    shaken(model)
    latents = model.descend(lambda name, family, prior, above=None: family.distribution(prior.expand(5, *prior.shape[-2:])).sample())
    torch.testing.assert_close(model.decode(dict(latents)), model.decode(latents))
    many = {name: value.expand(3, 2, *value.shape) for name, value in latents.items()}
    torch.testing.assert_close(model.decode(many)[2, 1], model.decode(latents))


def test_a_linear_hierarchy_by_hand():
    """Two groups of linear maps: the walk, written out with matrices."""
    model = Hierarchy(Plan((7,), "lin", 8, (2,)), "gaussian", 3)
    shaken(model)
    z2, z1 = torch.randn(4, 3), torch.randn(4, 3)
    top, low = model.groups["z2"], model.groups["z1"]

    def applied(conv, value):
        matrix = conv.v.flatten(1)
        matrix = matrix / matrix.norm(dim=1, keepdim=True) * conv.lognorm.exp()[:, None]
        return value @ matrix.T + (0.0 if conv.bias is None else conv.bias)

    def spread(expander, z):
        matrix = expander.v.flatten(1)
        return z @ (matrix / matrix.norm(dim=0) * expander.lognorm.exp()) + expander.bias

    s = model.start.flatten().expand(4, 8)
    s = applied(top.join, torch.cat([s, spread(top.spread, z2)], 1))
    raw = applied(low.prior_net, s)
    s = applied(low.join, torch.cat([s, spread(low.spread, z1)], 1))
    mean = applied(model.post[-1], s)
    asked = {}

    def draw(name, family, prior, above):
        asked[name] = prior
        return {"z2": z2, "z1": z1}[name]

    torch.testing.assert_close(model.decode(model.descend(draw)), mean)
    torch.testing.assert_close(asked["z2"], torch.zeros(2, 3))
    torch.testing.assert_close(asked["z1"][:, 0], raw[:, :3])
    torch.testing.assert_close(asked["z1"][:, 1], 4.0 * torch.tanh(raw[:, 3:] / 4.0))


def test_latents_below_hear_those_above():
    model, guide = tiny()
    shaken(model), shaken(guide)
    x = drawn(model, 1).expand(2, -1, -1, -1)
    conditional = guide.conditionals(x)
    heard = {}

    def draw(name, family, prior, above):
        heard[name] = conditional(name, family, prior, above)
        return torch.tensor([[1.0], [-1.0]]).expand(2, 4) if name == "z3" else torch.zeros(2, 4)

    model.descend(draw, x)
    assert torch.equal(heard["z3"][0], heard["z3"][1])
    assert not torch.allclose(heard["z2"][0], heard["z2"][1]) and not torch.allclose(heard["z1"][0], heard["z1"][1])


def test_priors_start_at_the_familys_own():
    model, _ = tiny("poisson")
    priors = {}
    model.descend(lambda name, family, prior, above=None: priors.setdefault(name, prior).exp().squeeze(-2).expand(2, 4))
    for prior in priors.values():
        assert (prior > -6.1).all() and (prior < -3.9).all()
    assert isinstance(model.groups["z3"].initial, nn.Parameter)  # the Poisson's habit is to learn it
    assert not isinstance(tiny("gaussian")[0].groups["z3"].initial, nn.Parameter)


@pytest.mark.parametrize("family", ["gaussian", "poisson", "categorical"])
def test_spatial_latents_stay_at_their_place(family):
    """A reader's word at one place of the map reaches the latents of that place, and a latent's value that place of the features."""
    model = zoo.build("hierarchy", (1, 12, 10), family=family, units=3, spatial=True, **TINY | {"groups": (1, 1)})
    name, group = "z1", model.groups["z1"]
    (height, width), channels = group.size, model.plan.widths[1]
    assert height != width
    row, column = 2, 1
    place = slice((row * width + column) * 3, (row * width + column) * 3 + 3)
    features = torch.zeros(1, channels, height, width)
    with torch.no_grad():
        group.prior_net.lognorm.fill_(0.0)
        resting = group.prior(features)
        features[0, :, row, column] = 1.0
        changed = (group.prior(features) - resting).abs().sum((0, 1)).unflatten(-1, (height, width, 3)).sum(-1) > 1e-6
    assert changed[row - 1: row + 2, max(column - 1, 0): column + 2].all() and changed.sum() == 9  # 3 × 3 filters around the place
    law = model.latents[name][0].distribution(group.prior(torch.zeros(1, channels, height, width)))
    if family == "categorical":
        assert law.sample().sum(-1).shape == (1, height * width) and (law.sample().sum(-1) == 1.0).all()
    zeros = torch.zeros(1, height * width * 3)
    spoken = zeros.clone()
    spoken[0, place] = 1.0
    shape = (height * width, 3) if family == "categorical" else (height * width * 3,)
    resting, heard = (group.take(torch.zeros(1, channels, height, width), z.reshape(1, *shape)) for z in (zeros, spoken))
    moved = (heard - resting).abs().sum((0, 1)) > 1e-6
    assert moved[row, column] and moved.sum() == 1


def test_readers_start_at_their_published_length():
    _, guide = tiny()
    for reader in guide.readers.values():
        torch.testing.assert_close(reader.weight.flatten(1).norm(dim=1), torch.full((8,), 0.7))


def test_an_image_needs_as_many_pixels_as_it_has():
    assert drawn(zoo.build("hierarchy", (1, 33, 35), units=2, **TINY), 1).shape == (1, 1, 33, 35)


def test_deterministic_hierarchies_have_no_posterior():
    model = zoo.build("hierarchy", (1, 8, 8), family=Deterministic(), units=4, **TINY)
    assert guides.misfit("hierarchical", model) is None and "deterministic" in guides.misfit("natural", model)
    for method in ("natural", "mcmc", "local", "map"):
        with pytest.raises(ValueError, match="deterministic"):
            inference.infer(model, torch.zeros(2, 1, 8, 8), method)
    with pytest.raises(ValueError, match="no evidence"):
        ais(model, torch.zeros(2, 1, 8, 8))


def test_a_program_from_outside_needs_no_data_to_be_told_what_fits_any():
    assert guides.misfit("amortized", lambda x: x) is None


def test_silent_groups_have_no_weights():
    model, guide = tiny()
    x = drawn(model, 2)
    for lesions in ({"z1": "bottom_up", "z3": "top_down"}, {"z1": "group"}):
        cut = Lesioned(guide, lesions)
        if "group" in lesions.values():
            for run in (lambda cut=cut: log_importance_weights(model, x, cut, 3), lambda cut=cut: ais(model, x, guide=cut)):
                with pytest.raises(ValueError, match="z1 are silenced"):
                    run()
        else:
            assert torch.isfinite(log_importance_weights(model, x, cut, 3)).all()


def test_deterministic_hierarchies_pay_nothing():
    model = zoo.build("hierarchy", (1, 8, 8), family=Deterministic(), units=4, **TINY)
    guide = guides.build("hierarchical", model)
    assert all(group.prior_net is None for group in model.groups.values())
    x = torch.randn(3, 1, 8, 8)
    bound = elbo(model, guide, x)
    assert (bound.kl == 0).all() and torch.equal(bound.value, elbo(model, guide, x).value)
    assert (model.decode(guide(x)) - model.decode(model.descend(lambda name, *_: guide.posterior(x)[name].squeeze(-2)))).abs().max() < 1e-5
    bound.surrogate.sum().backward()
    assert all(p.grad is not None for p in [*model.parameters(), *guide.parameters()])


class Newcomer(Family):
    """A prior of somebody's own."""

    parameters = ("loc",)

    def distribution(self, params):
        return dist.Normal(params.squeeze(-2), 1.0).to_event(1)


def test_a_newcomers_prior_in_a_hierarchy():
    model = zoo.build("hierarchy", (1, 8, 8), family=["poisson", Newcomer()], units=4, **TINY)
    guide = guides.build("hierarchical", model)
    check_model(model, drawn(model, 2))
    assert torch.isfinite(elbo(model, guide, drawn(model, 2)).value).all()


@pytest.mark.parametrize("options, message", [
    ({"family": "gaussian,poisson,laplace,gaussian"}, "one for each of 2 scales or one for each of 3 groups, not 4"),
    ({"family": "gauss"}, "gauss"), ({"groups": ()}, "at least one group"), ({"groups": (1, 0)}, "at least one group"),
    ({"pre": (0, 1)}, "pre must be"), ({"down": (1, 0)}, "down must be"), ({"up": (1,)}, "up must be"), ({"residual": -1.0}, "residual"),
    ({"units": (4, 4, 4, 4)}, "numbers of units.*3 groups, not 4"), ({"units": 0}, "at least 1 unit"),
    ({"units": (4, 0)}, "at least 1 unit"), ({"units": 4.0}, "whole numbers.*not 4.0"), ({"units": "4"}, "whole numbers"),
    ({"cells": "dense"}, "conv, mlp, lin"), ({"coupling": "times"}, "add, gain"),
    ({"coupling": "gain", "groups": (3,)}, "two scales"), ({"layer_norm": "no"}, "True or False"), ({"channels": 6}, "multiple of 4"),
    ({"groups": (1, 1, 1, 1, 1, 1)}, "too many"), ({"likelihood": "endpoint"}, "optic flow"), ({"depth": 3}, "no option depth")])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.build("hierarchy", (1, 8, 8), **TINY | options)


def test_what_is_said_counts_even_where_it_is_usual_elsewhere():
    assert zoo.build("hierarchy", (2, 8, 8), likelihood="normal", **TINY).likelihood == "normal"
    assert zoo.build("hierarchy", (2, 8, 8), **TINY).likelihood == "endpoint"
    with pytest.raises(ValueError, match="no option latents, decoder"):
        zoo.build("cnvae_maps_s", (2, 17, 17), latents=512, decoder="lin")


def test_a_saved_model_tells_all_its_settings():
    kept = zoo.build("cnvae_maps_s", (2, 17, 17)).built_with
    assert kept["channels"] == 8 and kept["groups"] == (2, 2, 2) and kept["residual"] == 1.0 and kept["family"] == "gaussian"


def test_wrong_images():
    with pytest.raises(ValueError, match="at least 4 × 4"):
        zoo.build("hierarchy", (1, 3, 3))
    with pytest.raises(ValueError, match="needs data"):
        zoo.build("cnvae")
    with pytest.raises(ValueError, match="it is for hierarchies"):
        guides.build("hierarchical", zoo.build("gaussian", (1, 4, 4), latents=3))


def test_saved_and_loaded(tmp_path):
    model, guide = tiny("gaussian,poisson")
    shaken(model), shaken(guide)
    inference.save(tmp_path / "kept", model, guide)
    again, its_guide, _ = inference.load(tmp_path / "kept")
    x = drawn(model, 2)
    for name, params in guide.posterior(x).items():
        torch.testing.assert_close(its_guide.posterior(x)[name], params)
    assert [type(family) for family, _ in again.latents.values()] == [type(family) for family, _ in model.latents.values()]


# Ways of inferring


def two_groups(seed=0):
    """A small hierarchy of real latents whose posterior is not Normal: mlp cells, one image of nine pixels."""
    model = zoo.build("hierarchy", (1, 3, 3), units=2, cells="mlp", channels=8, groups=(2,), pre=(1, 1), up=(1, 1), down=(1, 1), seed=seed,
                      scale=0.5, residual=0.1)
    return shaken(model, 0.25).requires_grad_(False)


@pytest.fixture(scope="module")
def known():
    """Log p(x) and posterior means of three images, with their standard errors, from 400,000 draws of the prior."""
    model = two_groups()
    x = drawn(model, 3, seed=4)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        draws = model.descend(lambda name, family, prior, above=None:
                              family.distribution(prior.expand(400_000, 1, 2, 2)).sample())
        log_weights = model.observation(model.decode(draws)).log_prob(x)
    log_mean = log_weights.logsumexp(0) - math.log(len(log_weights))
    share = (log_weights - log_mean).exp()
    means, errors = {}, {}
    for name, z in draws.items():
        means[name] = (share.unsqueeze(-1) * z).mean(0)
        errors[name] = (share.unsqueeze(-1) * (z - means[name])).std(0) / len(z) ** 0.5
    return SimpleNamespace(model=model, x=x, log_px=log_mean, log_px_se=share.std(0) / len(share) ** 0.5, mean=means, mean_se=errors)


def test_the_truth_is_known_well_enough(known):
    assert (known.log_px_se < 0.05).all() and all((error < 0.05).all() for error in known.mean_se.values())


def test_chains_over_all_levels(known):
    posterior = inference.infer(known.model, known.x, "mcmc", draws=200, warmup=200)
    assert (posterior.stats["rhat"] < 1.1).all()
    for name, mean in posterior.mean.items():
        spread = posterior.samples[name].flatten(0, 1)
        error = spread.std(0) / posterior.stats["ess"].unsqueeze(-1) ** 0.5
        assert ((mean - known.mean[name]).abs() < 4 * (error**2 + known.mean_se[name] ** 2).sqrt()).all()


def test_evidence_by_annealing(known):
    annealed = ais(known.model, known.x, chains=64, temperatures=80, seed=1)
    assert ((annealed.log_evidence - known.log_px).abs() < 4 * (annealed.se**2 + known.log_px_se**2).sqrt()).all()
    assert (annealed.se < 0.2).all()


def test_bounds_of_guides_lie_below_the_evidence_in_their_order(known):
    model, x = known.model, known.x
    guide = guides.build("hierarchical", model)
    training = {"lr": 2e-2, "batch_size": 50, "freeze_model": True, "beta_start": 1.0, "progress": False}
    inference.fit(model, guide, drawn(model, 2000, seed=6), steps=800, **training)
    steps = guides.build("iterative", model, steps=3, hidden=16, rank=8)
    inference.fit(model, steps, drawn(model, 2000, seed=6), steps=30, **training)
    found = {"amortized": inference.infer(model, x, "amortized", guide=guide, draws=1000),
             "local": inference.infer(model, x, "local", guide=guide, draws=1000, steps=100),
             "iterative": inference.infer(model, x, "iterative", guide=steps, draws=1000, steps=8)}
    at_most = {"amortized": 3.0, "local": 1.5}  # nats short
    for name, posterior in found.items():
        scores = inference.score(model, x, posterior, k=1000).per_image
        assert (scores["elbo"] < known.log_px + 0.1).all() and (scores["elbo"] < scores["log_px_bound"]).all()
        assert (scores["log_px_bound"] < known.log_px + 0.3).all()
        if name in at_most:
            assert scores["elbo"].mean() > known.log_px.mean() - at_most[name]
            assert (scores["log_px_bound"] > known.log_px - 0.5 * at_most[name]).all()
        else:  # its steps were learned for seconds only: they must have left most of the way from the prior behind them
            resting = elbo(model, Fixed(model, steps.start(x)), x, particles=1000).value.mean()
            assert known.log_px.mean() - scores["elbo"].mean() < 0.3 * (known.log_px.mean() - resting)


def test_what_is_free_for_each_image_is_added_to_the_encoders_posteriors():
    model, guide = tiny("gaussian,poisson")
    shaken(model, 0.2), shaken(guide, 0.1)
    x = drawn(model, 6)
    local = guides.build("local", model, x, start=guide)
    for name, params in guide.posterior(x).items():
        torch.testing.assert_close(local.posterior(x)[name], params)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        before = elbo(model, guide, x, particles=2000)
        torch.manual_seed(0)
        torch.testing.assert_close(elbo(model, local, x, particles=2000).value, before.value)
    posterior = inference.infer(model, x, "local", guide=guide, draws=400, steps=60, lr=0.05)
    gained = inference.score(model, x, posterior, k=10).per_image["elbo"] - before.value
    assert gained.mean() > 0.5
    assert all(p.grad is None and p.requires_grad for p in [*guide.parameters(), *model.parameters()])
    assert path_of("local", model, x, guide, steps=3) is None


def test_most_probable_latents(known):
    """Gradient ascent ends where log p(x, z) has no slope, above the posterior's mean."""
    posterior = inference.infer(known.model, known.x, "map", steps=1500)
    z = {name: value[0, 0].requires_grad_(True) for name, value in posterior.samples.items()}
    value = inference.log_joint(known.model, z, known.x)
    assert all(slope.abs().max() < 0.05 for slope in torch.autograd.grad(value.sum(), list(z.values())))
    assert (value > inference.log_joint(known.model, known.mean, known.x)).all()


def test_counts_over_two_levels():
    """Lattice moves on a hierarchy of counts, against enumeration."""
    model = zoo.build("hierarchy", (3,), family=["poisson"], units=1, cells="lin", channels=4, groups=(2,), scale=0.5)
    shaken(model, 0.3, seed=2)
    with torch.no_grad():
        model.groups["z2"].initial.fill_(0.3)
        model.groups["z1"].prior_net.lognorm.fill_(-0.7)
        model.groups["z1"].prior_net.bias.fill_(-0.2)
    model.requires_grad_(False)
    x = drawn(model, 2, seed=3)
    grid = torch.cartesian_prod(torch.arange(14.0), torch.arange(40.0))
    states = {"z2": grid[:, None, :1], "z1": grid[:, None, 1:]}
    log_joint = inference.log_joint(model, {name: z.expand(-1, 2, -1) for name, z in states.items()}, x)
    probability = log_joint.softmax(0)
    posterior = inference.infer(model, x, "mcmc", draws=600, warmup=200)
    for name, z in states.items():
        mean = (probability * z[..., 0]).sum(0)
        sd = ((probability * z[..., 0] ** 2).sum(0) - mean**2).sqrt()
        assert ((posterior.mean[name][:, 0] - mean).abs() < 4 * sd / posterior.stats["ess"] ** 0.5 + 1e-3).all()
    annealed = ais(model, x, chains=64, temperatures=20)
    assert ((annealed.log_evidence - log_joint.logsumexp(0)).abs() < 4 * annealed.se + 1e-3).all()
