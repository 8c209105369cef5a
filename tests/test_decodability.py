"""Linear decodability against scikit-learn, closed forms and published numbers; mean codes; the NELBO under any noise."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

import guides
import zoo
from inference import Posterior, infer, score
from inference.metrics.decodability import drawn_code, linear_decodability, mean_code, principal_components
from inference.metrics.scores import COLUMNS
from zoo.data.rofl import World, frames


def draws(seed=0):
    """Normal numbers of any shape, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def sets(n=120, m=90, units=6, seed=0):
    """Two sets of representations, with factors that are in part linear in them: ``z_fit, factors_fit, z_score, factors_score``."""
    normal = draws(seed)
    weights, parts = normal(units, 3), []
    for size, shift in ((n, 0.0), (m, 0.3)):  # the scored set has other means
        z = normal(size, units) + shift
        truth = z @ weights * torch.tensor([1.0, 0.4, 0.0]) + normal(size, 3) + 2.0
        parts += [z, dict(zip(("gaze", "speed", "noise"), truth.unbind(1), strict=True))]
    return parts


def by_scikit(z_fit, factors_fit, z_score, factors_score):
    found = {}
    for name in factors_fit:
        readout = LinearRegression().fit(np.asarray(z_fit, dtype=float), np.asarray(factors_fit[name], dtype=float))
        found[name] = r2_score(np.asarray(factors_score[name], dtype=float), readout.predict(np.asarray(z_score, dtype=float)))
    return found


def mean(scores):
    return sum(scores.values()) / len(scores)


# The readout


@pytest.mark.parametrize(("n", "units"), [(120, 6), (120, 60), (62, 60), (3, 1)])
def test_r2_is_that_of_least_squares_with_an_intercept(n, units):
    given = sets(n, units=units)
    found = linear_decodability(*given)
    assert list(found) == ["gaze", "speed", "noise"] and all(isinstance(value, float) for value in found.values())
    assert found == pytest.approx(by_scikit(*given), rel=1e-6, abs=1e-9)
    if units == 6:
        assert found["gaze"] > 0.7 > found["speed"] > 0.1 > 0.0 > found["noise"]  # what a readout cannot tell is below 0


def test_dead_and_doubled_units_do_no_harm():
    z_fit, factors_fit, z_score, factors_score = sets()
    alone = linear_decodability(z_fit, factors_fit, z_score, factors_score)

    def extended(z):
        constant = torch.full((len(z), 1), 0.1, dtype=z.dtype)
        return torch.cat([z, torch.zeros(len(z), 2, dtype=z.dtype), constant, z[:, :2], 3.0 * z[:, 1:2] - z[:, 2:3] + 7.0], 1)

    assert linear_decodability(extended(z_fit), factors_fit, extended(z_score), factors_score) == pytest.approx(alone, abs=1e-9)
    units = [value.float() for value in (extended(z_fit), extended(z_score))]
    single = linear_decodability(units[0], factors_fit, units[1], factors_score)
    assert single == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, 1e6 / 3])
def test_a_unit_that_wakes_up_in_the_scored_set_is_not_heard(constant):
    """No weight can have been learned for it."""
    z_fit, factors_fit, z_score, factors_score = sets()
    alone = linear_decodability(z_fit, factors_fit, z_score, factors_score)
    asleep = torch.full((len(z_fit), 1), constant, dtype=z_fit.dtype)
    awake = torch.full((len(z_score), 1), constant, dtype=z_fit.dtype)
    awake[::3] += 1.0
    found = linear_decodability(torch.cat([z_fit, asleep], 1), factors_fit, torch.cat([z_score, awake], 1), factors_score)
    assert found == pytest.approx(alone, abs=1e-9)


def test_r2_does_not_depend_on_units_of_measurement():
    z_fit, factors_fit, z_score, factors_score = sets()
    alone = linear_decodability(z_fit, factors_fit, z_score, factors_score)
    mix, scales = draws(1)(6, 6), torch.tensor([1e-6, 1e-3, 1.0, 1e3, 1e6, 50.0], dtype=torch.float64)
    for changed in ([scales * z - 9.0 for z in (z_fit, z_score)], [z @ mix + 4.0 for z in (z_fit, z_score)]):
        assert linear_decodability(changed[0], factors_fit, changed[1], factors_score) == pytest.approx(alone, abs=1e-7)
    moved = [{name: 1e-4 * value - 3.0 for name, value in factors.items()} for factors in (factors_fit, factors_score)]
    assert linear_decodability(z_fit, moved[0], z_score, moved[1]) == pytest.approx(alone, abs=1e-7)
    folded = [z.unflatten(1, (2, 3)) for z in (z_fit, z_score)]
    assert linear_decodability(folded[0], factors_fit, folded[1], factors_score) == alone


def test_it_is_fitted_on_one_set_and_scored_on_the_other():
    z_fit, factors_fit, z_score, factors_score = sets()
    there, back = linear_decodability(z_fit, factors_fit, z_score, factors_score), linear_decodability(
        z_score, factors_score, z_fit, factors_fit)
    assert back == pytest.approx(by_scikit(z_score, factors_score, z_fit, factors_fit)) and abs(there["speed"] - back["speed"]) > 1e-3
    extra = factors_score | {"unread": factors_score["gaze"]}
    assert linear_decodability(z_fit, factors_fit, z_score, dict(reversed(extra.items()))) == there  # by name, not by place
    turn = torch.randperm(len(z_score), generator=torch.Generator().manual_seed(0))
    shuffled = linear_decodability(z_fit, factors_fit, z_score[turn], {name: value[turn] for name, value in factors_score.items()})
    assert shuffled == pytest.approx(there, abs=1e-9)


@pytest.mark.parametrize("noise", [0.0, 0.5, 2.0])
def test_r2_in_closed_form(noise):
    """g = z·w + noise: R² → |w|² / (|w|² + σ²); K readout weights of n fitted images cost K / n of what is not explained."""
    normal, n, units = draws(2), 20_000, 5
    w = torch.tensor([1.0, -2.0, 0.0, 0.5, 0.1], dtype=torch.float64)
    z = normal(2 * n, units)
    g = z @ w + noise * normal(2 * n)
    found = linear_decodability(z[:n], {"g": g[:n]}, z[n:], {"g": g[n:]})["g"]
    explained = (w @ w / (w @ w + noise**2)).item()
    assert found == pytest.approx(explained - (1 - explained) * units / n, abs=0.01 if noise else 1e-12)


def test_what_is_not_there_costs_the_number_of_units():
    """Noise read out of K units fitted on n images has an R² of about −K / (n − K)."""
    normal = draws(3)
    z, g = normal(2400, 200), normal(2400, 40)
    factors = [dict(zip(map(str, range(40)), part.unbind(1), strict=True)) for part in (g[:1200], g[1200:])]
    assert mean(linear_decodability(z[:1200], factors[0], z[1200:], factors[1])) == pytest.approx(-200 / 1000, abs=0.02)


def test_rounding_is_not_read_as_a_representation():
    """Images of rank 3 in single precision: components beyond the third are rounding errors, and must not be fitted."""
    normal = draws(4)
    hidden, axes = normal(400, 3), normal(3, 64)
    images = (hidden @ axes).float().view(400, 1, 8, 8)
    factors = {"g": hidden[:, 0].square() + hidden[:, 1]}
    parts = [{"g": factors["g"][:200]}, {"g": factors["g"][200:]}]
    scores = []
    for components in (3, 60):
        z_fit, z_score = principal_components(images[:200], images[200:], components=components)
        scores.append(linear_decodability(z_fit, parts[0], z_score, parts[1])["g"])
    scores.append(linear_decodability(images[:200].flatten(1), parts[0], images[200:].flatten(1), parts[1])["g"])
    assert scores[1:] == pytest.approx([scores[0]] * 2, abs=1e-4)


def test_single_precision_and_whole_numbers_are_read_out_in_double():
    z_fit, factors_fit, z_score, factors_score = sets()
    single = [z_fit.float(), {name: value.float() for name, value in factors_fit.items()}, z_score.float(),
              {name: value.float() for name, value in factors_score.items()}]
    assert linear_decodability(*single) == pytest.approx(by_scikit(*single), abs=1e-7)
    counts = [{"count": (factors["gaze"] > 2).long() + (factors["gaze"] > 3)} for factors in (factors_fit, factors_score)]
    assert linear_decodability(z_fit, counts[0], z_score, counts[1]) == pytest.approx(by_scikit(z_fit, counts[0], z_score, counts[1]))


@pytest.mark.parametrize(("change", "words"), [
    ({"n": 7}, "a readout of 6 units needs at least 8 images"), ({"score_units": 5}, "as many units in both sets"),
    ({"flat": True}, "representations"), ({"nan": "z"}, "must be finite"), ({"nan": "g"}, "must be finite"),
    ({"drop": "speed"}, "the factors speed are missing"), ({"short": True}, "one number for each of the 120"),
    ({"none": True}, "there must be factors"), ({"still": 0.1}, "the factors speed do not vary"), ({"m": 1}, "do not vary|at least 2")])
def test_what_cannot_be_read_out_is_refused(change, words):
    z_fit, factors_fit, z_score, factors_score = sets(change.get("n", 120), change.get("m", 90))
    if "score_units" in change:
        z_score = z_score[:, :5]
    if "flat" in change:
        z_fit, z_score = z_fit[:, 0], z_score[:, 0]
    if "nan" in change:
        (z_fit if change["nan"] == "z" else factors_score["gaze"])[3] = math.nan
    if "drop" in change:
        del factors_score["speed"]
    if "short" in change:
        factors_fit["speed"] = factors_fit["speed"][:-1]
    if "none" in change:
        factors_fit = {}
    if "still" in change:
        factors_score["speed"] = torch.full((90,), change["still"])
    with pytest.raises(ValueError, match=words):
        linear_decodability(z_fit, factors_fit, z_score, factors_score)


# Principal components


def test_principal_components_are_scikit_learns():
    normal = draws(5)
    x = (normal(200, 12) * torch.linspace(3.0, 0.1, 12) @ normal(12, 12) + 1.5).view(200, 3, 2, 2)
    fitted, other = principal_components(x[:120], x[120:].float(), components=5)
    reference = PCA(5).fit(x[:120].flatten(1).numpy())
    assert fitted.dtype == other.dtype == torch.float64 and fitted.shape == (120, 5)
    for found, images, tolerance in ((fitted, x[:120], 1e-9), (other, x[120:], 1e-5)):
        truth = torch.from_numpy(reference.transform(images.flatten(1).numpy()))
        signs = (found * truth).sum(0).sign()
        torch.testing.assert_close(found * signs, truth, atol=tolerance, rtol=0)
    assert (fitted.std(0).diff() < 0).all()  # the largest first
    whole, = principal_components(x, components=12)
    torch.testing.assert_close(torch.cdist(whole, whole), torch.cdist(x.flatten(1), x.flatten(1)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("images", "others", "components", "words"), [
    ((9, 1, 2, 2), (), 0, "components must be from 1 to 4"), ((9, 1, 2, 2), (), 5, "components must be from 1 to 4"),
    ((3, 1, 2, 2), (), 4, "components must be from 1 to 3"), ((1, 1, 2, 2), (), 1, "components|images"),
    ((9, 1, 2, 2), ((9, 1, 3, 3),), 2, "pixels|shape")])
def test_components_that_there_are_not_are_refused(images, others, components, words):
    with pytest.raises(ValueError, match=words):
        principal_components(torch.randn(images), *(torch.randn(other) for other in others), components=components)


# Mean codes

CASES = [("gaussian", {}), ("gaussian", {"activation": "relu"}), ("gaussian", {"activation": "exp"}), ("laplace", {}),
         ("categorical", {"groups": 2}), ("poisson", {"log_rate_init": (-1.0, 0.0)})]


def pair(name, decoder="lin", n=5, **options):
    model = zoo.build(name, (1, 3, 3), latents=4, decoder=decoder, init_scale=0.6, seed=1, **options)
    x = torch.randn(n, 1, 3, 3, generator=torch.Generator().manual_seed(2))
    return model.eval(), guides.build("amortized", model, init_scale=0.1, seed=3).eval(), x


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("method", ["amortized", "local"])
def test_the_mean_code_is_the_mean_of_what_the_decoder_receives(name, options, method):
    model, guide, x = pair(name, **options)
    steps = {"steps": 5} if method == "local" else {}
    posterior = infer(model, x, method, guide=guide, draws=2, **steps)
    code = model.family.code(model.family.distribution(posterior.params["z"]).sample((20_000,)))
    spread = code.std(0) / math.sqrt(20_000)
    found = mean_code(model, posterior)
    assert found.shape == (5, 4) and not found.requires_grad
    assert (found - code.mean(0)).abs().le(5 * spread + 1e-5).all()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_points_code_is_its_own_mean(name, options):
    model, guide, x = pair(name, **options)
    posterior = infer(model, x, "map", guide=guide, steps=5)
    torch.testing.assert_close(mean_code(model, posterior), model.family.code(posterior.samples["z"][0, 0]))


@pytest.mark.parametrize("weighted", [False, True])
def test_codes_are_averaged_over_chains_and_draws(weighted):
    """By their weights where there are any, as the posterior's own mean."""
    model, _, _ = pair("gaussian", activation="relu")
    generator = torch.Generator().manual_seed(0)
    z, weights = torch.randn(2, 3, 5, 4, generator=generator), torch.rand(2, 3, 5, generator=generator)
    if not weighted:
        weights = torch.ones(2, 3, 5)
    posterior = Posterior("any", {"z": z}, log_weights=weights.log() if weighted else None)
    truth = (weights.unsqueeze(-1) * z.relu()).sum((0, 1)) / weights.sum((0, 1)).unsqueeze(-1)
    torch.testing.assert_close(mean_code(model, posterior), truth)


def test_a_program_without_a_code_is_read_out_of_all_its_latents():
    def program(x=None):
        with pyro.plate("data", 1 if x is None else len(x)):
            pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("b", dist.Gamma(2.0, 1.0))

    normal = draws(6)
    a, b = normal(2, 3, 5, 2), normal(2, 3, 5).exp()
    found = mean_code(program, Posterior("any", {"a": a, "b": b}))
    torch.testing.assert_close(found, torch.cat([a.mean((0, 1)), b.mean((0, 1)).unsqueeze(1)], 1))


def test_a_drawn_code_is_what_the_decoder_receives_in_one_draw():
    model, guide, x = pair("gaussian", activation="relu")
    posterior = infer(model, x, "amortized", guide=guide, draws=3)
    torch.testing.assert_close(drawn_code(model, posterior), posterior.samples["z"][0, 0].relu())
    hierarchy = zoo.build("hierarchy", (1, 8, 8), family="gaussian,categorical", units=3, channels=8, groups=(1, 1), pre=(1, 1))
    walked = infer(hierarchy, torch.randn(4, 1, 8, 8), guide=guides.build("hierarchical", hierarchy), draws=1).samples
    code = drawn_code(hierarchy, Posterior("any", walked))
    torch.testing.assert_close(code, torch.cat([walked["z2"][0, 0], hierarchy.latents["z1"][0].code(walked["z1"][0, 0])], 1))
    plain = {"a": torch.randn(2, 3, 5, 2), "b": torch.randn(2, 3, 5)}
    torch.testing.assert_close(drawn_code(lambda x: None, Posterior("any", plain)),
                               torch.cat([plain["a"][0, 0], plain["b"][0, 0].unsqueeze(1)], 1))
    with pytest.raises(ValueError, match="'any' have weights"):
        drawn_code(model, Posterior("any", {"z": torch.randn(2, 3, 5, 4)}, log_weights=torch.zeros(2, 3, 5)))


def test_draws_tell_less_than_means_where_a_posterior_is_wide():
    """A factor in the mean of a Normal of the same spread: R² 1 from means, 1/2 from draws."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(2, 20_000, generator=generator)
    params = [torch.stack([each.unsqueeze(1), torch.zeros(20_000, 1)], 1) for each in factor]
    model = zoo.build("gaussian", (3,), latents=1)
    posteriors = [Posterior("any", {"z": each + torch.randn(1, 1, 20_000, 1, generator=generator)}, params={"z": q})
                  for each, q in zip(factor[:, None, None, :, None], params, strict=True)]
    truth = [{"cause": each} for each in factor]
    for code, r2 in ((mean_code, 1.0), (drawn_code, 0.5)):
        fit, scored = (code(model, posterior) for posterior in posteriors)
        assert abs(linear_decodability(fit, truth[0], scored, truth[1])["cause"] - r2) < 0.02


# Published numbers (75,000 + 75,000 frames, angles on the grid): one pass over the frames serves all numbers of a category


@pytest.mark.parametrize(("category", "raw", "components"), [("fixate-1", 0.2356, 0.2373), ("fixate-0", 0.3285, 0.3285),
                                                             ("obj-1", 0.1336, 0.1356)])
def test_pixels_and_principal_components_tell_what_is_published(category, raw, components):
    world = World(category, grid=True)
    fitted, scored = (frames(world, 75_000, seed=seed) for seed in (1, 2))
    factors = [{name: part.factors[name] for name in world.cartesian_names} for part in (fitted, scored)]
    pixels = linear_decodability(fitted.x.flatten(1), factors[0], scored.x.flatten(1), factors[1])
    assert mean(pixels) == pytest.approx(raw, abs=0.004)
    if category == "fixate-1":  # neither gaze nor place is linear in the flow
        seen = [*[0.0] * 2, 0.567, 0.563, 0.518, *[0.0] * 3, 0.469, 0.473, 0.035]
        assert list(pixels) == list(world.cartesian_names) and list(pixels.values()) == pytest.approx(seen, abs=0.015)
    projected = principal_components(fitted.x, scored.x, components=420)
    found = mean(linear_decodability(projected[0], factors[0], projected[1], factors[1]))
    assert found == pytest.approx(components, abs=0.004)
    if category == "fixate-0":  # ten fixed fields span all frames: 420 components tell no less than 578 pixels
        assert found == pytest.approx(mean(pixels), abs=0.001)


# The NELBO under any noise


@pytest.mark.parametrize("name", ["gaussian", "laplace", "categorical", "poisson"])
@pytest.mark.parametrize("decoder", ["lin", "mlp"])
@pytest.mark.parametrize("scale", [None, 0.1, 3.0])
def test_nelbo_is_distortion_and_kl_and_the_bound_without_its_constant(name, decoder, scale):
    model, guide, x = pair(name, decoder, scale=scale)
    scores = score(model, x, infer(model, x, guide=guide, draws=3), k=2)
    numbers, sigma = scores.per_image, math.sqrt(0.5) if scale is None else scale
    close = {"rtol": 1e-4, "atol": 1e-3}
    torch.testing.assert_close(numbers["distortion"], numbers["mse"] / (2 * sigma**2), **close)
    torch.testing.assert_close(numbers["nelbo"], numbers["mse"] / (2 * sigma**2) + numbers["kl"], **close)
    torch.testing.assert_close(numbers["nelbo"], -numbers["elbo"] - 4.5 * math.log(2 * math.pi * sigma**2), **close)
    for column in ("nelbo", "distortion", "kl", "mse", "elbo"):
        assert scores.values[column] == pytest.approx(numbers[column].mean().item())
    assert list(scores.values) == list(COLUMNS) and math.isnan(scores.values["decodability"])


def test_data_that_say_their_noise_are_modelled_with_it():
    world = World("fixate-1", 5)
    data = zoo.data.Dataset("flow", frames(world, 20), frames(world, 9, seed=1), "flow", noise=0.1)
    model = zoo.build("gaussian", data, latents=4)
    guide = guides.build("amortized", model)
    numbers = score(model, data.test.x, infer(model, data.test.x, guide=guide, draws=2), k=2).per_image
    torch.testing.assert_close(numbers["distortion"], 50.0 * numbers["mse"], rtol=1e-4, atol=1e-3)


def test_distortion_of_a_plain_program_is_its_own():
    def program(x=None):
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Laplace(z.sum(-1)[..., None, None, None].expand(*z.shape[:-1], 1, 2, 2), 0.5).to_event(3), obs=x)

    x, z = torch.randn(6, 1, 2, 2), torch.randn(1, 1, 6, 2)
    numbers = score(program, x, Posterior("point", {"z": z})).per_image
    misses = (x - z[0, 0].sum(-1)[:, None, None, None]).abs().sum((1, 2, 3))
    torch.testing.assert_close(numbers["distortion"], misses / 0.5)  # the Laplace law's absolute errors
