"""Sparse coding: the model, ISTA, FISTA and LCA against closed forms, scikit-learn and the optimality conditions, and learned atoms."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.linear_model import Lasso as SklearnLasso

import guides
import inference
import zoo
from inference.dictionary import _slope, learn_dictionary
from inference.methods.ista import fista_scheme, ista_scheme
from inference.methods.lasso import read, shrink
from inference.methods.lca import lca_scheme
from inference.methods.sparse import solve
from zoo.networks.lin import LinearDecoder
from zoo.testing import check_model

METHODS = ("ista", "fista", "lca")
SCHEMES = {"ista": ista_scheme, "fista": fista_scheme, "lca": lca_scheme}


def problem(n=30, size=(1, 8, 8), latents=128, noise=0.1, b=0.3, seed=0):
    """A model and images that it made: twice as many atoms as pixels, dense codes."""
    model = zoo.build("sparse_coding", size, latents=latents, penalty=noise**2 / b, scale=noise, seed=seed)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        return model, model(None, size=n)


def small(n=6, dtype=torch.float64):
    model, x = problem(n, (1, 3, 4), 16)
    return model.to(dtype), x.to(dtype)


def code_of(posterior):
    return posterior.samples["z"][0, 0]


def orthonormal():
    """As many atoms as pixels, at right angles: the code is a soft threshold of the projections."""
    model = zoo.build("sparse_coding", (1, 4, 4), latents=16, penalty=0.4, scale=0.5).double()
    model.decoder.weight = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    return model, torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def rich_laplace():
    """A Laplace model with a bias, a scale for each unit and a noise for each pixel."""
    model = zoo.build("laplace", (1, 3, 4), latents=9, decoder_bias=True, learn_scale="pixel", init_scale=0.4, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        model.decoder.bias.normal_(generator=generator)
        model.prior[1].uniform_(-2.0, 1.0, generator=generator)
        model.log_scale.uniform_(-2.0, -0.5, generator=generator)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        return model, model(None, size=8)


def plain_program(noise=0.5, b=0.7, mean=lambda z, weight: z @ weight.T, prior=None):
    weight = torch.randn(10, 6, generator=torch.Generator().manual_seed(6))

    def program(x=None, size=None):
        with pyro.plate("data", size if x is None else x.shape[-2]):
            law = dist.Laplace(torch.zeros(6), b).to_event(1) if prior is None else prior
            z = pyro.sample("z", law)
            return pyro.sample("x", dist.Normal(mean(z, weight), noise).to_event(1), obs=x)

    return program, weight, torch.randn(5, 10, generator=torch.Generator().manual_seed(7))


# -- the model

def test_the_model_is_a_conforming_program_with_the_prior_it_tells_of():
    model, x = problem(4)
    check_model(model, x)
    assert model.linear and list(model.latents) == ["z"]
    assert model.penalty.item() == pytest.approx(0.01 / 0.3)
    z = torch.tensor([[1.0] + [0.0] * 127])
    prior = model.family.distribution(model.prior)
    assert (prior.log_prob(torch.zeros(1, 128)) - prior.log_prob(z)).item() == pytest.approx(1 / 0.3)  # 1 / b for each unit of |z|
    assert not model.prior.requires_grad
    default = zoo.build("sparse_coding", (1, 4, 4))
    assert default.decoder.weight.shape == (16, 512) and default.penalty.item() == pytest.approx(0.5)
    torch.testing.assert_close(default.prior.exp()[1], torch.ones(512))


def test_atoms_keep_length_1_in_any_training_and_come_back_from_disk(tmp_path):
    model, x = problem(200, (1, 3, 4), 16)
    guide = guides.build("amortized", model, encoder="lin")
    before = model.decoder.weight.detach().clone()
    inference.fit(model, guide, x, objective="exact", steps=30, batch_size=100, lr=0.05, progress=False)
    after = model.decoder.weight.detach()
    assert (after - before).abs().max() > 0.05
    torch.testing.assert_close(after.norm(dim=0), torch.ones(16))
    inference.save(tmp_path / "saved", model, guide)
    again, _, _ = inference.load(tmp_path / "saved")
    torch.testing.assert_close(again.decoder.weight, after)
    assert again.penalty == model.penalty
    assert torch.equal(code_of(inference.infer(again, x[:5], "fista")), code_of(inference.infer(model, x[:5], "fista")))


def test_every_guide_and_method_takes_the_model():
    model, x = problem(4, (1, 3, 4), 16)
    for name in ("amortized", "local", "map"):
        assert guides.build(name, model, x)(x)["z"].shape == (4, 16)
    guide = guides.build("amortized", model, encoder="lin")
    for method, options in (("amortized", {}), ("local", {"steps": 5}), ("map", {"steps": 5}), ("mcmc", {"warmup": 5, "chains": 2}),
                            ("fista", {})):
        posterior = inference.infer(model, x, method, guide=guide, draws=4, **options)
        assert posterior.samples["z"].shape[2:] == (4, 16)
        assert math.isfinite(inference.score(model, x, posterior, k=2).values["mse"])


def test_the_seed_makes_the_atoms(unchanged_generator):
    with unchanged_generator():
        first, again, other = (zoo.build("sparse_coding", (1, 4, 4), latents=8, seed=seed).decoder.weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other)


@pytest.mark.parametrize(("settings", "message"), [
    ({"latents": 0}, "at least 1"), ({"penalty": 0.0}, "positive"), ({"penalty": math.nan}, "positive"), ({"scale": -1.0}, "positive"),
    ({"decoder": "mlp"}, "no option decoder"), ({"data": None}, "needs data")])
def test_impossible_settings_of_the_model(settings, message):
    with pytest.raises(ValueError, match=message):
        zoo.build("sparse_coding", settings.pop("data", (1, 4, 4)), **settings)


# -- the problem, read off the program

def test_the_problem_of_a_rich_model_is_read_off_its_sites():
    model, x = rich_laplace()
    found = read(model, x)
    torch.testing.assert_close(found.weight, model.decoder.weight.detach() / model.scale.detach().reshape(-1, 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.target, ((x.flatten(1) - model.decoder.bias) / model.scale.reshape(-1)).detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.slope, (-model.prior[1]).exp())


def test_the_objective_is_the_log_density_but_for_a_constant():
    model, x = rich_laplace()
    found = read(model, x)
    z = 0.5 * torch.randn(20, 1, 9, generator=torch.Generator().manual_seed(0)).expand(-1, 8, -1)
    objective = torch.stack([found.objective(found.target, code, found.decode(code)) for code in z])
    total = objective + inference.log_joint(model, {"z": z}, x).detach()
    torch.testing.assert_close(total, total[:1, :1].expand(20, 8), atol=1e-3, rtol=0)


def test_a_plain_pyro_program_is_read_too():
    program, weight, x = plain_program()
    found = read(program, x)
    torch.testing.assert_close(found.weight, weight / 0.5)
    torch.testing.assert_close(found.target, x / 0.5)
    torch.testing.assert_close(found.slope, torch.full((6,), 1 / 0.7))
    codes = [code_of(inference.infer(program, x, method, tolerance=1e-4)) for method in METHODS]
    for code in codes[1:]:
        torch.testing.assert_close(code, codes[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize(("changes", "reason"), [
    ({"mean": lambda z, weight: z.relu() @ weight.T}, "not linear"),
    ({"mean": lambda z, weight: (0.1 * z).tanh() @ weight.T}, "not linear"),
    ({"prior": dist.Normal(torch.zeros(6), 1.0).to_event(1)}, "law Normal"),
    ({"prior": dist.Poisson(torch.ones(6)).to_event(1)}, "law Poisson"),
    ({"prior": dist.Laplace(torch.ones(6), 1.0).to_event(1)}, "centred elsewhere")])
def test_other_programs_are_refused_in_one_sentence(changes, reason):
    program, _, x = plain_program(**changes)
    for method in METHODS:
        with pytest.raises(ValueError, match=f"one latent site 'z' is Laplace around 0.*{reason}"):
            inference.infer(program, x, method)


def test_what_a_method_fits_is_known_without_images():
    for method in METHODS:
        assert inference.methods.misfit(method, small()[0]) is None and inference.methods.misfit(method, rich_laplace()[0]) is None
        assert "law Normal" in inference.methods.misfit(method, zoo.build("gaussian", (1, 3, 4), latents=5))


def test_models_of_other_kinds_are_refused():
    x = torch.randn(3, 1, 4, 4)
    for name, options in (("gaussian", {}), ("poisson", {}), ("categorical", {}), ("laplace", {"decoder": "mlp"})):
        with pytest.raises(ValueError, match="sparse codes are inferred for"):
            inference.infer(zoo.build(name, (1, 4, 4), latents=6, **options), x, "fista")

    def other_noise(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Laplace(torch.zeros(6), 1.0).to_event(1))
            pyro.sample("x", dist.Laplace(z, 1.0).to_event(1), obs=x)

    def two_sites(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Laplace(torch.zeros(6), 1.0).to_event(1))
            y = pyro.sample("y", dist.Laplace(torch.zeros(6), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + y, 1.0).to_event(1), obs=x)

    def noise_by_code(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Laplace(torch.zeros(6), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0 + z.abs()).to_event(1), obs=x)

    for program, reason in ((other_noise, "'x' has the law Laplace"), (two_sites, "are z, y"), (noise_by_code, "depends on the code")):
        with pytest.raises(ValueError, match=reason):
            inference.infer(program, torch.randn(3, 6), "fista")


# -- the optimality conditions

def test_the_residual_of_the_optimality_conditions_by_hand():
    model, x = orthonormal()
    found = read(model, x)
    projections, penalty = (x.flatten(1) @ model.decoder.weight).detach(), model.penalty.item()
    zero = torch.zeros_like(projections)

    def residual(code):
        return found.kkt(found.target, code, found.decode(code))

    torch.testing.assert_close(residual(zero), (projections.abs().amax(1) / penalty - 1).clamp(min=0))
    best = projections.sign() * (projections.abs() - penalty).clamp(min=0)
    assert residual(best).max() < 1e-12
    longest = torch.nn.functional.one_hot(best.abs().argmax(1), 16)
    torch.testing.assert_close(residual(best + 0.1 * longest), torch.full((20,), 0.1 / penalty, dtype=torch.float64))
    mirrored = best - 2 * (best * longest)  # a wrong sign is another 2
    torch.testing.assert_close(residual(mirrored), 2 * (best * longest).abs().amax(1) / penalty + 2)


def test_the_soft_threshold():
    value, threshold = torch.tensor([[-3.0, -0.5, 0.0, 0.5, 2.0]]), torch.tensor([1.0, 1.0, 1.0, 0.5, 0.5])
    assert shrink(value, threshold).tolist() == [[-2.0, 0.0, 0.0, 0.0, 1.5]]


# -- the solvers

@pytest.mark.parametrize("method", METHODS)
def test_closed_form_for_atoms_at_right_angles(method):
    model, x = orthonormal()
    projections = x.flatten(1) @ model.decoder.weight.detach()
    best = projections.sign() * (projections.abs() - model.penalty).clamp(min=0)
    posterior = inference.infer(model, x, method, tolerance=1e-10)
    torch.testing.assert_close(code_of(posterior), best, atol=1e-9, rtol=0)
    assert torch.equal(code_of(posterior) == 0, best == 0) and 0.1 < (best == 0).double().mean() < 0.9


@pytest.mark.parametrize("method", METHODS)
def test_scikit_learn_finds_the_same_codes(method):
    model, x = small(4)
    posterior = inference.infer(model, x, method, tolerance=1e-7, max_steps=100_000)
    atoms = model.decoder.weight.detach().numpy()
    for image, code in zip(x.flatten(1).numpy(), code_of(posterior).numpy(), strict=True):
        truth = SklearnLasso(alpha=model.penalty.item() / len(image), fit_intercept=False, tol=1e-12, max_iter=1_000_000).fit(atoms, image)
        np.testing.assert_allclose(code, truth.coef_, atol=1e-5)
        assert ((code == 0) == (truth.coef_ == 0)).all() and (code == 0).any()


@pytest.mark.parametrize("method", METHODS)
def test_a_scale_for_each_unit_noise_for_each_pixel_and_a_bias(method):
    """Against scikit-learn on the problem rewritten: pixels in units of their noise, units in units of their scale."""
    model, x = rich_laplace()
    model, x = model.double(), x.double()
    posterior = inference.infer(model, x, method, tolerance=1e-7, max_steps=100_000)
    noise, b = model.scale.detach().reshape(-1).numpy(), model.prior[1].exp().numpy()
    atoms = model.decoder.weight.detach().numpy() / noise[:, None] * b
    images = (x.flatten(1) - model.decoder.bias.detach()).numpy() / noise
    for image, code in zip(images, code_of(posterior).numpy(), strict=True):
        truth = SklearnLasso(alpha=1 / len(image), fit_intercept=False, tol=1e-12, max_iter=1_000_000).fit(atoms, image).coef_ * b
        np.testing.assert_allclose(code, truth, atol=1e-5)


def test_residuals_fall_in_the_order_that_theory_says():
    """64 pixels, 128 atoms: ISTA is far from the optimum after 100 steps, FISTA is there after 1000."""
    model, x = problem()
    worst = {}
    for method, max_steps in (("ista", 100), ("ista", 1000), ("fista", 100), ("fista", 500), ("fista", 1000), ("lca", 100), ("lca", 1000)):
        with pytest.warns(RuntimeWarning, match="have not converged"):
            posterior = inference.infer(model, x, method, tolerance=0.0, max_steps=max_steps)
        worst[method, max_steps] = posterior.stats["kkt"].max().item()
    assert worst["ista", 100] > 0.1 and worst["lca", 100] > 0.1
    assert worst["ista", 100] > 5 * worst["ista", 1000] > 5 * worst["fista", 500]
    assert worst["fista", 100] > 10 * worst["fista", 500] > 10 * worst["fista", 1000]
    assert worst["lca", 100] > 2 * worst["lca", 1000]
    assert worst["fista", 1000] < 1e-4


def test_all_three_come_to_one_objective_with_exact_zeros():
    model, x = problem(10, (1, 4, 4), 24)
    found = {method: inference.infer(model, x, method, max_steps=40_000) for method in METHODS}
    for posterior in found.values():
        assert posterior.stats["kkt"].max() <= 1e-3
        assert posterior.samples["z"].shape == (1, 1, 10, 24)
        torch.testing.assert_close(posterior.stats["log_joint"], found["fista"].stats["log_joint"], atol=2e-3, rtol=0)
        torch.testing.assert_close(posterior.stats["objective_trace"][-1], found["fista"].stats["objective_trace"][-1], atol=2e-3, rtol=0)
        assert 0.3 < (code_of(posterior) == 0).double().mean() < 0.5
    slow = inference.infer(model, x, "map", steps=300)
    assert (slow.stats["log_joint"] < found["fista"].stats["log_joint"] + 1e-3).all()
    assert (code_of(slow) == 0).double().mean() < 0.01  # gradient ascent ends near the kink, not in it


def test_ista_never_rises_and_both_keep_within_their_proven_bounds():
    model, x = problem(10)
    model, x = model.double(), x.double()
    best = inference.infer(model, x, "fista", tolerance=1e-10, max_steps=10_000)
    optimum, away = best.stats["objective_trace"][-1], code_of(best).square().sum(1).mean()
    lipschitz = read(model, x).curvature()
    k = torch.arange(1, 301)
    traces = {}
    for name, options in (("ista", {}), ("fista", {"restart": False})):
        with pytest.warns(RuntimeWarning):
            traces[name] = inference.infer(model, x, name, tolerance=0.0, max_steps=300, **options).stats["objective_trace"]
    excess = {name: trace - optimum for name, trace in traces.items()}
    assert (traces["ista"].diff() <= 1e-12).all() and traces["ista"].shape == (300,)
    assert (traces["fista"].diff() > 1e-6).any()  # it is not a descent method
    assert (excess["ista"] <= lipschitz * away / (2 * k)).all()
    assert (excess["fista"] <= 2 * lipschitz * away / (k + 1) ** 2).all()
    assert excess["fista"][-1] < 0.1 * excess["ista"][-1]
    start = read(model, x).objective(read(model, x).target, torch.zeros(10, 128).double(), torch.zeros(10, 64).double()).mean()
    assert traces["ista"][0] < start


def test_fista_is_the_algorithm_of_the_paper():
    """Its steps (Beck & Teboulle 2009, section 4) written out, the gradient by autograd."""
    model, x = small()
    atoms, images, penalty = model.decoder.weight.detach(), x.flatten(1), model.penalty.item()
    rate, t = 1.0 / torch.linalg.matrix_norm(atoms, 2).square(), 1.0
    code = ahead = torch.zeros(6, 16, dtype=torch.float64)
    for _ in range(25):
        point = ahead.clone().requires_grad_(True)
        slope, = torch.autograd.grad(0.5 * (images - point @ atoms.T).square().sum(), point)
        moved = ahead - rate * slope
        before, code = code, moved.sign() * (moved.abs() - rate * penalty).clamp(min=0)
        t_before, t = t, (1.0 + math.sqrt(1.0 + 4.0 * t * t)) / 2.0
        ahead = code + (t_before - 1.0) / t * (code - before)
    with pytest.warns(RuntimeWarning, match="fista: 6 of 6 images have not converged after 25 steps"):
        found = inference.infer(model, x, "fista", max_steps=25, restart=False)
    torch.testing.assert_close(code_of(found), code, atol=1e-10, rtol=0)


def test_momentum_that_restarts_needs_fewer_steps():
    model, x = problem(10)
    steps = [inference.infer(model, x, "fista", restart=restart, tolerance=1e-4, max_steps=5000).stats["steps"].mean()
             for restart in (True, False)]
    assert steps[0] < 0.8 * steps[1]


def test_lca_is_the_network_of_the_paper():
    """Euler steps of τ du/dt = Dᵀx − u − (DᵀD − 1) z, z = S_λ(u), written out."""
    model, x = small()
    atoms, images = model.decoder.weight.detach(), x.flatten(1)
    inhibition = atoms.T @ atoms - torch.eye(16)
    penalty, potential = model.penalty.item(), torch.zeros(6, 16, dtype=torch.float64)
    code = torch.zeros_like(potential)
    for _ in range(35):
        potential = potential + (images @ atoms - potential - code @ inhibition) / 25.0
        code = potential.sign() * (potential.abs() - penalty).clamp(min=0)
    with pytest.warns(RuntimeWarning, match="lca: 6 of 6 images have not converged after 35 steps"):
        found = inference.infer(model, x, "lca", max_steps=35, time_constant=25.0)
    torch.testing.assert_close(code_of(found), code, atol=1e-10, rtol=0)


def test_the_energy_of_slow_lca_never_rises():
    model, x = small()
    with pytest.warns(RuntimeWarning):
        trace = inference.infer(model, x, "lca", max_steps=2000, time_constant=300.0, tolerance=0.0).stats["objective_trace"]
    assert (trace.diff() <= 1e-9).all() and trace[0] - trace[-1] > 10.0


def test_lca_that_diverges_says_so():
    model, x = problem(4)
    with pytest.raises(FloatingPointError, match="stable from a time constant of"):
        inference.infer(model, x * 1e3, "lca", time_constant=1.0, max_steps=5000)


@pytest.mark.parametrize("method", METHODS)
def test_unconverged_codes_are_told_of_and_converged_ones_are_silent(method):
    model, x = small()
    with pytest.warns(RuntimeWarning, match=f"{method}: . of 6 images have not converged after 3 steps"):
        posterior = inference.infer(model, x, method, max_steps=3)
    assert posterior.stats["kkt"].max() > 1e-3 and posterior.stats["objective_trace"].shape == (3,)
    posterior = inference.infer(model, x, method, max_steps=100_000)  # any warning fails
    assert posterior.stats["kkt"].max() <= 1e-3 and posterior.stats["kkt"].min() > 0


def test_the_largest_penalty_that_leaves_anything():
    model, x = small()
    edge = (x.flatten(1) @ model.decoder.weight.detach()).abs().max().item()
    for factor, left in ((1.001, False), (0.99, True)):
        at = zoo.build("sparse_coding", (1, 3, 4), latents=16, penalty=factor * edge, scale=0.1).double()
        at.decoder.weight = model.decoder.weight.detach()
        for method in METHODS:
            assert (code_of(inference.infer(at, x, method)) != 0).any() == left


# -- the batch, its cost, and where it starts

def test_every_gradient_is_counted_and_converged_images_cost_no_more():
    model, x = small()
    with pytest.warns(RuntimeWarning):
        posterior = inference.infer(model, x, "fista", tolerance=0.0, max_steps=40)
    assert posterior.cost["gradient_evaluations"] == 42 and posterior.cost["evaluations"] == 43  # two tests; log_joint at the end
    easy = torch.cat([x, torch.zeros(18, 1, 3, 4).double()])
    posterior = inference.infer(model, easy, "fista", tolerance=1e-6)
    steps = posterior.stats["steps"]
    assert (steps[6:] == 20).all() and steps[:6].max() > 60
    assert posterior.cost["gradient_evaluations"] == pytest.approx((steps + steps / 20).mean().item())
    assert (posterior.stats["objective_trace"].diff()[-20:].abs() < 1e-6).all()  # the mean goes on over all images


@pytest.mark.parametrize("method", METHODS)
def test_images_do_not_see_one_another(method):
    model, x = small()
    together = inference.infer(model, x, method, tolerance=1e-4, max_steps=100_000)
    for i in (0, 5):
        alone = inference.infer(model, x[i:i + 1], method, tolerance=1e-4, max_steps=100_000)
        torch.testing.assert_close(code_of(alone)[0], code_of(together)[i], atol=1e-12, rtol=0)
        assert alone.stats["steps"] == together.stats["steps"][i]


@pytest.mark.parametrize("method", METHODS)
def test_a_start_at_the_optimum_stays_there(method):
    model, x = small()
    best = inference.infer(model, x, "fista", tolerance=1e-9)
    codes = code_of(best).clone()
    for start in (best, codes):
        warm = inference.infer(model, x, method, start=start, tolerance=1e-6, max_steps=20)
        assert (warm.stats["steps"] == 20).all()
        torch.testing.assert_close(code_of(warm), codes, atol=1e-6, rtol=0)
    assert torch.equal(codes, code_of(best))
    found = read(model, x)
    begun = SCHEMES[method](found).begin({"target": found.target, "code": codes, "mean": found.decode(codes)})
    if method == "lca":
        torch.testing.assert_close(shrink(begun["potential"], torch.full((16,), model.penalty.item(), dtype=torch.float64)), codes)


def test_a_start_at_the_encoders_mean():
    model, x = problem(5, (1, 3, 4), 16)
    guide = guides.build("amortized", model, encoder="lin")
    with torch.no_grad():
        mean = guide.posterior(x)["z"][:, 0]
    with pytest.warns(RuntimeWarning):
        first, same = (inference.infer(model, x, "ista", guide=guide, start=start, max_steps=1) for start in ("guide", mean))
    assert torch.equal(code_of(first), code_of(same))
    with pytest.warns(RuntimeWarning):
        assert not torch.allclose(code_of(first), code_of(inference.infer(model, x, "ista", guide=guide, max_steps=1)))


@pytest.mark.parametrize(("options", "message"), [
    ({"max_steps": 0}, "at least 1"), ({"tolerance": -1.0}, "at least 0"), ({"tolerance": math.nan}, "at least 0"),
    ({"start": "guide"}, "needs a guide"), ({"start": "prior"}, "start must be"), ({"start": torch.zeros(6, 3)}, r"\(6, 16\)"),
    ({"start": torch.full((6, 16), math.nan)}, "finite"), ({"steps": 3}, "no option steps")])
def test_bad_options(options, message):
    model, x = small()
    for method in METHODS:
        with pytest.raises(ValueError, match=message):
            inference.infer(model, x, method, **options)
    with pytest.raises(ValueError, match="at least one step"):
        inference.infer(model, x, "lca", time_constant=0.5)


# -- learned atoms

def bars(n, size=5, seed=0):
    """Images of few horizontal and vertical bars of either sign, and the bars ``(D, 2 size)``, of length 1."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.zeros(2 * size, size, size)
    for i in range(size):
        atoms[i, i], atoms[size + i, :, i] = 1.0, 1.0
    atoms = atoms.flatten(1) / math.sqrt(size)
    response = torch.randn(n, 2 * size, generator=generator)
    code = (torch.rand(n, 2 * size, generator=generator) < 0.15) * (response + response.sign())
    x = code @ atoms + 0.05 * torch.randn(n, size * size, generator=generator)
    return x.unflatten(1, (1, size, size)), atoms.T


@pytest.mark.parametrize("method", METHODS)
def test_planted_bars_are_found(method):
    x, atoms = bars(1000)
    model = zoo.build("sparse_coding", x.shape[1:], latents=10, penalty=0.3, scale=0.1, seed=1)
    kept = x.clone()
    options = {"time_constant": 4.0} if method == "lca" else {}
    history = learn_dictionary(model, x, method=method, steps=120, batch_size=100, progress=False, **options)
    overlap = (atoms.T @ model.decoder.weight.detach()).abs()
    assert overlap.max(1).values.min() > 0.99  # every bar has an atom
    assert overlap.argmax(1).unique().numel() == 10  # of its own
    objective = history.column("objective")
    assert objective[-1] < 0.9 * objective[0] and [row["step"] for row in history.rows] == [50, 100, 120]
    assert torch.equal(x, kept)


def test_a_plain_laplace_model_learns_the_same_atoms():
    x, _ = bars(300)
    model = zoo.build("sparse_coding", x.shape[1:], latents=10, penalty=0.5, scale=math.sqrt(0.5), seed=1)
    plain = zoo.build("laplace", x.shape[1:], latents=10)
    with torch.no_grad():
        plain.decoder.weight.copy_(3.0 * model.decoder.weight)  # they start at length 1 whatever theirs was
    for each in (model, plain):
        learn_dictionary(each, x, steps=20, batch_size=50, progress=False)
    assert isinstance(plain.decoder.weight, torch.nn.Parameter)
    torch.testing.assert_close(plain.decoder.weight, model.decoder.weight, atol=1e-4, rtol=0)


def test_a_step_climbs_the_gradient_of_the_log_density():
    model, x = rich_laplace()
    found = read(model, x)
    code = torch.randn(8, 9, generator=torch.Generator().manual_seed(0))
    gradient, = torch.autograd.grad(inference.log_joint(model, {"z": code}, x).mean(), model.decoder.weight)
    expected = gradient * model.scale.square().mean() / code.square().mean()
    torch.testing.assert_close(_slope(found, code), expected.detach(), atol=1e-4, rtol=1e-4)


def test_learning_depends_neither_on_the_scale_of_images_nor_on_copies_of_them():
    x, _ = bars(100)
    learned = []
    for factor, copies in ((1.0, 1), (20.0, 1), (1.0, 2)):
        model = zoo.build("sparse_coding", x.shape[1:], latents=10, penalty=0.3 * factor, scale=0.1 * factor, seed=1)
        learn_dictionary(model, factor * x.repeat(copies, 1, 1, 1), steps=5, batch_size=100 * copies, progress=False)
        learned.append(model.decoder.weight.detach())
    torch.testing.assert_close(learned[1], learned[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(learned[2], learned[0], atol=1e-4, rtol=0)


def test_dead_atoms_become_what_is_not_yet_explained():
    x, atoms = bars(500)
    x = torch.nn.functional.pad(x, (0, 0, 0, 1))  # a sixth row where nothing ever is
    unseen = torch.zeros(30, 4)
    unseen[26:] = torch.eye(4)
    overlap, revived = {}, {}
    for revive in (None, 20):
        model = zoo.build("sparse_coding", x.shape[1:], latents=10, penalty=0.3, scale=0.1, seed=1)
        seeing = model.decoder.weight.detach()[:, :6].clone()
        seeing[25:] = 0.0
        model.decoder.weight = torch.cat([seeing, unseen], 1)
        history = learn_dictionary(model, x, steps=100, batch_size=100, revive=revive, progress=False)
        learned, revived[revive] = model.decoder.weight.detach(), sum(history.column("revived"))
        torch.testing.assert_close(learned.norm(dim=0), torch.ones(10))
        overlap[revive] = (atoms.T @ learned[:25]).abs().max(1).values.min()
        assert torch.equal(learned[:, 6:], unseen) == (revive is None)
    assert revived == {None: 0, 20: 4}
    assert overlap[20] > 0.98 and overlap[None] < 0.9


def test_learning_is_reproducible_and_leaves_the_generator(unchanged_generator):
    x, _ = bars(200)
    learned = []
    with unchanged_generator():
        for seed in (0, 0, 1):
            model = zoo.build("sparse_coding", x.shape[1:], latents=8, penalty=0.3, scale=0.1)
            learn_dictionary(model, x, steps=5, batch_size=50, seed=seed, progress=False)
            learned.append(model.decoder.weight.detach())
    assert torch.equal(learned[0], learned[1]) and not torch.equal(learned[0], learned[2])


class Breaking:
    """A stream of bars whose third batch has a hole."""

    event_shape = (1, 5, 5)
    device = torch.device("cpu")

    def images(self, start, stop):
        x = bars(stop)[0][start:]
        return x if start < 40 else x.masked_fill(x > 1, math.nan)

    def to(self, device):
        return self


def test_what_is_not_finite_stops_learning_with_the_last_finite_atoms():
    model = zoo.build("sparse_coding", (1, 5, 5), latents=8, penalty=0.3, scale=0.1)
    with pytest.raises(FloatingPointError, match="not finite"):
        learn_dictionary(model, Breaking(), steps=10, batch_size=20, progress=False)
    assert model.decoder.weight.isfinite().all()
    with pytest.raises(FloatingPointError, match="not finite"):
        learn_dictionary(model, bars(50)[0], steps=10, batch_size=20, lr=1e38, progress=False)
    assert model.decoder.weight.isfinite().all()


@pytest.mark.parametrize(("options", "message"), [
    ({"method": "map"}, "unknown method 'map'"), ({"steps": 0}, "at least 1"), ({"lr": 0.0}, "lr positive"),
    ({"lr": math.inf}, "lr positive"), ({"revive": 0}, "at least 1"), ({"log_every": 0}, "at least 1"), ({"batch_size": 0}, "batch_size"),
    ({"time_constant": 5.0}, "no option"), ({"max_steps": 0}, "max_steps"), ({"data": torch.zeros(3, 1, 4, 4)}, "do not fit"),
    ({"model": "gaussian"}, "sparse codes"),
    ({"model": "poisson"}, "sparse codes")])
def test_bad_settings_of_learning(options, message):
    model = zoo.build(options.pop("model", "sparse_coding"), (1, 5, 5), latents=8)
    with pytest.raises(ValueError, match=message):
        learn_dictionary(model, options.pop("data", bars(50)[0]), **({"steps": 2, "batch_size": 10, "progress": False} | options))


def test_atoms_of_another_decoder_are_not_learned():
    model = zoo.build("laplace", (1, 5, 5), latents=8, decoder="mlp")
    assert not isinstance(model.decoder, LinearDecoder)
    with pytest.raises(ValueError, match="linear decoder"):
        learn_dictionary(model, bars(50)[0], progress=False)


def test_progress_is_reported():
    rows = []
    model = zoo.build("sparse_coding", (1, 5, 5), latents=8, penalty=0.3, scale=0.1)
    learn_dictionary(model, bars(50)[0], steps=4, batch_size=10, log_every=2, progress=lambda *report: rows.append(report))
    assert [row[:2] for row in rows] == [(2, 4), (4, 4)] and set(rows[0][2]) >= {"objective", "zeros", "kkt", "revived", "lr", "seconds"}
    fractions = []
    with pytest.warns(RuntimeWarning):
        inference.infer(model, bars(20)[0], "fista", tolerance=0.0, max_steps=100, progress=fractions.append)
    assert fractions == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_a_solution_leaves_its_start_alone():
    model, x = small()
    found, start = read(model, x), torch.ones(6, 16, dtype=torch.float64)
    for scheme in SCHEMES.values():
        solve(found, scheme(found), start, max_steps=25, tolerance=0.0)
    assert torch.equal(start, torch.ones_like(start))
