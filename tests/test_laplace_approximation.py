"""Laplace's approximation against exact posteriors, quadrature, finite differences and Pyro's own."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoLaplaceApproximation

import guides
import inference
import zoo
from guides.bounds import elbo
from guides.curvature import hessian, summits
from inference import infer, log_joint, score
from zoo.density import counting
from zoo.oracles import linear_gaussian, poisson_fixture

DOUBLE = torch.float64


def images(n, shape, seed=1):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_it_is_exact_in_linear_gaussian_models(unchanged_generator):
    model = linear_gaussian(8, (1, 3, 4), scale=0.4).double()
    x = images(20, (1, 3, 4))
    mean, cov = model.posterior(x)
    with unchanged_generator():
        posterior = infer(model, x, "laplace_approximation", draws=1000, steps=50)
        guide = guides.build("laplace_approximation", model, x)  # from the prior's mean: one Newton step
    torch.testing.assert_close(guide.loc, mean, atol=1e-9, rtol=0)
    torch.testing.assert_close(guide.scale_tril @ guide.scale_tril.mT, cov.expand(20, -1, -1), atol=1e-10, rtol=0)
    torch.testing.assert_close(guide.log_evidence, model.log_evidence(x), atol=1e-8, rtol=0)
    torch.testing.assert_close(posterior.stats["log_evidence"], model.log_evidence(x), atol=1e-8, rtol=0)
    assert posterior.stats["promise"].max() < 1e-8 and (posterior.stats["replaced"] == 0).all()
    z = posterior.samples["z"][0]
    assert ((z.mean(0) - mean) / (cov.diagonal() / 1000).sqrt()).abs().max() < 4.5
    exact = dist.MultivariateNormal(mean, cov).log_prob(z)
    torch.testing.assert_close(posterior.log_q[0], exact)
    weights = log_joint(model, {"z": z}, x) - posterior.log_q[0]
    torch.testing.assert_close(weights, model.log_evidence(x).expand_as(weights))  # every draw has the same weight: p(x)
    values = score(model, x, infer(model, x, "laplace_approximation", draws=20, steps=50)).values
    assert values["elbo"] == pytest.approx(model.log_evidence(x).mean().item(), abs=1e-6) == values["log_px_bound"]


def gamma_program(x=None, size=None):
    """A positive rate and two real latents, none of which has a Normal posterior."""
    with pyro.plate("data", size if x is None else len(x)):
        a = pyro.sample("a", dist.Gamma(2.0, 1.0))
        c = pyro.sample("c", dist.Normal(a.unsqueeze(-1), torch.tensor([1.0, 0.5], dtype=DOUBLE)).to_event(1))
        mean = torch.cat([a.log().unsqueeze(-1), c.sin()], dim=-1)
        return pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)


def test_it_is_pyros_with_a_hessian_for_each_image():
    x = images(4, (3,))
    mine = guides.build("laplace_approximation", gamma_program, x)
    with pyro.get_param_store().scope():
        theirs = AutoLaplaceApproximation(gamma_program)
        theirs(x)
        # Pyro's vector holds a of all images, then c of all images.
        theirs.loc = torch.nn.Parameter(torch.cat([mine.loc[:, 0], mine.loc[:, 1:].flatten()]))
        found = theirs.laplace_approximation(x)
        root = (found.scale.unsqueeze(-1) * found.scale_tril).detach()
    dense = root @ root.mT
    where = torch.cat([torch.arange(4).unsqueeze(1), 4 + torch.arange(8).reshape(4, 2)], dim=1)
    for n in range(4):
        torch.testing.assert_close(mine.scale_tril[n] @ mine.scale_tril[n].T, dense[where[n][:, None], where[n]], atol=1e-8, rtol=1e-6)
    off = dense.clone()
    for n in range(4):
        off[where[n][:, None], where[n]] = 0.0
    assert off.abs().max() < 1e-10  # of which Pyro's matrix is made of nothing but these blocks


def test_the_mode_is_one_of_the_unconstrained_density():
    x = images(6, (3,))
    guide = guides.build("laplace_approximation", gamma_program, x)

    def f(u):
        a = u[:, 0].exp()
        return log_joint(gamma_program, {"a": a, "c": u[:, 1:]}, x) + u[:, 0]  # with log |da / du|

    value = f(guide.loc)
    for direction in torch.eye(3, dtype=DOUBLE):
        for step in (1e-3, -1e-3):
            assert (f(guide.loc + step * direction) < value).all()
    _, gradient, _ = hessian(f, guide.loc)
    assert gradient.abs().max() < 1e-3 and guide.promise.max() < 1e-6
    expected = value + 1.5 * math.log(2 * math.pi) + guide.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    torch.testing.assert_close(guide.log_evidence, expected, atol=1e-6, rtol=0)


def test_newton_steps_that_overshoot_are_halved():
    """Log densities like −|u| far out: whole steps from 5 would land at −69 and go on from there to infinity."""
    def program(x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Logistic(torch.zeros((), dtype=DOUBLE), 1.0))
            return pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1e3).to_event(1), obs=x)

    x = torch.zeros(2, 1, dtype=DOUBLE)
    near = guides.build("laplace_approximation", program, x)
    torch.testing.assert_close(near.loc, torch.zeros(2, 1, dtype=DOUBLE), atol=1e-6, rtol=0)
    torch.testing.assert_close(near.scale_tril[:, 0, 0], torch.full((2,), math.sqrt(2), dtype=DOUBLE), atol=1e-4, rtol=0)
    far = summits(near.model, x, [{"z": torch.tensor([5.0, -8.0], dtype=DOUBLE)}], newton=50, floor=1e-3)
    torch.testing.assert_close(far.loc, near.loc, atol=1e-6, rtol=0)


def test_hessians_are_those_of_finite_differences():
    weight = images(3, (4,), seed=5)
    u, step = images(5, (3,), seed=6), 1e-4

    def f(u):
        return (u @ weight).sin().sum(-1) * u.square().sum(-1)

    value, gradient, second = hessian(f, u)
    torch.testing.assert_close(value, f(u))
    with counting() as cost:
        hessian(f, u)
    assert cost.gradients == 5 * 3
    eye = step * torch.eye(3, dtype=DOUBLE)
    for i in range(3):
        torch.testing.assert_close((f(u + eye[i]) - f(u - eye[i])) / (2 * step), gradient[:, i], atol=1e-6, rtol=1e-6)
        for j in range(3):
            mixed = f(u + eye[i] + eye[j]) - f(u + eye[i] - eye[j]) - f(u - eye[i] + eye[j]) + f(u - eye[i] - eye[j])
            torch.testing.assert_close(mixed / (4 * step**2), second[:, i, j], atol=1e-5, rtol=1e-5)
    assert (hessian(lambda u: u @ weight[:, 0], u)[2] == 0).all()


def test_the_evidence_of_a_near_normal_posterior_is_near():
    """One positive latent, log-likelihood steep: quadrature against the approximation."""
    def program(x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            a = pyro.sample("a", dist.Gamma(3.0, 1.0))
            return pyro.sample("x", dist.Normal(a.unsqueeze(-1), 0.15).to_event(1), obs=x)

    x = torch.tensor([[1.0], [2.5], [5.0]], dtype=DOUBLE)
    a = torch.linspace(1e-3, 12, 20_001, dtype=DOUBLE)
    truth = log_joint(program, {"a": a.unsqueeze(1)}, x).logsumexp(0) + math.log(a[1] - a[0])
    posterior = infer(program, x, "laplace_approximation", draws=200, steps=100)
    torch.testing.assert_close(posterior.stats["log_evidence"], truth, atol=0.02, rtol=0)
    assert (posterior.samples["a"] > 0).all()
    values = score(program, x, posterior, k=200)
    torch.testing.assert_close(values.per_image["log_px_bound"], truth, atol=0.05, rtol=0)  # 200 draws


def test_directions_without_curvature_get_the_prior_scale():
    """Under a Laplace prior with more latents than pixels the log density is flat in some directions at its kinks; a saddle bends up."""
    model = zoo.build("laplace", (1, 1, 2), latents=4, decoder="lin", learn_prior=True, init_scale=0.8, seed=1).double()
    model.prior.data[1] += 0.3
    x = images(5, (1, 1, 2))
    posterior = infer(model, x, "laplace_approximation", draws=3000, steps=150)
    assert (posterior.stats["replaced"] == 2).all() and posterior.stats["log_evidence"].isfinite().all()
    weight = model.decoder.weight.detach()
    _, _, v = torch.linalg.svd(weight)
    flat = posterior.samples["z"][0] @ v[2:].T
    assert flat.std(0).log().sub(0.3).abs().max() < 0.06  # a chi-square's error of 3000 draws, four times over
    curved = torch.linalg.inv(v[:2] @ weight.T @ weight @ v[:2].T / model.scale.detach()**2)
    torch.testing.assert_close(torch.cov((posterior.samples["z"][0, :, 0] @ v[:2].T).T), curved, atol=0.1 * curved.max().item(), rtol=0.1)

    def saddle(x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z[..., :1].square(), 0.1).to_event(1), obs=x)

    x = torch.ones(3, 1, dtype=DOUBLE)
    stuck = guides.build("laplace_approximation", saddle, x, values={"z": torch.zeros(3, 2, dtype=DOUBLE)})
    assert (stuck.replaced == 1).all() and (stuck.loc == 0).all()  # no slope there: nothing moves
    torch.testing.assert_close(stuck.scale_tril, torch.eye(2, dtype=DOUBLE).expand(3, -1, -1))
    free = infer(saddle, x, "laplace_approximation", draws=2, starts=3, steps=100)
    assert (free.stats["replaced"] == 0).all() and free.samples["z"][..., 0].abs().mean() > 0.8


def test_supports_that_depend_on_other_latents_and_images_in_parts(monkeypatch):
    def program(x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            a = pyro.sample("a", dist.LogNormal(0.0, 0.5))
            b = pyro.sample("b", dist.Uniform(torch.zeros_like(a), a))
            return pyro.sample("x", dist.Normal(torch.stack([a, b], dim=-1), 0.2).to_event(1), obs=x)

    x = images(5, (2,)).abs() + 0.5
    whole = guides.build("laplace_approximation", program, x)
    posterior = infer(program, x, "laplace_approximation", draws=40, steps=100)
    a, b = (posterior.samples[name] for name in "ab")
    assert (b > 0).all() and (b < a).all()
    assert whole.promise.max() < 1e-3 and (whole.replaced == 0).all()
    torch.testing.assert_close(log_joint(guides.build("laplace_approximation", program, x, values={"a": a[0, 0], "b": b[0, 0]}),
                                         {"a": a[0], "b": b[0]}, x), posterior.log_q[0], atol=1e-3, rtol=1e-3)
    monkeypatch.setattr("guides.curvature.CHUNK", 2 * 2 * 4)
    parts = guides.build("laplace_approximation", program, x)
    for name in ("loc", "scale_tril", "log_evidence", "replaced"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), atol=1e-7, rtol=0)


def test_it_is_a_guide_for_bounds_and_costs_are_counted():
    model = linear_gaussian(3, (1, 2, 2))
    x = images(4, (1, 2, 2)).float()
    guide = guides.build("laplace_approximation", model, x)
    with torch.no_grad():
        torch.testing.assert_close(elbo(model, guide, x, particles=50).value.double(), model.log_evidence(x), atol=0.7, rtol=0)
    posterior = infer(model, x, "laplace_approximation", draws=2, steps=30)
    assert posterior.method == "laplace_approximation" and posterior.cost["gradient_evaluations"] >= 30 + 4
    first, again = (infer(model, x, "laplace_approximation", draws=2, steps=30, seed=3).samples["z"] for _ in range(2))
    assert torch.equal(first, again) and not any(p.requires_grad for p in guide.parameters())


def test_bad_input(monkeypatch):
    model, x = linear_gaussian(3, (1, 2, 2)), images(4, (1, 2, 2)).float()
    with pytest.raises(ValueError, match="does not fit the model: the latent 'z' is a count"):
        infer(poisson_fixture(), torch.zeros(2, 1, 1, 3), "laplace_approximation")
    with pytest.raises(ValueError, match="does not fit the model: the latent 'z' is a count"):
        guides.build("laplace_approximation", poisson_fixture(), torch.zeros(2, 1, 1, 3))
    with pytest.raises(ValueError, match="give the images as data"):
        guides.build("laplace_approximation", model)
    for options in ({"newton": -1}, {"floor": 0.0}, {"floor": 1.0}):
        with pytest.raises(ValueError, match="newton must be at least 0 and floor between 0 and 1"):
            guides.build("laplace_approximation", model, x, **options)
    with pytest.raises(ValueError, match="made for 4 images, not for 3"):
        guides.build("laplace_approximation", model, x)(x[:3])
    with pytest.raises(ValueError, match="the log density of image 2 .* not finite"):
        guides.build("laplace_approximation", model, torch.where(torch.arange(4).reshape(4, 1, 1, 1) == 2, torch.inf, x))
    monkeypatch.setattr("guides.curvature.CHUNK", 1)  # image by image
    with pytest.raises(ValueError, match="the log density of image 2 .* not finite"):
        guides.build("laplace_approximation", model, torch.where(torch.arange(4).reshape(4, 1, 1, 1) == 2, torch.inf, x))
    with pytest.raises(ValueError, match="has no option chains"):
        inference.infer(model, x, "laplace_approximation", chains=3)
