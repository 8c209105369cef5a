"""Predictive-coding networks: their programs, and the exact answers of linear ones against the joint Normal law."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

import guides
import inference
import zoo
from inference.local_learning import local_gradients
from inference.methods.local import ascent
from zoo.error_space import ErrorSpace
from zoo.models.predictive_coding import Level, PredictiveCoding
from zoo.networks.prediction import Prediction
from zoo.oracles import LinearChain, linear_chain, linear_gaussian
from zoo.testing import check_model

DOUBLE = torch.float64
CORRELATED = {"levels": (5, 4, 3), "precision": "full,lowrank,diagonal", "rank": 2, "learn_scale": "full", "scale": 0.6,
              "level_scale": [0.7, 0.8, 0.9], "learn_prior": True}
INDEPENDENT = {"levels": (5, 4, 3), "precision": ["diagonal", "scalar", "fixed"], "learn_scale": "pixel", "level_scale": [0.7, 0.8, 0.9],
               "learn_prior": True}
LINEAR = {"correlated": CORRELATED, "independent": INDEPENDENT, "one level": {"levels": (4,), "scale": 0.5}}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def chain(event_shape=(2, 3), **options):
    """A network all of whose parameters are random."""
    model = zoo.build("predictive_coding", event_shape, **options).double()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(0.3 * random(*parameter.shape, seed=number))
    return model


def modules():
    """Three modules side by side under one level, as of Rao & Ballard, with Normal units."""
    model = zoo.build("rao_ballard", (3, 2, 2), levels=(6, 4), family="gaussian", gain=0.8, level_scale=0.7)
    return model.double()


def joint(model):
    """Mean and covariance of all levels, the top first, and the image last: what is above is carried down, level by level."""
    def noise(scale, correlations, size):
        matrix = torch.eye(size, dtype=DOUBLE) if correlations is None else correlations.structure(torch.ones(1, dtype=DOUBLE)).matrix()
        scale = scale.expand(size)
        return scale[:, None] * matrix * scale

    parts = [(level.units, level.scale, level.correlations) for level in reversed(model.levels)]
    parts.append((math.prod(model.event_shape), model.scale.flatten() if model.scale.dim() else model.scale, model.noise))
    mean, covariance = model.top, noise(parts[0][1], parts[0][2], parts[0][0])
    for step, (size, scale, correlations) in zip(reversed(model.maps), parts[1:], strict=True):
        above = step.weight.shape[-1] * (1 if step.weight.dim() == 2 else len(step.weight))
        weight = step(torch.eye(above, dtype=DOUBLE)).flatten(1).T - step(torch.zeros(above, dtype=DOUBLE)).flatten()[:, None]
        mean = torch.cat([mean, step(mean[-above:]).flatten()])
        cross = covariance[:, -above:] @ weight.T
        below = weight @ covariance[-above:, -above:] @ weight.T + noise(scale, correlations, size)
        covariance = torch.cat([torch.cat([covariance, cross], 1), torch.cat([cross.T, below], 1)])
    return mean.detach(), covariance.detach()


def linear_model(name):
    return modules() if name == "modules" else chain(**LINEAR[name])


@pytest.mark.parametrize("name", [*LINEAR, "modules"])
def test_exact_answers_are_those_of_the_joint_normal_law(name):
    model = linear_model(name)
    oracle, x = LinearChain.of(model), random(4, *model.event_shape)
    mean, covariance = joint(model)
    m = sum(model.units)
    seen = covariance[m:, m:]
    gain = torch.linalg.solve(seen, covariance[m:, :m]).T  # the image's covariance is inverted, not the latents' precision
    residual = x.flatten(1) - mean[m:]
    means, shared = oracle.posterior(x)
    torch.testing.assert_close(torch.cat(list(means.values()), -1), mean[:m] + residual @ gain.T)
    torch.testing.assert_close(shared, covariance[:m, :m] - gain @ covariance[m:, :m])
    assert list(means) == list(model.latents) and [value.shape[-1] for value in means.values()] == list(reversed(model.units))
    evidence = MultivariateNormal(mean[m:], seen).log_prob(x.flatten(1))
    torch.testing.assert_close(oracle.log_evidence(x), evidence)
    noises = torch.logdet(2 * math.pi * covariance)  # of all levels: the maps between them do not change a volume
    expected = 0.5 * (residual * torch.linalg.solve(seen, residual.T).T).sum(1) + 0.5 * noises
    torch.testing.assert_close(oracle.minimum_energy(x), expected)
    torch.testing.assert_close(oracle.minimum_energy(x), -inference.log_joint(model, means, x).detach())


@pytest.mark.parametrize("name", [*LINEAR, "modules"])
def test_its_precisions_are_the_hessians_of_the_program(name):
    model = linear_model(name)
    oracle, x = LinearChain.of(model), random(2, *model.event_shape)

    def energy(program, u):
        parts = dict(zip(model.latents, u.split(list(reversed(model.units))), strict=True))
        values = {program.site(site) if isinstance(program, ErrorSpace) else site: value for site, value in parts.items()}
        return -inference.log_joint(program, {site: value.expand(2, -1) for site, value in values.items()}, x)[0]

    u = random(sum(model.units), seed=5)
    for space, program in (("states", model), ("errors", ErrorSpace(model, x))):
        hessian = torch.autograd.functional.hessian(lambda u, program=program: energy(program, u), u)
        torch.testing.assert_close(oracle.precision(space), hessian)
        values = torch.linalg.eigvalsh(hessian)
        torch.testing.assert_close(torch.stack(oracle.curvatures(space)), values[[0, -1]])
    if len(model.units) == 3:  # levels that are no neighbours do not see one another
        assert (oracle.precision()[:model.units[2], -model.units[0]:] == 0).all()


@pytest.mark.parametrize("name", [*LINEAR, "modules"])
def test_laplaces_approximation_is_exact(name):
    model = linear_model(name)
    oracle, x = LinearChain.of(model), random(3, *model.event_shape)
    guide = guides.build("laplace_approximation", model, x)
    torch.testing.assert_close(guide.log_evidence, oracle.log_evidence(x))
    torch.testing.assert_close(guide.scale_tril @ guide.scale_tril.mT, oracle.posterior(x)[1].expand(3, -1, -1))


def test_the_best_posterior_of_independent_units_or_errors():
    model = chain(**INDEPENDENT)
    oracle, x = LinearChain.of(model), random(3, 2, 3)
    means, covariance = oracle.posterior(x)
    exact = MultivariateNormal(torch.cat(list(means.values()), -1), covariance)
    spread = torch.cat([level.scale.detach().expand(level.units) for level in reversed(model.levels)])
    eye, down = torch.eye(12, dtype=DOUBLE), torch.zeros(12, 12, dtype=DOUBLE)
    down[3:7, :3], down[7:, 3:7] = model.maps[2].weight.detach(), model.maps[1].weight.detach()
    for space, jacobian in (("states", eye), ("errors", torch.linalg.inv(eye - down) @ torch.diag(spread))):
        inside = torch.linalg.inv(jacobian) @ covariance @ torch.linalg.inv(jacobian).T

        def gap(log_scale, jacobian=jacobian):
            return kl_divergence(MultivariateNormal(exact.mean, jacobian @ torch.diag_embed((2 * log_scale).exp()) @ jacobian.T), exact)[0]
        best = -0.5 * torch.linalg.inv(inside).diagonal().log()
        torch.testing.assert_close(oracle.mean_field_gap(space), gap(best))
        torch.testing.assert_close(oracle.mean_field_elbo(x, space), oracle.log_evidence(x) - gap(best))
        assert all(gap(best + 0.05 * random(12, seed=seed)) > gap(best) > 0.01 for seed in range(10))
    assert oracle.mean_field_gap("states") != oracle.mean_field_gap("errors")


def test_local_inference_reaches_the_best_posterior_of_independent_errors():
    model = linear_chain((4, 3), (1, 2, 3), 0.6, level_scale=(0.7, 1.0), seed=3).double()
    oracle, x = LinearChain.of(model), random(5, 1, 2, 3)
    guide, steps = ascent(model, x, None, steps=400, lr=0.05, objective="elbo", particles=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert len(list(steps)) == 400
    delta = torch.cat([guide.deltas[name] for name in model.latents], -1).detach()
    scale = torch.cat([level.scale.detach().expand(level.units) for level in reversed(model.levels)])
    means, covariance = oracle.posterior(x)
    weight = model.maps[1].weight.detach()
    jacobian = torch.eye(7, dtype=DOUBLE)
    jacobian[3:, :3] = weight
    inner = scale * (5.3 * torch.tanh(delta[:, 1] / 5.3)).exp()
    q = MultivariateNormal(delta[:, 0] @ jacobian.T, jacobian @ torch.diag_embed(inner.square()) @ jacobian.T)
    short = kl_divergence(q, MultivariateNormal(torch.cat(list(means.values()), -1), covariance)) - oracle.mean_field_gap("errors")
    assert oracle.mean_field_gap("errors") > 0.1 and (short > -1e-9).all() and (short < 4e-3).all(), short


def test_an_oracle_follows_the_models_parameters_and_leaves_them_alone():
    model = chain(**CORRELATED)
    oracle, x = LinearChain.of(model), random(2, 2, 3)
    before = oracle.log_evidence(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(oracle.log_evidence(x), LinearChain.of(model).log_evidence(x))
    assert (oracle.log_evidence(x) - before).abs().min() > 1e-3
    assert all(parameter.requires_grad for parameter in model.parameters()) and not any(p.requires_grad for p in oracle.parameters())
    assert oracle.log_evidence(x.float()).dtype == DOUBLE


def test_the_registered_oracle_is_a_model_with_a_seed(unchanged_generator):
    with unchanged_generator():
        model = zoo.build("linear_chain")
    assert model.units == (16, 8) and model.event_shape == (1, 4, 8) and model.scale == 1.0
    weight = model.maps[0].weight
    torch.testing.assert_close(weight.T @ weight, torch.eye(16))
    assert torch.equal(weight, linear_chain().maps[0].weight) and not torch.equal(weight, linear_chain(seed=1).maps[0].weight)
    check_model(model, torch.randn(3, 1, 4, 8))
    model.log_evidence(torch.zeros(1, 1, 4, 8)).sum().backward()
    assert weight.grad.abs().max() > 0  # an oracle that is asked for can be differentiated


def test_an_oracle_refuses_what_has_no_closed_form():
    for options in ({"activation": "tanh"}, {"after": "sigmoid"}, {"hidden": 4}, {"family": "laplace"}, {"family": "poisson"},
                    {"likelihood": "bernoulli"}):
        with pytest.raises(ValueError, match="exact answers need linear maps"):
            LinearChain.of(zoo.build("predictive_coding", (2, 2), levels=(3, 2), **options))
    with pytest.raises(ValueError, match="not of LinearGaussian"):
        LinearChain.of(linear_gaussian())
    with pytest.raises(ValueError, match="'states' or 'errors', not 'volts'"):
        linear_chain((2,), (1, 2)).precision("volts")
    with pytest.raises(ValueError, match=r"expected images \(N, 1, 2\)"):
        linear_chain((2,), (1, 2)).log_evidence(torch.zeros(3, 2, 1))


# -- the programs

OPTIONS = [
    {}, {"levels": "4"}, {"levels": (4, 3, 2), "activation": "tanh"}, {"activation": "relu", "after": "sigmoid"}, {"hidden": 6},
    {"bias": False, "gain": 0.5, "level_scale": [0.5, 2.0]}, {"precision": "scalar"}, {"precision": "diagonal", "learn_prior": True},
    {"precision": "full", "floor": 0.05}, {"precision": "lowrank", "rank": 2, "learn_scale": "lowrank"},
    {"precision": ["full", "fixed"], "learn_scale": "full"}, {"learn_scale": "pixel"}, {"learn_scale": "image", "floor": 0.0},
    {"family": "laplace"}, {"family": "student_t", "precision": "scalar"}, {"family": "gaussian,laplace"}, {"family": "poisson"},
    {"family": ["poisson", "gaussian"], "activation": "tanh"}, {"family": "gaussian,categorical"}, {"likelihood": "bernoulli"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_networks_keep_the_zoos_conventions(options):
    torch.manual_seed(0)
    model = zoo.build("predictive_coding", (2, 3), **{"levels": (4, 3)} | options)
    x = torch.rand(3, 2, 3).round() if options.get("likelihood") == "bernoulli" else torch.randn(3, 2, 3)
    check_model(model, x)


def test_labels_as_data():
    x = torch.eye(4)
    model = zoo.build("predictive_coding", (4,), levels=(5, 3), likelihood="categorical", activation="tanh")
    check_model(model, x)
    with torch.no_grad():  # every label once: the probabilities of all of them add up to one
        z = torch.randn(1, 5).expand(4, 5)
        torch.testing.assert_close(model.observation(model.decode({"z1": z})).log_prob(x).exp().sum(), torch.tensor(1.0))


@pytest.mark.parametrize("options", [{"family": family, "df": df, "levels": levels, "activation": activation}
                                     for family, df in (("student_t", 3.0), ("student_t", 1.0), ("laplace", 3.0), ("gaussian", 3.0))
                                     for levels, activation in (((6, 4), "identity"), ((6,), "tanh"))], ids=str)
def test_the_network_of_rao_and_ballard_keeps_them_too(options):
    torch.manual_seed(0)
    model = zoo.build("rao_ballard", (3, 4, 4), **options)
    check_model(model, torch.randn(2, 3, 4, 4))
    top = model.latents[next(iter(model.latents))][0].distribution(model.levels[-1].prior(model.top))
    if options["family"] == "student_t":  # (1 + r²)^(-(ν + 1) / 2), normalized
        r, df = torch.linspace(-4.0, 4.0, 9)[:, None].expand(9, model.units[-1]), options["df"]
        shape = -0.5 * (df + 1) * (1 + r.square()).log() + math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(math.pi)
        torch.testing.assert_close(top.log_prob(r), shape.sum(-1), rtol=1e-5, atol=1e-4)


def test_modules_see_only_their_own_patch():
    model = zoo.build("rao_ballard", (3, 2, 2), levels=(6, 4), activation="tanh")
    weight = torch.autograd.functional.jacobian(lambda z: model.decode({"z1": z}), torch.zeros(6)).flatten(1).view(3, 4, 3, 2)
    for patch in range(3):
        for module in range(3):
            assert (weight[patch, :, module].abs().max() > 0) == (patch == module)
    assert model.levels[0].scale.item() == pytest.approx(math.sqrt(10.0)) and model.scale == 1.0


def test_gradients_are_precision_weighted_prediction_errors():
    model = chain(levels=(5, 4, 3), activation="tanh", precision="diagonal", learn_scale="pixel", level_scale=0.5)
    x = random(6, 2, 3)
    z = {name: random(6, units, seed=i).requires_grad_() for i, (name, (_, units)) in enumerate(model.latents.items())}
    slopes = dict(zip(z, torch.autograd.grad(inference.log_joint(model, z, x).sum(), list(z.values())), strict=True))
    values = [x.flatten(1), z["z1"], z["z2"], z["z3"]]
    predictions = [model.predict(level, values[level + 1]).flatten(1) for level in range(3)] + [model.top.expand(6, 3)]
    variances = [model.scale.flatten().square(), *(level.scale.square() for level in model.levels)]
    errors = [(value - prediction) / variance for value, prediction, variance in zip(values, predictions, variances, strict=True)]
    for level in (1, 2, 3):
        part = model.maps[level - 1]
        from_below = (errors[level - 1] @ part.weight) * (1 - values[level].tanh().square())  # Jᵀ ε of a map W tanh(z) + b
        torch.testing.assert_close(slopes[f"z{level}"], from_below - errors[level])


def test_learned_scales_keep_above_their_floor():
    model = zoo.build("predictive_coding", (2, 2), levels=(3, 2), precision=["scalar", "fixed"], learn_scale="pixel", floor=0.1,
                      level_scale=0.4, scale=0.3)
    assert model.floors == {"z1": 0.1, "z2": 0.0, "x": 0.1} and model.scale[0, 0].item() == pytest.approx(0.3)
    assert model.levels[0].scale.item() == pytest.approx(0.4) == model.levels[1].scale.item()
    with torch.no_grad():
        for log_scale in (model.levels[0].log_scale, model.log_scale):
            log_scale.fill_(-50.0)
    assert model.levels[0].scale.item() == pytest.approx(0.1) and model.scale.min().item() == pytest.approx(0.1)
    law = model.latents["z1"][0].distribution(model.levels[0].prior(torch.zeros(3)))
    torch.testing.assert_close(law.base_dist.scale, torch.full((3,), 0.1))


@pytest.mark.parametrize(("options", "words"), [
    ({"levels": ()}, "one or more numbers of units"), ({"levels": (3, 0)}, "at least 1 each"),
    ({"family": "gaussian,laplace,poisson"}, "family takes one value for all levels, or 2"),
    ({"precision": "sharp"}, "precision must be 'fixed'"), ({"family": "poisson", "precision": "scalar"}, "use precision='fixed'"),
    ({"family": "laplace", "precision": "full"}, "of Gaussian latents, not of Laplace"),
    ({"level_scale": 0.005, "precision": "scalar"}, "above its floor"),
    ({"hidden": 4, "activation": "tanh"}, "leave activation and after"), ({"activation": "sine"}, "unknown activation 'sine'"),
    ({"likelihood": "bernoulli", "learn_scale": "full"}, "correlated noise is of the likelihood 'normal'"),
    ({"scale": 0.001, "learn_scale": "image"}, "scale must be above its floor"),
    ({"likelihood": "categorical"}, "one-hot labels"), ({"precision": "lowrank", "rank": 9}, "rank must be from 1 to the 3 units"),
])
def test_settings_that_do_not_fit_are_refused_in_one_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        zoo.build("predictive_coding", (2, 2), **{"levels": (3, 3)} | options)


def test_other_refusals():
    with pytest.raises(ValueError, match="needs data"):
        zoo.build("predictive_coding")
    with pytest.raises(ValueError, match="as many maps as levels"):
        PredictiveCoding([], [Level(zoo.latents.registry["gaussian"](), 3)], (2, 2))
    with pytest.raises(ValueError, match="one level or two, not 3"):
        zoo.build("rao_ballard", levels=(6, 4, 2))
    with pytest.raises(ValueError, match=r"images must be \(3, height, width\)"):
        zoo.build("rao_ballard", (1, 16, 16))
    with pytest.raises(ValueError, match="do not share"):
        Prediction(4, (3, 2), modules=3)


# -- learned precisions

def with_learned_scale(scale, floor=0.0):
    """Three levels of a linear network, in which the scale of the first level of latents is learned and nothing else is."""
    model = zoo.build("predictive_coding", (4,), levels=(3, 2), bias=False, precision=["scalar", "fixed"], level_scale=[scale, 1.0],
                      floor=floor, scale=1.0)
    model.maps.requires_grad_(False)
    return model


def objectives(x, scales):
    """Log evidence, the best ELBO with independent errors, and minus the lowest energy, at each scale."""
    oracle, rows = LinearChain.of(with_learned_scale(1.0).double()), []
    for scale in scales:
        oracle.levels[0].log_scale.fill_(scale.log())
        rows.append([oracle.log_evidence(x).mean(), oracle.mean_field_elbo(x, "errors").mean(), -oracle.minimum_energy(x).mean()])
    return torch.tensor(rows, dtype=DOUBLE).T


@pytest.fixture(scope="module")
def seen():
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        return with_learned_scale(0.6)(None, size=1000)


def test_point_estimates_drive_a_learned_scale_to_its_floor(seen):
    scales = torch.logspace(-4.0, 0.0, 41, dtype=DOUBLE)
    of_points = objectives(seen.double(), scales)[2]
    assert (of_points.diff() < 0).all() and of_points[0] > of_points[-1] + 20  # higher and higher as the scale falls
    slope = (of_points[0] - of_points[1]) / (scales[1] / scales[0]).log()
    assert slope.item() == pytest.approx(3.0, abs=0.01)  # one nat for each unit and each factor of e
    model = with_learned_scale(1.0, floor=0.1)
    inference.fit(model, None, seen, method="map", steps=70, batch_size=200, lr=0.2, optimizer="adam", progress=False,
                  dynamics={"steps": 10, "space": "errors"})
    assert 0.1 < model.levels[0].scale.item() < 0.12


def test_what_a_guide_makes_of_a_learned_scale_is_what_its_closed_form_says(seen):
    scales = torch.logspace(-2.0, 0.5, 126, dtype=DOUBLE)
    of_evidence, of_errors, _ = scales[objectives(seen.double(), scales).argmax(1)].tolist()
    assert of_errors < of_evidence - 0.1 and abs(of_evidence - 0.6) < 0.1
    for name, expected in (("amortized", of_errors), ("full", of_evidence)):
        model = with_learned_scale(0.5)  # from which they part
        guide = guides.build(name, model, encoder="lin")
        inference.fit(model, guide, seen, steps=400, batch_size=1000, lr=0.04, particles=2, beta_start=1.0, progress=False)
        assert model.levels[0].scale.item() == pytest.approx(expected, abs=0.05), name


def test_receptive_fields_of_a_given_length_keep_it_however_trained():
    model = zoo.build("rao_ballard", (3, 4, 4), levels=(6, 4), family="laplace", lower="student_t", norm=2.0)
    x = torch.randn(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    check_model(model, x[:4])
    free = [part.weight.detach().clone() for part in model.maps]
    inference.fit(model, None, x, method="map", dynamics={"steps": 3}, steps=5, batch_size=10, lr=0.1, progress=False)
    lengths = model.maps[0].synapses.norm(dim=-2)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 2.0))
    assert all(not torch.allclose(part.weight, before, atol=1e-3) for part, before in zip(model.maps, free, strict=True))
    z = {"z2": torch.randn(4, 4), "z1": torch.randn(4, 6)}
    blocks = torch.block_diag(*model.maps[0].synapses)
    torch.testing.assert_close(model.decode(z).flatten(1), z["z1"] @ blocks.mT)
    with pytest.raises(ValueError, match="share a length"):
        local_gradients(model, z, x[:4])
    with pytest.raises(ValueError, match="norm must be positive"):
        zoo.build("rao_ballard", norm=0.0)
