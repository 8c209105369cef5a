"""The published loss of hierarchies: against the loss written out frame by frame, and against the plain ELBO where the two must agree."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pyro
import pytest
import torch
from pyro import poutine
from torch.distributions import kl_divergence

import guides
import zoo
from guides.bounds import OBJECTIVES, elbo
from guides.objectives.relative import balance, relative, relative_weights
from inference.training import fit

SHAPE = (2, 9, 9)
TINY = {"channels": 4, "groups": (1, 1), "pre": (1, 1), "up": (1, 1), "down": (1, 1), "units": 3}
X = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.05, 1.0, 6)[:, None, None, None]


def pair(family="gaussian", **options):
    """A hierarchy and its guide with posteriors that differ from their priors."""
    model = zoo.build("hierarchy", SHAPE, family=family, seed=1, **TINY | options)
    guide = guides.build("hierarchical", model, seed=2)
    guide.temperature = 0.5
    return model, guide


def flat(family="gaussian"):
    model = zoo.build(family, SHAPE, latents=4, decoder="mlp", likelihood="endpoint", scale=0.3, seed=1)
    guide = guides.build("amortized", model, encoder="mlp", seed=2)
    guide.temperature = 0.5
    return model, guide


def parts(model, guide, x, seed):
    """Endpoint errors and KL divergences by group of every frame, from the traces of the two programs."""
    torch.manual_seed(seed)
    with pyro.validation_enabled(False):
        drawn = poutine.trace(guide).get_trace(x)
        given = poutine.trace(poutine.replay(model, drawn)).get_trace(x)
    predicted = given.nodes["x"]["fn"].mean
    error = ((x[:, 0] - predicted[:, 0]) ** 2 + (x[:, 1] - predicted[:, 1]) ** 2).sqrt().sum((1, 2))
    kls = []
    for name in model.latents:
        q, p = drawn.nodes[name]["fn"], given.nodes[name]["fn"]
        kls.append(unrelaxed_kl(q, p))
    return error, kls


def unrelaxed_kl(q, p):
    if hasattr(q.base_dist, "loc"):
        return kl_divergence(q, p)
    q = torch.distributions.Independent(torch.distributions.Poisson(q.base_dist.rate), 1)
    return kl_divergence(q, torch.distributions.Independent(torch.distributions.Poisson(p.base_dist.rate), 1))


def published(model, guide, x, beta, final, seed):
    """EPE by relative weights + beta · balanced KL, summed over the batch."""
    error, kls = parts(model, guide, x, seed)
    norms = [float((frame[0] ** 2 + frame[1] ** 2).sqrt().sum()) for frame in x]
    weights = [1.0 / norm for norm in norms]
    factor = sum(error.tolist()) / sum(weight * one for weight, one in zip(weights, error.tolist(), strict=True))
    loss = sum(factor * weight * one for weight, one in zip(weights, error, strict=True))
    sizes = [sum(map(abs, kl.tolist())) / len(x) + 0.01 for kl in kls]
    for size, kl in zip(sizes, kls, strict=True):
        loss = loss + beta * (size / (sum(sizes) / len(sizes)) if beta < final else 1.0) * kl.sum()
    return loss


def gradients(value, *modules):
    parameters = [p for module in modules for p in module.parameters()]
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)])


@pytest.mark.parametrize("build", [pair, flat])
@pytest.mark.parametrize("family", ["gaussian", "poisson"])
@pytest.mark.parametrize(("beta", "final"), [(0.2, 1.0), (1.0, 1.0), (0.7, 0.7)])
def test_its_gradient_is_that_of_the_published_loss(build, family, beta, final):
    model, guide = build(family)
    b = float(model.scale)
    assert b == pytest.approx(0.15 if build is pair else 0.3)
    with torch.random.fork_rng():
        by_hand = gradients(published(model, guide, X, b * beta, b * final, seed=3), model, guide)
        torch.manual_seed(3)
        ours = gradients(-b * relative(model, guide, X, beta=beta, final_beta=final).surrogate.sum(), model, guide)
        torch.manual_seed(3)
        plain = gradients(-b * elbo(model, guide, X, beta=beta).surrogate.sum(), model, guide)
    torch.testing.assert_close(ours, by_hand, rtol=1e-3, atol=1e-4 * float(by_hand.abs().max()))
    assert (plain - by_hand).norm() > 0.05 * by_hand.norm()


@pytest.mark.parametrize("particles", [1, 3])
def test_what_is_reported_is_the_plain_bound(particles):
    model, guide = pair(["gaussian", "poisson"])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        ours = relative(model, guide, X, beta=0.4, particles=particles)
        torch.manual_seed(1)
        plain = elbo(model, guide, X, beta=0.4, particles=particles)
    for name in ("value", "log_likelihood", "kl"):
        torch.testing.assert_close(getattr(ours, name), getattr(plain, name), rtol=1e-5, atol=1e-3)
    assert ours.surrogate.shape == (6,) and not torch.allclose(ours.surrogate, plain.surrogate)


@pytest.mark.parametrize("particles", [1, 3])
def test_frames_of_equal_length_at_the_last_beta_give_the_elbo(particles):
    """Nothing is weighted then, constants of a learned scale included."""
    model, guide = pair(learn_scale="image")
    x = X / X.square().sum(1, keepdim=True).sqrt().sum((2, 3), keepdim=True)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        ours = relative(model, guide, x, beta=1.0, particles=particles)
        torch.manual_seed(1)
        plain = elbo(model, guide, x, beta=1.0, particles=particles)
    torch.testing.assert_close(ours.surrogate, plain.surrogate, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(gradients(ours.surrogate.mean(), model, guide), gradients(plain.surrogate.mean(), model, guide),
                               rtol=1e-3, atol=1e-2)


def test_weights_of_frames_and_groups():
    error = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    weights, norms = relative_weights(X, error), X.square().sum(1).sqrt().sum((1, 2))
    assert float((weights * error).sum()) == pytest.approx(21.0)
    torch.testing.assert_close(weights * norms, (weights * norms)[:1].expand(6))
    still = torch.cat([X[:5], torch.zeros(1, *SHAPE)])
    assert torch.isfinite(relative_weights(still, error)).all() and relative_weights(still, error).argmax() == 5
    kls = torch.tensor([[1.0, -0.5, 0.0], [3.0, 1.5, 0.0]])
    torch.testing.assert_close(balance(kls), torch.tensor([2.01, 1.01, 0.01]) / (3.03 / 3))
    torch.testing.assert_close(balance(torch.zeros(4, 2)), torch.ones(2))


def test_weights_of_a_shared_batch_are_those_of_the_whole():
    """Two threads with a third and two thirds of a batch add up what they have."""
    error, kls = X.abs().sum((1, 2, 3)), torch.rand(6, 2, generator=torch.Generator().manual_seed(1))
    barrier, said = Barrier(2), [None, None]

    def weights(rank):
        def total(sums):
            said[rank] = sums
            barrier.wait(10)
            both = said[0] + said[1]
            barrier.wait(10)
            return both

        part = slice(0, 2) if rank == 0 else slice(2, 6)
        return relative_weights(X[part], error[part], total), balance(kls[part], total)

    with ThreadPoolExecutor(2) as pool:
        (first, groups), (second, same) = pool.map(weights, range(2))
    torch.testing.assert_close(torch.cat([first, second]), relative_weights(X, error))
    torch.testing.assert_close(groups, balance(kls))
    torch.testing.assert_close(same, balance(kls))
    assert not torch.allclose(balance(kls[:2]), groups)


@pytest.mark.parametrize(("name", "options"), [("gaussian", {"latents": 3}), ("hierarchy", TINY)])
def test_other_likelihoods_are_refused(name, options):
    model = zoo.build(name, (1, 9, 9), **options)
    with pytest.raises(ValueError, match="likelihood='endpoint'.* not 'normal'; use 'elbo'"):
        relative(model, guides.build(guides.default(model), model), X[:, :1])


def test_what_else_it_refuses():
    model, guide = pair()
    with pytest.raises(ValueError, match="particles"):
        relative(model, guide, X, particles=0)
    model, guide = pair(zoo.latents.registry["poisson"](relaxation="score"))
    with pytest.raises(ValueError, match="relaxed samples, which not all latents have"):
        relative(model, guide, X)
    with torch.no_grad():
        assert torch.isfinite(relative(model, guide, X).value).all()
    with pytest.raises(ValueError, match="use 'elbo'"):
        relative(lambda x: None, guide, X)


def test_fit_says_where_beta_ends(monkeypatch):
    seen = []

    def noting(model, guide, x, *, beta, particles=1, final_beta=None, total=None):
        seen.append((beta, final_beta, particles, total(torch.ones(2)).tolist()))
        return relative(model, guide, x, beta=beta, particles=particles, final_beta=final_beta)

    monkeypatch.setitem(OBJECTIVES, "relative", noting)
    model, guide = pair()
    history = fit(model, guide, X, objective="relative", steps=4, batch_size=3, beta=0.8, beta_start=0.1, beta_hold=0.25, beta_warmup=0.5,
                  log_every=1, progress=False)
    assert [one[1:] for one in seen] == [(0.8, 1, [1.0, 1.0])] * 4
    assert [one[0] for one in seen] == pytest.approx([0.1, 0.1, 0.45, 0.8])
    assert all(torch.isfinite(torch.tensor([row["elbo"], row["kl"]])).all() for row in history.rows)
