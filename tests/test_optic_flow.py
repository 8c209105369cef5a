"""Optic flow as a program: its density against one written out by hand, its law against the data's, and inference of known causes."""

import math
from functools import cache

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import rofl_oracle as oracle
import torch
from pyro import poutine
from scipy import stats

import guides
import inference
import zoo
from guides.bounds import elbo, iwae
from guides.point import start_values
from inference import infer
from zoo.data.rofl import Stream, World, accepted, factors, flow, generate, masks, visible
from zoo.density import log_joint, sites
from zoo.models.optic_flow import OpticFlow
from zoo.program import adopt
from zoo.testing import check_model

LEAST_P = 1e-3  # of a test that holds; seeds are fixed
SHAPES = {"fixation": (2,), "self_velocity": (3,), "object_position": (1, 3), "object_velocity": (1, 3)}
CATEGORIES = ["fixate-0", "fixate-1", "fixate-2", "transl-0", "transl-1", "obj-1"]
LIKELIHOODS = [("gaussian", 0.05), ("endpoint", 0.02)]


@torch.no_grad()
def drawn(model, n, seed=100):
    """Images and their causes from the program's prior."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trace = poutine.trace(model).get_trace(size=n)
    causes = {name: site["value"] for name, site in sites(trace, observed=False).items()}
    return causes.pop("x"), causes


def as_arrays(causes, i):
    return {name: value[i].double().numpy() for name, value in causes.items()}


# The density, written out


def soft_frame(kind, causes, edge):
    """Flow (2, N, N) and visible pixels of a frame with at most one disc, from the oracle's two surfaces and a mask between them."""
    wall = oracle.frame(kind, {name: value for name, value in causes.items() if not name.startswith("object")}).flow
    if "object_position" not in causes:
        return wall, np.inf
    disc = oracle.frame(kind, causes, radius=1e6).flow  # a disc that covers all
    distance = oracle.frame(kind, causes).distance[0]
    within = (0.25**2 - distance**2) / (2 * 0.25 * edge) if edge else np.where(distance < 0.25, np.inf, -np.inf)
    mask = 1 / (1 + np.exp(-np.clip(within, -700, 700)))
    return mask * disc + (1 - mask) * wall, mask.sum()


def density_by_hand(kind, causes, x, edge, noise, scale, log_z):
    """log p(x, causes) of one frame, in nats."""
    mean, pixels = soft_frame(kind, causes, edge)
    speeds = [np.linalg.norm(v) for v in (causes.get("self_velocity", []), *causes.get("object_velocity", [])) if len(v)]
    value = -math.log(2) - sum(math.log(4 * math.pi * speed**2 * 0.99) for speed in speeds)  # areas of diamond and spheres, speeds
    if "object_position" in causes:
        value -= 2 * math.log(math.pi / 2) + math.log(0.5) + log_z  # angles over the field, depth
        value += stats.logistic.logcdf((pixels - 3.5) / 0.5) if edge else 0.0 if pixels > 3.5 else -np.inf
    if noise == "gaussian":
        return value + stats.norm.logpdf(x, mean, scale).sum()
    length = np.hypot(*(x - mean))
    return value + (-length / scale - math.log(2 * math.pi * scale**2)).sum()


@cache
def acceptance(edge, n=60_000):
    """log Z of one disc and its standard error, from causes drawn here."""
    rng = np.random.default_rng(5)
    u, v = rng.uniform(-1, 1, (2, n))
    angles, depth = rng.uniform(-np.pi / 4, np.pi / 4, (n, 1, 2)), rng.uniform(0.5, 1, (n, 1, 1))
    causes = {"fixation": np.stack([(u + v) / 2, (u - v) / 2], -1), "object_position": np.concatenate([angles, depth], -1)}
    pixels = torch.cat([masks({name: torch.tensor(value[i:i + 4000], dtype=torch.float32) for name, value in causes.items()},
                              World("obj-1"), edge)[1].sum((-3, -2, -1)) for i in range(0, n, 4000)])
    chance = torch.sigmoid((pixels - 3.5) / 0.5) if edge else (pixels > 3.5).float()
    return chance.mean().log().item(), (chance.std() / chance.mean()).item() / math.sqrt(n)


@pytest.mark.parametrize("edge", [0.0, 0.02])
def test_the_truncated_prior_is_divided_by_the_share_of_accepted_frames(edge):
    log_z, error = acceptance(edge)
    _, causes = drawn(OpticFlow("fixate-1", edge=edge), 3)
    laws = [sites(poutine.trace(poutine.condition(OpticFlow("fixate-1", edge=edge, truncate=truncate), data=causes)).get_trace(size=3),
                  observed=True) for truncate in (True, False)]
    whole, product = (sum(law[name]["fn"].log_prob(causes[name]) for name in causes) for law in laws)
    pixels = visible(causes, World("fixate-1"), edge)
    passes = torch.nn.functional.logsigmoid((pixels - 3.5) / 0.5) if edge else torch.zeros(3)
    found = product + passes - whole
    assert (found - log_z).abs().max() < 4 * math.hypot(error, 1e-3)


@pytest.mark.parametrize(("noise", "scale"), LIKELIHOODS)
@pytest.mark.parametrize(("category", "edge"), [("fixate-0", 0.0), ("fixate-1", 0.0), ("fixate-1", 0.02), ("transl-1", 0.02),
                                                ("obj-1", 0.0), ("obj-1", 0.02)])
def test_the_log_joint_is_the_one_by_hand(category, edge, noise, scale):
    model = OpticFlow(category, edge=edge, noise=noise, scale=scale).double()
    kind, objects = model.world.kind, model.world.objects
    log_z, error = acceptance(edge) if objects else (0.0, 0.0)
    x, causes = drawn(model, 6)
    expected = [density_by_hand(kind, as_arrays(causes, i), x[i].numpy(), edge, noise, scale, log_z) for i in range(6)]
    apart = log_joint(model, causes, x).numpy() - expected
    assert np.abs(apart).max() < 4 * math.hypot(error, 1e-3 if objects else 0.0) + 1e-4
    assert np.ptp(apart) < 1e-4  # but for log Z, equal


@pytest.mark.parametrize(("noise", "scale"), LIKELIHOODS)
def test_a_learned_scale_has_the_likelihoods_gradient(noise, scale):
    model = OpticFlow("fixate-0", noise=noise, scale=scale, learn_scale=True).double()
    torch.testing.assert_close(model.scale.detach(), torch.tensor(scale, dtype=torch.float64), rtol=1e-6, atol=0.0)
    assert [name for name, _ in model.named_parameters()] == ["log_scale"]
    assert not list(OpticFlow("fixate-0").parameters())
    x, causes = drawn(model, 4)
    error, b = x - flow(causes, model.world), model.scale.detach()
    gradient, = torch.autograd.grad(log_joint(model, causes, x).sum(), model.log_scale)
    standard = error.square() / b**2 if noise == "gaussian" else error.norm(dim=1) / b
    torch.testing.assert_close(gradient, standard.sum() - error.numel(), rtol=1e-8, atol=1e-8)


# What the program is


@pytest.mark.parametrize("category", CATEGORIES)
def test_sites_are_the_causes_of_the_category(category):
    model = OpticFlow(category, edge=0.02)
    x, causes = drawn(model, 4)
    kind, n = category.split("-")
    names = ["fixation"] + ["self_velocity"] * (kind != "obj") + ["object_position", "object_velocity"] * (int(n) > 0)
    assert list(causes) == names and model.event_shape == (2, 17, 17) and x.shape == (4, 2, 17, 17)
    for name, value in causes.items():
        shape = SHAPES[name] if not name.startswith("object") else (int(n), 3)
        assert value.shape == (4, *shape) and value.dtype == torch.float32
    assert sum(value[0].numel() for value in causes.values()) == len(model.world.factor_names)


@pytest.mark.parametrize(("category", "noise", "scale"), [(category, *LIKELIHOODS[0]) for category in CATEGORIES]
                         + [("fixate-1", *LIKELIHOODS[1])])
def test_the_program_keeps_the_zoos_conventions(category, noise, scale):
    """Among them: chains and draws to the left of the images, float64, images that do not see one another."""
    model = OpticFlow(category, edge=0.02, noise=noise, scale=scale)
    check_model(model, drawn(model, 3)[0])


@pytest.mark.parametrize("category", ["fixate-1", "transl-1", "obj-1"])
def test_each_category_has_its_own_flow(category):
    model = OpticFlow(category, scale=1e-4)
    x, causes = drawn(model, 20)
    for i in range(20):
        frame = oracle.frame(category[:-2], as_arrays(causes, i))
        far = ~frame.near_a_rim(1e-3)
        assert np.abs(x[i].numpy() - frame.flow)[:, far].max() < 6e-4


def test_other_resolutions_and_relative_velocities():
    model = OpticFlow("fixate-1", resolution=9, residual=True, scale=1e-4)
    x, causes = drawn(model, 10)
    assert x.shape == (10, 2, 9, 9)
    for i in range(10):
        frame = oracle.frame("fixate", as_arrays(causes, i), 9, residual=True)
        far = ~frame.near_a_rim(1e-3)
        assert np.abs(x[i].numpy() - frame.flow)[:, far].max() < 6e-4


def test_the_noise_is_the_one_asked_for():
    for noise, scale in LIKELIHOODS:
        model = OpticFlow("fixate-0", noise=noise, scale=scale)
        x, causes = drawn(model, 40)
        error = (x - flow(causes, model.world)).numpy()
        length, angle = np.hypot(error[:, 0], error[:, 1]).ravel(), np.arctan2(error[:, 1], error[:, 0]).ravel()
        law = stats.rayleigh(scale=scale) if noise == "gaussian" else stats.gamma(2, scale=scale)
        assert stats.kstest(length, law.cdf).pvalue > LEAST_P
        assert stats.kstest(angle, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > LEAST_P


# The truncated prior


def statistics(causes, world):
    """Numbers that tell the law: each Cartesian factor, and what truncation couples."""
    named = factors(causes, world)
    told = {name: named[name] for name in world.cartesian_names}
    fixation, position = causes["fixation"], causes["object_position"][..., 0, :]
    told |= {"visible pixels": visible(causes, world) + torch.rand(len(fixation), generator=torch.Generator().manual_seed(0)),
             "gaze": fixation.norm(dim=-1), "eccentricity": position[..., :2].norm(dim=-1),
             "gaze · angle": (fixation * position[..., :2]).sum(-1)}
    aside = position[..., :2].norm(dim=-1) > 0.7
    return told | {"gaze, disc aside": fixation.norm(dim=-1)[aside], "depth, disc aside": position[aside, 2]}


def least_p(first, second, world):
    """By name, how well two samples of causes agree (two-sample Kolmogorov–Smirnov tests)."""
    first, second = statistics(first, world), statistics(second, world)
    return {name: stats.ks_2samp(first[name].numpy(), second[name].numpy()).pvalue for name in first}


def test_the_prior_is_the_law_of_the_data():
    n, world = 12_000, World("fixate-1")
    data = generate(world, n, seed=7)
    _, causes = drawn(OpticFlow("fixate-1"), n)
    found = least_p(causes, data, world)
    assert min(found.values()) > LEAST_P, found
    _, product = drawn(OpticFlow("fixate-1", truncate=False), n)
    other = least_p(product, data, world)
    assert max(other["visible pixels"], other["gaze"], other["gaze, disc aside"]) < 1e-6  # the test sees the truncation


@pytest.mark.parametrize("category", ["fixate-1", "transl-1", "obj-1", "fixate-2"])
def test_only_accepted_frames_are_drawn(category):
    model = OpticFlow(category)
    share = accepted(drawn(model, 4000)[1], model.world).float().mean()
    assert share > 0.999  # but for the rounding of pixels on a rim
    assert accepted(drawn(OpticFlow(category, truncate=False), 4000)[1], model.world).float().mean() < 0.995


def test_discs_are_drawn_from_their_law_at_a_given_gaze():
    model, n = OpticFlow("fixate-1"), 6000
    corner = torch.tensor([0.9, 0.05])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        trace = poutine.trace(poutine.condition(model, data={"fixation": corner.expand(n, 2)})).get_trace(size=n)
        free = torch.rand(2 * n, 1, 3) * torch.tensor([math.pi / 2, math.pi / 2, 0.5]) - torch.tensor([math.pi / 4, math.pi / 4, -0.5])
    found = trace.nodes["object_position"]["value"]
    keep = accepted({"fixation": corner.expand(2 * n, 2), "object_position": free}, model.world)
    assert accepted({"fixation": corner.expand(n, 2), "object_position": found}, model.world).all() and 0.5 < keep.float().mean() < 0.95
    for i in range(3):
        assert stats.ks_2samp(found[:, 0, i].numpy(), free[keep][:, 0, i].numpy()).pvalue > LEAST_P
    assert stats.ks_2samp(found[:, 0, 0].numpy(), free[:, 0, 0].numpy()).pvalue < 1e-6  # which is not the untruncated one


def test_soft_edges_accept_softly():
    """Importance weights from the product of priors give the same expectations as draws: density and sampler are of one law."""
    model, n = OpticFlow("fixate-1", edge=0.1), 12_000
    _, causes = drawn(model, n)
    _, free = drawn(OpticFlow("fixate-1", edge=0.1, truncate=False), n, seed=3)
    weight = torch.sigmoid((visible(free, model.world, 0.1) - 3.5) / 0.5)
    for name, of in (("gaze", lambda c: c["fixation"].square().sum(-1)), ("angle", lambda c: c["object_position"][:, 0, :2].abs().sum(-1)),
                     ("pixels", lambda c: visible(c, model.world, 0.1)), ("few pixels", lambda c: visible(c, model.world, 0.1) < 3.3)):
        expected, value = of(free).double(), of(causes).double()
        mean = (weight * expected).sum() / weight.sum()
        error = math.hypot((weight * (expected - mean)).std() / weight.mean() / math.sqrt(n), value.std() / math.sqrt(n))
        assert abs(value.mean() - mean) < 4 * error and value.mean() > 8 * error, name


def test_moments_that_truncated_laws_tell_are_theirs():
    """None told is fine, too."""
    model, n = OpticFlow("fixate-1"), 20_000
    gaze = torch.tensor([0.9, 0.05]).expand(n, 2)
    for given, name in (({}, "fixation"), ({"fixation": gaze}, "object_position")):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            site = poutine.trace(poutine.condition(model, data=given)).get_trace(size=n).nodes[name]
        value = site["value"]
        for moment, draws in (("mean", value), ("variance", (value - value.mean(0)).square())):
            try:
                told = getattr(site["fn"], moment)
            except NotImplementedError:
                continue
            assert ((told.mean(0) - draws.mean(0)).abs() < 5 * draws.std(0) / math.sqrt(n)).all(), (name, moment)


def test_a_frame_that_is_not_accepted_has_no_density():
    hard, soft, product = (OpticFlow("fixate-1", **options) for options in ({}, {"edge": 0.02}, {"truncate": False}))
    x, causes = drawn(product, 50)
    passes = accepted(causes, hard.world)
    assert 30 < passes.sum() < 50
    value = log_joint(hard, causes, x)
    assert value[passes].isfinite().all() and (value[~passes] == -math.inf).all()
    assert log_joint(product, causes, x).isfinite().all() and log_joint(soft, causes, x).isfinite().all()


@pytest.mark.parametrize(("noise", "scale"), LIKELIHOODS)
@pytest.mark.parametrize("category", ["fixate-1", "fixate-2", "obj-1"])
def test_gradients_are_those_of_finite_differences(category, noise, scale):
    """Also of a frame at the threshold of being accepted, where only the soft rule has a slope."""
    model = OpticFlow(category, resolution=7, edge=0.05, noise=noise, scale=scale).double()
    x, causes = drawn(model, 3)
    causes["fixation"][0], causes["object_position"][0, 0] = 0.1, torch.tensor([0.72, -0.7, 0.9])
    names = list(causes)

    def density(*values):
        return log_joint(model, dict(zip(names, values, strict=True)), x)

    inputs = [causes[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(density, inputs, eps=1e-7, atol=1e-3, rtol=1e-5)
    slope = torch.autograd.grad(density(*inputs).sum(), inputs)
    assert all((part != 0.0).any(-1).all() for part in slope)


def test_chains_of_causes_score_as_they_do_one_by_one():
    for category in ("fixate-2", "obj-1"):
        model = OpticFlow(category, edge=0.02)
        x, _ = drawn(model, 4)
        chains = [drawn(model, 4, seed)[1] for seed in range(3)]
        together = log_joint(model, {name: torch.stack([chain[name] for chain in chains]) for name in chains[0]}, x)
        assert together.shape == (3, 4)
        torch.testing.assert_close(together, torch.stack([log_joint(model, chain, x) for chain in chains]), rtol=1e-5, atol=1e-2)


def test_double_precision_all_the_way():
    model = OpticFlow("fixate-1", edge=0.02).double()
    x, causes = drawn(model, 3)
    assert {value.dtype for value in (x, *causes.values())} == {torch.float64}
    posterior = infer(model, x, "map", steps=3, starts=2)
    assert {value.dtype for value in posterior.samples.values()} == {torch.float64}
    value = log_joint(model, {name: sample[0, 0] for name, sample in posterior.samples.items()}, x)
    torch.testing.assert_close(value, posterior.stats["log_joint"], rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("category", ["fixate-0", "fixate-1", "obj-1"])
def test_everything_follows_the_model_to_its_device(category):
    """Without an accelerator: on the device "meta", which computes shapes only, and refuses to mix with another as any does."""
    model = OpticFlow(category, edge=0.02)
    x, causes = drawn(model, 3)
    guide = guides.build("amortized", model)
    model, x, causes = model.to("meta"), x.to("meta"), {name: value.to("meta") for name, value in causes.items()}
    assert log_joint(model, causes, x).device.type == "meta"
    with pyro.validation_enabled(False):  # there are no numbers to validate
        samples = poutine.trace(guide.to("meta")).get_trace(x)
    assert {samples.nodes[name]["value"].device.type for name in causes} == {"meta"}


@pytest.mark.parametrize("category", ["fixate-0", "transl-0"])
def test_starts_are_on_the_models_device(category):
    model = OpticFlow(category).to("meta")
    x = model(size=3)
    with pyro.validation_enabled(False):
        values = start_values(adopt(model, x), x)
    assert {value.device.type for value in values.values()} == {"meta"}


@pytest.mark.parametrize(("options", "words"), [
    ({"category": "terrain-1"}, "no program for 'terrain-1'; there is one for fixate-n, transl-n and obj-n"),
    ({"category": "pursuit-1"}, "no program for 'pursuit-1'"), ({"category": "walk-1"}, "unknown category 'walk-1'"),
    ({"category": "obj-0"}, "unknown category 'obj-0'"), ({"noise": "laplace"}, "unknown noise 'laplace'; known are: gaussian, endpoint"),
    ({"scale": 0.0}, "scale positive"), ({"scale": -1.0}, "scale positive"), ({"scale": math.nan}, "scale positive"),
    ({"scale": math.inf}, "scale positive"), ({"edge": -0.1}, "edge must be at least 0"), ({"edge": math.nan}, "edge must be at least 0"),
    ({"edge": math.inf}, "edge must be"), ({"resolution": 16}, "resolution must be an odd number")])
def test_impossible_programs_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        OpticFlow(**options)


@pytest.mark.parametrize("shape", [(2, 17, 17), (3, 2, 9, 9), (3, 578), (3, 1, 17, 17)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="shape"):
        OpticFlow("fixate-0")(torch.zeros(shape))


def test_images_that_are_missing_or_not_finite_are_refused():
    model = OpticFlow("fixate-0")
    with pytest.raises(ValueError, match="give images x to condition on, or size=n"):
        model()
    x, _ = drawn(model, 3)
    for wrong in (math.nan, math.inf):
        x[1, 0, 3, 3] = wrong
        with pytest.raises(ValueError, match="image 1 has values that are not finite"):
            infer(model, x, "map")
    with pytest.raises(ValueError, match="expected images"):
        infer(model, torch.zeros(3, 2, 9, 9), "map")


# Point estimates from several starts


def test_a_single_start_is_the_ascent_from_the_priors_mean():
    """As of the linear oracle, whose most probable latents are its posterior's mean: no draws, so no seed, decides."""
    linear = zoo.build("linear_gaussian", (1, 2, 3), latents=3)
    for model, x, steps in ((linear, torch.randn(5, 1, 2, 3, generator=torch.Generator().manual_seed(0)), 300),
                            (OpticFlow("fixate-0"), drawn(OpticFlow("fixate-0"), 5)[0], 20)):
        default = infer(model, x, "map", steps=steps)
        again = infer(model, x, "map", steps=steps, starts=1, seed=1)
        assert all(torch.equal(again.samples[name], default.samples[name]) for name in default.samples)
        assert default.cost["gradient_evaluations"] == steps + 1
        assert infer(model, x, "map", steps=steps, starts=3).cost["gradient_evaluations"] == 3 * (steps + 1)
        if model is linear:
            torch.testing.assert_close(default.samples["z"][0, 0].double(), linear.posterior(x)[0], atol=1e-3, rtol=1e-3)


def test_the_ascent_from_the_priors_mean_climbs():
    """Ascents from draws of the prior reach the truth's density for about every second frame; this one must not be stuck."""
    model = OpticFlow("fixate-0")
    x, causes = drawn(model, 16)
    found = infer(model, x, "map", steps=400, lr=0.15).stats["log_joint"]
    assert (found > log_joint(model, causes, x) - 1.0).sum() >= 10


def test_causes_are_recovered_within_the_noise():
    """The truth is as far from the summit as the noise says: squared distance in units of the information, χ² of five degrees."""
    scale = 0.02
    model = OpticFlow("fixate-0", scale=scale)
    x, causes = drawn(model, 16)
    posterior = infer(model, x, "map", starts=16, steps=400, lr=0.15)
    assert ((posterior.stats["log_joint"] - log_joint(model, causes, x)) > -1.0).sum() >= 15
    names = ("fixation", "self_velocity")
    truth = torch.cat([causes[name] for name in names], -1).double()
    found = torch.cat([posterior.samples[name][0, 0] for name in names], -1).double()

    def seen(values):
        return flow({"fixation": values[:, :2], "self_velocity": values[:, 2:]}, model.world).flatten(1)

    steps = 1e-5 * torch.eye(5, dtype=torch.float64)
    slope = torch.stack([(seen(found + step) - seen(found - step)) / 2e-5 for step in steps], -1)
    distance = (slope @ (found - truth).unsqueeze(-1)).square().sum((-2, -1)) / scale**2
    assert (distance < 25.0).sum() >= 15 and 3.0 < distance.median() < 7.0
    error = (found - truth).abs()
    assert error[:, :2].median() < 0.02 and error[:, 2:].median() < 0.01


def test_more_starts_never_end_lower():
    model = OpticFlow("fixate-0")
    x, _ = drawn(model, 12)
    before = infer(model, x, "map", steps=100).stats["log_joint"]
    for starts in (2, 5):
        found = infer(model, x, "map", steps=100, starts=starts)
        value = log_joint(model, {name: sample[0, 0] for name, sample in found.samples.items()}, x)
        torch.testing.assert_close(value, found.stats["log_joint"], rtol=1e-5, atol=1e-2)  # the point returned is the one meant
        assert (found.stats["log_joint"] >= before - 0.02).all()
    assert ((found.stats["log_joint"] - before) > 1.0).any()


def test_a_start_that_fails_does_not_win():
    """Where the density is not a number from some starts, the others are still climbed."""

    def program(x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.ones(1), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z.sqrt(), 0.1, validate_args=False).to_event(1), obs=x)

    x = torch.full((6, 1), 1.2)
    one, many = (infer(program, x, "map", starts=starts).stats["log_joint"] for starts in (1, 16))
    assert one.isfinite().all() and (many >= one - 1e-3).all()


def test_several_starts_of_counts_find_the_most_probable():
    """Two units that explain the same pixels in opposite ways: a climb by single spikes from the prior's mean is caught."""
    model = zoo.oracles.enumerable_poisson(torch.tensor([[1.0, 1.7], [1.0, 1.7], [0.5, 0.0]]), torch.tensor([1.5, 1.5]), scale=0.25)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = model(None, size=60).detach()
    counts = torch.cartesian_prod(torch.arange(12.0), torch.arange(12.0)).unsqueeze(1).expand(-1, 60, -1)
    best = log_joint(model, {"z": counts}, x).max(0).values.detach()
    one, many = (infer(model, x, "map", starts=starts).stats["log_joint"] for starts in (1, 12))
    assert (many >= one - 1e-4).all() and (many <= best + 1e-4).all()
    reached = [(best - found < 1e-3).float().mean() for found in (one, many)]
    assert reached[1] > 0.95 and reached[1] > reached[0] + 0.1
    z = infer(model, x, "map", starts=12).samples["z"]
    assert z.shape == (1, 1, 60, 2) and torch.equal(z, z.round())
    fixture = zoo.oracles.poisson_fixture()
    torch.testing.assert_close(infer(fixture, zoo.oracles.fixture_image(), "map", starts=4).stats["log_joint"],
                               infer(fixture, zoo.oracles.fixture_image(), "map").stats["log_joint"])


@pytest.mark.parametrize("starts", [0, -1])
def test_no_starts_are_refused(starts):
    model = OpticFlow("fixate-0")
    with pytest.raises(ValueError, match=f"starts must be at least 1, not {starts}"):
        infer(model, drawn(model, 2)[0], "map", starts=starts)


def test_discs_are_found_from_many_starts():
    model = OpticFlow("fixate-1", edge=0.02)
    x, causes = drawn(model, 8)
    posterior = infer(model, x, "map", starts=16, steps=250, lr=0.2)
    ends = posterior.stats["log_joint"] > log_joint(model, causes, x) - 1.0
    assert ends.sum() >= 5
    for name, error in (("self_velocity", 0.1), ("object_position", 0.1), ("object_velocity", 0.3)):
        apart = (posterior.samples[name][0, 0] - causes[name]).flatten(1).norm(dim=-1)[ends]
        assert apart.median() < error, name


# One encoder for all frames


@pytest.fixture(scope="module")
def trained():
    """A model of coarse noise and a guide with a linear encoder, trained on frames that are never seen twice."""
    model = zoo.build("optic_flow", category="fixate-0", scale=0.2)
    guide = guides.build("amortized", model, encoder="lin")
    history = inference.fit(model, guide, Stream("fixate-0", seed=1), steps=300, optimizer="adam", lr=0.01, beta_start=1.0, batch_size=250,
                            progress=False)
    return model, guide, history


def test_a_linear_encoder_learns_self_motion_from_a_stream(trained):
    model, guide, history = trained
    bounds = history.column("elbo")
    assert bounds[-1] > bounds[0] + 50.0 and bounds[-1] > bounds[2]
    test = Stream("fixate-0", seed=2).frames(0, 1000)
    posterior = infer(model, test.x, "amortized", guide=guide, draws=40)
    assert {name: tuple(value.shape) for name, value in posterior.samples.items()} == {
        "fixation": (1, 40, 1000, 2), "self_velocity": (1, 40, 1000, 3)}
    truth = torch.stack([test.factors[f"slf_v_{axis}"] for axis in "xyz"], -1)
    error = posterior.samples["self_velocity"].mean((0, 1)) - truth
    assert (1.0 - error.square().mean(0) / truth.var(0) > 0.3).all()  # of the prior's mean: 0
    gaze, speed = posterior.samples["fixation"], posterior.samples["self_velocity"].norm(dim=-1)
    assert (gaze.abs().sum(-1) < 1.0).all() and (speed >= 0.01 - 1e-6).all() and (speed <= 1.0 + 1e-6).all()


def test_a_guide_of_a_program_with_discs_stays_in_the_supports():
    model = OpticFlow("fixate-2", edge=0.02)
    guide = guides.build("amortized", model, init_scale=0.2)
    posterior = infer(model, drawn(model, 20)[0], "amortized", guide=guide, draws=50)
    angles, depth = posterior.samples["object_position"][..., :2], posterior.samples["object_position"][..., 2]
    speed = posterior.samples["object_velocity"].norm(dim=-1)
    assert angles.abs().max() <= math.pi / 4 + 1e-6 and (depth >= 0.5).all() and (depth <= 1.0).all()
    assert (speed >= 0.01 - 1e-6).all() and (speed <= 1.0 + 1e-6).all()
    assert (angles.abs().max() > 0.7) and (posterior.samples["fixation"].abs().sum(-1) < 1.0).all()


def bound_by_hand(model, guide, x, draws):
    """Log weights (draws, N) of an encoder's draws: its normal laws carried over by formulas written here."""
    params = {name: value.detach().double().numpy() for name, value in guide.posterior(x).items()}
    rng = np.random.default_rng(2)
    log_q, causes = 0.0, {}
    for name, (mean, log_scale) in ((name, value.transpose(1, 0, 2)) for name, value in params.items()):
        free = mean + np.exp(log_scale) * rng.standard_normal((draws, *mean.shape))
        log_q = log_q + stats.norm.logpdf(free, mean, np.exp(log_scale)).sum(-1)
        if name == "fixation":
            u = 2 / (1 + np.exp(-free)) - 1
            causes[name] = np.stack([u.sum(-1), u[..., 0] - u[..., 1]], -1) / 2
            log_q = log_q - (np.log((1 - u) * (1 + u) / 2).sum(-1) - math.log(2))
        else:
            r = np.linalg.norm(free, axis=-1)
            speed = 0.01 + 0.99 * stats.chi(3).cdf(r)
            causes[name] = free * (speed / r)[..., None]
            log_q = log_q - (np.log(0.99) + stats.chi(3).logpdf(r) + 2 * np.log(speed / r))
    mean = flow({name: torch.tensor(value) for name, value in causes.items()}, model.world)
    log_likelihood = dist.Normal(mean, model.scale.double()).log_prob(x.double()).sum((-3, -2, -1)).numpy()
    speed = np.linalg.norm(causes["self_velocity"], axis=-1)
    log_prior = -math.log(2) - np.log(4 * math.pi * 0.99 * speed**2)
    return log_likelihood + log_prior - log_q


def test_the_bound_is_the_one_by_hand(trained):
    guide, model, draws = trained[1], OpticFlow("fixate-0", scale=0.5), 3000
    x, _ = drawn(model, 4, seed=8)
    weights = bound_by_hand(model, guide, x, draws)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        found = torch.stack([elbo(model, guide, x, particles=300).value for _ in range(10)]).numpy()
    error = np.hypot(weights.std(0) / np.sqrt(draws), found.std(0, ddof=1) / np.sqrt(10))
    assert (np.abs(found.mean(0) - weights.mean(0)) < 4.5 * error).all() and error.max() < 1.0


def test_bounds_and_the_evidence():
    """With noise so coarse that draws of the prior tell log p(x): the importance-weighted bound comes to it from below."""
    model = OpticFlow("fixate-0", scale=4.0)
    guide = guides.build("amortized", model, init_scale=1e-4)
    *_, bias = guide.parameters()
    bias.data[2:4] = 0.7  # the fixation's log scales: about the spread of its prior there, whose tails are heavier
    x, _ = drawn(model, 4)
    _, causes = drawn(model, 20_000, seed=5)
    with torch.no_grad():
        means = flow(causes, model.world).double().flatten(1)
        squares = torch.cdist(x.double().flatten(1), means, compute_mode="donot_use_mm_for_euclid_dist").square()
        likelihood = (-squares / 32.0 - 289 * math.log(32.0 * math.pi)).numpy()
        top = likelihood.max(1, keepdims=True)
        weight = np.exp(likelihood - top)
        evidence = np.log(weight.mean(1)) + top[:, 0]
        error = weight.std(1) / weight.mean(1) / np.sqrt(weight.shape[1])
        with torch.random.fork_rng():
            torch.manual_seed(1)
            tight, loose = iwae(model, guide, x, particles=5000).value.numpy(), elbo(model, guide, x, particles=500).value.numpy()
    assert error.max() < 0.1 and (np.abs(tight - evidence) < 4 * error + 0.08).all()
    assert (loose < evidence - 0.1).all()


def test_model_and_guide_can_be_saved(trained, tmp_path):
    model, guide, _ = trained
    inference.save(tmp_path / "pair", model, guide)
    again, its_guide, config = inference.load(tmp_path / "pair")
    assert config["model"]["category"] == "fixate-0" and again.world == model.world
    x, causes = drawn(model, 5)
    assert torch.equal(log_joint(again, causes, x), log_joint(model, causes, x))
    first, second = (infer(of, x, "amortized", guide=with_, draws=3).samples for of, with_ in ((model, guide), (again, its_guide)))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_options_are_kept_when_saved(tmp_path):
    model = zoo.build("optic_flow", category="obj-1", resolution=9, edge=0.03, noise="endpoint", scale=0.1, learn_scale=True)
    model.log_scale.data.fill_(-1.0)
    again, guide, _ = inference.load(inference.save(tmp_path / "model", model))
    assert guide is None and again.world == model.world and (again.edge, again.noise) == (0.03, "endpoint")
    assert again.scale.item() == pytest.approx(math.exp(-1.0))


def test_data_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"is of images \(2, 17, 17\), not \(1, 28, 28\)"):
        zoo.build("optic_flow", (1, 28, 28))
    with pytest.raises(ValueError, match="has no option colour; it accepts: category"):
        zoo.build("optic_flow", colour=3)
    model = OpticFlow("fixate-0")
    with pytest.raises(ValueError, match=r"shape \(2, 2, 9, 9\) do not end in the model's event shape \(2, 17, 17\)"):
        inference.fit(model, guides.build("amortized", model), Stream(World("fixate-0", 9)), steps=1, progress=False)
