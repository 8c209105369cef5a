"""Guides with dependent latents (flows, full and low-rank covariances) against closed forms, quadrature and autograd's Jacobians."""

import math
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import kl_divergence

import guides
import inference
import zoo
from guides.bounds import elbo, iwae
from guides.correlated import CorrelatedNormal, times, unit_lower
from inference import Posterior, infer, log_joint, score
from inference.metrics.importance import importance, log_importance_weights
from zoo.density import sites
from zoo.oracles import linear_gaussian, poisson_fixture

DOUBLE = torch.float64
KINDS = [("flow", {"transform": "iaf"}), ("flow", {"transform": "nsf"}), ("flow", {"transform": "affine"}),
         ("flow", {"transform": "iaf", "hidden": [], "transforms": 1}), ("full", {}), ("full", {"per_image": False}),
         ("lowrank", {"rank": 2}), ("lowrank", {"rank": 3, "per_image": False})]
IDS = ["iaf", "nsf", "affine", "linear-iaf", "full", "full-shared", "lowrank", "lowrank-shared"]
kinds = pytest.mark.parametrize(("kind", "options"), KINDS, ids=IDS)


def moved(guide, by=0.3, seed=0):
    """The guide in double precision with all its parameters moved: nothing is at zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in guide.double().parameters():
        parameter.data += by * torch.randn(parameter.shape, generator=generator, dtype=DOUBLE)
    return guide


def hierarchy(x=None, size=None):
    """A positive latent, one between 0 and that, and two real ones around the second; x sees all of them."""
    with pyro.plate("data", size if x is None else len(x)):
        a = pyro.sample("a", dist.LogNormal(0.0, 0.5))
        b = pyro.sample("b", dist.Uniform(torch.zeros_like(a), a))
        c = pyro.sample("c", dist.Normal(b.unsqueeze(-1), torch.tensor([1.0, 0.5]).to(a)).to_event(1))
        mean = torch.cat([a.unsqueeze(-1), c], dim=-1)
        return pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)


def images(n=5, shape=(3,), seed=1):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def laws(guide, x, seed=0):
    """Sample sites of one run, {site: its law}, and their values."""
    torch.manual_seed(seed)
    found = sites(poutine.trace(guide).get_trace(x), observed=False)
    return {name: site["fn"] for name, site in found.items()}, {name: site["value"] for name, site in found.items()}


def laws_of(guide, latents, x):
    """Laws of all sites at given values."""
    with pyro.validation_enabled(False):
        trace = poutine.trace(poutine.condition(guide, data=latents)).get_trace(x)
    return {name: trace.nodes[name]["fn"] for name in latents}


@kinds
@pytest.mark.parametrize("family", ["gaussian", "laplace"])
def test_the_start_is_the_prior(kind, options, family):
    model = zoo.build(family, (1, 2, 2), latents=4, learn_prior=True, seed=1).double()
    model.prior.data += torch.tensor([[0.7], [-0.4]], dtype=DOUBLE)
    x = images(4, (1, 2, 2))
    guide = guides.build(kind, model, init_scale=0.0, **options).double()
    law, value = laws(guide, x)
    prior = model.family.distribution(model.prior).log_prob(value["z"])
    if kind == "flow":
        torch.testing.assert_close(law["z"].log_prob(value["z"]), prior)
    elif family == "gaussian":
        torch.testing.assert_close(law["z"].log_prob(value["z"]), prior, atol=0 if kind == "full" else 0.3, rtol=1e-9)
        with torch.no_grad():
            assert 0 <= elbo(model, guide, x).kl.max() < (1e-12 if kind == "full" else 0.02)
    near = guides.build(kind, model.float(), **options)
    with torch.no_grad():
        assert elbo(model, near, x.float(), particles=200).kl.mean() < 0.45, "even a Normal is within .08 nats of a Laplace unit"


@kinds
def test_densities_are_those_of_the_draws_by_the_change_of_variables(kind, options):
    model = linear_gaussian(3, (1, 2, 2)).double()
    guide, x = moved(guides.build(kind, model, **options)), images(4, (1, 2, 2))
    law, value = laws(guide, x)
    law, value = law["z"], value["z"]
    drawn = law.log_prob(value)
    again = laws(guide, x)[0]["z"].log_prob(value.clone())  # nothing remembered: through the inverse
    torch.testing.assert_close(drawn, again, atol=1e-7, rtol=1e-7)
    other = value.detach() + 0.1
    torch.testing.assert_close(law.log_prob(other), laws_of(guide, {"z": other}, x)["z"].log_prob(other))  # the draw is not taken for it
    if kind == "flow":
        noise = law.base_dist.rsample()

        def carried(noise):
            for transform in law.transforms:
                noise = transform(noise)
            return noise

        jacobian = torch.autograd.functional.jacobian(lambda e: carried(e).sum(0), noise).movedim(1, 0)  # images do not mix
        expected = law.base_dist.log_prob(noise) - torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(law.log_prob(carried(noise).clone()), expected, atol=1e-7, rtol=1e-7)
    else:
        cov = covariance(law)
        torch.testing.assert_close(drawn, dist.MultivariateNormal(law.mean, cov).log_prob(value))
        torch.testing.assert_close(law.variance, cov.diagonal(dim1=-2, dim2=-1))


def covariance(law):
    if isinstance(law, CorrelatedNormal):
        root = law.scale.unsqueeze(-1) * law.factor
        return root @ root.mT
    return law.covariance_matrix


@kinds
def test_draws_have_the_density_that_is_told(kind, options):
    """On a grid of the plane: the density integrates to 1, and boxes get the share of draws that it says."""
    model = linear_gaussian(2, (1, 1, 2)).double()
    guide, x = moved(guides.build(kind, model, **options), 0.2), images(1, (1, 1, 2))
    axis = torch.linspace(-10, 10, 161, dtype=DOUBLE)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        density = log_joint(guide, {"z": grid.unsqueeze(1)}, x)[:, 0].exp()
        posterior = infer(model, x, kind, guide=guide, draws=10_000)
    mass = density * (axis[1] - axis[0])**2
    assert mass.sum().item() == pytest.approx(1.0, abs=2e-3)
    mean = mass @ grid
    z = posterior.samples["z"][0, :, 0]
    for signs in ((1, 1), (1, -1), (-1, 1)):
        share = mass[((grid - mean) * torch.tensor(signs) > 0).all(-1)].sum().item()
        found = ((z - mean) * torch.tensor(signs) > 0).all(-1).double().mean().item()
        assert abs(found - share) < 4.5 * math.sqrt(share * (1 - share) / len(z)) + 0.015  # half a cell along the axes
    entropy = -(posterior.log_q.mean()).item()
    assert entropy == pytest.approx(-(mass * density.clamp(min=1e-300).log()).sum().item(), abs=0.03)


@kinds
def test_a_guide_of_several_sites_is_scored_conditioned_and_drawn_like_any_other(kind, options):
    x = images()
    guide = moved(guides.build(kind, hierarchy, x, **options), 0.2)
    torch.manual_seed(0)
    posterior = infer(hierarchy, x, kind, guide=guide, draws=6)
    a, b, c = (posterior.samples[name] for name in "abc")
    assert a.shape == b.shape == (1, 6, 5) and c.shape == (1, 6, 5, 2) and posterior.log_q.shape == (1, 6, 5)
    assert posterior.params is None and (b > 0).all() and (b < a).all()
    latents = {name: value[0].clone() for name, value in posterior.samples.items()}
    torch.testing.assert_close(log_joint(guide, latents, x), posterior.log_q[0], atol=1e-6, rtol=1e-6)
    chains = {name: value.unflatten(0, (2, 3)) for name, value in latents.items()}
    alone = torch.stack([log_joint(guide, {name: value[draw] for name, value in latents.items()}, x) for draw in range(6)])
    torch.testing.assert_close(log_joint(guide, chains, x), alone.unflatten(0, (2, 3)))
    one = log_joint(guide, {name: value[:, 2:3] for name, value in latents.items()}, x[2:3])
    torch.testing.assert_close(one, alone[:, 2:3])  # images do not see one another
    changed = dict(latents, a=1.5 * latents["a"])  # the lower sites' laws know of those above: not only through supports and priors
    told, before = (laws_of(guide, values, x)["c"].log_prob(latents["c"]) for values in (changed, latents))
    assert (told - before).abs().min() > 1e-6
    with torch.no_grad():
        sampled, weighted = elbo(hierarchy, guide, x, particles=500), iwae(hierarchy, guide, x, particles=500)
        found = infer(hierarchy, x, kind, guide=guide, draws=500)
        log_weights = log_joint(hierarchy, {name: value[0] for name, value in found.samples.items()}, x) - found.log_q[0]
    assert sampled.value.shape == (5,) and (weighted.value > sampled.value).all()
    error = log_weights.std(0) * (2 / 500) ** 0.5
    assert ((log_weights.mean(0) - sampled.value) / error).abs().max() < 4.5
    torch.testing.assert_close(log_importance_weights(hierarchy, x, guide, 500), log_weights)  # the same draws
    elbo(hierarchy, guide, x).surrogate.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in guide.parameters())


@pytest.mark.parametrize(("kind", "options"), KINDS[4:], ids=IDS[4:])
def test_sites_one_by_one_have_the_joint_normal_law(kind, options):
    """Three Normal sites with fixed priors: the product of the sites' densities is one Normal density, of the whole factor."""
    def program(x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            z = [pyro.sample(name, dist.Normal(torch.zeros(k, dtype=DOUBLE), 1.0).to_event(1))
                 for name, k in (("p", 2), ("q", 1), ("r", 3))]
            return pyro.sample("x", dist.Normal(torch.cat(z, -1), 1.0).to_event(1), obs=x)

    x = images(3, (6,))
    guide = moved(guides.build(kind, program, x, **options))
    parts = guide.encoder(x).split([4, 2, 6, guide.extra], dim=-1)
    loc, log_scale = torch.cat([part.unflatten(-1, (2, -1)) for part in parts[:3]], dim=-1).unbind(-2)
    scale = (5.3 * torch.tanh(log_scale / 5.3)).exp()
    inner = guide.prepare(parts[3])
    root = scale.unsqueeze(-1) * inner
    whole = dist.MultivariateNormal(loc, root @ root.mT + (0 if kind == "full" else 1) * torch.diag_embed(scale.square()))
    posterior = infer(program, x, kind, guide=guide, draws=4000)
    z = torch.cat([posterior.samples[name][0] for name in "pqr"], dim=-1)
    torch.testing.assert_close(posterior.log_q[0], whole.log_prob(z))
    off = (z.mean(0) - loc) / (whole.variance / 4000).sqrt()
    assert off.abs().max() < 4.5
    away = z - loc
    found = torch.einsum("sni,snj->nij", away, away) / 4000
    spread = torch.sqrt((whole.covariance_matrix.square() + whole.variance.unsqueeze(-1) * whole.variance.unsqueeze(-2)) / 4000)
    assert ((found - whole.covariance_matrix) / spread).abs().max() < 5


@pytest.mark.parametrize(("kind", "options"), KINDS[4:], ids=IDS[4:])
def test_the_divergence_from_independent_normals_is_in_closed_form(kind, options):
    model = zoo.build("gaussian", (1, 2, 2), latents=5, learn_prior=True, seed=1).double()
    model.prior.data += torch.tensor([[0.7], [-0.4]], dtype=DOUBLE)
    guide, x = moved(guides.build(kind, model, **options)), images(4, (1, 2, 2))
    q = laws(guide, x)[0]["z"]
    loc, log_scale = model.prior
    truth = kl_divergence(dist.MultivariateNormal(q.mean, covariance(q)), dist.MultivariateNormal(loc, torch.diag((2 * log_scale).exp())))
    with torch.no_grad():
        torch.testing.assert_close(elbo(model, guide, x).kl, truth)
    with pytest.raises(NotImplementedError, match="independent Normals"):
        kl_divergence(q, dist.Laplace(loc, 1.0).to_event(1))


def test_factors_with_draws_to_the_left():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 7, 3, 4, generator=generator, dtype=DOUBLE)
    for batch in ((), (3,), (7, 3)):
        factor = torch.randn(*batch, 4, 4, generator=generator, dtype=DOUBLE).tril(-1) + torch.eye(4, dtype=DOUBLE)
        product = (factor @ values.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(times(factor, values), product)
        torch.testing.assert_close(unit_lower(factor, product), values)
    torch.testing.assert_close(times(factor, values[0, 0, 0]), (factor @ values[0, 0, 0].unsqueeze(-1)).squeeze(-1))


def kl_to_exact(model, guide, x, draws=300):
    """KL divergence of the guide from the exact posterior, nats per latent, mean over images: log p(x) less the ELBO."""
    torch.manual_seed(9)
    with torch.no_grad():
        return (model.log_evidence(x) - elbo(model, guide, x, particles=draws).value.double()).mean().item() / model.units


TRAINED = [("full", {}, 250), ("lowrank", {"rank": 7, "per_image": False}, 400),
           ("flow", {"transform": "iaf", "hidden": [32]}, 300)]


@pytest.mark.parametrize(("kind", "options", "steps"), TRAINED, ids=["full", "lowrank", "iaf"])
def test_training_finds_the_exact_posterior_of_a_linear_gaussian_model(kind, options, steps):
    model = linear_gaussian(8, (1, 3, 3), scale=0.5, seed=1)
    torch.manual_seed(0)
    x, held_out = model(size=1500).detach(), model(size=100).detach()
    guide = guides.build(kind, model, **options)
    inference.fit(model, guide, x, freeze_model=True, steps=steps, lr=0.04, batch_size=50, optimizer="adam", beta_start=1.0,
                  warmup=0.05, progress=False)
    kl = kl_to_exact(model, guide, held_out)
    independent = (model.log_evidence(held_out) - model.mean_field_elbo(held_out)).mean().item() / model.units
    assert independent > 0.1, "the best posterior with independent latents must not do"
    assert -2e-3 < kl < 0.01, kl


def banana(x=None, size=None):
    """x = z2 + z1² − 1 with a little noise: the posterior is a bent ridge."""
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        mean = (z[..., 1] + z[..., 0].square() - 1.0).unsqueeze(-1)
        return pyro.sample("x", dist.Normal(mean, 0.25).to_event(1), obs=x)


def grid_evidence(model, x, reach=6.0, points=401):
    axis = torch.linspace(-reach, reach, points)
    return log_joint(model, {"z": torch.cartesian_prod(axis, axis).unsqueeze(1)}, x).double().logsumexp(0) + 2 * math.log(axis[1] - axis[0])


def test_a_flow_bends_where_a_normal_cannot():
    x = torch.linspace(-1.0, 1.5, 6).unsqueeze(-1)
    truth, losses = grid_evidence(banana, x), {}
    for kind, options in (("full", {}), ("flow", {"transform": "iaf", "transforms": 2, "hidden": [32, 32]})):
        guide = guides.build(kind, banana, x, **options)
        inference.fit(banana, guide, x.repeat(10, 1), freeze_model=True, steps=250, lr=0.04, batch_size=60, optimizer="adam",
                      beta_start=1.0, warmup=0.05, progress=False)
        torch.manual_seed(1)
        with torch.no_grad():
            losses[kind] = (truth - elbo(banana, guide, x, particles=2000).value.double()).mean().item()
            estimate = importance(banana, x, guide, 2000)
        assert ((estimate["log_px"] - truth).abs() < 5 * estimate["se"] + 0.02)[estimate["reliable"]].all()
    assert losses["full"] > 0.4 and 0 < losses["flow"] < 0.15 * losses["full"], losses


def test_scores_from_draws_and_their_densities():
    model = linear_gaussian(4, (1, 2, 3), scale=0.5)
    torch.manual_seed(0)
    x = model(size=40).detach()
    guide = guides.build("full", model, init_scale=0.2)
    posterior = infer(model, x, "full", guide=guide, draws=500)
    found = score(model, x, posterior, k=400)
    with torch.no_grad():
        exact = elbo(model, guide, x)
    z = posterior.samples["z"][0]
    error = (posterior.log_q[0] - dist.Normal(0.0, 1.0).log_prob(z).sum(-1)).std(0) / math.sqrt(500)
    assert ((found.per_image["kl"] - exact.kl) / error).abs().max() < 4.5
    values, evidence = found.values, model.log_evidence(x).mean().item()
    assert values["nelbo"] == pytest.approx(values["distortion"] + values["kl"], rel=1e-5)
    assert values["elbo"] == pytest.approx(found.per_image["elbo"].mean().item(), rel=1e-5)
    assert values["elbo"] + 1 < values["log_px_bound"] < evidence and values["log_px_bound"] > evidence - 1
    assert math.isfinite(values["pareto_k"]) and math.isnan(values["active"]) and found.unit_kl is None
    narrow = score(model, x, posterior, k=10)
    weights = log_joint(model, {"z": z[:10]}, x) - posterior.log_q[0, :10]
    torch.testing.assert_close(narrow.per_image["log_px_bound"], weights.logsumexp(0) - math.log(10))
    assert math.isnan(score(model, x, Posterior("mine", posterior.samples)).values["kl"])


def test_the_same_posterior_scores_alike_with_parameters_and_with_densities():
    model = zoo.build("gaussian", (1, 3, 3), latents=4, decoder="mlp", seed=1).eval()
    guide, x = guides.build("amortized", model, init_scale=0.1), images(12, (1, 3, 3)).float()
    with_params = infer(model, x, guide=guide, draws=400)
    law = model.family.distribution(with_params.params["z"])
    with_log_q = Posterior("mine", with_params.samples, log_q=law.log_prob(with_params.samples["z"]))
    first, second = (score(model, x, posterior, k=400).values for posterior in (with_params, with_log_q))
    for name in ("kl", "elbo", "nelbo", "log_px_bound"):
        assert second[name] == pytest.approx(first[name], abs=0.05), name
    assert second["mse"] == first["mse"] and with_params.log_q is None


@kinds
def test_saved_guides_come_back(tmp_path, kind, options):
    model = zoo.build("laplace", (1, 2, 2), latents=3, seed=1)
    guide = guides.build(kind, model, encoder="mlp", seed=4, **options)
    x = images(6, (1, 2, 2)).float()
    inference.fit(model, guide, x, steps=3, progress=False)
    inference.save(tmp_path / "both", model, guide)
    _, loaded, _ = inference.load(tmp_path / "both")
    first, second = (infer(model, x, kind, guide=program, draws=3, seed=2) for program in (guide, loaded))
    assert torch.equal(first.samples["z"], second.samples["z"]) and torch.equal(first.log_q, second.log_q)


def test_seeds_decide_and_global_state_stays(unchanged_generator):
    model, x = linear_gaussian(3, (1, 2, 2)), images(2, (1, 2, 2)).float()
    with unchanged_generator():
        first, again, other = (guides.build("flow", model, seed=seed) for seed in (1, 1, 2))
        draws = [infer(model, x, "flow", guide=first, draws=3, seed=seed).samples["z"] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs) and not all(torch.equal(a, b) for a, _, b in pairs)


def test_importing_zuko_for_a_flow_leaves_validation_on():
    code = ("import torch, guides; from zoo.oracles import linear_gaussian\n"
            "before = torch.distributions.Distribution._validate_args\n"
            "guides.build('flow', linear_gaussian(2, (1, 1, 2)))\n"
            "import sys; assert 'zuko' in sys.modules and before is True\n"
            "assert torch.distributions.Distribution._validate_args is True")
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_bad_input():
    counts, real, x = poisson_fixture(), linear_gaussian(3, (1, 2, 2)), images(2, (1, 2, 2)).float()
    mixture = zoo.build("categorical", (1, 2, 2), latents=3)
    for kind in ("flow", "full", "lowrank"):
        assert guides.misfit(kind, counts) == "the latent 'z' is a count"
        assert guides.misfit(kind, mixture) == "the latent 'z' is one-hot"
        assert guides.misfit(kind, real) is None
        with pytest.raises(ValueError, match="the latent 'z' is a count"):
            guides.build(kind, counts)
        with pytest.raises(ValueError, match="real-valued latents, and the latent 'z' is a count"):
            guides.registry[kind](counts)
        with pytest.raises(ValueError, match=f"'{kind}' draws from a trained guide of that kind; given was amortized"):
            infer(real, x, kind, guide=guides.build("amortized", real))
        with pytest.raises(ValueError, match="given was none"):
            infer(real, x, kind)
    for options, message in (({"transform": "planar"}, "unknown transform 'planar'; known are: iaf, nsf, affine"),
                             ({"transforms": 0}, "at least 1"), ({"context": 0}, "at least 1"),
                             ({"hidden": [9, 2]}, "need at least 3 units each"),
                             ({"hidden": [1], "transform": "affine"}, "need at least 2 units each"),
                             ({"bins": 1}, "at least 2")):
        with pytest.raises(ValueError, match=message):
            guides.build("flow", real, **options)
    with pytest.raises(ValueError, match="rank must be at least 1, not 0"):
        guides.build("lowrank", real, rank=0)


def test_one_latent_and_many():
    x = images(3, (1, 2, 2)).float()
    for kind, options in KINDS:
        for latents in (1, 2, 70):  # 70 coordinates: a full factor is shared by default
            model = zoo.build("gaussian", (1, 2, 2), latents=latents, seed=1)
            guide = guides.build(kind, model, **options)
            posterior = infer(model, x, kind, guide=guide, draws=2)
            assert posterior.samples["z"].shape == (1, 2, 3, latents) and posterior.log_q.isfinite().all()
    assert guides.build("full", model).extra == 0 and guides.build("full", model, per_image=True).extra == 70 * 69 // 2


def test_the_amortized_method_draws_from_any_guide_and_point_masses_have_no_density():
    model, x = linear_gaussian(3, (1, 2, 2)), images(2, (1, 2, 2)).float()
    guide = guides.build("flow", model)
    first, second = (infer(model, x, method, guide=guide, draws=3) for method in ("amortized", "flow"))
    assert torch.equal(first.samples["z"], second.samples["z"]) and first.log_q is not None
    assert infer(model, x, "amortized", guide=guides.build("map", model, x), draws=2).log_q is None
