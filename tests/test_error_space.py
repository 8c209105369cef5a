"""The space of prediction errors: the same law in other coordinates, with the same modes only where scales are constant."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import inference
import zoo
from inference import log_joint
from zoo.density import drawn_latents, latent_sites
from zoo.error_space import ErrorSpace

DOUBLE = torch.float64
MODELS = {
    "gaussian": {}, "laplace": {"family": "laplace"}, "student_t": {"family": "student_t"}, "poisson below": {"family": "poisson,gaussian"},
    "correlated": {"precision": "full"}, "low rank": {"precision": "lowrank", "rank": 2}, "one-hot top": {"family": "gaussian,categorical"},
    "tanh": {"activation": "tanh", "level_scale": [0.3, 2.0], "learn_prior": True},
}
STAY = {"poisson below": ["z1"], "one-hot top": ["z2"]}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def network(name):
    model = zoo.build("predictive_coding", (2, 3), **{"levels": (4, 3), "level_scale": [0.5, 1.5]} | MODELS[name]).double()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(0.3 * random(*parameter.shape, seed=number))
    return model


def scaled(x=None, size=None):
    """Noise whose width depends on the latent above."""
    with pyro.plate("data", size if x is None else len(x)):
        z2 = pyro.sample("z2", dist.Normal(torch.tensor(0.0, dtype=DOUBLE), 1.0))
        z1 = pyro.sample("z1", dist.Normal(z2, torch.exp(z2)))
        return pyro.sample("x", dist.Normal(z1.unsqueeze(-1), 0.5).to_event(1), obs=x)


def many_laws(x=None, size=None):
    """Laws that a location and a scale make, and others."""
    one = torch.tensor(1.0, dtype=DOUBLE)
    with pyro.plate("data", size if x is None else len(x)):
        pyro.sample("cauchy", dist.Cauchy(one, 2.0))
        pyro.sample("laplace", dist.Laplace(one.expand(2, 3), 2.0).to_event(2))
        pyro.sample("student", dist.StudentT(4.0, one.expand(3), 2.0).to_event(1))
        pyro.sample("gumbel", dist.Gumbel(one, 2.0))
        positive = pyro.sample("log_normal", dist.LogNormal(one, 2.0))
        pyro.sample("half", dist.HalfNormal(2.0 * one))
        pyro.sample("gamma", dist.Gamma(one, positive))
        pyro.sample("angle", dist.VonMises(one, 2.0 * one))
        pyro.sample("joint", dist.MultivariateNormal(one.expand(2), torch.eye(2, dtype=DOUBLE)))
        pyro.sample("inside", dist.Uniform(one, 2.0 * one))
        pyro.sample("count", dist.Poisson(one))
        return pyro.sample("x", dist.Normal(positive.unsqueeze(-1), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("name", MODELS)
def test_errors_are_standardized_and_lead_back_to_the_values(name):
    model, x = network(name), random(5, 2, 3)
    program = ErrorSpace(model, x)
    assert program.moved == [site for site in model.latents if site not in STAY.get(name, [])]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        values = drawn_latents(model, x, 4)  # (draws, N, K)
    errors = program.errors(values, x)
    assert list(errors) == [program.site(site) for site in model.latents] == list(latent_sites(program, x))
    back = program.values(errors, x)
    for site in model.latents:
        torch.testing.assert_close(back[site], values[site])
    prediction = model.top
    for level in range(len(model.levels), 0, -1):
        site = f"z{level}"
        if site in program.moved:
            torch.testing.assert_close(errors[program.site(site)], (values[site] - prediction) / model.levels[level - 1].scale)
        prediction = model.predict(level - 1, values[site])


@pytest.mark.parametrize("name", MODELS)
def test_densities_differ_by_the_volume_alone(name):
    model, x = network(name), random(5, 2, 3)
    program = ErrorSpace(model, x)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        values = drawn_latents(model, x, 3)
    volume = sum(model.levels[int(site[1:]) - 1].scale.log().expand(model.latents[site][1]).sum() for site in program.moved)
    expected = log_joint(model, values, x) + volume
    torch.testing.assert_close(log_joint(program, program.errors(values, x), x), expected)


def test_what_a_location_and_a_scale_do_not_make_stays_as_it_is():
    x = random(3, 1)
    program = ErrorSpace(many_laws, x)
    assert program.moved == ["cauchy", "laplace", "student"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        values = drawn_latents(many_laws, x, 2)
    errors = program.errors(values, x)
    torch.testing.assert_close(errors["laplace_decentered"], (values["laplace"] - 1.0) / 2.0)
    assert torch.equal(errors["count"], values["count"])
    back = program.values(errors, x)
    assert all(torch.equal(back[site], values[site]) or torch.allclose(back[site], values[site], atol=1e-12) for site in values)
    expected = log_joint(many_laws, values, x) + (1 + 6 + 3) * torch.tensor(2.0).log()
    torch.testing.assert_close(log_joint(program, errors, x), expected)


def test_no_errors_are_the_forward_pass():
    model, x = network("tanh"), random(2, 2, 3)
    program = ErrorSpace(model, x)
    zero = {program.site(name): torch.zeros(2, units, dtype=DOUBLE) for name, (_, units) in model.latents.items()}
    values = program.values(zero, x)
    torch.testing.assert_close(values["z2"], model.top.detach().expand(2, 3))
    torch.testing.assert_close(values["z1"], model.maps[1](model.top).detach().expand(2, 4))


@pytest.mark.parametrize("name", ["tanh", "correlated", "student_t"])
def test_at_constant_scales_both_spaces_have_the_same_mode(name):
    model, x = network(name), random(4, 2, 3)
    states, errors = (inference.infer(model, x, "map", space=space, steps=300, lr=0.1) for space in ("states", "errors"))
    for site in model.latents:
        torch.testing.assert_close(states.samples[site], errors.samples[site], atol=1e-5, rtol=0)
    torch.testing.assert_close(states.stats["log_joint"], errors.stats["log_joint"])


def lowest(energy, seen):
    """Where an energy of two numbers is lowest, by Newton's method from its best point of a grid."""
    axis = torch.linspace(-4.0, 4.0, 161, dtype=DOUBLE)
    grid = torch.cartesian_prod(axis, axis)
    at = grid[energy(*grid.T, seen).argmin()]
    for _ in range(20):
        slope = torch.autograd.functional.jacobian(lambda u: energy(*u, seen), at)
        at = at - torch.linalg.solve(torch.autograd.functional.hessian(lambda u: energy(*u, seen), at), slope)
    return at


def test_where_scales_depend_on_latents_each_space_has_a_mode_of_its_own():
    def of_states(z2, z1, seen):
        return 0.5 * z2**2 + 0.5 * ((z1 - z2) / z2.exp()) ** 2 + z2 + 0.5 * ((seen - z1) / 0.5) ** 2

    def of_errors(e2, e1, seen):
        return 0.5 * e2**2 + 0.5 * e1**2 + 0.5 * ((seen - e2 - e2.exp() * e1) / 0.5) ** 2

    x = torch.tensor([[1.5], [-0.7]], dtype=DOUBLE)
    states, errors = (inference.infer(scaled, x, "map", space=space, steps=500, lr=0.1) for space in ("states", "errors"))
    for image, seen in enumerate(x.flatten()):
        z2, e = lowest(of_states, seen), lowest(of_errors, seen)
        expected = {"states": z2, "errors": torch.stack([e[0], e[0] + e[0].exp() * e[1]])}
        for space, posterior in (("states", states), ("errors", errors)):
            mode = torch.stack([posterior.samples[site][0, 0, image] for site in ("z2", "z1")])
            torch.testing.assert_close(mode, expected[space], atol=1e-4, rtol=0)
        assert (expected["states"] - expected["errors"]).abs().max() > 0.2
    assert (states.stats["log_joint"] > errors.stats["log_joint"] + 0.05).all()  # the density of the values is highest at its own mode


def test_the_program_draws_what_the_model_draws():
    model = network("tanh")
    program = ErrorSpace(model, random(2, 2, 3))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        mine, theirs = program(None, size=4000).flatten(1), model(None, size=4000).flatten(1)
    error = (mine.var(0) / 4000 + theirs.var(0) / 4000).sqrt()
    assert ((mine.mean(0) - theirs.mean(0)) / error).abs().max() < 4
    ratio = mine.T.cov() - theirs.T.cov()
    assert ratio.abs().max() < 8 * theirs.var(0).max() / 4000**0.5
