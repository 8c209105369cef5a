"""Natural-gradient inference: against formulas, closed forms, finite differences and Bayes' rule."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

import guides
import inference
import zoo
from guides.bounds import OBJECTIVES, exact_elbo, over_steps
from guides.natural import Natural
from guides.natural_steps import closed_form_slope, guarded_step
from zoo.latents.base import Family
from zoo.oracles import fixture_image, linear_gaussian, poisson_fixture

FAMILIES = [("gaussian", {}), ("gaussian", {"activation": "relu"}), ("gaussian", {"activation": "exp"}), ("laplace", {}),
            ("poisson", {}), ("categorical", {}), ("categorical", {"groups": 2})]


def images(n=20, seed=2, dtype=torch.float32):
    return torch.randn(n, 1, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def build(name, latents=6, **options):
    return zoo.build(name, (1, 3, 3), latents=latents, init_scale=0.6, seed=1, **options)


def noisy(name, **options):
    """A float64 model whose pixels differ in noise."""
    model = build(name, learn_scale="pixel", **options).double()
    with torch.no_grad():
        model.log_scale.copy_(0.3 * torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 0.4)
    return model


def numbers(*shape, seed=4, size=0.5):
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drive_and_self_cost(model, x, mean):
    weight, precision = model.decoder.weight, model.scale.flatten().pow(-2)
    return ((x.flatten(1) - mean @ weight.T) * precision) @ weight, 0.5 * precision @ weight.square()


# -- a step is the formula

@pytest.mark.parametrize("beta", [1.0, 0.3, 0.0])
def test_a_poisson_step_is_drive_competition_self_cost_and_leak(beta):
    model, x = noisy("poisson", log_rate_init=(-2.0, 0.5)), images(dtype=torch.float64)
    delta = numbers(20, 1, 6)
    guide = guides.build("natural", model, step_size=0.02, beta=beta, guarded=False)
    with torch.no_grad():
        u = guide.at({"z": delta}).posterior(x)["z"]
        moved = guide.refine(x, {"z": delta}, None)[0]["z"] - delta
        drive, self_cost = drive_and_self_cost(model, x, u.exp().squeeze(1))
        expected = 0.02 * (drive - self_cost - beta * (u - model.prior).squeeze(1))
    torch.testing.assert_close(moved.squeeze(1), expected, atol=1e-12, rtol=1e-9)


def test_a_gaussian_step_is_the_same_with_a_width():
    model, x = noisy("gaussian"), images(dtype=torch.float64)
    delta = numbers(20, 2, 6)
    guide = guides.build("natural", model, step_size=0.02, guarded=False)
    with torch.no_grad():
        loc, log_scale = guide.at({"z": delta}).posterior(x)["z"].unbind(1)
        to_loc, to_scale = (guide.refine(x, {"z": delta}, None)[0]["z"] - delta).unbind(1)
        drive, self_cost = drive_and_self_cost(model, x, loc)
        square = (2 * log_scale).exp()
        torch.testing.assert_close(to_loc, 0.02 * square * (drive - loc), atol=1e-12, rtol=1e-9)
        # The slope in the log-scale is 1 - s² (1 + W_kk), and its Fisher information 2.
        torch.testing.assert_close(to_scale, 0.01 * (1 - square * (1 + 2 * self_cost)), atol=1e-12, rtol=1e-9)


def test_online_steps_do_not_leak_and_a_learned_self_cost_takes_the_others_place():
    model, x = noisy("poisson", log_rate_init=(-2.0, 0.5)), images(dtype=torch.float64)
    delta = numbers(20, 1, 6)
    guide = Natural(model, prior="online", self_cost="learned", step_size="learned").double()
    assert torch.equal(guide.log_self_cost, torch.full((6,), -3.0, dtype=torch.float64)) and guide.step_size.item() == 1.0
    with torch.no_grad():
        guide.log_self_cost.copy_(numbers(6, seed=5))
        guide.log_step_size.fill_(math.log(0.02))
        u = guide.at({"z": delta}).posterior(x)["z"]
        moved = guide.refine(x, {"z": delta}, None)[0]["z"] - delta
        drive, _ = drive_and_self_cost(model, x, u.exp().squeeze(1))
    torch.testing.assert_close(moved.squeeze(1), 0.02 * (drive - guide.log_self_cost.detach().exp()), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_slopes_are_the_gradient_of_the_elbo(name, options):
    model, x = noisy(name, **options), images(n=3, dtype=torch.float64)
    delta = numbers(3, len(model.family.parameters), 6, size=0.3)
    program = Natural(model).at({"z": delta})
    value, slope, direction = closed_form_slope(model, x, {"z": delta}, None, 1.0, None, graph=False)
    torch.testing.assert_close(value, exact_elbo(model, program, x).value.detach())
    params, step = program.posterior(x)["z"].detach(), 1e-5
    for index in [(0, 0, 0), (1, -1, 3), (2, 0, 5)]:
        ends = []
        for sign in (step, -step):
            near = params.clone()
            near[index] += sign
            ends.append((model.expected_log_prob(x, {"z": near}) - guides.bounds.exact_kl(model, {"z": near}))[index[0]].item())
        assert slope["z"][index].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-7)
    torch.testing.assert_close(direction["z"], model.family.natural(params, slope["z"]))


# -- where steps lead

def test_the_fixed_point_is_the_best_factorized_poisson():
    model, x = poisson_fixture(), fixture_image()
    posterior = inference.infer(model, x, "natural", steps=100)
    torch.testing.assert_close(posterior.params["z"].exp().flatten(), torch.tensor([0.445883, 0.150157]), atol=1e-4, rtol=0)
    with torch.no_grad():
        nelbo = guides.bounds.exact_kl(model, posterior.params) - model.expected_log_prob(x, posterior.params)
    assert (nelbo - zoo.oracles.likelihood_constant(model)).item() == pytest.approx(1.665420, abs=1e-5)
    trace = posterior.stats["elbo_trace"]
    assert trace.shape == (101,) and trace[-1].item() == pytest.approx(-nelbo.item(), abs=1e-5)
    assert posterior.cost["gradient_evaluations"] == 100
    assert posterior.samples["z"].shape == (1, 100, 1, 2)


def test_the_fixed_point_of_normal_latents_is_the_mean_field_optimum():
    oracle = linear_gaussian(latents=4, event_shape=(1, 3, 3), scale=0.5)
    torch.manual_seed(6)
    x = oracle(None, size=16).detach()
    guide = guides.build("natural", oracle, steps=80)
    with torch.no_grad():
        assert (guide.posterior(x)["z"] - oracle.mean_field(x)["z"]).abs().max() < 1e-4
        torch.testing.assert_close(exact_elbo(oracle, guide, x).value.double(), oracle.mean_field_elbo(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "options"), [*FAMILIES, ("plugin", {})])
def test_no_image_falls_under_guarded_steps_and_all_arrive(name, options, plugin):
    model = plugin if name == "plugin" else build(name, **options)
    x = images()
    guide = guides.build("natural", model, steps=60)
    assert guide.guarded
    with torch.no_grad():
        values = torch.stack([exact_elbo(model, guide.at(deltas), x).value for deltas in guide.path(x)])
    rounding = 1e-6 * (1 + values[:-1].abs())
    assert (values[1:] - values[:-1] > -rounding).all()
    assert (values[-1] - values[0] > 1e-3).all()
    _, slope, direction = closed_form_slope(model, x, guide.delta(x), None, 1.0, None, graph=False)
    assert (slope["z"] * direction["z"]).flatten(1).sum(1).max() < 0.02  # nats that a step still promises


def test_steps_that_are_too_long_fall_unless_they_are_guarded():
    model, x = build("gaussian", scale=0.2), images()
    values = {}
    for guarded in (False, True):
        guide = guides.build("natural", model, steps=10, step_size=1.0, guarded=guarded)
        with torch.no_grad():
            values[guarded] = exact_elbo(model, guide, x).value
    assert not (values[False] > values[True] - 1).any()


def test_a_guard_halves_the_gain_of_each_image_alone():
    curvature = torch.tensor([0.5, 4.0, 64.0, 1e9])
    there = {"z": torch.ones(4)}

    def value_at(deltas):
        return -0.5 * curvature * deltas["z"].square()

    def candidate(gain):
        return {"z": there["z"] - gain * curvature}

    value, promise = value_at(there), curvature.square()
    deltas, gain = guarded_step(candidate, value_at, value, promise, None, 1.0, 6)
    # A gradient step rises enough below 2 / curvature: gains 1, 1/4, 1/64; the last image stays, and tries less the next time.
    torch.testing.assert_close(deltas["z"], torch.tensor([0.5, 0.0, 0.0, 1.0]))
    torch.testing.assert_close(gain, torch.tensor([1.0, 0.5, 1 / 32, 2.0**-7]))


def test_images_do_not_affect_each_other():
    model, x = build("poisson", scale=0.2, log_rate_init=(-1.0, 1.0)), images(n=12)
    guide = guides.build("natural", model, steps=15)
    with torch.no_grad():
        together = guide.posterior(x)["z"]
        alone = torch.cat([guide.posterior(x[i:i + 1])["z"] for i in range(len(x))])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "options"), [("gaussian", {}), ("laplace", {}), ("poisson", {"log_rate_init": (-1.0, 0.0)}),
                                               ("categorical", {})])
def test_other_decoders_are_inferred_by_sampling(name, options, unchanged_generator):
    model, x = build(name, decoder="mlp", scale=0.4, **options), images()
    with unchanged_generator():
        posterior = inference.infer(model, x, "natural", steps=40, draws=2)
    trace = posterior.stats["elbo_trace"]
    best = inference.infer(model, x, "local", steps=100, lr=0.2, draws=2).stats["elbo_trace"]
    assert trace[-15:].mean() > max(best[-15:].mean() - 1.5, trace[0] + 3)


def plain(x=None, size=None):
    """A Pyro program from outside the zoo, Normal latents of which the image is a linear function, so that the posterior is Normal."""
    with pyro.plate("data", len(x) if x is not None else size):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.tensor([1.0, 2.0])).to_event(1))
        mean = torch.stack([z[..., 0], z[..., 1], z.sum(-1)], -1)[..., None, None, :]
        return pyro.sample("x", dist.Normal(mean, 0.5).to_event(3), obs=x)


def positive(x=None, size=None):
    """A latent that is guided in another space than its own."""
    with pyro.plate("data", len(x) if x is not None else size):
        z = pyro.sample("z", dist.Gamma(torch.ones(1), 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(z[..., None, None], 1.0).to_event(3), obs=x)


def test_a_plain_program_is_inferred_too():
    x = torch.tensor([[1.0, -0.5, 0.2], [0.3, 2.0, 2.2]]).reshape(2, 1, 1, 3)
    precision = torch.tensor([[9.0, 4.0], [4.0, 8.25]])
    pull = torch.stack([x[..., 0] + x[..., 2], x[..., 1] + x[..., 2]], -1).reshape(2, 2) / 0.25
    posterior = inference.infer(plain, x, "natural", steps=60, particles=16, draws=2)
    loc, log_scale = posterior.params["z"].unbind(1)
    torch.testing.assert_close(loc, torch.linalg.solve(precision, pull.T).T, atol=0.1, rtol=0)
    torch.testing.assert_close(log_scale, -0.5 * precision.diagonal().log().expand(2, 2), atol=0.15, rtol=0)


# -- online

def test_kl_divergences_of_online_steps_have_the_prior_rate():
    model, x = noisy("poisson", log_rate_init=(-2.0, 0.5)), images(dtype=torch.float64)
    guide = Natural(model, steps=4, step_size=0.1, prior="online")
    with torch.no_grad():
        u = [guide.at(deltas).posterior(x)["z"].squeeze(1) for deltas in guide.path(x)]
        exact, sampled = (OBJECTIVES[name](model, guide, x, beta=3.0) for name in ("online_exact", "online"))
    pairs = list(zip(u, u[1:], strict=False))
    kl = sum(kl_divergence(dist.Poisson(after.exp()), dist.Poisson(before.exp())).sum(1) for before, after in pairs)
    likelihood = sum(model.expected_log_prob(x, {"z": after.unsqueeze(1)}) for after in u[1:])
    for bound in (exact, sampled):
        torch.testing.assert_close(bound.kl, kl / 4)
        torch.testing.assert_close(bound.value, bound.log_likelihood - 3.0 * bound.kl)
        assert torch.equal(bound.value, bound.surrogate)
    torch.testing.assert_close(exact.log_likelihood, likelihood.detach() / 4)
    guide.kl_rate = "posterior"
    wrong = sum((after.exp() * (1 + (after - before).exp() * (after - before - 1))).sum(1) for before, after in pairs)
    with torch.no_grad():
        torch.testing.assert_close(OBJECTIVES["online_exact"](model, guide, x).kl, wrong / 4)


@pytest.mark.parametrize("name", ["online_exact", "online"])
def test_online_objectives_learn_from_the_steps_after_burn_in(name):
    model, x = noisy("poisson", log_rate_init=(-2.0, 0.5)), images(dtype=torch.float64)
    guide = Natural(model, steps=6, step_size="learned", self_cost="learned", prior="online", burn_in=4).double()
    with torch.no_grad():
        guide.log_step_size.fill_(-4.0)
    guide.temperature = 0.1
    torch.manual_seed(0)
    bound = OBJECTIVES[name](model, guide, x, beta=3.0, particles=300)
    parts = {"weight": model.decoder.weight, "step": guide.log_step_size, "cost": guide.log_self_cost}
    gradients = dict(zip(parts, torch.autograd.grad(bound.value.mean(), list(parts.values())), strict=True))

    path = [deltas["z"] for deltas in guide.path(x)]
    assert [delta.requires_grad for delta in path] == [False] * 5 + [True] * 2
    u, likelihood, kl = [guide.at({"z": path[4]}).posterior(x)["z"]], 0.0, 0.0
    deltas = {"z": path[4]}
    for _ in range(2):
        deltas, _ = guide.refine(x, deltas, None)
        u.append(guide.at(deltas).posterior(x)["z"])
        kl = kl + kl_divergence(dist.Poisson(u[-1].exp()), dist.Poisson(u[-2].exp())).sum((1, 2))
        likelihood = likelihood + model.expected_log_prob(x, {"z": u[-1]})
    expected = torch.autograd.grad((likelihood - 3.0 * kl).mean() / 2, list(parts.values()))
    torch.testing.assert_close(bound.kl, kl / 2)
    if name == "online_exact":
        torch.testing.assert_close(bound.value, (likelihood - 3.0 * kl) / 2)
    for part, gradient in zip(parts, expected, strict=True):
        if name == "online_exact":
            torch.testing.assert_close(gradients[part], gradient)
        else:  # relaxed draws: the same direction
            assert torch.cosine_similarity(gradients[part].flatten(), gradient.flatten(), 0) > 0.97, part


def test_a_burn_in_leaves_inference_as_it_is():
    model, x = noisy("poisson", log_rate_init=(-2.0, 0.5)), images(n=3, dtype=torch.float64)
    plain, burning = (Natural(model, steps=6, step_size=0.02, prior="online", burn_in=burn_in).double() for burn_in in (0, 4))
    for steps in (2, 6, 9):
        for one, other in zip(plain.path(x, steps), burning.path(x, steps), strict=True):
            assert torch.equal(one["z"], other["z"])
    burning.steps = 3  # as many steps as are wanted in evaluation; training has none left
    assert torch.equal(burning.delta(x)["z"], [*plain.path(x, 3)][-1]["z"])
    for objective in ("online_exact", "exact"):
        with pytest.raises(ValueError, match="burn_in"):
            over_steps(OBJECTIVES[objective])(model, burning, x)


@pytest.mark.parametrize("temperature", [0.0, 0.05])
def test_the_sampled_objective_estimates_the_exact_one(temperature):
    model, x = build("poisson", log_rate_init=(-1.0, 0.5)), images(n=4)
    guide = Natural(model, steps=3, step_size=0.1, prior="online")
    guide.temperature = temperature
    torch.manual_seed(0)
    with torch.no_grad():
        exact = OBJECTIVES["online_exact"](model, guide, x).log_likelihood
        draws = torch.stack([OBJECTIVES["online"](model, guide, x, particles=50).log_likelihood for _ in range(40)])
    error = draws.std(0) / math.sqrt(40)
    assert ((draws.mean(0) - exact).abs() < 4.5 * error + 0.02 * (temperature > 0)).all() and (error < 0.2).all()


@pytest.mark.parametrize(("name", "options"), [("poisson", {"log_rate_init": (-2.0, 0.0)}), ("gaussian", {}), ("laplace", {}),
                                               ("gaussian", {"activation": "relu"}), ("categorical", {})])
def test_gradients_through_unrolled_steps_are_finite_differences(name, options):
    model, x = noisy(name, learn_prior=True, **options), images(n=5, dtype=torch.float64)
    guide = Natural(model, steps=4, prior="online", self_cost="learned", step_size="learned", step_bound=2.0).double()
    with torch.no_grad():
        guide.log_step_size.fill_(-2.0)
        model.prior.add_(numbers(*model.prior.shape, seed=9, size=0.2))
    parameters = {"weight": model.decoder.weight, "prior": model.prior, "noise": model.log_scale, "step": guide.log_step_size,
                  "cost": guide.log_self_cost}

    def loss():
        return OBJECTIVES["online_exact"](model, guide, x, beta=2.0).value.mean()

    gradients = dict(zip(parameters, torch.autograd.grad(loss(), list(parameters.values())), strict=True))
    for seed, (part, parameter) in enumerate(parameters.items()):
        way, ends = numbers(*parameter.shape, seed=seed, size=1.0), []
        for sign in (1e-5, -1e-5):
            with torch.no_grad():
                kept = parameter.clone()
                parameter.add_(sign * way)
                ends.append(loss().item())
                parameter.copy_(kept)
        expected = (ends[0] - ends[1]) / 2e-5
        assert (gradients[part] * way).sum().item() == pytest.approx(expected, rel=1e-5, abs=1e-7), part


@pytest.mark.parametrize("self_cost", ["analytic", "learned"])
def test_truncated_steps_keep_gradients_within_them(self_cost):
    model, x = noisy("poisson", log_rate_init=(-2.0, 0.0)), images(n=5, dtype=torch.float64)
    guide = Natural(model, steps=3, step_size="learned", self_cost=self_cost).double()
    assert guide.truncated and not guide.guarded
    bound = over_steps(exact_elbo)(model, guide, x)
    to_weight, *to_guide = torch.autograd.grad(bound.surrogate.mean(), [model.decoder.weight, *guide.parameters()])
    path = [{"z": deltas["z"].detach()} for deltas in guide.path(x)]
    alone, = torch.autograd.grad(exact_elbo(model, guide.at(path[-1]), x).value.mean() / 3, [model.decoder.weight])
    torch.testing.assert_close(to_weight, alone)  # the model learns from the last step, with the posterior held
    assert all((gradient.abs() > 1e-6).all() for gradient in to_guide)


@pytest.mark.parametrize("settings", [
    {"objective": "online", "prior": "online", "step_size": "learned", "self_cost": "learned"},
    {"objective": "online_exact", "prior": "online", "step_size": 0.5},
    {"objective": "exact", "prior": "static"},
    {"objective": "elbo", "prior": "static", "step_size": "learned"},
])
def test_training_improves_held_out_images(settings):
    settings = dict(settings)
    objective = settings.pop("objective")
    truth = build("poisson", latents=5, scale=0.3, log_rate_init=(-1.0, 0.0))
    torch.manual_seed(3)
    with torch.no_grad():
        x = truth(None, size=300)
    model = zoo.build("poisson", (1, 3, 3), latents=5, init_scale=0.1, scale=0.6, learn_scale="pixel", seed=7)
    guide = guides.build("natural", model, steps=5, step_bound=1.0, **settings)
    before = inference.infer(model, x[200:], "natural", guide=guide).stats["elbo_trace"][-1]
    history = inference.fit(model, guide, x[:200], objective=objective, steps=25, batch_size=50, lr=0.1, beta_warmup=0.1, log_every=5,
                            progress=False)
    after = inference.infer(model, x[200:], "natural", guide=guide).stats["elbo_trace"][-1]
    assert history.rows[-1]["elbo"] > history.rows[0]["elbo"] and after > before + 1.0
    longer = inference.infer(model, x[200:], "natural", guide=guide, steps=20)
    assert longer.stats["elbo_trace"].shape == (21,) and longer.stats["elbo_trace"].isfinite().all()


def test_many_online_steps_stay_finite():
    model, x = build("poisson", scale=0.2), 3 * images(n=4)
    for options in ({}, {"step_size": 5.0, "floor": -40.0}):
        guide = Natural(model, steps=100, prior="online", **options)
        with torch.no_grad():
            u = guide.posterior(x)["z"]
        assert u.isfinite().all() and u.min() >= min(options.get("floor", -8.0), model.prior.min().item()) - 1e-4 and u.max() < 5.4
    categorical = build("categorical", scale=0.1)
    with torch.no_grad():
        delta = Natural(categorical, steps=60, prior="online", step_size=20.0).delta(x)["z"]
    assert delta.isfinite().all() and delta.max() == 0.0 and delta.min() == -60.0


def test_one_step_finds_the_exact_posterior_of_a_mixture_however_far_its_categories_are_apart():
    oracle = zoo.oracles.mixture(200, (1, 6, 6), scale=0.05)
    torch.manual_seed(3)
    x = oracle(None, size=20).detach()
    with torch.no_grad():
        far = -(x.flatten(1)[:, None] - oracle.decoder.weight.T).square().sum(-1) / (2 * 0.05**2)
        assert (far.max(1).values - far.median(1).values).min() > 100, "a case in which bounds on logits would be felt"
        values = exact_elbo(oracle, guides.build("natural", oracle, steps=1), x).value
    torch.testing.assert_close(values.double(), oracle.log_evidence(x), atol=1e-2, rtol=1e-4)


def test_the_published_mnist_model_has_403217_parameters():
    model = zoo.build("poisson", (1, 28, 28), latents=512, learn_scale="pixel")
    guide = Natural(model, steps=128, prior="online", step_size="learned", self_cost="learned")
    assert sum(p.numel() for part in (model, guide) for p in part.parameters()) == 403_217


# -- sequences

def orthogonal(scale=0.5):
    """A linear-Gaussian model whose units explain nothing of each other: its exact posterior is in the family."""
    oracle = linear_gaussian(latents=3, event_shape=(1, 2, 2), scale=scale).double()
    with torch.no_grad():
        oracle.decoder.weight.copy_(torch.linalg.qr(oracle.decoder.weight)[0] * torch.tensor([1.0, 0.7, 2.0]))
    return oracle


@pytest.mark.parametrize("forget", [0.0, 1.0])
def test_a_filter_of_frames_is_bayes_rule(forget):
    oracle = orthogonal()
    z = numbers(6, 3, size=1.0)
    frames = oracle.decode({"z": z}).detach() + numbers(5, 6, 1, 2, 2, seed=8)
    guide = guides.build("natural", oracle, steps=60)
    posteriors = [program.posterior(frames[0])["z"].detach() for program in guide.filter(frames, forget=forget)]
    assert len(posteriors) == 5
    weight = oracle.decoder.weight.detach()
    information = weight.square().sum(0) / 0.25
    for t, params in enumerate(posteriors):
        seen = frames[t:t + 1] if forget else frames[:t + 1]
        precision = 1 + len(seen) * information
        loc = (seen.flatten(2).sum(0) @ weight / 0.25) / precision
        torch.testing.assert_close(params[:, 0], loc, atol=1e-5, rtol=1e-5)
        # Log-scales saturate softly around the prior's.
        torch.testing.assert_close(params[:, 1], (-0.5 * precision.log()).expand(6, 3), atol=1e-4, rtol=1e-4)


def test_a_filter_of_sampled_steps_is_bayes_rule_within_noise():
    oracle = orthogonal()
    frames = oracle.decode({"z": numbers(6, 3, size=1.0)}).detach() + numbers(2, 6, 1, 2, 2, seed=8)
    guide = guides.build("natural", oracle, steps=60, step_size=0.2, step_bound=1.0, particles=32, guarded=False)
    guide.exact = False  # as if the decoder were not linear
    torch.manual_seed(0)
    *_, last = (program.posterior(frames[0])["z"].detach() for program in guide.filter(frames))
    weight = oracle.decoder.weight.detach()
    precision = 1 + 2 * weight.square().sum(0) / 0.25
    loc = (frames.flatten(2).sum(0) @ weight / 0.25) / precision
    assert ((last[:, 0] - loc) * precision.sqrt()).abs().max() < 0.3 and (last[:, 1] + 0.5 * precision.log()).abs().max() < 0.15


@pytest.mark.parametrize("prior", ["static", "online"])
def test_a_filter_goes_on_from_the_frame_before(prior):
    model = zoo.build("poisson", (1, 8, 8), latents=64, init_scale=0.15, scale=0.5, log_rate_init=(-2.0, -1.0))
    torch.manual_seed(3)
    first, last = model(None, size=20).detach().chunk(2)
    frames = torch.stack([(1 - t) * first + t * last for t in torch.linspace(0, 0.5, 6)])  # one fades into the other
    guide = guides.build("natural", model, steps=3, prior=prior, guarded=True)

    def explained(forget):
        return torch.stack([exact_elbo(model, program, x).log_likelihood.detach()
                            for program, x in zip(guide.filter(frames, forget=forget), frames, strict=True)]).mean(1)

    warm, cold = explained(0.0), explained(1.0)
    assert warm[0] == cold[0] and (warm[1:] > cold[1:] + 1).all()
    assert not any(delta.requires_grad for delta in next(iter(guide.filter(frames))).deltas.values())


# -- what does not fit

class Opaque(Family):
    """Mixtures of two Normals: no closed-form KL divergence, so no Fisher information."""

    def distribution(self, params):
        loc, log_scale = params.unbind(-2)
        parts = dist.Normal(torch.stack([loc - 1, loc + 1], -1), log_scale.exp().unsqueeze(-1))
        return dist.Independent(dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros_like(parts.loc)), parts), 1)


class Counts(Family):
    """Binomial counts with logits, whose Fisher information the base class differentiates."""

    parameters = ("logits",)

    def distribution(self, params):
        return dist.Binomial(4, logits=params.squeeze(-2)).to_event(1)


@pytest.fixture
def plugin():
    model = build("gaussian")
    model.family, model.prior = Counts(), torch.zeros(1, 6)
    return model


def test_a_family_without_a_natural_gradient_of_its_own_learns_step_by_step(plugin):
    assert Natural(plugin, prior="online").truncated
    with pytest.raises(ValueError, match="families with their own natural gradient"):
        Natural(plugin, prior="online", unrolled=True)


def test_models_that_do_not_fit_are_refused_with_what_does():
    model = build("gaussian")
    model.family = Opaque()
    with pytest.raises(ValueError, match="'natural' does not fit.*no natural gradient.*fit it: .*amortized"):
        guides.build("natural", model)
    with pytest.raises(ValueError, match="does not fit"):
        inference.infer(model, images(), "natural")

    def cut(x=None, size=None):
        with pyro.plate("data", len(x) if x is not None else size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal((z[..., :1] > 0).float()[..., None, None], 1.0).to_event(3), obs=x)

    with pytest.raises(ValueError, match="no gradient flows"):
        guides.build("natural", cut, torch.zeros(2, 1, 1, 1))


@pytest.mark.parametrize(("options", "message"), [
    ({"steps": 3, "burn_in": 3}, "burn_in must be at least 0 and below the number of steps, 3, not 3"),
    ({"burn_in": -1}, "burn_in must be at least 0"),
    ({"steps": 0}, "steps must be at least 1"), ({"prior": "flat"}, "'static' or 'online', not 'flat'"),
    ({"self_cost": "none"}, "'analytic' or 'learned'"), ({"kl_rate": "both"}, "'prior' or 'posterior'"),
    ({"step_size": 0.0}, "positive number or 'learned'"), ({"step_size": "big"}, "positive number or 'learned'"),
    ({"step_size": math.nan}, "positive number"), ({"step_bound": -1.0}, "step_bound must be positive"),
    ({"halvings": -1}, "halvings must not be negative"), ({"beta": -1.0}, "beta must not be negative"),
    ({"guarded": True, "self_cost": "learned"}, "guarded steps climb the ELBO itself"),
    ({"guarded": True, "unrolled": True}, "guarded steps climb the ELBO itself"),
    ({"guarded": True, "step_size": "learned"}, "guarded steps climb the ELBO itself"),
])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        guides.build("natural", build("poisson"), **options)


def test_options_that_do_not_go_with_a_model():
    nonlinear = build("gaussian", decoder="mlp")
    for options, message in [({"self_cost": "learned"}, "linear decoder"), ({"guarded": True}, "closed form"),
                             ({"unrolled": True}, "closed form"), ({"kl_rate": "posterior"}, "Poisson")]:
        with pytest.raises(ValueError, match=message):
            guides.build("natural", nonlinear, **options)
    with pytest.raises(ValueError, match="an online prior needs a closed-form KL"):
        guides.build("natural", positive, torch.zeros(2, 1, 1, 1), prior="online")
    guide = guides.build("natural", positive, torch.zeros(2, 1, 1, 1), steps=1)
    with pytest.raises(ValueError, match="a sequence needs a closed-form KL"):
        next(guide.filter(torch.zeros(2, 2, 1, 1, 1)))


def test_bad_calls():
    model, x = build("poisson"), images()
    guide = Natural(model)
    for frames, options, message in [(x, {}, r"frames \(T, N, 1, 3, 3\)"), (x[None], {"forget": 1.5}, "forget must be between"),
                                     (x[None], {"steps": 0}, "steps must be at least 1")]:
        with pytest.raises(ValueError, match=message):
            next(guide.filter(frames, **options))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        inference.infer(model, x, "natural", steps=0)
    with pytest.raises(ValueError, match="has its own step_size"):
        inference.infer(model, x, "natural", guide=guide, step_size=0.1)
    amortized = guides.build("amortized", model)
    for objective in ("online", "online_exact"):
        with pytest.raises(ValueError, match="guides that infer in steps"):
            inference.fit(model, amortized, x, objective=objective, steps=1, batch_size=5, progress=False)
    with pytest.raises(ValueError, match="needs a linear decoder"):
        nonlinear = build("gaussian", decoder="mlp")
        OBJECTIVES["online_exact"](nonlinear, Natural(nonlinear), x)
    with pytest.raises(ValueError, match="particles must be at least 1"):
        OBJECTIVES["online"](model, guide, x, particles=0)
    score = build("poisson", relaxation="score")
    with pytest.raises(ValueError, match="needs relaxed samples"):
        OBJECTIVES["online"](score, Natural(score, prior="online"), x)
