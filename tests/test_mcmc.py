"""Samplers against closed forms, quadrature and enumeration, in Monte-Carlo standard errors; each law must stay, and fail once broken."""

import math

import my_prior
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import guides
import inference
import zoo
from inference import infer, log_joint
from inference.mcmc import gibbs as gibbs_module
from inference.mcmc import hmc as hmc_module
from inference.mcmc.diagnostics import ess, rhat
from inference.mcmc.gibbs import can_sweep, gibbs, sweeps
from inference.mcmc.hmc import hmc, leapfrog
from inference.mcmc.target import Target
from zoo.latents.categorical import Categorical
from zoo.latents.poisson import Poisson
from zoo.networks.lin import LinearDecoder
from zoo.oracles import Enumerable, enumerable_poisson, fixture_image, linear_gaussian, mixture, poisson_fixture

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def errors(values, expected):
    """How many standard errors the means ``(…)`` of draws ``(C, S, …)`` are from what is expected.

    The greater of two estimates: from effective sample sizes (of ranks, so too good for long tails), and from the chains' means.
    """
    values = values.double()
    by_ess, by_chains = values.flatten(0, 1).std(0) / ess(values).sqrt(), values.mean(1).std(0) / math.sqrt(len(values))
    return (values.mean((0, 1)) - expected).abs() / torch.maximum(by_ess, by_chains)


def with_gradient(log_prob):
    """What :func:`hmc` moves in, of a log density ``(C, N, K) -> (C, N)``."""

    def density(u):
        with torch.enable_grad():
            u = u.detach().requires_grad_(True)
            value = log_prob(u)
            return value.detach(), torch.autograd.grad(value.sum(), u)[0]

    return density


def always_accept(monkeypatch):
    monkeypatch.setattr(torch, "rand_like", torch.zeros_like)


# -- Hamiltonian Monte Carlo on densities in closed form

@pytest.mark.parametrize(("size", "condition", "steps"),
                         [(1, 1.0, None), (3, 100.0, None), (10, 30.0, None), (3, 4.0, 1.0), (6, 10.0, 5.0)])
def test_normals_of_every_size_and_a_scale_of_its_own_in_each_image(size, condition, steps):
    n, scale = 5, torch.logspace(-2, 2, 5, dtype=DOUBLE)
    turn = torch.linalg.qr(torch.randn(n, size, size, dtype=DOUBLE))[0]
    covariance = turn * torch.logspace(0, math.log10(condition), size, dtype=DOUBLE) @ turn.mT * scale.square()[:, None, None]
    mean, precision = 3 * scale[:, None] * torch.randn(n, size, dtype=DOUBLE), torch.linalg.inv(covariance)

    def density(u):
        gradient = -((u - mean)[..., None, :] @ precision).squeeze(-2)
        return 0.5 * ((u - mean) * gradient).sum(-1), gradient

    run = hmc(density, torch.randn(16, n, size, dtype=DOUBLE), 200, warmup=400 if steps == 1.0 else 200, steps=steps,
              thin=4 if steps == 1.0 else 1)
    away = run.states - mean
    assert errors(run.states, mean).max() < 4
    assert errors(away[..., :, None] * away[..., None, :], covariance).max() < 4.5, "up to 2,000 numbers"
    assert (run.accepted > 0.5).all() and (run.divergences == 0).all()


def logs_of_four(u):
    """Log densities of four images, ``(…, 4)``: Laplace; logistic; a banana; Neal's funnel, non-centred, with one observation."""
    a, b = u.unbind(-1)
    laplace = -(a[..., 0].abs() + b[..., 0].abs() / 0.3)
    logistic = -sum(v[..., 1] + 2 * torch.nn.functional.softplus(-v[..., 1]) for v in (a, b))
    banana = -0.5 * a[..., 2].square() - 0.5 * (b[..., 2] - 0.5 * a[..., 2].square()).square()
    funnel = -0.5 * (a[..., 3].square() + b[..., 3].square() + ((1.5 - (a[..., 3] / 2).exp() * b[..., 3]) / 0.5).square())
    return torch.stack([laplace, logistic, banana, funnel], -1)


def features(u):
    a, b = u.unbind(-1)
    return torch.stack([a, b, a.square(), b.square(), a * b, (a.abs() < 0.72).to(a), (b < 0.4).to(a)], -1)


@pytest.mark.parametrize(("steps", "thin"), [(None, 1), (4.0, 1), (1.0, 5)])
def test_a_target_of_its_own_in_each_image_agrees_with_quadrature(steps, thin):
    line = torch.arange(-16, 16, 0.08, dtype=DOUBLE) + 0.04  # midpoints
    grid = torch.cartesian_prod(line, line)[:, None]
    weights = logs_of_four(grid.expand(-1, 4, -1)).softmax(0)
    expected = torch.einsum("gn,gf->nf", weights, features(grid[:, 0]))
    run = hmc(with_gradient(logs_of_four), torch.randn(64, 4, 2, dtype=DOUBLE), 150, warmup=150, steps=steps, thin=thin)
    assert errors(features(run.states), expected).max() < 4


@pytest.mark.parametrize("broken", [False, True])
def test_a_bad_step_leaves_the_law_as_it_is_unless_all_is_accepted(broken, monkeypatch):
    def banana(u):
        a, b = u.unbind(-1)
        away = (b - a.square() + 1) / 0.5
        return -0.5 * (a.square() + away.square()), torch.stack([-a + 4 * a * away, -2 * away], -1)

    a, noise = torch.randn(2, 6000, 2, dtype=DOUBLE)
    exact = torch.stack([a, a.square() - 1 + 0.5 * noise], -1)
    monkeypatch.setattr(hmc_module, "first_step", lambda *_: torch.tensor([0.35, 0.2], dtype=DOUBLE))
    if broken:
        always_accept(monkeypatch)
    run = hmc(banana, exact, 1, warmup=0, steps=3.0, thin=4)
    a, b = run.last.unbind(-1)
    p_values = [stats.kstest(v[:, i].numpy(), "norm").pvalue for v in (a, (b - a.square() + 1) / 0.5) for i in range(2)]
    assert ((run.accepted > 0.3) & (run.accepted < 0.97)).all(), run.accepted
    assert min(p_values) < 1e-9 if broken else min(p_values) > 1e-3, p_values


def quartic(u):
    """A density that is not Normal, and couples its coordinates; gradient by hand, so that it can be differentiated again."""
    total = u.sum(-1, keepdim=True)
    return -(u**4).sum(-1) / 4 - 0.5 * total.squeeze(-1).square(), -(u**3) - total


def test_leapfrog_is_reversible_keeps_volume_and_is_of_second_order():
    u, momentum = torch.randn(2, 4, 2, 3, dtype=DOUBLE)
    step, scale = torch.tensor([[0.1], [0.05]], dtype=DOUBLE), torch.rand(2, 3, dtype=DOUBLE) + 0.5
    end, velocity, value, gradient = leapfrog(quartic, u, momentum, quartic(u)[1], step, scale, 7)
    torch.testing.assert_close((value, gradient), quartic(end))
    back, returned, *_ = leapfrog(quartic, end, -velocity, gradient, step, scale, 7)
    torch.testing.assert_close((back, -returned), (u, momentum), atol=1e-10, rtol=0)

    def flow(both):
        u, momentum = both.reshape(2, 1, 2, 3)
        return torch.cat([part.flatten() for part in leapfrog(quartic, u, momentum, quartic(u)[1], step, scale, 3)[:2]])

    jacobian = torch.func.jacfwd(flow)(torch.randn(12, dtype=DOUBLE))
    assert torch.linalg.det(jacobian).item() == pytest.approx(1.0, abs=1e-10)

    def energy_error(count):
        _, velocity, value, _ = leapfrog(quartic, u, momentum, quartic(u)[1], 0.5 * torch.ones_like(step) / count, scale, count)
        return value - quartic(u)[0] - 0.5 * (velocity.square() - momentum.square()).sum(-1)

    ratio = energy_error(20) / energy_error(40)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 4.0), atol=0.2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_energies_of_many_coordinates_do_not_drown_in_rounding(dtype, monkeypatch):
    monkeypatch.setattr(hmc_module, "first_step", lambda *_: torch.full((2,), 0.1, dtype=dtype))
    pull = torch.zeros(100_000, dtype=dtype)
    pull[0] = 1.0
    run = hmc(lambda u: (u[..., 0], pull.expand_as(u)), torch.zeros(4, 2, 100_000, dtype=dtype), 2, warmup=0, steps=1.0)
    assert (run.accepted > 1 - 1e-5).all(), "leapfrog conserves the energy of a constant force exactly"
    assert {value.dtype for value in (run.states, run.log_prob, run.accepted, run.step, run.scale)} == {dtype}


def test_a_start_that_is_not_finite_names_its_image():
    start = torch.zeros(3, 4, 2)
    for bad in ((2, 2, 0), (0, 2, 1)):
        u = start.clone()
        u[bad] = math.nan
        with pytest.raises(ValueError, match=r"start of image 2 is not finite \(1 of 4 images\)"):
            hmc(lambda u: (torch.zeros(3, 4), u), u, 5)
    with pytest.raises(ValueError, match="start of image 1 is not finite"):
        hmc(lambda u: (torch.tensor([0.0, -math.inf, 0.0, 0.0]).expand(3, 4), torch.zeros_like(u)), start, 5)


def test_states_without_a_density_are_rejected_and_counted():
    wrong = torch.tensor([-math.inf, math.nan, math.inf, 0.0, 0.0])

    def density(u):  # half-Normals, but for the last image
        outside = (u < 0) & (torch.arange(5)[:, None] < 4)
        value = torch.where(outside, wrong[:, None], -0.5 * u.square()).squeeze(-1)
        return value, torch.where(outside & (torch.arange(5)[:, None] == 3), math.nan, -u)

    run = hmc(density, torch.rand(32, 5, 1), 300, warmup=100, steps=3.0)
    assert run.states.isfinite().all() and run.log_prob.isfinite().all() and (run.states[:, :, :4] >= 0).all()
    expected = torch.tensor([math.sqrt(2 / math.pi)] * 4 + [0.0], dtype=DOUBLE)
    assert errors(run.states.squeeze(-1), expected).max() < 4
    assert (run.divergences[:4] > 0).all() and run.divergences[4] == 0


def test_draws_are_what_was_asked_for():
    reports = []
    density, start = with_gradient(logs_of_four), torch.randn(3, 4, 2)

    def run(draws, thin, seed=1):
        torch.manual_seed(seed)
        return hmc(density, start, draws, warmup=30, thin=thin, report=lambda *args: reports.append(args))

    every, third, other = run(12, 1), run(4, 3), run(12, 1, seed=2)
    assert every.states.shape == (3, 12, 4, 2) and every.log_prob.shape == (3, 12, 4)
    torch.testing.assert_close(third.states, every.states[:, 2::3], atol=0, rtol=0)
    torch.testing.assert_close(third.accepted, every.accepted)
    assert torch.equal(run(12, 1).states, every.states) and not torch.equal(other.states, every.states)
    torch.testing.assert_close(every.log_prob, density(every.states)[0])
    assert torch.equal(every.last, every.states[:, -1]) and every.scale.shape == (4, 2) and every.steps >= 1
    for value in (every.accepted, every.divergences, every.step):
        assert value.shape == (4,)
    assert [done for done, *_ in reports[:42]] == list(range(1, 43)) and reports[0][1] == 42
    torch.testing.assert_close(torch.stack([chance for *_, chance in reports[30:42]]).mean(0), every.accepted)


@pytest.mark.parametrize("setting", [{"draws": 0}, {"warmup": -1}, {"thin": 0}, {"most_steps": 0}, {"accept": 1.0}, {"accept": 0.0},
                                     {"steps": 0.5}, {"steps": math.nan}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match="must be at least 1"):
        hmc(quartic, torch.zeros(2, 2, 2), **({"draws": 5} | setting))


# -- the density of a program in unconstrained coordinates

def positive(x=None, size=None):
    """A program whose latents are constrained in four ways; one is a number, one depends on another."""
    with pyro.plate("data", size if x is None else len(x)):
        like = torch.get_default_dtype() if x is None else x.dtype  # a Gamma's density has the precision of its parameters
        two, three, several = (torch.tensor(value, dtype=like) for value in (2.0, 3.0, [1.0, 2.0, 3.0]))
        spread = pyro.sample("spread", dist.Gamma(two, three))
        share = pyro.sample("share", dist.Beta(several[1:], several[:2]).to_event(1))
        mix = pyro.sample("mix", dist.Dirichlet(several))
        place = pyro.sample("place", dist.Normal(0.0, spread))
        mean = torch.stack([place + share.sum(-1), mix[..., 0] - place], -1)
        return pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)


def programs():
    flow = zoo.build("optic_flow", category="fixate-1", edge=0.02).double()
    return {"positive": (positive, torch.randn(3, 2, dtype=DOUBLE)),
            "optic_flow": (flow, flow(size=3).detach())}


@pytest.mark.parametrize("name", ["positive", "optic_flow"])
def test_density_of_a_program_is_carried_over_with_its_volume(name):
    model, x = programs()[name]
    target = Target(model, x)
    sites = {"positive": (1, 2, 2, 1), "optic_flow": (2, 3, 3, 3)}[name]
    assert target.size == sum(sites)
    u = 0.5 * torch.randn(2, 3, target.size, dtype=DOUBLE)
    values = target.constrain(u)
    torch.testing.assert_close(target.unconstrain(values), u, atol=1e-8, rtol=1e-8)

    def flat(state):  # coordinates of all sites; the last of a simplex follows from the others
        parts = target.constrain(state)
        return torch.cat([(part[..., :-1] if site == "mix" else part).reshape(-1) for site, part in parts.items()])

    volume = torch.stack([torch.linalg.slogdet(torch.autograd.functional.jacobian(flat, state))[1] for state in u.reshape(6, -1)])
    torch.testing.assert_close(target.log_volume(u), volume.reshape(2, 3))
    torch.testing.assert_close(target.log_prob(u), log_joint(model, values, x) + volume.reshape(2, 3))
    torch.testing.assert_close(sum(target.log_terms(u)), target.log_prob(u))
    value, gradient = target.value_and_grad(u)
    torch.testing.assert_close(value, target.log_prob(u).detach())
    assert not value.requires_grad and not gradient.requires_grad
    nudge = 1e-6 * torch.eye(target.size, dtype=DOUBLE)[:, None, None]
    slopes = (target.log_prob(u + nudge) - target.log_prob(u - nudge)).detach() / 2e-6
    torch.testing.assert_close(gradient, slopes.movedim(0, -1), rtol=1e-5, atol=1e-5)


def unconstrained(x=None, size=None):
    """Real-valued latents of every shape, none of which needs carrying over."""
    with pyro.plate("data", size if x is None else len(x)):
        level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=DOUBLE), 2.0))
        pair = pyro.sample("pair", dist.Normal(level[..., None].expand(*level.shape, 2), 1.0).to_event(1))
        table = pyro.sample("table", dist.Laplace(torch.zeros(2, 3, dtype=DOUBLE), 0.5).to_event(2))
        return pyro.sample("x", dist.Normal(pair + table.sum(-1), 0.5).to_event(1), obs=x)


def test_latents_that_are_real_already_are_taken_as_they_are():
    x, u = torch.randn(3, 2, dtype=DOUBLE), torch.randn(4, 3, 9, dtype=DOUBLE)
    target = Target(unconstrained, x)
    values = target.constrain(u)
    assert {name: value.shape[2:] for name, value in values.items()} == {"level": (), "pair": (2,), "table": (2, 3)}
    assert torch.equal(target.unconstrain(values), u) and torch.equal(target.log_volume(u), torch.zeros(4, 3, dtype=DOUBLE))
    expected = log_joint(unconstrained, values, x)
    torch.testing.assert_close(target.log_prob(u), expected)
    for _ in range(4):  # as it is, recorded, compared, replayed
        torch.testing.assert_close(target.value_and_grad(u)[0], expected)
    alone = Target(unconstrained, x, given={name: values[name] for name in ("level", "pair")})
    assert torch.equal(alone.constrain(u[..., 3:])["table"], values["table"])
    torch.testing.assert_close(alone.value_and_grad(u[..., 3:])[1], target.value_and_grad(u)[1][..., 3:])


def test_latents_that_are_given_are_held_fixed():
    x = torch.randn(3, 2, dtype=DOUBLE)
    every, u = Target(positive, x), torch.randn(4, 3, 6, dtype=DOUBLE)
    values = every.constrain(u)
    part = Target(positive, x, given={"mix": values["mix"], "spread": values["spread"]})
    assert part.size == 3 and list(part.shapes) == ["share", "place"]
    v = part.unconstrain(values)
    expected = log_joint(positive, values, x) + part.log_volume(v)
    torch.testing.assert_close(part.log_prob(v), expected)
    torch.testing.assert_close(every.value_and_grad(u)[1][..., [1, 2, 5]], part.value_and_grad(v)[1])


def counts_and_levels(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x)):
        spikes = pyro.sample("spikes", dist.Poisson(2.0))
        level = pyro.sample("level", dist.Normal(spikes, 1.0))
        return pyro.sample("x", dist.Normal(level[..., None], 1.0).to_event(1), obs=x)


def test_discrete_latents_are_refused_by_name_or_given():
    x = torch.zeros(3, 1)
    with pytest.raises(ValueError, match="the latent 'spikes' has the discrete support"):
        Target(counts_and_levels, x)
    with pytest.raises(ValueError, match="'hmc' moves real latents; others here are spikes"):
        infer(counts_and_levels, x, "mcmc", sampler="hmc")
    target = Target(counts_and_levels, x, given={"spikes": torch.tensor([0.0, 2.0, 4.0])})
    run = hmc(target.value_and_grad, torch.zeros(16, 3, 1), 200, warmup=100, steps=3.0)
    assert errors(run.states.squeeze(-1), torch.tensor([0.0, 1.0, 2.0])).max() < 4


def below(x=None, size=None):
    """A latent whose support depends on another latent."""
    with pyro.plate("data", size if x is None else len(x)):
        top = pyro.sample("top", dist.Gamma(2.0, 1.0))
        part = pyro.sample("part", dist.Uniform(torch.zeros_like(top), top))
        return pyro.sample("x", dist.Normal(part[..., None], 100.0).to_event(1), obs=x)


def test_a_support_that_depends_on_a_latent_is_honoured_or_refused():
    try:
        posterior = infer(below, torch.zeros(100, 1), "mcmc", draws=100, warmup=100, steps=4.0)
    except ValueError as error:
        assert "part" in str(error)  # noqa: PT017
    else:
        assert posterior.mean["top"].mean().item() == pytest.approx(2.0, abs=0.2)  # x says nothing: the prior's


def on_a_sphere(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("direction", dist.ProjectedNormal(torch.ones(3)))
        return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def shared(x=None, size=None):
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(level, 1.0))
        return pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)


def in_a_plate(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x), dim=-1):
        with pyro.plate("parts", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z.sum(-2)[..., None], 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(("model", "site", "pixels"), [(on_a_sphere, "direction", 3), (shared, "level", 1), (in_a_plate, "z", 1)])
def test_programs_that_cannot_be_sampled_are_refused_by_site(model, site, pixels):
    with pytest.raises(ValueError, match=f"'{site}'"):
        infer(model, torch.zeros(5, pixels), "mcmc", draws=10, warmup=20)


# -- Gibbs sweeps against enumeration

def enumerated(family, states, weight, prior, scale=0.7):
    """A small model with a linear decoder and images of its own, 1 × D pixels, with its exact answers."""
    pixels, units = weight.shape
    decoder = LinearDecoder(units, (1, 1, pixels))
    decoder.weight = torch.nn.Parameter(weight)
    return Enumerable(states, family, units, decoder, (1, 1, pixels), prior=prior, learn_prior=False, scale=scale)


def biased():
    model = poisson_fixture()
    model.decoder.bias = torch.nn.Parameter(torch.tensor([0.6, -1.0, 0.3]))
    return model


def uneven_noise():
    model = poisson_fixture()
    model.log_scale = torch.tensor([0.4, 1.0, 0.7]).log().reshape(1, 1, 3)
    return model


def two_groups():
    hots = torch.eye(3)
    states = torch.stack([torch.stack([a, b]) for a in hots for b in hots])
    return enumerated(Categorical(groups=2), states, 0.5 * torch.randn(4, 6), torch.randn(1, 6))  # no modes far apart


MODELS = {
    "fixture": poisson_fixture,
    "three units": lambda: enumerable_poisson(torch.randn(4, 3), torch.tensor([0.3, 1.0, 2.0]), scale=0.8, max_count=20),
    "bias": biased,
    "noise of each pixel": uneven_noise,
    "large counts": lambda: enumerable_poisson(torch.tensor([[0.3], [0.1]]), torch.tensor([300.0]), max_count=700),
    "negative binomial": lambda: enumerated(my_prior.NegativeBinomial(1.5), torch.cartesian_prod(*[torch.arange(60.0)] * 2),
                                            0.5 * torch.randn(3, 2), torch.tensor([[1.0, 2.0]]).log()),
    "a unit that shows nothing": lambda: enumerable_poisson(torch.tensor([[1.0, 0.0]]), torch.tensor([0.5, 2.0]), max_count=25),
    "mixture": mixture,
    "ten categories": lambda: mixture(10, (1, 1, 3)),
    "two groups": two_groups,
}


def images(model, count):
    with torch.no_grad():
        return model(size=count)


def deviation(model, probabilities, z):
    """p-value of chi² of independent states ``(C, *event)`` of one image against their probabilities ``(M,)``."""
    index = (z.flatten(1)[:, None] == model.states.flatten(1)).all(-1).to(torch.uint8).argmax(1)
    expected, seen = probabilities * len(z), torch.bincount(index, minlength=len(probabilities)).double()
    common = expected > 5
    expected, seen = (torch.cat([v[common], v[~common].sum()[None]]) for v in (expected, seen))
    seen, expected = (seen, expected) if expected[-1] > 1 else (seen[:-1], expected[:-1])
    if len(seen) < 2:
        return 1.0
    return stats.chisquare(seen.numpy(), (expected * seen.sum() / expected.sum()).numpy()).pvalue


@pytest.mark.parametrize("beta", [1.0, 0.4])
@pytest.mark.parametrize("name", MODELS)
def test_one_sweep_leaves_the_exact_law_as_it_is(name, beta):
    model = MODELS[name]()
    x = images(model, 3)
    with torch.no_grad():
        model.log_scale -= 0.5 * math.log(beta)  # a likelihood to the power β is one of variance σ² / β
        probabilities = model.posterior_probabilities(x)
        model.log_scale += 0.5 * math.log(beta)
    exact = torch.multinomial(probabilities, 2000, replacement=True).T  # (C, N)
    sweep, residual = sweeps(model, x)
    z = model.states[exact]
    with torch.no_grad():
        rest = residual(z)
        sweep(z, rest, beta)
        torch.testing.assert_close(rest, residual(z), atol=1e-4, rtol=1e-4, msg="the residual follows")
    assert not torch.equal(z, model.states[exact])
    p_values = [deviation(model, probabilities[i], z[:, i]) for i in range(3)]
    assert min(p_values) > 1e-4, p_values


def test_a_wrong_conditional_does_not_leave_the_law_as_it_is(monkeypatch):
    right = gibbs_module._draw
    monkeypatch.setattr(gibbs_module, "_draw", lambda logits: right(0.8 * logits))
    for name in ("fixture", "ten categories"):
        with pytest.raises(AssertionError, match=r"e-\d"):
            test_one_sweep_leaves_the_exact_law_as_it_is(name, 1.0)


@pytest.mark.parametrize("name", MODELS)
def test_sweeps_find_the_posterior_from_afar(name):
    model = MODELS[name]()
    x = images(model, 3)
    start = model.states[torch.randint(len(model.states), (1000, 3))]  # so that the chains' last states are independent
    states, log_joints = gibbs(model, x, start, 2, warmup=30)
    probabilities = model.posterior_probabilities(x).detach()
    p_values = [deviation(model, probabilities[i], states[:, -1, i]) for i in range(3)]
    assert min(p_values) > 1e-4, p_values
    torch.testing.assert_close(log_joints, log_joint(model, {"z": states}, x).detach())


def test_the_fixture_has_its_known_numbers():
    reports, start = [], torch.full((100, 1, 2), 20.0)
    states, _ = gibbs(poisson_fixture(), fixture_image(), start, 300, warmup=20, report=lambda *args: reports.append(args))
    z = states[:, :, 0]
    mean = torch.tensor([0.650267, 0.248782])
    assert errors(z, mean).max() < 4
    away = z - mean
    expected = torch.tensor([[0.311883, 0.056873], [0.056873, 0.190917]])
    assert errors(away[..., :, None] * away[..., None, :], expected).max() < 4
    for state, probability in (((0, 0), 0.338358), ((1, 0), 0.395819), ((1, 1), 0.169274)):
        assert errors((z == torch.tensor(state)).all(-1).double(), probability) < 4
    assert reports[0] == (1, 320) and reports[-1] == (320, 320) and len(reports) == 320


def test_counts_are_looked_at_as_far_as_the_likelihood_pulls():
    model = enumerable_poisson(torch.ones(1, 1), torch.tensor([0.5]), scale=0.5, max_count=80)
    x = torch.tensor([45.0, 0.0]).reshape(2, 1, 1, 1)  # far beyond what the prior expects, and not
    states, _ = gibbs(model, x, torch.zeros(2000, 2, 1), 1, warmup=0)  # of one unit, a sweep is a draw of the posterior
    probabilities = model.posterior_probabilities(x).detach()
    assert all(deviation(model, probabilities[i], states[:, 0, i]) > 1e-3 for i in range(2))
    with pytest.raises(ValueError, match="count of unit 0 may be above 10000"):
        gibbs(model, torch.full((1, 1, 1, 1), 1e5), torch.zeros(1, 1, 1), 1)


def test_thinned_sweeps_are_every_nth_and_seeds_decide():
    model, x = MODELS["three units"](), torch.randn(2, 1, 1, 4)
    start = torch.zeros(3, 2, 3)

    def run(draws, thin, seed=1):
        torch.manual_seed(seed)
        return gibbs(model, x, start, draws, warmup=2, thin=thin)[0]

    every, third = run(12, 1), run(4, 3)
    assert torch.equal(every[:, 2::3], third) and torch.equal(run(12, 1), every) and not torch.equal(run(12, 1, seed=2), every)
    assert every.shape == (3, 12, 2, 3) and (start == 0).all()


def test_what_has_no_conditionals_is_refused():
    nonlinear = zoo.build("poisson", (1, 3, 3), latents=4, decoder="mlp")
    for model in (nonlinear, zoo.build("gaussian", (1, 3, 3), latents=4), counts_and_levels):
        assert not can_sweep(model)
        with pytest.raises(ValueError, match="one-layer model of counts or one-hots with a linear decoder"):
            gibbs(model, torch.zeros(2, 1, 3, 3), torch.zeros(1, 2, 4), 1)
    with pytest.raises(ValueError, match="one-layer model of counts or one-hots with a linear decoder"):
        infer(nonlinear, torch.zeros(2, 1, 3, 3), "mcmc", sampler="gibbs")


class Compressed(Poisson):
    """Counts that the decoder sees through a square root."""

    def code(self, z):
        return z.sqrt()


def test_counts_that_are_coded_are_sampled_rightly_or_refused():
    model = enumerated(Compressed(), poisson_fixture().states, poisson_fixture().decoder.weight.detach(), poisson_fixture().prior, 0.3)
    if can_sweep(model):
        states, _ = gibbs(model, fixture_image(), torch.zeros(100, 1, 2), 200, warmup=20)
        assert errors(states.sqrt().double(), model.posterior_moments(fixture_image())[0]).max() < 4


class UpToThree(zoo.latents.Family):
    parameters = ("logits",)

    def distribution(self, params):
        return dist.Binomial(3, logits=params.squeeze(-2)).to_event(1)


def test_counts_with_a_greatest_value_are_sampled_rightly_or_refused():
    model = enumerated(UpToThree(), torch.cartesian_prod(*[torch.arange(4.0)] * 2), 0.5 * torch.randn(3, 2), torch.zeros(1, 2))
    if can_sweep(model):
        x = images(model, 3)
        states, _ = gibbs(model, x, torch.zeros(100, 3, 2), 200, warmup=20)
        assert errors(states.double(), model.posterior_moments(x)[0]).max() < 4


def test_counts_beyond_the_greatest_that_is_looked_at_are_not_cut_off():
    model = enumerable_poisson(torch.ones(1, 1), torch.tensor([20_000.0]), max_count=1)
    try:
        states, _ = gibbs(model, torch.full((1, 1, 1, 1), 20_000.0), torch.full((2, 1, 1), 20_000.0), 5)
    except ValueError:
        return
    assert (states > 19_000).all()


def test_units_that_hardly_show_cost_no_more_than_others(monkeypatch):
    widths, right = [], gibbs_module._draw
    monkeypatch.setattr(gibbs_module, "_draw", lambda logits: widths.append(logits.shape[-1]) or right(logits))
    model = enumerable_poisson(torch.tensor([[1.0, 1e-4]]), torch.tensor([0.5, 0.5]))
    gibbs(model, torch.full((2, 1, 1, 1), 3.0), torch.zeros(4, 2, 2), 2)
    assert max(widths) < 500, widths


# -- the method

def test_exact_answers_are_found_by_name(unchanged_generator):
    for model in (linear_gaussian(4, (1, 2, 3)), poisson_fixture(), mixture()):
        x = images(model, 8)
        linear = not hasattr(model, "posterior_moments")
        with unchanged_generator():
            posterior = infer(model, x, "mcmc", draws=200, chains=8, warmup=100, steps=4.0 if linear else None)
        mean, covariance = model.posterior(x) if linear else model.posterior_moments(x)
        variance = covariance.diagonal(dim1=-2, dim2=-1).expand_as(mean)
        z = posterior.samples["z"]
        assert z.shape[:3] == (8, 200, 8) and not z.requires_grad
        moving = (z.flatten(0, 1).amin(0) != z.flatten(0, 1).amax(0)) & (variance * 1600 > 10)
        assert errors(z, mean.detach())[moving].max() < 4 and errors((z - mean).square(), variance.detach())[moving].max() < 4.5
        stats_ = posterior.stats
        assert {"rhat", "ess", "log_joint"} <= set(stats_) and all(value.shape == (8,) for value in stats_.values())
        assert linear == ("accepted" in stats_) == ("divergences" in stats_) == ("step_size" in stats_)
        moved = moving.any(1)
        assert (stats_["rhat"][moved] < 1.1).all() and (stats_["ess"][moved] > 200).all()
        recomputed = log_joint(model, posterior.samples, x).mean((0, 1)).detach()
        torch.testing.assert_close(stats_["log_joint"], recomputed, rtol=1e-4, atol=1e-4)
        assert posterior.method == "mcmc" and posterior.cost["evaluations"] >= 8 * 300
        assert (posterior.cost["gradient_evaluations"] > 8 * 300) == linear


def test_a_plain_program_of_constrained_latents():
    def program(x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            mix = pyro.sample("mix", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
            pyro.sample("word", dist.Multinomial(10, mix, validate_args=False), obs=None if x is None else x[:, 1:])
            return pyro.sample("x", dist.Poisson(rate[..., None]).to_event(1), obs=None if x is None else x[:, :1])

    x = torch.tensor([[0.0, 10, 0, 0], [3, 2, 3, 5], [9, 0, 0, 10]])
    posterior = infer(program, x, "mcmc", draws=200, chains=8, warmup=150, steps=3.0)
    assert posterior.samples["rate"].shape == (8, 200, 3) and posterior.samples["mix"].shape == (8, 200, 3, 3)
    gamma = dist.Gamma(2.0 + x[:, 0], 2.0)
    dirichlet = dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0]) + x[:, 1:])  # both are conjugate
    torch.testing.assert_close(posterior.stats["log_joint"], log_joint(program, posterior.samples, x).mean((0, 1)))
    every = torch.cat([posterior.samples["rate"][..., None], posterior.samples["mix"]], -1)
    torch.testing.assert_close(posterior.stats["rhat"], rhat(every).amax(-1).float())
    torch.testing.assert_close(posterior.stats["ess"], ess(every).amin(-1).float())
    for name, law in (("rate", gamma), ("mix", dirichlet)):
        draws = posterior.samples[name]
        assert errors(draws, law.mean).max() < 4 and errors((draws - law.mean).square(), law.variance).max() < 4.5


def test_chains_start_where_they_are_told():
    def wide(x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z, 100.0).to_event(1), obs=x)

    class Far(torch.nn.Module):
        def forward(self, x):
            with pyro.plate("data", len(x)):
                return {"z": pyro.sample("z", dist.Normal(torch.full((2,), 50.0), 0.1).to_event(1))}

    x, quick = torch.zeros(3, 2), {"draws": 1, "warmup": 0, "steps": 1.0, "chains": 3}
    first = {start: infer(wide, x, "mcmc", guide=Far(), start=start, **quick).samples["z"] for start in (None, "guide", "prior")}
    assert (first[None] > 30).all() and torch.equal(first[None], first["guide"]) and (first["prior"].abs() < 10).all()
    assert (infer(wide, x, "mcmc", **quick).samples["z"].abs() < 10).all()
    for options, words in (({"start": "guide"}, "needs a guide"), ({"start": "summit"}, "guide, prior, map"), ({"chains": 0}, "chains"),
                           ({"thin": 0}, "thin"), ({"warmup": -1}, "warmup"), ({"accept": 2.0}, "accept"), ({"walkers": 3}, "walkers")):
        with pytest.raises(ValueError, match=words):
            infer(wide, x, "mcmc", **options)


@pytest.mark.parametrize("setting", [{"thin": 0}, {"warmup": -2}])
def test_settings_of_sweeps_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        infer(poisson_fixture(), fixture_image(), "mcmc", draws=4, **setting)


def test_an_image_of_which_nothing_moves_has_no_diagnostics():
    model = enumerable_poisson(torch.ones(3, 2), torch.tensor([1e-9, 1e-9]))
    posterior = infer(model, torch.zeros(2, 1, 1, 3), "mcmc", draws=10, warmup=5)
    assert (posterior.samples["z"] == 0).all()
    assert posterior.stats["rhat"].isnan().all() and posterior.stats["ess"].isnan().all()


@pytest.mark.parametrize("name", ["linear_gaussian", "poisson_fixture", "mixture"])
def test_its_posterior_is_stored_and_scored_like_others(name, tmp_path):
    import arviz

    model = zoo.build(name)
    x = images(model, 5)
    posterior = infer(model, x, "mcmc", guide=guides.build("amortized", model, encoder="lin"), draws=20, warmup=30)
    stored = arviz.from_netcdf(posterior.to_netcdf(tmp_path / "chains.nc"))
    assert torch.equal(torch.as_tensor(stored.posterior["z"].values), posterior.samples["z"])
    for statistic, value in posterior.stats.items():
        found = torch.as_tensor(stored.sample_stats[statistic].values[0, 0])
        torch.testing.assert_close(found, value.to(found.dtype), equal_nan=True)
    values = inference.score(model, x, posterior).values
    with torch.no_grad():
        squares = (model.decode(posterior.samples) - x).square().flatten(3).sum(-1).mean()
    assert values["mse"] == pytest.approx(squares.item(), rel=1e-4)
    assert values["gradient_evaluations"] == posterior.cost["gradient_evaluations"]
    assert math.isnan(values["kl"]) and math.isnan(values["log_px_bound"])


# -- simulation-based calibration

def calibration(model, count=500, **options):
    """p-values of the truth's ranks among draws, of each number of the code and of the log joint density (Talts et al. 2018)."""
    program = pyro.poutine.trace(model).get_trace(None, size=count)
    truth, x = program.nodes["z"]["value"].detach(), program.nodes["x"]["value"].detach()
    posterior = infer(model, x, "mcmc", **options)
    draws = posterior.samples["z"].flatten(0, 1).flatten(2)
    with torch.no_grad():
        joints = [log_joint(model, {"z": z}, x)[..., None] for z in (posterior.samples["z"].flatten(0, 1), truth[None])]
    draws, truth = torch.cat([draws, joints[0]], -1), torch.cat([truth.flatten(1), joints[1][0]], -1)
    ties = (draws == truth).sum(0)  # shared out at random
    ranks = (draws < truth).sum(0) + (torch.rand(truth.shape) * (ties + 1)).floor()
    bins = [torch.histc(column.float(), 7, -0.5, len(draws) + 0.5) for column in ranks.T]
    return [stats.chisquare(seen.numpy()).pvalue for seen in bins]


@pytest.mark.parametrize("broken", [False, True])
def test_hamiltonian_chains_are_calibrated_unless_all_is_accepted(broken, monkeypatch):
    if broken:
        always_accept(monkeypatch)
    p_values = calibration(linear_gaussian(2, (1, 1, 3)), draws=20, chains=1, warmup=150, thin=3, steps=3.0, accept=0.55)
    assert min(p_values) < 1e-6 if broken else min(p_values) > 1e-3, p_values


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("name", ["three units", "two groups"])
def test_sweeps_are_calibrated_unless_the_conditional_is_wrong(name, broken, monkeypatch):
    if broken:
        right = gibbs_module._draw
        monkeypatch.setattr(gibbs_module, "_draw", lambda logits: right(0.3 * logits))
    p_values = calibration(MODELS[name](), draws=20, chains=1, warmup=40, thin=6)
    assert min(p_values) < 1e-6 if broken else min(p_values) > 1e-3, p_values
