"""Learned iterative inference, against optima in closed form, and the promises that hold whatever has been learned."""

from __future__ import annotations

from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import guides
import inference
import zoo
from guides.base import Fixed
from guides.bounds import elbo, exact_elbo
from guides.iterative import ENCODINGS, Iterative
from guides.stepwise import elbo_slope
from guides.update_networks import NETWORKS
from zoo.latents.gaussian import Gaussian
from zoo.models.one_layer import OneLayer
from zoo.oracles import enumerable_poisson, linear_gaussian, mixture
from zoo.testing import check_model

TRAINING = {"batch_size": 64, "optimizer": "adam", "final_lr": 1e-3, "warmup": 0.05, "beta_start": 1.0, "freeze_model": True,
            "progress": False}
FAMILIES = [("gaussian", {}), ("gaussian", {"activation": "relu"}), ("laplace", {}), ("poisson", {"log_rate_init": (-1.0, 0.5)}),
            ("categorical", {}), ("categorical", {"groups": 2})]


def drawn(program, count, seed):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        return program(size=count)


def sampled_elbo(model, deltas, x, particles=400):
    with torch.no_grad(), torch.random.fork_rng(), pyro.validation_enabled(False):
        torch.manual_seed(0)
        return elbo(model, Fixed(model, deltas), x, particles=particles).value


def values_along(guide, x, steps=None):
    with torch.no_grad():
        return torch.stack([exact_elbo(guide.model, guide.at(deltas), x).value for deltas in guide.path(x, steps)])


def counts():
    return enumerable_poisson(torch.tensor([[2.0, 0.0], [1.0, -2.0], [0.0, 1.6]]), torch.tensor([0.5, 0.8]), max_count=15)


def ascended(bound, start):
    """The best ELBO ``(N,)`` that a second-order method finds from ``start``, and where."""
    deltas = {name: delta.clone().requires_grad_(True) for name, delta in start.items()}
    newton = torch.optim.LBFGS(deltas.values(), max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        newton.zero_grad()
        value = -bound(deltas).sum()
        value.backward()
        return value

    newton.step(loss)
    return bound(deltas).detach(), {name: delta.detach() for name, delta in deltas.items()}


def best_elbo(model, x):
    """The best ELBO of each image, in closed form where there is one."""
    if isinstance(model.family, Gaussian):
        return exact_elbo(model, Fixed(model, {"z": model.mean_field(x)["z"].float() - model.prior}), x).value
    if hasattr(model.family, "groups"):  # a mixture's posterior is in the family
        return model.log_evidence(x).float()
    return ascended(lambda deltas: exact_elbo(model, Fixed(model, deltas), x).value, {"z": torch.zeros(len(x), 1, model.units)})[0]


ORACLES = {"linear-gaussian": lambda: linear_gaussian(latents=4, event_shape=(1, 3, 3), scale=0.5), "counts": counts, "mixture": mixture}


def trained(name, network="units"):
    """A guide of an oracle, trained for a second or two; the oracle and images to infer."""
    return _trained(name, network)


@cache
def _trained(name, network):
    model = ORACLES[name]().requires_grad_(False)
    guide = guides.build("iterative", model, steps=4, network=network, hidden=16 if network == "units" else 64, rank=8)
    length, lr = (50, 1e-2) if network == "units" else (80, 3e-3)
    inference.fit(model, guide, drawn(model, 2000, 1), objective="exact", steps=length, lr=lr, **TRAINING)
    return model, guide, drawn(model, 60, 2)


@pytest.mark.parametrize(("name", "network"), [*((name, "units") for name in ORACLES), ("linear-gaussian", "dense")])
def test_training_closes_most_of_the_gap_to_the_best_factorized_posterior(name, network):
    model, guide, x = trained(name, network)
    with torch.no_grad():
        values = values_along(guide, x, 16)
    best = best_elbo(model, x)
    gaps = (best - values).mean(1)
    assert (values <= best + 1e-3).all()
    assert gaps[4] < 0.1 * gaps[0]
    assert (values[1:] >= values[:-1]).all()  # of every image, on to four times the steps it was trained with
    assert gaps[16] < gaps[4] < gaps[1]


def never_falls(values):
    return values.isfinite().all() and (values[1:] >= values[:-1]).all()


@pytest.mark.parametrize(("name", "options"), FAMILIES)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [0.3, 5.0, 100.0])
def test_no_elbo_ever_falls_whatever_the_weights(name, options, network, size):
    model = zoo.build(name, (1, 3, 3), latents=6, init_scale=0.6, seed=1, **options)
    guide = guides.build("iterative", model, network=network, hidden=8, rank=4, steps=8).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in guide.parameters():
        parameter.data.copy_(size * torch.randn(parameter.shape, generator=generator))
    assert never_falls(values_along(guide, torch.randn(30, 1, 3, 3, generator=generator), 12))


class Wild(nn.Module):
    """A network that proposes anything, near and far."""

    def __init__(self, seed):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, features, image):
        noise = torch.randn(len(image), *features["z"].shape[1:], generator=self.generator)
        far = 4 * torch.randn(len(image), 1, 1, generator=self.generator)
        count = noise.shape[1] // 5
        return {"z": (noise[:, :count], noise[:, count:2 * count] * far.exp())}


@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_no_elbo_ever_falls_whatever_is_proposed(name, options):
    model = zoo.build(name, (1, 3, 3), latents=6, init_scale=0.6, seed=1, **options)
    guide = guides.build("iterative", model).eval()
    guide.network = Wild(3)
    values = values_along(guide, torch.randn(40, 1, 3, 3, generator=torch.Generator().manual_seed(2)), 40)
    assert never_falls(values)
    rose = values[1:] > values[:-1]
    assert 0.01 < rose.float().mean() < 0.9 and rose.any(0).float().mean() > 0.5


class Says(nn.Module):
    """A network that always gives the same gate and the same proposal."""

    def __init__(self, keep, proposal):
        super().__init__()
        self.keep, self.proposal = keep, proposal

    def forward(self, features, image):
        self.features, self.image = features, image
        return {"z": (torch.full_like(self.proposal, self.keep), self.proposal)}


def quadratic(overshoot, keep=-60.0):
    """A guide whose updates are ``overshoot`` times the way from the prior to the optimum; in the locations the ELBO is a parabola."""
    model = ORACLES["linear-gaussian"]()
    x = drawn(model, 3, 4)
    best = model.mean_field(x)["z"].float() - model.prior
    best[:, 1] = 0.0
    guide = Iterative(model, steps=6, encodes=("params",))
    guide.network = Says(keep, overshoot * best)
    return guide, x, best


def test_an_update_is_gated():
    guide, x, best = quadratic(0.2, keep=0.5)
    gate = 1 - torch.sigmoid(torch.tensor(0.5))
    for step, deltas in enumerate(guide.eval().path(x, 3)):
        torch.testing.assert_close(deltas["z"], step * gate * 0.2 * best)


def test_where_gradients_are_read_the_natural_gradient_is_part_of_the_update():
    model = ORACLES["linear-gaussian"]()
    x, deltas = drawn(model, 5, 4), {"z": 0.3 * torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(1))}
    guide = Iterative(model, steps=1)
    guide.network = Says(0.5, 0.1 * deltas["z"])
    gate = 1 - torch.sigmoid(torch.tensor(0.5))
    expected = deltas["z"] + gate * (torch.asinh(natural_gradient(model, x, deltas)) + 0.1 * deltas["z"])
    torch.testing.assert_close(guide.refine(x, deltas, None)[0]["z"], expected, rtol=1e-4, atol=1e-4)


def natural_gradient(model, x, deltas):
    """Of a Gaussian family, by autograd and its Fisher information, ``diag(1 / scale², 2)``."""
    scale = (5.3 * torch.tanh(deltas["z"][:, 1] / 5.3)).exp()
    slope = slope_of(model, x, deltas)
    return torch.stack([scale.square() * slope[:, 0], slope[:, 1] / 2], dim=1)


def slope_of(model, x, deltas):
    here = deltas["z"].clone().requires_grad_(True)
    return torch.autograd.grad(exact_elbo(model, Fixed(model, {"z": here}), x).value.sum(), here)[0]


def test_an_update_that_lowers_the_elbo_is_undone_and_then_halved():
    guide, x, best = quadratic(5.0)  # a parabola is higher again from twice the way on
    path = [deltas["z"] for deltas in guide.eval().path(x, 5)]
    for step, share in enumerate([0.0, 0.0, 0.0, 1.25]):
        torch.testing.assert_close(path[step], share * best)
    guide.train()  # in training every update counts
    torch.testing.assert_close(guide.refine(x, {"z": 0 * best}, None)[0]["z"], 5.0 * best)


def test_after_an_update_that_was_kept_the_next_one_is_longer_again():
    guide, x, best = quadratic(5.0)
    guide.eval()
    deltas, memory = {"z": 0 * best}, None
    lengths = []
    for _ in range(4):
        deltas, memory = guide.refine(x, deltas, memory)
        lengths.append(memory["length"].unique().tolist())
    assert lengths[:3] == [[0.5], [0.25], [0.5]]
    assert guide.refine(x, {"z": 0.9 * best}, None)[1]["length"].max() <= 1.0


@pytest.mark.parametrize("network", NETWORKS)
def test_an_image_does_not_depend_on_its_batch(network):
    model, guide, x = trained("linear-gaussian", network)
    for factor in (1.0, 30.0):  # of which some images undo their updates, and others do not
        together, apart = (inference.infer(model, factor * images, "iterative", guide=guide, draws=1, steps=8).params["z"]
                           for images in (x, x[7:9]))
        torch.testing.assert_close(apart, together[7:9], rtol=1e-3, atol=1e-4)


def curved():
    """Normal latents under a network of tanh units: 8 latents, 24 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 24), nn.Unflatten(-1, (1, 4, 6)))
        for parameter in decoder.parameters():
            parameter.data.mul_(2.5)
    return OneLayer(Gaussian(), 8, decoder, (1, 4, 6), prior=torch.zeros(2, 8), learn_prior=False, scale=0.3).requires_grad_(False)


def test_the_image_among_the_encodings_helps():
    model = curved()
    images, x = drawn(model, 2000, 1), drawn(model, 50, 2)
    best = inference.infer(model, x, "local", steps=120, draws=1).stats["elbo_trace"][-20:].mean()
    gaps = []  # after two steps
    for encodes in (("image", "params", "gradient"), ("params", "gradient")):
        guide = guides.build("iterative", model, steps=4, network="dense", hidden=64, encodes=encodes)
        inference.fit(model, guide, images, steps=45, lr=3e-3, **TRAINING)
        params = inference.infer(model, x, "iterative", guide=guide, draws=1, steps=2).params["z"]
        gaps.append(best - sampled_elbo(model, _deltas(model, params), x).mean())
    assert 0 < gaps[0] < 0.85 * gaps[1]


def _deltas(model, params):
    """Of Gaussian parameters: the location's shift as it is, the log-scale's before it was bent."""
    loc, log_scale = (params - model.prior).unbind(-2)
    return {"z": torch.stack([loc, 5.3 * torch.atanh(log_scale / 5.3)], dim=-2)}


class TwoLevels(nn.Module):
    """z2 → z1 → x, all Normal and linear, so that the ELBO has a closed form."""

    event_shape = (1, 3, 3)

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.latents = {"z2": (Gaussian(), 2), "z1": (Gaussian(), 4)}
        self.upper = nn.Parameter(torch.randn(4, 2, generator=generator))
        self.lower = nn.Parameter(0.8 * torch.randn(9, 4, generator=generator))

    def descend(self, draw, x=None):
        z2 = draw("z2", self.latents["z2"][0], torch.zeros(2, 2))
        loc = z2 @ self.upper.T
        return {"z2": z2, "z1": draw("z1", self.latents["z1"][0], torch.stack([loc, torch.full_like(loc, -0.7)], dim=-2))}

    def decode(self, latents):
        return (latents["z1"] @ self.lower.T).unflatten(-1, self.event_shape)

    def observation(self, mean):
        return dist.Normal(mean, 0.5).to_event(3)

    def forward(self, x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            latents = self.descend(lambda name, family, prior: pyro.sample(name, family.distribution(prior)))
            return pyro.sample("x", self.observation(self.decode(latents)), obs=x)

    def exact_elbo(self, deltas, x):
        """Of posteriors Normal(loc2, scale2) of z2 and Normal(upper z2 + shift, scale1) of z1."""
        (loc2, bent2), (shift, bent1) = (deltas[name].unbind(-2) for name in ("z2", "z1"))
        log_ratio2, log_ratio1 = 5.3 * torch.tanh(bent2 / 5.3), 5.3 * torch.tanh(bent1 / 5.3)
        variance2, variance1 = (2 * log_ratio2).exp(), (2 * log_ratio1 - 1.4).exp()
        mean = (loc2 @ self.upper.T + shift) @ self.lower.T
        spread = variance1 @ self.lower.square().T + variance2 @ (self.lower @ self.upper).square().T
        likelihood = dist.Normal(mean, 0.5).log_prob(x.flatten(1)).sum(-1) - spread.sum(-1) / (2 * 0.25)
        kl2 = (0.5 * (variance2 + loc2.square() - 1) - log_ratio2).sum(-1)
        kl1 = (0.5 * ((2 * log_ratio1).exp() + shift.square() * torch.e**1.4 - 1) - log_ratio1).sum(-1)
        return likelihood - kl2 - kl1


def test_a_hierarchy_is_inferred_level_by_level():
    model = TwoLevels().requires_grad_(False)
    x = drawn(model, 40, 2)
    check_model(model, x)
    guide = guides.build("iterative", model, steps=4, hidden=16, rank=8)
    inference.fit(model, guide, drawn(model, 2000, 1), steps=40, lr=1e-2, **TRAINING)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(6)
        path = list(guide.path(x, 8))
    best = ascended(lambda deltas: model.exact_elbo(deltas, x), path[0])[0]
    gaps = torch.stack([best - model.exact_elbo(deltas, x) for deltas in path])
    assert (gaps > -1e-3).all()
    assert gaps[4].mean() < 0.15 * gaps[0].mean() and gaps[8].mean() < 0.15 * gaps[0].mean()


def test_slopes_and_draws_of_a_hierarchy():
    model = TwoLevels().requires_grad_(False)
    x = drawn(model, 3, 2)
    generator = torch.Generator().manual_seed(8)
    deltas = {name: (0.5 * torch.randn(3, 2, units, generator=generator)).requires_grad_(True)
              for name, (_, units) in model.latents.items()}
    value = model.exact_elbo(deltas, x)
    truth = dict(zip(deltas, torch.autograd.grad(value.sum(), list(deltas.values())), strict=True))
    with torch.random.fork_rng():
        torch.manual_seed(9)
        parts = [elbo_slope(model, x, deltas, exact=False, particles=100) for _ in range(40)]
    pairs = [(value.detach(), [bound for bound, _ in parts])] + [(truth[name], [slope[name] for _, slope in parts]) for name in truth]
    for expected, found in pairs:
        found = torch.stack(found)
        assert ((found.mean(0) - expected).abs() < 5 * found.std(0) / len(found)**0.5 + 1e-5).all()
    guide = Iterative(model, steps=1).eval()
    guide.encodes = ("params",)
    guide.network.forward = lambda features, image: {name: (torch.full_like(deltas[name], -60.0), deltas[name].detach()) for name in deltas}
    samples = inference.infer(model, x, "iterative", guide=guide, draws=4000, seed=1).samples
    rest = samples["z1"][0] - samples["z2"][0] @ model.upper.T  # what inference adds to the prior that this draw's z2 gives
    shift, bent = deltas["z1"].detach().unbind(-2)
    torch.testing.assert_close(rest.mean(0), shift, rtol=0, atol=0.06)
    torch.testing.assert_close(rest.std(0).log(), -0.7 + 5.3 * torch.tanh(bent / 5.3), rtol=0, atol=0.06)


class Mixed(nn.Module):
    """A program from outside the zoo: a positive gain, and counts whose rate depends on it."""

    event_shape = (1, 3, 3)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 27).reshape(9, 3))

    def forward(self, x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            gain = pyro.sample("gain", dist.Gamma(torch.tensor(4.0), 4.0))
            z = pyro.sample("z.counts", dist.Poisson((1.0 + gain).unsqueeze(-1).expand(*gain.shape, 3)).to_event(1))
            mean = ((gain.unsqueeze(-1) * z) @ self.weight.T).unflatten(-1, (1, 3, 3))
            return pyro.sample("x", dist.Normal(mean, 0.5).to_event(3), obs=x)


def test_a_plain_program_with_several_sites():
    program = Mixed().requires_grad_(False)
    x = drawn(program, 40, 2)
    guide = guides.build("iterative", program, x, steps=3, hidden=16, rank=8, particles=2)
    inference.fit(program, guide, drawn(program, 1000, 1), steps=20, lr=1e-2, **TRAINING)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(6)
        path = list(guide.path(x))
    begun, found = (sampled_elbo(guide.model, deltas, x, particles=100) for deltas in (path[0], path[-1]))
    assert (found > begun + 1.0).float().mean() > 0.9
    posterior = inference.infer(program, x, "iterative", guide=guide, draws=4)
    assert (posterior.samples["gain"] > 0).all() and posterior.samples["z.counts"].shape == (1, 4, 40, 3)
    with pytest.raises(ValueError, match="'errors' can be read from the zoo's own models only"):
        guides.build("iterative", program, x, encodes=("errors",))


@pytest.mark.parametrize("encodes", [("params",), ("gradient",), ("errors",), ENCODINGS])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_encoding_trains(encodes, network):
    model = zoo.build("poisson", (1, 3, 3), latents=5, init_scale=0.6, seed=1, log_rate_init=(-1.0, 0.0))
    guide = guides.build("iterative", model, encodes=encodes, network=network, steps=2, hidden=8, rank=4)
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    inference.fit(model, guide, torch.randn(64, 1, 3, 3, generator=torch.Generator().manual_seed(2)), objective="exact", steps=4,
                  **TRAINING | {"batch_size": 32})
    assert all(not torch.equal(value, before[name]) for name, value in guide.state_dict().items())


def test_what_the_network_reads():
    """Scales of features are known, so that any network is: gradients of root mean square 1, errors of the likelihood, the image."""
    model = linear_gaussian(latents=4, event_shape=(1, 3, 3), scale=0.5)
    x = drawn(model, 5, 4)
    guide = Iterative(model, encodes=ENCODINGS, steps=1).eval()
    deltas = {"z": 0.3 * torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(1))}
    guide.network = Says(0.0, 0 * deltas["z"])
    _, memory = guide.train().refine(x, deltas, None)
    params, slope, size, step, update = guide.network.features["z"].split(2, dim=-2)
    truth = slope_of(model, x, deltas)
    root = truth.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(params, deltas["z"])
    torch.testing.assert_close(slope, truth / root, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(size, root.log().expand_as(truth), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(step, torch.asinh(natural_gradient(model, x, deltas)), rtol=1e-4, atol=1e-5)
    assert not update.any()
    before = memory["update/z"].clone()
    assert before.any()
    guide.train().refine(x, deltas, memory)
    torch.testing.assert_close(guide.network.features["z"][:, -2:], before)
    mean = model.decoder((model.prior + deltas["z"])[:, 0])
    errors = ((x - mean) / model.scale.square()).flatten(1)
    torch.testing.assert_close(guide.network.image, torch.cat([x.flatten(1), errors], dim=1))


@pytest.mark.parametrize("pixels", [0, 7])
def test_networks_of_several_sites(pixels):
    """Every site gets a gate and a proposal of its shape; ``units`` sees each latent alone, ``dense`` all of them."""
    sizes, generator = {"a": (2, 3), "b.c": (1, 5)}, torch.Generator().manual_seed(1)
    features = {name: torch.randn(4, 5 * count, units, generator=generator) for name, (count, units) in sizes.items()}
    image = torch.randn(4, pixels, generator=generator) if pixels else None
    nudged = features | {"b.c": features["b.c"].clone()}
    nudged["b.c"][..., 2] += 1.0
    for name, changes in (("units", {"a": [False] * 3, "b.c": [False, False, True, False, False]}), ("dense", {"a": [True] * 3,
                                                                                                     "b.c": [True] * 5})):
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(2)
            network = NETWORKS[name](sizes, 5, pixels, hidden=8, rank=4)
            before, after = network(features, image), network(nudged, image)
            other = None if image is None else network(features, image + 1.0)
        for site, size in sizes.items():
            assert [part.shape for part in before[site]] == [(4, *size)] * 2
            assert (before[site][1] != after[site][1]).any(0).any(0).tolist() == changes[site]
            assert other is None or (before[site][1] != other[site][1]).all()


def test_training_starts_half_of_the_time_where_the_steps_lead():
    model, guide, x = trained("linear-gaussian")
    fresh = Iterative(model, steps=4, hidden=16, rank=8)
    fresh.load_state_dict(guide.state_dict())
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        fresh.train()
        starts = [fresh.start(x[:4])["z"] for _ in range(60)]
        fresh.eval()
        assert not any(fresh.start(x[:4])["z"].any() for _ in range(20))
        fresh.train()
        deltas, memory = {"z": torch.zeros(4, 2, 4)}, None
        for _ in range(4):
            deltas, memory = fresh.refine(x[:4], deltas, memory)
    led = [start for start in starts if start.any()]
    assert 15 <= len(led) <= 45
    torch.testing.assert_close(led[0], deltas["z"])


def test_steps_are_free_at_test_time():
    model, guide, x = trained("counts")
    with torch.no_grad():
        path = [Fixed(model, deltas).posterior(x)["z"] for deltas in guide.path(x, 9)]
    for steps in (0, 1, 9):
        posterior = inference.infer(model, x, "iterative", guide=guide, draws=2, steps=steps)
        torch.testing.assert_close(posterior.params["z"], path[steps])
    torch.testing.assert_close(inference.infer(model, x, "iterative", guide=guide, draws=2).params["z"], path[4])
    torch.testing.assert_close(inference.infer(model, x, "amortized", guide=guide, draws=2).params["z"], path[4])
    assert guide.steps == 4 and posterior.samples["z"].shape == (1, 2, 60, 2)
    assert posterior.method == "iterative" and posterior.cost["gradient_evaluations"] == 10


def test_inference_is_the_same_in_training_mode_and_leaves_it():
    model, guide, x = trained("counts")
    expected = inference.infer(model, x, "iterative", guide=guide, draws=2).params["z"]
    guide.train()
    try:
        for seed in range(4):
            posterior = inference.infer(model, x, "iterative", guide=guide, draws=2, seed=seed)
            assert guide.training and torch.equal(posterior.params["z"], expected)
    finally:
        guide.eval()


@pytest.mark.parametrize("network", NETWORKS)
def test_a_saved_guide_comes_back(network, tmp_path):
    model = zoo.build("poisson", (1, 3, 3), latents=5, init_scale=0.6, seed=1)
    guide = guides.build("iterative", model, network=network, hidden=8, rank=4, steps=3, encodes=("errors", "gradient"), seed=3)
    inference.save(tmp_path / "saved", model, guide)
    other_model, other, _ = inference.load(tmp_path / "saved")
    x = torch.randn(6, 1, 3, 3, generator=torch.Generator().manual_seed(2))
    assert other.steps == 3 and other.encodes == ("errors", "gradient") and not other.training
    start = {"z": torch.zeros(6, 1, 5)}
    with torch.no_grad():  # in training mode every update counts
        (mine, _), (same, _), (another, _) = (it.train().refine(x, start, None) for it in (
            guide, other, guides.build("iterative", model, network=network, hidden=8, rank=4, encodes=("errors", "gradient"), seed=4)))
    torch.testing.assert_close(same, mine)
    assert mine["z"].any() and not torch.allclose(another["z"], mine["z"])


def test_a_seed_decides_and_nothing_else_changes(unchanged_generator):
    model = zoo.build("gaussian", (1, 3, 3), latents=5, seed=1)
    with unchanged_generator():
        first, again, other = (guides.build("iterative", model, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["network.layers.z.body.0.weight"], other["network.layers.z.body.0.weight"])


@pytest.mark.parametrize(("options", "message"), [
    ({"encodes": ("pixels",)}, "unknown encoding 'pixels'"), ({"encodes": ("image",)}, "must read 'params', 'gradient' or 'errors'"),
    ({"encodes": ()}, "must read"), ({"network": "recurrent"}, "unknown network 'recurrent'; known are: units, dense"),
    ({"steps": 0}, "steps must be at least 1"), ({"hidden": 0}, "hidden must be at least 1, not 0"),
    ({"rank": 0}, "rank must be at least 1, not 0"), ({"particles": 0}, "particles must be at least 1, not 0"),
    ({"temperature": 0.0}, "temperature must be positive, not 0.0"), ({"encodes": "image"}, "encodes must be a sequence of names")])
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        guides.build("iterative", zoo.build("gaussian", (1, 3, 3), latents=5), **options)


def test_the_method_needs_its_guide():
    model, guide, x = trained("counts")
    for wrong, name in ((None, "none"), (guides.build("amortized", model), "a Amortized")):
        with pytest.raises(ValueError, match=f"needs a trained guide of that name, not {name}"):
            inference.infer(model, x, "iterative", guide=wrong)
    with pytest.raises(ValueError, match="steps must not be negative, but is -1"):
        inference.infer(model, x, "iterative", guide=guide, steps=-1)


def test_vanished_rates_do_not_spoil_the_features():
    """A rate that has underflown has slope 0 and, divided by the rate, no natural gradient; all else stays finite."""
    model = counts()
    x = drawn(model, 4, 2)
    guide = Iterative(model, steps=2)
    for far in (-200.0, 300.0):
        deltas = {"z": torch.full((4, 1, 2), far)}
        with torch.no_grad():
            after, memory = guide.train().refine(x, deltas, None)
        assert all(part.isfinite().all() for part in [after["z"], *memory.values()])
