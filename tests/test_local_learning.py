"""Prediction errors against closed forms, local learning rules against autograd, and both at rest against autograd through inference."""

import pytest
import torch
from torch.autograd.functional import jacobian

import zoo
from inference.local_learning import local_gradients
from inference.prediction_errors import prediction_errors, residuals
from zoo.density import counting, log_joint
from zoo.latents.categorical import Categorical
from zoo.latents.student_t import StudentT
from zoo.models.clamped import Clamped

N = 5
EXACT = {"rtol": 0.0, "atol": 1e-12}


def one_hots(*shape):
    return torch.eye(shape[-1], dtype=torch.double)[torch.randint(shape[-1], shape[:-1])]


def chain(event_shape=(2, 3), levels=(4, 3, 2), seed=0, left=(), name="predictive_coding", **options):
    """A model with parameters away from where they start, latents and images, float64."""
    torch.manual_seed(seed)
    model = zoo.build(name, event_shape, levels=levels, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    latents = {}
    for site, (family, units) in model.latents.items():
        values = {"Poisson": torch.poisson(torch.full((*left, N, units), 1.5, dtype=torch.double)),
                  "Categorical": one_hots(*left, N, units)}
        latents[site] = values.get(type(family).__name__, torch.randn(*left, N, units, dtype=torch.double))
    if options.get("likelihood") == "categorical":
        return model, latents, one_hots(N, *event_shape)
    x = torch.randn(N, *event_shape, dtype=torch.double)
    return model, latents, (x > 0).double() if options.get("likelihood") == "bernoulli" else x


@pytest.fixture(autouse=True)
def _generator():
    with torch.random.fork_rng():
        yield


def bounded_rate(prediction):
    return (5.3 - torch.nn.functional.softplus(5.3 - prediction)).exp()


ERRORS = {  # of value z, prediction p and scale s
    "gaussian": lambda z, p, s: (z - p) / s**2,
    "laplace": lambda z, p, s: (z - p).sign() / s,
    StudentT(5.0): lambda z, p, s: 6.0 * (z - p) / (5.0 * s**2 + (z - p) ** 2),
    "poisson": lambda z, p, s: z - bounded_rate(p),
    Categorical(): lambda z, p, s: z - p.softmax(-1),
}


@pytest.mark.parametrize("left", [(), (2, 3)])
@pytest.mark.parametrize("family", ERRORS, ids=lambda family: family if isinstance(family, str) else type(family).__name__)
def test_errors_of_a_level(family, left):
    model, latents, x = chain(family=family, level_scale=0.7, left=left, activation="tanh")
    prediction = model.predict(1, latents["z2"])
    error = prediction_errors(model, latents, x)["z1"]
    scale = model.levels[0].scale.item() if model.levels[0].scaled else 1.0
    assert scale == pytest.approx(0.7 if model.levels[0].scaled else 1.0, rel=1e-6)
    torch.testing.assert_close(error, ERRORS[family](latents["z1"], prediction, scale).detach(), **EXACT)


LIKELIHOODS = {
    "normal": lambda x, y, s: (x - y) / s**2,
    "bernoulli": lambda x, y, s: x - y.sigmoid(),
    "categorical": lambda x, y, s: x - y.softmax(-1),
    "endpoint": lambda x, y, s: (x - y) / (x - y).norm(dim=-3, keepdim=True) / s,
}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_errors_of_the_image(likelihood):
    shape = {"categorical": (6,), "endpoint": (2, 2, 2)}.get(likelihood, (2, 3))
    model, latents, x = chain(shape, likelihood=likelihood, scale=0.6, left=(3,))
    error = prediction_errors(model, latents, x)["x"]
    expected = LIKELIHOODS[likelihood](x, model.decode(latents), model.scale)
    torch.testing.assert_close(error, expected.detach(), **EXACT)
    assert ("x" in residuals(model, latents, x)) == (likelihood in ("normal", "endpoint"))


@pytest.mark.parametrize("kind", ["full", "lowrank"])
def test_errors_with_correlated_noise(kind):
    model, latents, x = chain(precision=kind, learn_scale=kind, rank=2)
    errors, away = prediction_errors(model, latents, x), residuals(model, latents, x)
    for site, scale, correlations in (("z1", model.levels[0].scale, model.levels[0].correlations),
                                      ("x", model.scale.flatten(), model.noise)):
        weight = correlations.weight.detach()
        mixing = weight.tril(-1) + torch.eye(len(weight)) if kind == "full" else weight
        matrix = mixing @ mixing.mT + (0.0 if kind == "full" else torch.eye(len(weight)))
        precision = torch.linalg.inv(scale.detach()[:, None] * matrix * scale.detach())
        torch.testing.assert_close(errors[site].flatten(1), away[site].flatten(1) @ precision, rtol=0.0, atol=1e-11)


def test_residuals_are_values_less_predictions_and_of_locations_alone():
    model, latents, x = chain(family="laplace,gaussian,poisson")
    away = residuals(model, latents, x)
    assert list(away) == ["z2", "z1", "x"]
    torch.testing.assert_close(away["z2"], (latents["z2"] - model.predict(2, latents["z3"])).detach(), **EXACT)
    torch.testing.assert_close(away["x"], (x - model.decode(latents)).detach(), **EXACT)


def test_the_slope_of_a_level_is_what_comes_from_below_less_its_own_error():
    model, latents, x = chain(activation="tanh", after="sigmoid", precision="diagonal", learn_scale="pixel")
    latents = {site: value.requires_grad_(True) for site, value in latents.items()}
    slopes = dict(zip(latents, torch.autograd.grad(log_joint(model, latents, x).sum(), list(latents.values())), strict=True))
    errors = prediction_errors(model, latents, x)
    for number, below in ((1, "x"), (2, "z1"), (3, "z2")):
        site = f"z{number}"
        for n in range(N):
            slope = jacobian(lambda z, number=number: model.predict(number - 1, z).flatten(), latents[site][n].detach())
            torch.testing.assert_close(slopes[site][n], slope.mT @ errors[below][n].flatten() - errors[site][n], **EXACT)


def test_errors_of_a_model_that_is_no_chain_cost_one_gradient():
    model = zoo.build("gaussian", (2, 3), latents=4).double()
    z, x = torch.randn(3, N, 4, dtype=torch.double), torch.randn(N, 2, 3, dtype=torch.double)
    with counting() as cost:
        errors = prediction_errors(model, {"z": z}, x)
    assert (cost.evaluations, cost.gradients) == (3 * N, 3 * N)
    torch.testing.assert_close(errors["z"], z, **EXACT)
    assert errors["x"].shape == (3, N, 2, 3) and not errors["x"].requires_grad


RULES = {
    "all scales": dict(activation="tanh", after="sigmoid", precision="diagonal", learn_scale="pixel", learn_prior=True),
    "one scale": dict(activation="relu", precision="scalar", learn_scale="image", learn_prior=True, left=(3,)),
    "a floor": dict(precision="diagonal", learn_scale="image", floor=0.4),
    "no biases": dict(activation="gelu", bias=False),
    "laplace": dict(family="laplace", precision="scalar", learn_scale="image"),
    "student_t": dict(family="student_t", precision="diagonal", left=(2,)),
    "poisson": dict(family="poisson", learn_prior=True),
    "mixed": dict(family="poisson,laplace,student_t", activation="tanh"),
    "correlated": dict(precision="full", learn_scale="lowrank", rank=2),
    "bernoulli": dict(likelihood="bernoulli", activation="elu"),
    "categorical": dict(event_shape=(6,), likelihood="categorical", activation="tanh"),
    "endpoint": dict(event_shape=(2, 2, 2), likelihood="endpoint", learn_scale="image"),
    "modules": dict(name="rao_ballard", event_shape=(3, 2, 2), levels=(6, 3), activation="tanh"),
    "modules at the top": dict(name="rao_ballard", event_shape=(3, 2, 2), levels=(6,), family="laplace"),
}


CASES = [(name, False) for name in RULES] + [(name, True) for name in RULES if name != "modules at the top" and "left" not in RULES[name]]


@pytest.mark.parametrize(("case", "clamped"), CASES)
def test_local_rules_are_the_gradient(case, clamped):
    model, latents, x = chain(**RULES[case])
    if clamped:
        top = next(iter(latents))
        model = Clamped(model, {top: latents.pop(top)})
    found, parameters = local_gradients(model, latents, x), dict(model.named_parameters())
    gradients = torch.autograd.grad(log_joint(model, latents, x).mean(), list(parameters.values()), allow_unused=True)
    expected = {name: gradient for name, gradient in zip(parameters, gradients, strict=True)
                if gradient is not None and not name.endswith(("correlations.weight", "noise.weight"))}
    assert set(found) == set(expected) and any(name.endswith("maps.0.weight") for name in found)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0.0, atol=1e-10, msg=lambda told, name=name: f"{name}: {told}")
        assert gradient.abs().max() > 1e-6


def test_gradients_of_a_level_take_nothing_from_beyond_its_two_ends():
    model, latents, x = chain(activation="tanh")
    before = local_gradients(model, latents, x)
    after = local_gradients(model, latents | {"z3": latents["z3"] + 1.0}, x)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"maps.2.weight", "maps.2.bias"}


@pytest.mark.parametrize("call", [prediction_errors, local_gradients])
def test_latents_that_do_not_fit_are_refused(call):
    model, latents, x = chain()
    with pytest.raises(ValueError, match="z3, z2, z1 .* given were: z3"):
        call(model, {"z3": latents["z3"]}, x)
    with pytest.raises(ValueError, match="event shape"):
        call(model, latents, x[..., :2])


def test_models_without_local_rules_are_refused():
    model, latents, x = chain(hidden=7)
    with pytest.raises(ValueError, match="backpropagation.*hidden=None"):
        local_gradients(model, latents, x)
    with pytest.raises(TypeError, match="chains of levels"):
        local_gradients(zoo.build("gaussian", (2, 3), latents=4), latents, x)
    with pytest.raises(TypeError, match="models of the zoo"):
        prediction_errors(torch.nn.Linear(2, 3), latents, x)


def test_at_rest_local_rules_are_the_gradient_through_inference():
    """The envelope theorem: how the mode moves with the weights has no say, once the slope is 0."""
    model, latents, x = chain((4,), (4, 3, 2), activation="tanh", scale=1.0)
    parameters = dict(model.maps.named_parameters(prefix="maps"))
    z, off, slopes = [torch.zeros_like(value).requires_grad_(True) for value in latents.values()], {}, {}
    for step in range(301):
        energy = log_joint(model, dict(zip(latents, z, strict=True)), x)
        slope = torch.autograd.grad(energy.sum(), z, create_graph=True)
        if step in (3, 30, 300):
            through = torch.autograd.grad(energy.mean(), list(parameters.values()), retain_graph=True)
            local = local_gradients(model, dict(zip(latents, z, strict=True)), x)
            wrong = sum((a - local[name]).square().sum() for name, a in zip(parameters, through, strict=True))
            off[step] = (wrong / sum(a.square().sum() for a in through)).sqrt().item()
            slopes[step] = max(part.abs().max().item() for part in slope)
        z = [value + 0.15 * part for value, part in zip(z, slope, strict=True)]
    assert off[3] > 0.05 and off[3] > off[30] > off[300]
    assert off[300] < 1e-4 and slopes[300] < 1e-4, (off, slopes)
