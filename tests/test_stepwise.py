"""Guides that infer in steps: natural gradients, slopes of the ELBO, and what training climbs, against independent truths."""

from __future__ import annotations

import math

import pytest
import torch
from my_prior import NegativeBinomial
from torch import nn
from torch.distributions import constraints

import zoo
from guides.base import Fixed
from guides.bounds import OBJECTIVES, elbo, exact_elbo, over_steps
from guides.stepwise import Stepwise, elbo_slope, has_exact_elbo
from zoo.latents.base import Family
from zoo.latents.categorical import Categorical
from zoo.latents.gaussian import Gaussian
from zoo.latents.laplace import Laplace
from zoo.latents.poisson import Poisson
from zoo.latents.student_t import StudentT
from zoo.oracles import linear_gaussian, poisson_fixture
from zoo.program import Unconstrained

STEPS = torch.linspace(-40.0, 40.0, 80_000, dtype=torch.float64)  # of a quadrature, in scales around the location, not at it
FAMILIES = {"gaussian": Gaussian(), "gaussian relu": Gaussian("relu"), "laplace": Laplace(), "poisson": Poisson(),
            "categorical": Categorical(), "categorical groups": Categorical(groups=2), "negative_binomial": NegativeBinomial(),
            "unconstrained": Unconstrained(constraints.positive, ()), "student_t": StudentT(7.0)}
LINEAR = [("gaussian", {}), ("gaussian", {"activation": "exp"}), ("laplace", {}), ("poisson", {"log_rate_init": (-1.0, 0.5)}),
          ("categorical", {}), ("categorical", {"groups": 2})]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def states(family, params):
    """Values of one unit (of all, if they are one-hot), and what each counts in a mean: weights that integrate the density."""
    if isinstance(family, Categorical):
        one_hot = torch.eye(params.shape[-1] // family.groups, dtype=torch.float64)
        if family.groups == 1:
            return one_hot, None
        pairs = torch.cartesian_prod(*[torch.arange(len(one_hot))] * family.groups)
        return one_hot[pairs], None
    if isinstance(family, Poisson | NegativeBinomial):
        return torch.arange(400, dtype=torch.float64).unsqueeze(-1), None
    loc, log_scale = params.unbind(-2)
    inner = loc + log_scale.exp() * STEPS.unsqueeze(-1)
    if isinstance(family, Unconstrained):  # dz = exp(u) du
        z = inner.exp().clamp(min=1e-300)
        return z.squeeze(-1), (z.log() + log_scale).squeeze(-1).exp() * (STEPS[1] - STEPS[0])
    return inner, log_scale.exp() * (STEPS[1] - STEPS[0])


def fisher(family, params):
    """E[score scoreᵀ] of ``params (P, K)``, over all P · K parameters, by summing over states."""
    z, weights = states(family, params)
    copies = params.expand(len(z), *params.shape).clone().requires_grad_(True)
    log_prob = family.distribution(copies).log_prob(z)
    score = torch.autograd.grad(log_prob.sum(), copies)[0].flatten(1)
    mass = log_prob.detach().exp() * (1.0 if weights is None else weights)
    assert abs(mass.sum() - 1) < 1e-6
    return torch.einsum("m,mi,mj->ij", mass, torch.nan_to_num(score), torch.nan_to_num(score))


def test_every_registered_family_is_checked_here():
    covered = {type(family) for family in FAMILIES.values()}
    assert [name for name in zoo.latents.registry if type(zoo.latents.registry[name]()) not in covered] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_the_natural_gradient_is_the_inverse_fisher_information_times_the_gradient(name):
    family = FAMILIES[name]
    units = 6 if isinstance(family, Categorical) else 1
    for seed in range(3):
        params = 0.8 * random(len(family.parameters), units, seed=seed)
        gradient = random(len(family.parameters), units, seed=10 + seed)
        if isinstance(family, Categorical):  # no function of the law depends on a shift of a group's logits
            by_group = gradient.unflatten(-1, (family.groups, -1))
            gradient = (by_group - by_group.mean(-1, keepdim=True)).flatten(-2)
        expected = (torch.linalg.pinv(fisher(family, params), rtol=1e-9) @ gradient.flatten()).reshape(gradient.shape)
        torch.testing.assert_close(family.natural(params, gradient), expected, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("name", FAMILIES)
def test_natural_gradients_of_many_units_and_images_are_those_of_each(name):
    family = FAMILIES[name]
    groups = getattr(family, "groups", 1)
    params, gradient = 0.5 * random(2, 3, len(family.parameters), 6), random(2, 3, len(family.parameters), 6, seed=1)
    together = family.natural(params, gradient)
    for index in [(0, 0), (1, 2)]:
        torch.testing.assert_close(together[index], family.natural(params[index], gradient[index]))
    if not isinstance(family, Categorical):
        torch.testing.assert_close(together[..., 2:3], family.natural(params[..., 2:3], gradient[..., 2:3]))
    elif groups == 2:
        torch.testing.assert_close(together[..., :3], Categorical().natural(params[..., :3], gradient[..., :3]))


@pytest.mark.parametrize("name", ["gaussian", "poisson"])
def test_the_general_natural_gradient_is_the_familys_own(name):
    family = FAMILIES[name]
    params, gradient = random(4, len(family.parameters), 5), random(4, len(family.parameters), 5, seed=1)
    torch.testing.assert_close(Family.natural(family, params, gradient), family.natural(params, gradient))


def test_the_general_natural_gradient_of_a_prior_of_ones_own():
    family = NegativeBinomial(shape=2.0)  # counts of mean m and variance m + m² / shape: F of log m is m · shape / (shape + m)
    params, gradient = random(3, 1, 4), random(3, 1, 4, seed=1)
    mean = params.exp()
    torch.testing.assert_close(family.natural(params, gradient), gradient * (2.0 + mean) / (2.0 * mean))
    assert type(family).natural is Family.natural


def test_no_natural_gradient_without_a_closed_form():
    class Odd(Gaussian):
        natural = Family.natural

        def unit_kl(self, q, p):
            return None

    with pytest.raises(NotImplementedError, match="Odd has no closed-form KL"):
        Odd().natural(torch.zeros(2, 3), torch.zeros(2, 3))


def model_and_images(name, options=None, n=5, **more):
    model = zoo.build(name, (1, 3, 3), latents=6, init_scale=0.6, seed=1, **(options or {}), **more).double()
    deltas = {"z": 0.7 * random(n, len(model.family.parameters), 6, seed=3)}
    return model, random(n, 1, 3, 3, seed=2), deltas


@pytest.mark.parametrize(("name", "options"), LINEAR)
def test_the_slope_of_the_elbo_is_its_difference_quotient(name, options):
    model, x, deltas = model_and_images(name, options)
    with torch.no_grad():
        value, slope = elbo_slope(model, x, deltas, exact=True)

        def at(new):
            return exact_elbo(model, Fixed(model, {"z": new}), x).value

        torch.testing.assert_close(value, at(deltas["z"]))
        for seed in range(4):
            way = random(*deltas["z"].shape, seed=20 + seed)
            quotient = (at(deltas["z"] + 1e-5 * way) - at(deltas["z"] - 1e-5 * way)) / 2e-5
            torch.testing.assert_close((slope["z"] * way).flatten(1).sum(1), quotient, rtol=1e-6, atol=1e-6)
    assert not (value.requires_grad or slope["z"].requires_grad or deltas["z"].requires_grad)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_sampled_slope_has_the_mean_of_the_exact_one():
    model, x, deltas = model_and_images("gaussian", n=2)
    exact, slope = elbo_slope(model, x, deltas, exact=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = [elbo_slope(model, x, deltas, exact=False, particles=200) for _ in range(40)]
    for found, expected in ((torch.stack([value for value, _ in parts]), exact),
                            (torch.stack([slope["z"] for _, slope in parts]), slope["z"])):
        assert ((found.mean(0) - expected).abs() < 5 * found.std(0) / math.sqrt(len(found)) + 1e-9).all()


def test_sampled_slopes_follow_the_temperature():
    model, x, deltas = model_and_images("poisson", {"log_rate_init": (-1.0, 0.5)})
    slopes = []
    for temperature in (0.1, 0.1, 0.5):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            slopes.append(elbo_slope(model, x, deltas, exact=False, temperature=temperature)[1]["z"])
    assert torch.equal(slopes[0], slopes[1]) and not torch.allclose(slopes[0], slopes[2])


def test_a_closed_form_needs_a_linear_decoder_and_divergences():
    assert has_exact_elbo(poisson_fixture()) and has_exact_elbo(zoo.build("laplace", (1, 3, 3), latents=4))
    assert not has_exact_elbo(zoo.build("gaussian", (1, 3, 3), latents=4, decoder="mlp"))

    class Odd(Gaussian):
        def unit_kl(self, q, p):
            return None

    model = zoo.build("gaussian", (1, 3, 3), latents=4)
    model.family = Odd()
    assert not has_exact_elbo(model)


class Walk(Stepwise):
    """A guide whose path is known: δ ← decay · δ + rate · pull(x), with ``rate`` to be learned."""

    def __init__(self, model, steps=3, truncated=True, scored=None):
        super().__init__(model, steps)
        self.rate, self.truncated, self._scored = nn.Parameter(torch.tensor(0.3, dtype=torch.float64)), truncated, scored
        self.memories = []

    @property
    def scored(self):
        return super().scored if self._scored is None else self._scored

    def pull(self, x):
        return random(len(x), 2, 6, seed=7)

    def refine(self, x, deltas, memory):
        self.memories.append(memory)
        return {"z": 0.5 * deltas["z"] + self.rate * self.pull(x)}, {"rate": 1.0 * self.rate}


def positions(rate, pull, steps):
    """Where :class:`Walk` is, and how that depends on ``rate`` if every step before counts."""
    deltas, slopes = [torch.zeros_like(pull)], [torch.zeros_like(pull)]
    for _ in range(steps):
        deltas.append(0.5 * deltas[-1] + rate * pull)
        slopes.append(0.5 * slopes[-1] + pull)
    return deltas, slopes


@pytest.mark.parametrize("truncated", [True, False])
@pytest.mark.parametrize("scored", [None, (0, 3), (2,)])
def test_training_climbs_the_mean_over_scored_steps(truncated, scored):
    model, x, _ = model_and_images("gaussian")
    guide = Walk(model, truncated=truncated, scored=scored)
    bound = over_steps(exact_elbo)(model, guide, x, beta=0.7)
    chosen = [1, 2, 3] if scored is None else list(scored)
    pull = guide.pull(x)
    deltas, through = positions(0.3, pull, 3)
    values, to_guide = [], 0.0
    for step in chosen:
        here = deltas[step].requires_grad_(True)
        one = exact_elbo(model, Fixed(model, {"z": here}), x, beta=0.7)
        values.append(one)
        slope = torch.autograd.grad(one.value.mean(), here, retain_graph=True)[0]
        to_guide = to_guide + (slope * (0.0 if step == 0 else pull if truncated else through[step])).sum() / len(chosen)
    for name in ("value", "log_likelihood", "kl", "surrogate"):
        torch.testing.assert_close(getattr(bound, name), sum(getattr(one, name) for one in values) / len(chosen))
    bound.surrogate.mean().backward()
    assert guide.rate.grad.item() == pytest.approx(to_guide.item(), rel=1e-9)
    if 3 in chosen:  # the model learns from the end alone
        expected = torch.autograd.grad(values[-1].value.mean() / len(chosen), model.decoder.weight)[0]
        torch.testing.assert_close(model.decoder.weight.grad, expected)
    else:
        assert model.decoder.weight.grad is None
    assert model.decoder.weight.requires_grad
    assert [memory is None for memory in guide.memories] == [True, False, False]
    assert guide.memories[1]["rate"].requires_grad == (not truncated)


def test_bounds_over_steps_keep_what_a_bound_lacks():
    model, x, _ = model_and_images("gaussian")
    bound = over_steps(OBJECTIVES["iwae"])(model, Walk(model), x, particles=3)
    assert bound.kl is None and bound.value.shape == (5,)
    frozen = model.requires_grad_(False)
    over_steps(elbo)(frozen, Walk(frozen), x).surrogate.mean().backward()
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_a_path_starts_at_the_prior_and_a_call_is_its_end():
    model, x, _ = model_and_images("gaussian")
    guide = Walk(model)
    path = [deltas["z"] for deltas in guide.path(x)]
    expected, _ = positions(0.3, guide.pull(x), 5)
    assert len(path) == 4
    for found, deltas in zip(path, expected, strict=False):
        torch.testing.assert_close(found, deltas)
    torch.testing.assert_close(guide.delta(x)["z"], expected[3])
    torch.testing.assert_close(list(guide.path(x, 5))[-1]["z"], expected[5])
    assert len(list(guide.path(x, 0))) == 1
    guide.steps = 5
    torch.testing.assert_close(guide.delta(x)["z"], expected[5])
    guide.temperature = 0.3
    fixed = guide.at({"z": expected[1]})
    assert fixed.temperature == 0.3 and fixed.model is model and fixed.delta(x)["z"] is expected[1]


def test_a_path_of_an_oracle_ends_at_its_optimum():
    oracle = linear_gaussian(latents=4, event_shape=(1, 3, 3), scale=0.5).double()
    x = random(6, 1, 3, 3)

    class Newton(Stepwise):
        """Steps by the natural gradient of one half: the mean-field optimum of a linear-Gaussian model is their fixed point."""

        def refine(self, x, deltas, memory):
            slope = elbo_slope(oracle, x, deltas, exact=True)[1]["z"]
            return {"z": deltas["z"] + 0.2 * oracle.family.natural(Fixed(oracle, deltas).posterior(x)["z"], slope)}, None

    params = Fixed(oracle, Newton(oracle, 400).delta(x)).posterior(x)["z"]
    torch.testing.assert_close(params, oracle.mean_field(x)["z"].expand_as(params), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [0, -3])
def test_a_guide_takes_at_least_one_step(steps):
    with pytest.raises(ValueError, match=f"steps must be at least 1, not {steps}"):
        Walk(poisson_fixture(), steps=steps)


def test_a_subclass_must_say_how_it_steps():
    with pytest.raises(NotImplementedError, match="Bare must define refine"):
        type("Bare", (Stepwise,), {})(poisson_fixture(), 1).delta(torch.zeros(2, 1, 1, 3))
