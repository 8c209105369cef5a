"""Monte Carlo EM against maximum likelihood in closed form and by enumeration, and the chains that it keeps."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import guides
import zoo
from inference.expectation_maximization import MonteCarloEM
from inference.mcmc.persistent import PersistentChains
from inference.training import fit
from zoo.data import rofl
from zoo.oracles import enumerable_poisson, linear_gaussian, mixture, poisson_fixture
from zoo.oracles.enumerable import Enumerable
from zoo.oracles.linear import LinearGaussian

EM = {"method": "mcmc", "optimizer": "adam", "final_lr": 1e-4, "progress": False}


def linear_images(n=300, pixels=6, latents=2, noise=0.6):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(pixels, latents, generator=generator)
    x = torch.randn(n, latents, generator=generator) @ weight.T + noise * torch.randn(n, pixels, generator=generator)
    return x.reshape(n, 1, 1, pixels)


def test_probabilistic_pca_reaches_the_maximum_likelihood():
    """Tipping & Bishop 1999: the highest mean log evidence follows from the eigenvalues of the second moments."""
    x = linear_images()
    moments = x.flatten(1).double().T @ x.flatten(1).double() / len(x)
    values = torch.linalg.eigvalsh(moments).flip(0)
    noise = values[2:].mean()
    highest = -0.5 * (6 * math.log(2 * math.pi) + values[:2].log().sum() + 4 * noise.log() + 6).item()
    model = zoo.build("gaussian", (1, 1, 6), latents=2, learn_scale=True, init_scale=0.5, seed=1)
    at_first = LinearGaussian.of(model).log_evidence(x).mean().item()
    history = fit(model, None, x, sampler="mala", steps=200, batch_size=100, lr=0.05, **EM)
    reached = LinearGaussian.of(model).log_evidence(x).mean().item()
    assert at_first < highest - 0.5
    assert highest - 0.01 < reached <= highest + 1e-6
    assert model.scale.item() == pytest.approx(noise.sqrt().item(), rel=0.03)
    assert 0.5 < history.rows[-1]["accepted"] < 0.65 and math.isfinite(history.rows[-1]["log_joint"])
    assert math.isnan(history.rows[-1]["elbo"])  # which nobody knows without a guide


def test_no_bias_where_a_mean_field_elbo_has_one():
    """Two features that overlap, and a noise to be learned: independent units must take some of their correlation for noise."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.tensor([[1.0, 0.9], [0.9, 1.0], [0.7, 0.8]])
    x = (torch.randn(400, 2, generator=generator) @ weight.T + 0.3 * torch.randn(400, 3, generator=generator)).reshape(400, 1, 1, 3)
    model = zoo.build("gaussian", (1, 1, 3), latents=2, learn_scale=True)
    model.decoder.weight = nn.Parameter(weight, requires_grad=False)
    oracle, grid = LinearGaussian.of(model), torch.linspace(-2.5, 0.0, 251)
    evidence, bound = [], []
    for log_scale in grid:
        oracle.log_scale.data.copy_(log_scale)
        evidence.append(oracle.log_evidence(x).mean())
        bound.append(oracle.mean_field_elbo(x).mean())
    evidence, bound = torch.stack(evidence), torch.stack(bound)
    assert evidence[bound.argmax()] < evidence.max() - 0.05
    with torch.no_grad():
        model.log_scale.fill_(-0.35)
    fit(model, None, x, sampler="mala", transitions=4, steps=150, batch_size=200, lr=0.05, **EM)
    assert LinearGaussian.of(model).log_evidence(x).mean() > evidence.max() - 0.01
    assert abs(model.log_scale.item() - grid[evidence.argmax()]) < 0.05 < abs(grid[bound.argmax()] - grid[evidence.argmax()])


def learnable(weight, rates):
    """The enumerable model of counts with everything to be learned."""
    fixed = enumerable_poisson(weight, rates, max_count=10)
    return Enumerable(fixed.states, fixed.family, fixed.units, fixed.decoder, fixed.event_shape, prior=fixed.prior, learn_prior=True)


def test_counts_reach_the_maximum_likelihood_by_enumeration():
    torch.manual_seed(1)
    x = enumerable_poisson(torch.tensor([[1.8, 0.0], [0.9, -1.5], [0.0, 1.5]]), torch.tensor([0.8, 0.4]))(None, size=300).detach()
    start = torch.tensor([[1.0, 0.2], [0.2, -1.0], [0.2, 1.0]]), torch.tensor([0.4, 0.4])
    exact, model = learnable(*start), learnable(*start)
    at_first = exact.log_evidence(x).mean().item()
    ascent = torch.optim.LBFGS(exact.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        ascent.zero_grad()
        value = -exact.log_evidence(x).mean()
        value.backward()
        return value

    ascent.step(loss)
    highest = exact.log_evidence(x).mean().item()
    fit(model, None, x, particles=2, steps=200, batch_size=150, lr=0.05, **EM)
    reached = model.log_evidence(x).mean().item()
    assert at_first < highest - 0.2 and highest - 0.01 < reached < highest + 1e-3
    assert (model.prior - exact.prior).abs().max() < 0.15


def switching(x=None, size=None):
    """A cause that is one of three, a number given the cause, an image given the number."""
    n = size if x is None else len(x)
    with pyro.plate("data", n):
        c = pyro.sample("c", dist.OneHotCategorical(logits=torch.tensor([0.3, -0.2, 0.1])))
        s = pyro.sample("s", dist.Normal((c @ torch.tensor([-1.0, 0.5, 2.0])).unsqueeze(-1), 0.8).to_event(1))
        return pyro.sample("x", dist.Normal(s, 0.7).to_event(1), obs=x)


def visited(model, x, visits, **options):
    """Chains of all images, in batches of two that do not follow the images' order: states after visits, ``{site: (visits, C, n, …)}``."""
    chains = PersistentChains(model, x, batch_size=2, **options)
    order = torch.tensor([2, 0, 3, 1])
    everything = torch.arange(len(x))
    torch.manual_seed(3)
    chains.start(model, order[:2])
    seen = []
    for i in range(visits):
        for index in order.split(2):
            chains.move(index)
        if i >= visits // 3:
            seen.append(chains.states(everything))
    return {name: torch.stack([states[name] for states in seen]).double() for name in seen[0]}, chains


def check_means(draws, wanted, tolerance):
    """Means over visits and chains, with a standard error from the chains."""
    of_chains = draws.mean(0)
    error = of_chains.std(0) / math.sqrt(len(of_chains))
    mean = of_chains.mean(0)
    assert (mean - wanted).abs().le(4.5 * error + 1e-3).all() and error.max() < tolerance


IMAGES = torch.tensor([[-1.5, 0.4, 0.2], [0.3, -0.8, 0.9], [2.0, 0.5, -0.5], [0.1, 0.2, 1.9]]).reshape(4, 1, 1, 3)


@pytest.mark.parametrize("sampler", ["gibbs", "lattice"])
def test_chains_of_counts_are_in_the_posterior(sampler):
    oracle = poisson_fixture()
    draws, _ = visited(oracle, IMAGES, 20 if sampler == "gibbs" else 40, chains=200, sampler=sampler)
    wanted, _ = oracle.posterior_moments(IMAGES)
    check_means(draws["z"], wanted, 0.02)


@pytest.mark.parametrize("sampler", ["hmc", "mala"])
def test_chains_of_real_values_are_in_the_posterior(sampler):
    oracle = linear_gaussian(latents=2, event_shape=(1, 1, 3), scale=0.5)
    draws, chains = visited(oracle, IMAGES, 15 if sampler == "hmc" else 50, chains=200, sampler=sampler)
    mean, covariance = oracle.posterior(IMAGES)
    check_means(draws["z"], mean, 0.05)
    check_means((draws["z"] - mean).square(), covariance.diagonal().expand(4, 2), 0.05)
    accepted = torch.stack([chains.move(torch.tensor(pair)) for pair in ([0, 1], [2, 3])]).mean()
    assert abs(accepted - {"hmc": 0.8, "mala": 0.574}[sampler]) < 0.1


def test_every_image_has_its_own_step_size():
    """Acceptance falls with the step size, on some images sooner than on others."""
    chains = PersistentChains(linear_gaussian(latents=2, event_shape=(1, 1, 3)), IMAGES, batch_size=2, sampler="hmc")
    width = torch.tensor([0.3, 0.5, 1.0, 3.0])

    def accepted(index):
        return (-chains.log_steps[0, index].exp() / width[index]).exp()

    for visit in range(400):
        index = torch.tensor([[2, 0], [3, 1]])[visit % 2]
        chains._tune(accepted(index).unsqueeze(0), index, visit)
    torch.testing.assert_close(accepted(torch.arange(4)), torch.full((4,), 0.8), atol=0.03, rtol=0.0)


def test_chains_of_mixed_latents_are_in_the_posterior():
    x = torch.tensor([[-1.5], [0.3], [2.0], [0.9]])
    draws, _ = visited(switching, x, 30, chains=150, transitions=2)
    means, logits = torch.tensor([-1.0, 0.5, 2.0]), torch.tensor([0.3, -0.2, 0.1])
    total = 0.8**2 + 0.7**2
    responsibilities = (logits - 0.5 * (x - means).square() / total).softmax(-1).double()
    given = means + 0.8**2 / total * (x - means)
    check_means(draws["c"], responsibilities, 0.03)
    check_means(draws["s"], (responsibilities * given).sum(-1, keepdim=True), 0.04)


def test_a_guide_learns_the_posterior_from_the_chains_and_teaches_nothing():
    oracle = mixture()
    torch.manual_seed(1)
    x = oracle(None, size=400).detach()
    guide, before = guides.build("amortized", oracle), oracle.decoder.weight.clone()
    history = fit(oracle, guide, x, particles=4, steps=150, batch_size=200, lr=0.1, freeze_model=True, **EM)
    right = oracle.responsibilities(x)
    with torch.no_grad():
        q = oracle.family.distribution(guide.posterior(x)["z"]).probs
    assert (right * (right.log() - q.log())).sum(1).mean() < 0.02
    assert torch.equal(oracle.decoder.weight, before)
    assert oracle.log_evidence(x).mean() - 0.3 < history.rows[-1]["elbo"] < oracle.log_evidence(x).mean() + 0.3

    results = []
    for with_guide in (True, False):  # the same chains: the guide changes nothing for the model
        model = zoo.build("poisson", (1, 2, 2), latents=3, seed=1)
        learner = MonteCarloEM(model, guides.build("amortized", model) if with_guide else None, x, batch_size=50, chains=2)
        torch.manual_seed(1)
        learner.chains.start(model, torch.arange(50))
        learner.chains.visits += 1
        torch.manual_seed(2)
        bound = learner.bound(model, learner, torch.arange(50, 100))
        results.append(torch.autograd.grad(bound.surrogate.sum(), list(model.parameters())))
    assert all(map(torch.equal, *results))


class Stop(Exception):
    pass


@pytest.mark.parametrize(("name", "with_guide"), [("gaussian", True), ("poisson", False)])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, name, with_guide, unchanged_generator):
    x = torch.randn(24, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    settings = {"method": "mcmc", "steps": 12, "batch_size": 6, "lr": 0.02, "particles": 2, "seed": 5, "log_every": 1}

    def training(stop=None, **options):
        def progress(step, steps, row):
            if step == stop:
                raise Stop

        model = zoo.build(name, (1, 2, 2), latents=3, seed=1)
        guide = guides.build("amortized", model, seed=2) if with_guide else None
        history = None
        with unchanged_generator():
            try:
                history = fit(model, guide, x, progress=progress, **settings, **options)
            except Stop:
                assert stop is not None
        return [*model.state_dict().values(), *(guide.state_dict().values() if with_guide else [])], history

    whole, rows = training()
    kept = {"checkpoint": tmp_path / "state", "checkpoint_every": 0.0}
    training(stop=8, **kept)
    resumed, again = training(**kept)
    assert all(map(torch.equal, whole, resumed))
    for column in ("log_joint", "accepted", "elbo"):
        assert str(rows.column(column)) == str(again.column(column))
    with pytest.raises(ValueError, match="transitions 2 there, 3 here"):
        training(transitions=3, **kept)
    other, _ = training(transitions=3)
    assert not all(map(torch.equal, whole, other))


def test_bad_input_is_refused():
    x = torch.randn(8, 1, 1, 3)
    model = poisson_fixture()
    short = {"steps": 2, "progress": False}
    for options, words in [({"objective": "iwae"}, "neither another objective"), ({"sampler": "hmc"}, "'hmc' does not move the latents z"),
                           ({"sampler": "nuts"}, "unknown sampler 'nuts'"), ({"transitions": 0}, "1 transition"),
                           ({"particles": 0}, "1 chain"),
                           ({"beta": 0.5}, "Monte Carlo EM has no KL term"), ({"freeze_model": True}, "nothing to train"),
                           ({"method": "em"}, "unknown method 'em'; known are: variational, mcmc"),
                           ({"method": "variational"}, "there is no guide")]:
        with pytest.raises(ValueError, match=words):
            fit(model, None, x, **{"method": "mcmc"} | short | options)
    with pytest.raises(ValueError, match="a stream, of which no image comes up twice"):
        flow = zoo.build("gaussian", (2, 17, 17), latents=2)
        fit(flow, None, rofl.Stream("fixate-0"), method="mcmc", batch_size=4, **short)
    with pytest.raises(ValueError, match="cannot learn from minibatches"):
        fit(model, guides.build("local", model, x), x, method="mcmc", **short)
    with pytest.raises(ValueError, match="does not move the latents z; 'auto'"):
        fit(linear_gaussian(2, (1, 1, 3)), None, x, method="mcmc", sampler="gibbs", **short)
    deep = zoo.build("poisson", (1, 1, 3), latents=2, decoder="mlp")
    with pytest.raises(ValueError, match="use 'lattice'"):
        fit(deep, None, x, method="mcmc", sampler="gibbs", **short)
    assert len(fit(deep, None, x, method="mcmc", **short).rows) == 1


def test_a_plain_program_learns(unchanged_generator):
    """Beta-distributed causes: the mean of what they are added to is learned by chains on the unit interval."""
    shift = nn.Parameter(torch.zeros(1))

    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = shift

        def forward(self, x):
            with pyro.plate("data", len(x)):
                p = pyro.sample("p", dist.Beta(torch.full((1,), 2.0), torch.full((1,), 3.0)).to_event(1))
                pyro.sample("x", dist.Normal(p + self.shift, 0.2).to_event(1), obs=x)

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 1, generator=generator) * 0.28 + 1.4
    with unchanged_generator():
        fit(Program(), None, x, sampler="mala", steps=80, batch_size=100, lr=0.1, **EM)
    nodes = torch.linspace(0.0025, 0.9975, 200, dtype=torch.float64)
    shifts = torch.linspace(0.8, 1.2, 81, dtype=torch.float64)
    likelihood = dist.Normal(nodes + shifts[:, None, None], 0.2).log_prob(x.double()) + dist.Beta(2.0, 3.0).log_prob(nodes)
    best = shifts[likelihood.logsumexp(-1).mean(-1).argmax()]
    assert abs(shift.item() - best) < 0.02
