"""Latents that move along the gradient of the log density, with and without noise, against closed forms of linear networks."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import inference
import zoo
from inference.gradient_dynamics import ascend, stable_step
from inference.mcmc.diagnostics import ess
from inference.mcmc.target import Target
from zoo.density import counting
from zoo.error_space import ErrorSpace
from zoo.oracles import linear_chain

DOUBLE = torch.float64


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def network(**options):
    return linear_chain((4, 3), (1, 2, 3), 0.6, **{"level_scale": (0.8, 1.2), "orthogonal": False, "seed": 2} | options).double()


def off(posterior, means):
    return max((posterior.samples[name][0, 0] - mean).abs().max().item() for name, mean in means.items())


def stacked(values):
    return torch.cat(list(values.values()), -1)


@pytest.mark.parametrize("space", ["states", "errors"])
@pytest.mark.parametrize(("optimizer", "steps"), [("gradient", 250), ("adam", 300)])
def test_the_dynamics_end_at_the_posterior_mean(space, optimizer, steps):
    model, x = network(), random(5, 1, 2, 3)
    means, _ = model.posterior(x)
    posterior = inference.infer(model, x, "map", space=space, optimizer=optimizer, steps=steps)
    assert off(posterior, means) < 1e-5
    torch.testing.assert_close(posterior.stats["log_joint"], -model.minimum_energy(x).detach())
    assert posterior.stats["slope"].max() < 1e-4


def test_a_step_is_the_equation_of_predictive_coding():
    model, x, lr = network(), random(5, 1, 2, 3), 0.05
    top, first = (part.weight.detach() for part in reversed(model.maps))
    z2, z1 = torch.zeros(5, 3, dtype=DOUBLE), torch.zeros(5, 4, dtype=DOUBLE)
    slope = None
    for _ in range(7):
        e0, e1, e2 = (x.flatten(1) - z1 @ first.T) / 0.36, (z1 - z2 @ top.T) / 0.64, z2 / 1.44
        slope = torch.cat([e1 @ top - e2, e0 @ first - e1], 1)
        z2, z1 = z2 + lr * (e1 @ top - e2), z1 + lr * (e0 @ first - e1)
    posterior = inference.infer(model, x, "map", optimizer="gradient", lr=lr, steps=7)
    torch.testing.assert_close(posterior.samples["z1"][0, 0], z1)
    torch.testing.assert_close(posterior.samples["z2"][0, 0], z2)
    e0, e1, e2 = (x.flatten(1) - z1 @ first.T) / 0.36, (z1 - z2 @ top.T) / 0.64, z2 / 1.44
    after = torch.cat([e1 @ top - e2, e0 @ first - e1], 1)
    torch.testing.assert_close(posterior.stats["slope"], after.norm(dim=-1))
    assert (after - slope).abs().max() > 1e-2  # not the slope before the last step


def test_the_way_uphill_is_told_moment_by_moment():
    model, x = network(), random(3, 1, 2, 3)
    for optimizer, options in (("gradient", {"lr": 0.05}), ("adam", {"lr": 0.05}), ("gradient", {})):
        target = Target(model, x)
        with counting() as cost:
            moments = list(ascend(target, torch.zeros(3, 7, dtype=DOUBLE), steps=40, optimizer=optimizer, **options))
        assert len(moments) == 41 and cost.gradients == 3 * (41 + (0 if options else 61))  # to find a step size costs 1 + 2 · 30
        energies = torch.stack([moment.value for moment in moments])
        for moment in moments[::10]:
            z2, z1 = moment.u.split([3, 4], -1)
            torch.testing.assert_close(moment.value, inference.log_joint(model, {"z2": z2, "z1": z1}, x).detach())
            torch.testing.assert_close(moment.gradient, -(moment.u - stacked(model.posterior(x)[0])).detach() @ model.precision().detach())
        assert (energies[1:] >= energies[:-1] - 1e-12).all() if optimizer == "gradient" else (energies[-1] > energies[0]).all()


def test_adams_steps_fall_to_zero_only_if_asked():
    target, start = Target(network(), random(2, 1, 2, 3)), torch.zeros(2, 7, dtype=DOUBLE)
    falling, steady = (torch.stack([m.u for m in ascend(target, start, steps=30, decay=decay)]) for decay in (True, False))
    torch.testing.assert_close(falling[1], steady[1])
    assert (falling[1] - falling[0]).abs().max() == pytest.approx(0.1, rel=1e-3)  # Adam's first step is its learning rate
    assert (falling[-1] - falling[-2]).abs().max() < 0.01 * (falling[1] - falling[0]).abs().max()
    assert (start == 0).all()  # where it starts is left alone


def test_the_stable_step_is_one_over_the_largest_curvature():
    model, x = network(), random(3, 1, 2, 3)
    for space, program in (("states", model), ("errors", ErrorSpace(model, x))):
        step = stable_step(Target(program, x), random(3, 7), iterations=300)
        torch.testing.assert_close(step, (1.0 / model.curvatures(space)[1]).detach().expand(3, 1))
    largest = model.curvatures()[1].item()
    for factor, converges in ((1.9, True), (2.1, False)):  # twice that is the border
        first, *_, last = ascend(Target(model, x), random(3, 7), steps=100, lr=factor / largest, optimizer="gradient")
        assert (last.slope < 0.2 * first.slope).all() if converges else (last.slope > 10 * first.slope).all()


def test_every_image_may_have_a_step_size_of_its_own():
    model, x = network(), random(2, 1, 2, 3)
    steps = torch.tensor([[0.02], [0.08]], dtype=DOUBLE)
    start = random(2, 7)
    *_, last = ascend(Target(model, x), start, steps=5, lr=steps, optimizer="gradient")
    for image in range(2):
        *_, alone = ascend(Target(model, x[[image]]), start[[image]], steps=5, lr=steps[image].item(), optimizer="gradient")
        torch.testing.assert_close(last.u[[image]], alone.u)


def test_settings_out_of_range_are_refused():
    target, start = Target(network(), random(2, 1, 2, 3)), torch.zeros(2, 7, dtype=DOUBLE)
    for options, words in (({"optimizer": "newton"}, "unknown optimizer 'newton'"), ({"steps": -1}, "must not be negative"),
                           ({"lr": 0.0}, "lr positive"), ({"lr": math.inf}, "lr positive")):
        with pytest.raises(ValueError, match=words):
            next(ascend(target, start, **{"steps": 3} | options))
    model, x = network(), random(2, 1, 2, 3)
    for options, words in (({"space": "volts"}, "'states' or 'errors'"), ({"start": "zero"}, "'prior' or 'guide'"),
                           ({"start": "guide"}, "needs a guide"), ({"starts": 0}, "at least 1"),
                           ({"optimizer": "gradient", "lr": 50.0, "steps": 2000}, "smaller steps")):
        with pytest.raises(ValueError, match=words):
            inference.infer(model, x, "map", **options)


def test_of_several_ascents_the_highest_summit_is_taken():
    model = zoo.build("predictive_coding", (2, 2), levels=(3, 2), activation="tanh", scale=0.1, gain=3.0).double()
    x = random(6, 2, 2)
    one, many = (inference.infer(model, x, "map", starts=starts).stats["log_joint"] for starts in (1, 8))
    assert (many > one - 1e-6).all() and (many > one + 0.1).any()


# -- depth

@pytest.mark.parametrize(("depth", "states", "errors"), [(3, 3.0, 3.0), (10, 39.86, 10.0), (30, 364.09, 30.0)])
def test_condition_numbers_of_orthogonal_networks_grow_slower_in_error_space(depth, states, errors):
    model = linear_chain((3,) * (depth - 1), (1, 1, 3), seed=depth).double()  # depth counts the image
    for space, expected in (("states", states), ("errors", errors)):
        smallest, largest = (value.item() for value in model.curvatures(space))
        assert largest / smallest == pytest.approx(expected, rel=1e-4)
    angle = math.pi / depth
    assert (1 + math.cos(angle)) / (1 - math.cos(angle)) == pytest.approx(states, rel=1e-4)  # of the second difference, its closed form


def test_depth_slows_the_dynamics_of_states_more_than_those_of_errors():
    model = linear_chain((2,) * 9, (1, 1, 2), seed=1).double()
    x = random(2, 1, 1, 2)
    lowest, needed = model.minimum_energy(x).detach(), {}
    for space in ("states", "errors"):
        program = ErrorSpace(model, x) if space == "errors" else model
        lr = 2.0 / sum(model.curvatures(space)).item()
        moments = ascend(Target(program, x), torch.zeros(2, 18, dtype=DOUBLE), steps=300, lr=lr, optimizer="gradient")
        excess = torch.stack([-moment.value for moment in moments]) - lowest  # at scales of 1 both spaces have the same density
        needed[space] = int((excess / excess[0] < 2.3e-7).all(1).nonzero()[0])
    assert needed == {"states": 138, "errors": 39}


# -- Langevin dynamics

def covariance_with_errors(samples):
    """Covariances ``(N, K, K)`` of draws ``(C, S, N, K)`` and standard errors by the effective number of the products."""
    centred = samples - samples.mean((0, 1))
    products = centred.unsqueeze(-1) * centred.unsqueeze(-2)
    return products.mean((0, 1)), products.flatten(0, 1).std(0) / ess(products.flatten(-2)).unflatten(-1, products.shape[-2:]).sqrt()


def test_mala_draws_from_the_posterior_of_every_image():
    model, x = network(), random(3, 1, 2, 3)
    means, covariance = model.posterior(x)
    run = inference.infer(model, x, "mcmc", sampler="mala", draws=150, chains=32, warmup=150)
    samples = torch.cat([run.samples[name] for name in model.latents], -1)
    mean_error = samples.flatten(0, 1).std(0) / ess(samples).sqrt()
    assert ((samples.mean((0, 1)) - stacked(means)) / mean_error).abs().max() < 4
    found, error = covariance_with_errors(samples)
    assert ((found - covariance) / error).abs().max() < 4
    assert error.max() < 0.15 * covariance.diagonal().max()  # and a wrong one would be seen
    assert (run.stats["accepted"] - 0.574).abs().max() < 0.15


def test_unadjusted_langevin_is_biased_as_its_step_size_says():
    model, x = network(), random(3, 1, 2, 3)
    precision, size = model.precision().detach(), 0.6  # a step of size ε moves by ε² / 2 times the gradient: lr = ε² / 2
    lr = 0.5 * size**2
    run = inference.infer(model, x, "mcmc", sampler="langevin", step_size=size, draws=150, chains=64, warmup=50)
    samples = torch.cat([run.samples[name] for name in model.latents], -1)
    expected = torch.linalg.inv(precision @ (torch.eye(7, dtype=DOUBLE) - 0.5 * lr * precision))
    found, error = covariance_with_errors(samples)
    assert ((found - expected) / error).abs().max() < 4
    assert ((found - torch.linalg.inv(precision)) / error).abs().max() > 8


@pytest.mark.parametrize(("lr", "variance"), [(0.02, 0.2105), (0.1, 0.2667), (0.2, 0.4)])
def test_the_toy_of_monte_carlo_predictive_coding(lr, variance):
    model = zoo.build("predictive_coding", (1,), levels=(1,), bias=False, scale=1.0).double()
    with torch.no_grad():
        model.top.fill_(0.2)
        model.maps[0].weight.fill_(2.0)
    x = torch.ones(1, 1, dtype=DOUBLE)
    means, covariance = zoo.oracles.LinearChain.of(model).posterior(x)
    assert means["z1"].item() == pytest.approx(0.44) and covariance.item() == pytest.approx(0.2)
    assert variance == pytest.approx(0.2 / (1 - lr * 5 / 2), abs=1e-4)  # 1 / (λ (1 - lr λ / 2)) at λ = 5
    run = inference.infer(model, x, "mcmc", sampler="langevin", step_size=math.sqrt(2 * lr), draws=300, chains=200, warmup=100)
    samples = run.samples["z1"]
    found, error = covariance_with_errors(samples)
    assert abs(found - variance) < 4 * error and error < 0.02 * variance
    assert abs(samples.mean() - 0.44) < 4 * (found / ess(samples)).sqrt()


def test_a_step_size_that_was_found_never_steps_down():
    """A curvature that grows on the way, of a bright image under exp(z): a fixed stable step of the start would run away."""

    def program(x=None, size=None):
        with pyro.plate("data", len(x) if x is not None else size):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z.exp(), 0.1).to_event(1), obs=x)

    x = torch.tensor([[1.5], [30.0], [0.2]])
    target = Target(program, x, of_values=True)
    values = torch.stack([moment.value for moment in ascend(target, torch.zeros(3, 1), steps=400, optimizer="gradient")])
    assert values.isfinite().all() and (values.diff(dim=0) >= -1e-4 * values[1:].abs().clamp(min=1.0)).all()
    exact = inference.infer(program, x, "map", steps=2000).stats["log_joint"]
    torch.testing.assert_close(values[-1], exact, rtol=1e-3, atol=1e-2)
    with pytest.warns(RuntimeWarning, match="the ascents of 1 of 3 images, image 1 among them"):
        inference.infer(program, x, "map", optimizer="gradient", lr=0.009, steps=50)


def test_modes_are_found_where_supports_depend_on_other_latents():
    """Against a fine grid; where the mode lies on the border the ascent comes near it."""

    def program(x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            a = pyro.sample("a", dist.LogNormal(0.0, 0.5))
            b = pyro.sample("b", dist.Uniform(torch.zeros_like(a), a))
            return pyro.sample("x", dist.Normal(torch.stack([a, b], dim=-1), 0.2).to_event(1), obs=x)

    x = torch.tensor([[1.0, 0.4], [2.0, 1.5], [0.8, 0.2], [1.2, 2.5]])
    found = inference.infer(program, x, "map", steps=600)
    a, b = (found.samples[name][0, 0] for name in "ab")
    a_grid, share = torch.linspace(0.05, 4.0, 2000)[:, None], torch.linspace(0.001, 1.0, 1000)
    density = [(dist.LogNormal(0.0, 0.5).log_prob(a_grid) - a_grid.log() + dist.Normal(a_grid, 0.2).log_prob(image[0])
                + dist.Normal(a_grid * share, 0.2).log_prob(image[1])).max() for image in x]
    assert ((b > 0) & (b <= a)).all()
    short = torch.stack(density) - found.stats["log_joint"]
    assert short[:3].abs().max() < 1e-3 and -1e-3 < short[3] < 0.5
