"""Plain Pyro programs from outside the zoo: guides, training and inference against the zoo's own models and quadrature."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import kl_divergence

import guides
import inference
import zoo
from guides.bounds import elbo
from zoo.program import Adopted, adopt
from zoo.testing import check_model

LAWS = {
    "gaussian": lambda prior: dist.Normal(prior[0], prior[1].exp()).to_event(1),
    "laplace": lambda prior: dist.Laplace(prior[0], prior[1].exp()).to_event(1),
    "poisson": lambda prior: dist.Poisson(prior[0].exp()).to_event(1),
    "categorical": lambda prior: dist.OneHotCategorical(logits=prior[0]),
}


class Plain(nn.Module):
    """A zoo model's own equations, written by somebody who has never seen the zoo."""

    def __init__(self, model, law):
        super().__init__()
        self.weight = nn.Parameter(model.decoder.weight.detach().clone())
        self.prior = nn.Parameter(model.prior.detach().clone(), requires_grad=model.prior.requires_grad)
        self.law = law

    def forward(self, x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", self.law(self.prior))
            mean = (z @ self.weight.T).unflatten(-1, (1, 3, 3))
            return pyro.sample("x", dist.Normal(mean, math.sqrt(0.5)).to_event(3), obs=x)


def twins(name, n=12):
    """A zoo model, the same program in plain Pyro, and images, in double precision."""
    model = zoo.build(name, (1, 3, 3), latents=5, init_scale=0.5, seed=1).double()
    x = torch.randn(n, 1, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return model, Plain(model, LAWS[name]), x


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("particles", [1, 3])
def test_the_elbo_is_that_of_the_zoo_model(name, particles):
    model, plain, x = twins(name)
    check_model(plain, x)
    values = []
    for program in (model, plain):
        guide = guides.build("amortized", program, x, init_scale=0.3, seed=3).double()
        guide.temperature = 0.4
        torch.manual_seed(5)
        values.append(elbo(program, guide, x, particles=particles))
    torch.testing.assert_close(values[0].value, values[1].value)
    torch.testing.assert_close(values[0].kl, values[1].kl)


@pytest.mark.parametrize("name", ["gaussian", "poisson"])
def test_fit_and_infer_are_those_of_the_zoo_model(name):
    model, plain, x = twins(name)
    results = []
    for program in (model, plain):
        guide = guides.build("amortized", program, x, seed=3).double()
        history = inference.fit(program, guide, x, steps=12, batch_size=5, lr=1e-2, log_every=3, progress=False)
        posterior = inference.infer(program, x, "amortized", guide=guide, draws=3, seed=4)
        refined = inference.infer(program, x, "local", guide=guide, steps=5, objective="elbo", draws=2)
        best = inference.infer(program, x, "map", steps=20)
        results.append((history.column("elbo"), program.state_dict(), posterior, refined, best))
    (elbos, weights, *ours), (plain_elbos, plain_weights, *theirs) = results
    assert elbos == pytest.approx(plain_elbos, rel=1e-8)
    torch.testing.assert_close(weights["decoder.weight"], plain_weights["weight"])
    torch.testing.assert_close(weights["prior"], plain_weights["prior"])
    assert not torch.equal(weights["decoder.weight"], twins(name)[0].decoder.weight)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.samples["z"], other.samples["z"])
        torch.testing.assert_close(mine.predict(model), other.predict(plain))


WEIGHT = torch.tensor([1.0, -0.5, 0.8, 0.3])
SITES = {
    "lognormal": dist.LogNormal(torch.tensor(0.0), 0.5), "gamma": dist.Gamma(torch.tensor(3.0), 2.0),
    "beta": dist.Beta(torch.tensor(2.0), 3.0), "normal": dist.Normal(torch.tensor(0.5), 1.0),
}


def scalar_program(law):
    def program(x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            s = pyro.sample("s", law)
            mean = (s.unsqueeze(-1) * WEIGHT).unflatten(-1, (1, 2, 2))
            return pyro.sample("x", dist.Normal(mean, 0.4).to_event(3), obs=x)

    return program


def quadrature(law, x):
    """Log evidence, posterior mean and mode of the scalar program, each ``(N,)``."""
    low, high = {"beta": (1e-6, 1 - 1e-6), "normal": (-6.0, 6.0)}.get(law, (1e-6, 12.0))
    s = torch.linspace(low, high, 40_001, dtype=torch.float64)
    means = (s.unsqueeze(-1) * WEIGHT.double()).unsqueeze(1)
    joint = dist.Normal(means, 0.4).log_prob(x.double().flatten(1)).sum(-1) + SITES[law].log_prob(s.float()).double().unsqueeze(1)
    top = joint.max(0)
    density = (joint - top.values).exp()
    mass = torch.trapezoid(density, s, dim=0)
    return top.values + mass.log(), torch.trapezoid(density * s.unsqueeze(1), s, dim=0) / mass, s[top.indices]


@pytest.mark.parametrize("law", SITES)
def test_scalar_sites_of_any_support_against_quadrature(law):
    program = scalar_program(SITES[law])
    torch.manual_seed(1)
    x = program(size=6)
    evidence, mean, mode = quadrature(law, x)
    posterior = inference.infer(program, x, "local", steps=600, draws=4000)
    draws = posterior.samples["s"]
    assert draws.shape == (1, 4000, 6) and SITES[law].support.check(draws).all()
    assert (posterior.mean["s"] - mean).abs().max() < 0.08
    guide = guides.build("local", program, x)
    with torch.no_grad():
        guide.deltas["s"].copy_(posterior.params["s"])
        bound = elbo(program, guide, x, particles=4000).value
    assert (bound < evidence + 0.02).all() and (bound > evidence - 0.15).all()
    best = inference.infer(program, x, "map").samples["s"][0, 0]
    assert (best - mode).abs().max() < 2e-3


def test_the_kl_of_a_transformed_site_is_the_mean_log_ratio():
    law = SITES["lognormal"]
    program = scalar_program(law)
    torch.manual_seed(6)
    x = program(size=3)
    guide = guides.build("amortized", program, x, init_scale=0.3)
    with torch.no_grad():
        loc, log_scale = guide.delta(x)["s"].squeeze(-1).unbind(-1)
        truth = kl_divergence(dist.Normal(loc, log_scale.exp()), law.base_dist)
        sampled = elbo(program, guide, x, particles=40_000).kl
    assert (sampled - truth).abs().max() < 0.05


class Mixed(PyroModule):
    """A positive gain, shares between 0 and 1, and counts whose rate depends on the gain."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 36).reshape(9, 4))

    def forward(self, x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            gain = pyro.sample("gain", dist.Gamma(torch.tensor(4.0), 4.0))
            share = pyro.sample("share", dist.Beta(torch.ones(4), 2.0).to_event(1))
            z = pyro.sample("z", dist.Poisson((1.0 + gain).unsqueeze(-1).expand(*gain.shape, 4)).to_event(1))
            mean = ((gain.unsqueeze(-1) * share * z) @ self.weight.T).unflatten(-1, (1, 3, 3))
            return pyro.sample("x", dist.Normal(mean, 0.5).to_event(3), obs=x)


def test_a_program_of_several_kinds_of_sites_fits_and_infers(unchanged_generator):
    with pyro.settings.context(module_local_params=True):  # else a PyroModule is stored globally, by its very run
        _fits_and_infers(Mixed(), unchanged_generator)


def _fits_and_infers(program, unchanged_generator):
    torch.manual_seed(0)
    x = program(size=40).detach()
    before = program.weight.detach().clone()
    with unchanged_generator():
        guide = guides.build("amortized", program, x)
        history = inference.fit(program, guide, x, steps=150, batch_size=20, lr=1e-2, log_every=30, progress=False, warmup=0.0,
                                beta_start=1.0)
        posteriors = [inference.infer(program, x, method, guide=guide, draws=5, **options) for method, options in
                      (("amortized", {}), ("local", {"steps": 20}), ("map", {"steps": 60}))]
    assert history.rows[-1]["elbo"] > history.rows[0]["elbo"] + 1
    assert not torch.equal(program.weight, before)
    assert history.rows[0]["temperature"] > history.rows[-1]["temperature"] == 0.05  # the counts are relaxed and annealed
    for posterior in posteriors:
        assert list(posterior.samples) == ["gain", "share", "z"]
        draws = 1 if posterior.method == "map" else 5
        assert {name: tuple(value.shape) for name, value in posterior.samples.items()} == {
            "gain": (1, draws, 40), "share": (1, draws, 40, 4), "z": (1, draws, 40, 4)}
        assert (posterior.samples["gain"] > 0).all()
        assert ((posterior.samples["share"] > 0) & (posterior.samples["share"] < 1)).all()
        assert torch.equal(posterior.samples["z"], posterior.samples["z"].round())
        assert posterior.predict(program).shape == x.shape
        scores = inference.score(program, x, posterior)
        assert scores.values["mse"] > 0 and math.isnan(scores.values["nelbo"]) == (posterior.method == "map")
        if posterior.log_q is not None:
            drawn = {name: value[0] for name, value in posterior.samples.items()}
            bound = inference.log_joint(program, drawn, x) - posterior.log_q[0]
            torch.testing.assert_close(scores.per_image["elbo"], bound.mean(0), rtol=1e-4, atol=1e-3)
    assert len(pyro.get_param_store()) == 0


def test_an_adopted_program_is_the_program():
    program = scalar_program(SITES["normal"])
    torch.manual_seed(6)
    x = program(size=3)
    adopted = adopt(program, x)
    assert isinstance(adopted, Adopted) and adopt(adopted) is adopted
    assert adopted.event_shape == (1, 2, 2) and list(adopted.latents) == ["s"]
    latents = {"s": torch.tensor([0.1, 0.5, 2.0])}
    torch.testing.assert_close(inference.log_joint(adopted, latents, x), inference.log_joint(program, latents, x))
    model = zoo.build("gaussian", (1, 2, 2), latents=2)
    assert adopt(model) is model


@pytest.mark.parametrize("law", [dist.Bernoulli(torch.full((3,), 0.5)).to_event(1), dist.Poisson(torch.tensor(2.0)),
                                 dist.Geometric(torch.full((2,), 0.3)).to_event(1), dist.Categorical(torch.ones(3))])
def test_unknown_discrete_laws_are_refused(law):
    def program(x):
        with pyro.plate("data", len(x)):
            pyro.sample("s", law)
            pyro.sample("x", dist.Normal(torch.zeros(1, 2, 2), 1.0).to_event(3), obs=x)

    with pytest.raises(ValueError, match="latents? .*(Poisson|support)"):
        guides.build("amortized", program, torch.zeros(2, 1, 2, 2))


def test_programs_that_cannot_be_adopted_are_refused():
    def no_latents(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(1, 2, 2), 1.0).to_event(3), obs=x)

    with pytest.raises(ValueError, match="give data"):
        guides.build("amortized", no_latents)
    with pytest.raises(ValueError, match="no latent sample sites"):
        guides.build("amortized", no_latents, torch.zeros(2, 1, 2, 2))


def test_a_site_whose_unconstrained_space_is_smaller_is_inferred():
    """A Dirichlet's simplex of four has three unconstrained dimensions."""

    def model(x):
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Dirichlet(torch.ones(4)))
            return pyro.sample("x", dist.Normal(p.unflatten(-1, (1, 2, 2)), 0.1).to_event(3), obs=x)

    x = torch.tensor([0.1, 0.2, 0.3, 0.4]).reshape(1, 1, 2, 2).expand(3, 1, 2, 2).contiguous()
    guide = guides.build("amortized", model, x)
    assert guide.delta(x)["p"].shape == (3, 2, 3)
    mean = inference.infer(model, x, "local", objective="elbo", steps=200, draws=200).mean["p"]
    torch.testing.assert_close(mean.sum(-1), torch.ones(3))
    torch.testing.assert_close(mean, x.flatten(1), atol=0.06, rtol=0)


def test_a_pyro_module_leaves_nothing_in_the_global_store():
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = PyroParam(torch.zeros(4))

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))
                return pyro.sample("x", dist.Normal(z.unflatten(-1, (1, 2, 2)), 1.0).to_event(3), obs=x)

    with pyro.settings.context(module_local_params=True):
        model = Model()
    x = torch.randn(5, 1, 2, 2)
    guide = guides.build("amortized", model, x)
    inference.fit(model, guide, x, steps=3, progress=False)
    assert not dict(pyro.get_param_store())
