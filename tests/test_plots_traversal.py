"""Sweeps of latents and draws of the prior against walks by hand, and the figures that show them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.image import AxesImage
from matplotlib.quiver import Quiver

import guides
import inference
import zoo
from inference.metrics.group_kl import group_kl
from inference.plots.flow_key import flow_colors
from inference.plots.grid import image_grid, plot_pairs
from inference.plots.levels import plot_group_kl
from inference.plots.prior_samples import plot_prior_samples
from inference.plots.traversal import plot_traversals
from inference.traversals import Traversal, most_active, prior_mean, resample, traverse
from zoo.latents.categorical import Categorical
from zoo.latents.deterministic import Deterministic

TINY = {"channels": 4, "groups": (1, 2), "pre": (1, 1), "up": (1, 1), "down": (1, 1), "units": 3}
SITES = ("z3", "z2", "z1")


def tiny(family="gaussian", shape=(2, 9, 9), **options):
    model = zoo.build("hierarchy", shape, family=family, seed=1, **TINY | options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        for group in list(model.groups.values())[1:]:
            group.prior_net.lognorm.fill_(-0.5)
    return model


def some(model, seed=4):
    """Values of all latents of one image."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {name: value.detach() for name, value in
                model.descend(lambda name, family, prior, above=None: family.distribution(prior).sample()).items()}


def image_of(model, z):
    return model.observation(model.decode(dict(z))).mean.detach()


def laws(model, z):
    """Every site's prior given the latents above."""
    seen = {}

    def keep(name, family, prior, above=None):
        seen[name] = family.distribution(prior)
        return z[name]

    model.descend(keep)
    return seen


# Sweeps


@pytest.mark.parametrize("family", ["gaussian", "laplace"])
@pytest.mark.parametrize("site", SITES)
def test_real_latents_are_swept_over_two_prior_deviations(family, site):
    model = tiny(family)
    z = some(model)
    found, law = traverse(model, z, site, 1, count=5), laws(model, z)[site]
    assert found.values == ("−2.0 sd", "−1.0 sd", "mean", "+1.0 sd", "+2.0 sd") and found.images.shape == (5, 2, 9, 9)
    for away, image in zip((-2, -1, 0, 1, 2), found.images, strict=True):
        other = dict(z)
        other[site] = z[site].clone()
        other[site][1] = (law.mean + away * law.stddev)[1]
        torch.testing.assert_close(image, image_of(model, other), rtol=1e-4, atol=1e-5)


def test_codes_may_say_how_far():
    model = tiny()
    z, codes = some(model), torch.randn(400, 3, generator=torch.Generator().manual_seed(1)) * 7.0
    found = traverse(model, z, "z2", 2, count=3, codes=codes)
    ends = codes[:, 2].quantile(torch.tensor([0.01, 0.99]))
    z["z2"] = torch.cat([z["z2"][:2], ends[1:]])
    torch.testing.assert_close(found.images[-1], image_of(model, z), rtol=1e-4, atol=1e-4)
    assert found.values[0] == f"{ends[0]:.2g}".replace("-", "−")


def test_counts_are_swept_from_none():
    model = tiny("poisson")
    z = some(model)
    found = traverse(model, z, "z1", 0, count=4)
    assert found.values == ("0", "1", "2", "3")
    for count, image in enumerate(found.images):
        torch.testing.assert_close(image, image_of(model, z | {"z1": torch.tensor([float(count), *z["z1"][1:]])}), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_one_hots_go_through_their_categories(groups):
    model = tiny(Categorical(groups), units=8)
    z = some(model)
    size = 8 // groups
    found = traverse(model, z, "z2", 8 - 3, count=size)  # in the last group
    assert found.unit == 8 - size and found.values == tuple(f"category {i}" for i in range(size))
    for category, image in enumerate(found.images):
        other = z["z2"].clone().reshape(-1, size)
        other[-1] = torch.eye(size)[category]
        torch.testing.assert_close(image, image_of(model, z | {"z2": other.reshape(z["z2"].shape)}), rtol=1e-4, atol=1e-5)
    few = traverse(model, z, "z2", 8 - 3, count=2)
    likely = laws(model, z)["z2"].mean.reshape(-1, size)[-1].topk(2).indices.sort().values
    assert few.values == tuple(f"category {i}" for i in likely.tolist())


def test_codes_without_a_prior_are_swept_between_quantiles():
    model = zoo.build("hierarchy", (2, 9, 9), family=Deterministic(), **TINY)
    z = {name: torch.zeros(3) for name in SITES}
    with pytest.raises(ValueError, match="codes="):
        traverse(model, z, "z1", 0)
    assert traverse(model, z, "z1", 0, codes=torch.randn(50, 3), count=3).images.shape == (3, 2, 9, 9)


def test_what_is_below_may_follow_its_prior():
    model = tiny()
    z = some(model)
    found = traverse(model, z, "z2", 0, count=3, below="prior")
    first = {"z3": z["z3"], "z2": torch.cat([(laws(model, z)["z2"].mean - 2 * laws(model, z)["z2"].stddev)[:1], z["z2"][1:]])}
    follow = model.descend(lambda name, family, prior, above=None: first.get(name, family.distribution(prior).mean))
    torch.testing.assert_close(found.images[0], image_of(model, follow), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found.images[0], traverse(model, z, "z2", 0, count=3).images[0], atol=1e-4)


def test_spatial_and_single_layer_latents_are_swept_too():
    model = tiny(spatial=True, units=1)
    assert traverse(model, some(model), "z1", 63, count=3).images.shape == (3, 2, 9, 9)
    flat = zoo.build("poisson", (1, 4, 4), latents=5, init_scale=1.0, seed=1)
    found = traverse(flat, prior_mean(flat), "z", 2, count=3)
    torch.testing.assert_close((found.images[2] - found.images[0]).flatten(), 2.0 * flat.decoder.weight[:, 2])


def test_the_prior_mean_is_walked():
    model = tiny("poisson,gaussian")
    found = prior_mean(model)
    assert list(found) == list(SITES)
    torch.testing.assert_close(found["z1"], laws(model, found)["z1"].mean)
    torch.testing.assert_close(found["z3"], laws(model, found)["z3"].mean)


@pytest.mark.parametrize(("options", "words"), [
    ({"site": "z9"}, "no unit 0 of 'z9'"), ({"unit": 3}, r"no unit 3 of 'z1'; it has z3 \(0 to 2\)"), ({"count": 1}, "at least 2"),
    ({"below": "free"}, "'held' or 'prior'")])
def test_sweeps_that_cannot_be_are_refused(options, words):
    model = tiny()
    with pytest.raises(ValueError, match=words):
        traverse(model, some(model), **{"site": "z1", "unit": 0} | options)


# Draws of the prior


def test_what_is_held_stays_and_the_rest_is_drawn(unchanged_generator):
    model = tiny("poisson,gaussian")
    z = some(model)
    with unchanged_generator():
        all_held = resample(model, z, 3)
        below = resample(model, {"z3": z["z3"], "z2": z["z2"]}, 4000, seed=1)
        again = resample(model, {"z3": z["z3"], "z2": z["z2"]}, 4000, seed=1)
    torch.testing.assert_close(all_held, image_of(model, z).expand(3, -1, -1, -1), rtol=1e-4, atol=1e-5)
    assert torch.equal(below, again) and not torch.equal(below, resample(model, {"z3": z["z3"], "z2": z["z2"]}, 4000, seed=2))
    law = laws(model, z)["z1"]
    with torch.random.fork_rng():
        torch.manual_seed(9)
        truth = image_of(model, {"z3": z["z3"].expand(4000, -1), "z2": z["z2"].expand(4000, -1), "z1": law.sample((4000,)).detach()})
    error = (below.var(0) / 4000 + truth.var(0) / 4000).sqrt()
    assert ((below.mean(0) - truth.mean(0)).abs() <= 5.0 * error + 1e-6).all()
    torch.testing.assert_close(below.std(0), truth.std(0), rtol=0.15, atol=1e-3)
    assert resample(model, {}, 5).std(0).mean() > below.std(0).mean()


def test_draws_that_cannot_be_are_refused():
    model = tiny()
    with pytest.raises(ValueError, match="no latents z9"):
        resample(model, {"z9": torch.zeros(3)}, 2)
    with pytest.raises(ValueError, match="at least 1"):
        resample(model, {}, 0)


def test_the_dearest_latents_of_each_level_are_chosen():
    model = tiny(Categorical(), units=4)
    mixed = tiny("gaussian,categorical")
    kl = {"z3": torch.tensor([0.1, 0.9, 0.5]), "z2": torch.tensor([0.2, 0.2, 0.2]), "z1": torch.tensor([0.0, 0.3, 0.1])}
    levels = {"top": ["z3"], "below": ["z2", "z1"]}
    assert most_active(mixed, kl, levels, 2) == [("z3", 1), ("z3", 2), ("z2", 0), ("z1", 0)]
    nothing = {name: torch.full((3,), torch.nan) for name in SITES}
    assert most_active(mixed, nothing, levels, 1) == [("z3", 0), ("z2", 0)]
    assert most_active(model, {name: torch.tensor([0.4]) for name in SITES}, levels, 1) == [("z3", 0), ("z2", 0)]


# Figures


def pictures(ax):
    return [child for child in ax.get_children() if isinstance(child, AxesImage)]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_flow_has_the_colours_and_arrows_of_flow():
    x = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    figure = image_grid([x, x[:1]], names=["a", "b"], blocks=["one", "two"], captions=[["p", "q", "r"], ["s"]], limit=1.5)
    ax, key = figure.axes
    drawn = pictures(ax)
    assert len(drawn) == 4 and len([child for child in ax.get_children() if isinstance(child, Quiver)]) == 4
    np.testing.assert_allclose(drawn[1].get_array()[..., :3], flow_colors(x[1], 1.5)[::-1], atol=1e-6)
    assert {"a", "b", "one", "two", "p", "s"} <= set(texts(ax)) and "85.9 deg/s" in texts(key)[0]
    arrows = next(child for child in ax.get_children() if isinstance(child, Quiver))
    place = arrows.get_offsets()[0]
    column, row = int(place[0] * 6), 5 - int((place[1] - drawn[0].get_extent()[3]) * 6)
    assert np.sign(arrows.U[0]) == np.sign(x[0, 0, row, column].item())
    assert np.sign(arrows.V[0]) == -np.sign(x[0, 1, row, column].item())  # the axis points down


def test_other_images_are_grey():
    x = torch.linspace(-1, 1, 32).reshape(2, 1, 4, 4)
    figure = plot_pairs(x, x, ["1.0", "2.0"], limit=1.0)
    ax, = figure.axes
    values = pictures(ax)[0].get_array()
    assert np.allclose(values[..., 0], values[..., 1]) and values[0, 0, 0] == pytest.approx(0.0, abs=0.01)
    assert not [child for child in ax.get_children() if isinstance(child, Quiver)]
    assert {"data", "reconstruction", "1.0", "2.0"} <= set(texts(ax))


def test_traversals_stand_under_their_levels_with_what_they_cost():
    model = tiny("gaussian,poisson")
    z = some(model)
    rows = [traverse(model, z, "z3", 0, count=3), traverse(model, z, "z1", 2, count=3)]
    kl = {"z3": torch.tensor([0.75, 0.0, 0.0]), "z1": torch.tensor([0.0, 0.0, 0.001])}
    figure = plot_traversals(rows, levels={"4 × 4": ["z3"], "8 × 8": ["z2", "z1"]}, kl=kl, title="t")
    written = texts(figure.axes[0])
    assert {"z3 · 0\n0.75 nats", "z1 · 2\nunused", "4 × 4", "8 × 8", "−2.0 sd", "mean", "0", "2"} <= set(written)
    assert len(pictures(figure.axes[0])) == 6
    plain = Traversal("z", 0, ("category 0",), torch.zeros(1, 1, 3, 3))
    assert "z · 0" in texts(plot_traversals([plain], kl={"z": torch.ones(2)}).axes[0])


def test_prior_samples_are_rows():
    figure = plot_prior_samples({"all": torch.randn(4, 1, 5, 5), "few": torch.randn(2, 1, 5, 5)})
    assert len(pictures(figure.axes[0])) == 6 and {"all", "few"} <= set(texts(figure.axes[0]))


@pytest.mark.parametrize(("rows", "names", "words"), [
    ([], [], "at least one row"), ([torch.zeros(2, 3, 3)], ["a"], "finite images"),
    ([torch.full((1, 1, 2, 2), torch.nan)], ["a"], "finite images"),
    ([torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 3, 3)], ["a", "b"], "one shape"), ([torch.zeros(1, 1, 2, 2)], ["a", "b"], "as many as")])
def test_rows_that_do_not_fit_are_refused(rows, names, words):
    with pytest.raises(ValueError, match=words):
        image_grid(rows, names=names, blocks=names)


def test_groups_are_bars_of_their_kl():
    kl = {"z3": torch.tensor([0.5, 1.0]), "z2": torch.full((2,), torch.nan), "z1": torch.tensor([0.001, 0.2, 0.0])}
    families = {"z3": "gaussian", "z2": "poisson", "z1": "poisson"}
    figure = plot_group_kl(kl, levels={"2 × 2": ["z3"], "4 × 4": ["z2", "z1"]}, families=families)
    above, below = figure.axes
    assert [bar.get_height() for bar in above.patches] == pytest.approx([1.5, 0.201])
    assert {"2/2", "1/3", "silent"} <= set(texts(above)) and {"2 × 2", "4 × 4"} <= set(texts(below))
    heights = [sorted(points.get_offsets()[:, 1].tolist()) for points in below.collections]
    assert heights == [pytest.approx([0.5, 1.0]), pytest.approx([1e-5, 0.001, 0.2])]
    assert [label.get_text() for label in below.get_xticklabels()] == ["z3", "z2", "z1"]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"gaussian", "poisson"}


def test_groups_of_a_real_hierarchy_are_drawn():
    model = tiny("poisson,gaussian")
    guide = guides.build("hierarchical", model)
    kl = group_kl(model, 0.1 * torch.randn(3, 2, 9, 9), guide, draws=1)
    assert len(plot_group_kl(kl).axes[0].patches) == 3


@pytest.mark.parametrize(("kl", "levels", "words"), [
    ({}, None, "no KL"), ({"a": [[1.0]]}, None, "each of its units"), ({"a": [-1.0]}, None, "at least 0"),
    ({"a": [torch.inf]}, None, "at least 0"),
    ({"a": [1.0], "b": [1.0]}, {"x": ["b"], "y": ["a"]}, "in this order")])
def test_divergences_that_are_none_are_refused(kl, levels, words):
    with pytest.raises(ValueError, match=words):
        plot_group_kl(kl, levels=levels)


def test_a_sweep_starts_from_any_posterior():
    model = tiny("poisson")
    guide = guides.build("hierarchical", model)
    posterior = inference.infer(model, 0.1 * torch.randn(2, 2, 9, 9), guide=guide, propagate="means")
    z = {name: value[0, 0, 1] for name, value in posterior.samples.items()}
    assert traverse(model, z, "z3", 0).images.isfinite().all()
