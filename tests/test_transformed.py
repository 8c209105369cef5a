"""Models behind a flow: the same posterior as the inner model's, a density that differs by the determinant, and every way of inferring."""

from __future__ import annotations

import pytest
import torch
from pyro.distributions import Normal
from torch.distributions import MultivariateNormal

import guides
import inference
import zoo
from guides.bounds import elbo, exact_elbo, iwae
from inference import checkpoint
from zoo import flows
from zoo.density import log_joint
from zoo.flows.law import Carried
from zoo.models.transformed import Transformed
from zoo.oracles import linear_gaussian
from zoo.testing import check_model

SHAPE = (1, 3, 3)
FAMILIES = pytest.mark.parametrize("family", ["gaussian", "poisson"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(n=60, seed=1):
    return (normal(n, 9, seed=seed) @ normal(9, 9, seed=5)).unflatten(-1, SHAPE)


def built(family, flow="zca", **options):
    model = zoo.build("transformed", SHAPE, inner=family, flow=flow, latents=4, seed=2, **options)
    model.flow.fit(images())
    return model


@FAMILIES
@pytest.mark.parametrize("flow", ["zca", "cholesky", "pca"])
def test_the_conventions_hold(family, flow):
    check_model(built(family, flow), images(3, seed=3))


def test_the_conventions_hold_over_time():
    shape = (4, 1, 2, 2)
    model = zoo.build("transformed", shape, flow="conv+ar+zca", past=2, latents=3)
    with torch.no_grad():
        for i, parameter in enumerate(model.flow.parameters()):
            parameter.add_(0.2 * normal(*parameter.shape, seed=i))
    check_model(model, normal(3, *shape))


@FAMILIES
def test_the_joint_density_is_the_inner_models_plus_the_determinant(family):
    model, x = built(family).double(), images(5, seed=3).double()
    with torch.no_grad():
        z = {"z": model.model.descend(lambda name, law, prior: law.distribution(prior).sample((5,)))["z"]}
        y, log_det = model.flow.whiten(x)
        torch.testing.assert_close(log_joint(model, z, x), log_joint(model.model, z, y) + log_det)
        assert log_det.abs() > 1.0


def test_posterior_and_evidence_are_exact():
    """Around a linear-Gaussian oracle, x itself is Normal: mean A m, covariance A S Aᵀ."""
    inner = linear_gaussian(2, SHAPE, scale=0.5, seed=1).double()
    flow = flows.build("zca", SHAPE).double().fit(images().double())
    model, x = Transformed(inner, flow), images(6, seed=3).double()
    with torch.no_grad():
        y, log_det = flow.whiten(x)
        carry = torch.linalg.inv(flow.matrix())
        weight = inner.decoder.weight
        covariance = carry @ (weight @ weight.T + inner.scale**2 * torch.eye(9, dtype=torch.float64)) @ carry.T
        truth = MultivariateNormal(flow.loc, covariance).log_prob(x.flatten(1))
        torch.testing.assert_close(inner.log_evidence(y) + log_det, truth, rtol=0, atol=1e-8)
        # p(z | x) = p(z | y): the joint less the inner posterior is the evidence, whatever z.
        z = normal(3, 6, 2, seed=4).double()
        precision = weight.T @ weight / inner.scale**2 + torch.eye(2, dtype=torch.float64)
        mean = torch.linalg.solve(precision, weight.T @ y.flatten(1).T / inner.scale**2).T
        posterior = MultivariateNormal(mean, precision_matrix=precision).log_prob(z)
        torch.testing.assert_close(log_joint(model, {"z": z}, x) - posterior, truth.expand(3, 6), rtol=0, atol=1e-8)


@FAMILIES
def test_bounds_are_the_inner_models_plus_the_determinant(family):
    model, x = built(family), images(5, seed=3)
    guide = guides.build("amortized", model, x, init_scale=0.3, seed=4)
    inner = guides.build("amortized", model.model, x, init_scale=0.3, seed=4)
    y, log_det = model.flow.whiten(x)
    torch.testing.assert_close(guide.delta(x), inner.delta(y))  # the encoder sees what is whitened
    assert not torch.allclose(guide.delta(x)["z"], inner.delta(x)["z"])
    for bound in (elbo, iwae, exact_elbo):
        values = []
        for program, its, seen in ((model, guide, x), (model.model, inner, y)):
            torch.manual_seed(3)
            values.append(bound(program, its, seen, particles=4).value)
        torch.testing.assert_close(values[0], values[1] + log_det, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["amortized", "local", "map", "mcmc"])
@FAMILIES
def test_every_way_of_inferring_runs_and_finds_what_the_inner_model_finds(family, method):
    model, x = built(family), images(4, seed=3)
    with torch.no_grad():
        y, log_det = model.flow.whiten(x)
    options = {"mcmc": {"chains": 2, "warmup": 20}, "local": {"steps": 200}, "map": {"steps": 30}, "amortized": {}}[method]
    found = []
    for program, seen in ((model, x), (model.model, y)):
        guide = guides.build("amortized", program, seen, init_scale=0.3, seed=4)
        posterior = inference.infer(program, seen, method, guide=guide, draws=10, seed=1, **options)
        found.append((posterior, inference.score(program, seen, posterior)))
    (ours, our), (theirs, their) = found
    assert ours.samples["z"].shape == theirs.samples["z"].shape
    if method == "local":  # the inner model climbs the ELBO in closed form, the outer one by draws
        torch.testing.assert_close(our.per_image["elbo"].mean(), their.per_image["elbo"].mean() + log_det, rtol=0, atol=0.5)
    else:  # the determinant is the same for all latents: with the same seed the way is the same, but for rounding
        assert ((ours.samples["z"] - theirs.samples["z"]).abs() < 1e-2).double().mean() > (0.9 if method == "mcmc" else 0.999)
    if method == "amortized":
        torch.testing.assert_close(our.per_image["kl"], their.per_image["kl"])
        torch.testing.assert_close(our.per_image["log_px_bound"], their.per_image["log_px_bound"] + log_det, rtol=1e-4, atol=1e-3)
    assert our.per_image["mse"].isfinite().all()


def test_the_mean_is_exact_for_affine_flows():
    shape = (3, 1, 2, 2)
    flow = flows.build("ar+zca", shape, past=2)
    flow.fit(normal(100, *shape).cumsum(1) + 1.0)
    law = Carried(Normal(normal(shape[0], 1, 2, 2, seed=8), 0.3).to_event(4), flow)
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = law.sample((20_000,))
        assert ((drawn.mean(0) - law.mean).abs() < 5 * drawn.std(0) / 20_000**0.5).all()
        assert law.expand((7,)).mean.shape == (7, *shape) and law.expand((7,)).log_prob(drawn[:7]).shape == (7,)


def test_training_learns_flow_model_and_guide_together():
    x = 0.4 * images(400) + normal(400, *SHAPE, seed=6)
    model = zoo.build("transformed", SHAPE, inner="gaussian", latents=2, flow="cholesky", seed=1)
    guide = guides.build("amortized", model, x)
    before = model.flow.matrix().detach().clone()
    history = inference.fit(model, guide, x, objective="exact", steps=400, batch_size=100, optimizer="adam", lr=2e-2, log_every=100,
                            beta_start=1.0, progress=False)
    best = MultivariateNormal(x.flatten(1).mean(0), x.flatten(1).T.cov()).log_prob(x.flatten(1)).mean().item()
    assert not torch.allclose(model.flow.matrix(), before)
    assert best - 1.0 < history.column("elbo")[-1] < best + 0.5
    frozen = model.flow.matrix().detach().clone()
    inference.fit(model, guide, x, steps=2, batch_size=100, freeze_model=True, progress=False)
    assert torch.equal(model.flow.matrix(), frozen)


def test_saved_and_loaded(tmp_path):
    model, x = built("poisson", "pca"), images(3, seed=3)
    guide = guides.build("amortized", model, x)
    checkpoint.save(tmp_path / "model", model, guide)
    again, its_guide, _ = checkpoint.load(tmp_path / "model")
    z = {"z": torch.ones(3, 4)}
    torch.testing.assert_close(log_joint(again, z, x), log_joint(model, z, x))
    torch.testing.assert_close(its_guide.delta(x), guide.delta(x))


def test_bad_input_is_told():
    with pytest.raises(ValueError, match=r"flow over \(1, 2, 2\) does not fit a model of images \(1, 3, 3\)"):
        Transformed(zoo.build("gaussian", SHAPE, latents=2), flows.build("zca", (1, 2, 2)))
    with pytest.raises(ValueError, match="'bernoulli' has none"):
        Transformed(zoo.build("gaussian", SHAPE, latents=2, likelihood="bernoulli"), flows.build("zca", SHAPE))
    with pytest.raises(ValueError, match="needs data"):
        zoo.build("transformed")
    with pytest.raises(ValueError, match="no option depth"):
        zoo.build("transformed", SHAPE, depth=2)
