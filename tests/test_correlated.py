"""Normal units with shared correlations, against MultivariateNormal, samples and the Fisher information by autograd."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

import guides
import inference
import zoo
from guides.bounds import elbo
from zoo.distributions.correlated import CorrelatedNormal, Structure
from zoo.distributions.reshaped import Reshaped
from zoo.latents.correlated import CorrelatedGaussian, Correlations
from zoo.latents.gaussian import Gaussian

DOUBLE = torch.float64
UNITS = 5


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def correlations(kind, seed=0):
    module = Correlations(UNITS, kind, 2).double()
    with torch.no_grad():
        module.weight.copy_(0.7 * random(*module.weight.shape, seed=seed))
    return module


def matrix(kind, weight):
    """R, written again."""
    if kind == "lowrank":
        return torch.eye(UNITS, dtype=DOUBLE) + weight @ weight.T
    tril = weight.tril(-1) + torch.eye(UNITS, dtype=DOUBLE)
    return tril @ tril.T


def reference(kind, module, loc, scale):
    covariance = scale.unsqueeze(-1) * matrix(kind, module.weight) * scale.unsqueeze(-2)
    return MultivariateNormal(loc, covariance)


KINDS = pytest.mark.parametrize("kind", ["full", "lowrank"])


@KINDS
def test_density_moments_and_kl_are_those_of_the_multivariate_normal(kind):
    module = correlations(kind)
    structure = module.structure(random(1))
    loc, scale = random(4, 3, UNITS), random(4, 3, UNITS, seed=1).exp()
    other_loc, other_scale = random(3, UNITS, seed=2), random(3, UNITS, seed=3).exp()
    law, other = CorrelatedNormal(loc, scale, structure), CorrelatedNormal(other_loc, other_scale, structure)
    exact, exact_other = reference(kind, module, loc, scale), reference(kind, module, other_loc, other_scale)
    z = random(2, 4, 3, UNITS, seed=4)
    torch.testing.assert_close(law.log_prob(z), exact.log_prob(z))
    torch.testing.assert_close(law.log_prob(z[0, 0, 0]), exact.log_prob(z[0, 0, 0]))
    torch.testing.assert_close(law.expand((7, 4, 3)).log_prob(z[0]), exact.expand((7, 4, 3)).log_prob(z[0]))
    torch.testing.assert_close(law.variance, exact.variance)
    assert law.mean is law.loc and law.mode is law.loc and law.batch_shape == (4, 3) and law.event_shape == (UNITS,)
    torch.testing.assert_close(kl_divergence(law, other.expand((4, 3))), kl_divergence(exact, exact_other.expand((4, 3))))
    torch.testing.assert_close(structure.log_det(), torch.logdet(matrix(kind, module.weight)))
    torch.testing.assert_close(structure.matrix(), matrix(kind, module.weight))


@KINDS
def test_samples_have_the_covariance(kind):
    module = correlations(kind)
    loc, scale = random(2, UNITS), random(2, UNITS, seed=1).exp()
    law = CorrelatedNormal(loc, scale, module.structure(loc))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        draws = law.rsample((40_000,))
    exact = reference(kind, module, loc, scale)
    products = (draws - loc).unsqueeze(-1) * (draws - loc).unsqueeze(-2)
    assert ((products.mean(0) - exact.covariance_matrix) / products.std(0)).abs().max() * 200 < 4.5
    assert ((draws.mean(0) - loc) / draws.std(0)).abs().max() * 200 < 4.5
    assert (exact.covariance_matrix[0] - torch.diag(exact.variance[0])).abs().max() > 0.3


@KINDS
def test_gradients_reach_everything_through_density_and_samples(kind):
    module = correlations(kind)
    loc, scale = random(3, UNITS).requires_grad_(), random(3, UNITS, seed=1).exp().requires_grad_()
    z = random(3, UNITS, seed=2).requires_grad_()
    inputs = [loc, scale, z, module.weight]
    mine = torch.autograd.grad(CorrelatedNormal(loc, scale, module.structure(z)).log_prob(z).sum(), inputs)
    theirs = torch.autograd.grad(reference(kind, module, loc, scale).log_prob(z).sum(), inputs)
    for one, two in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, two)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draw = CorrelatedNormal(loc, scale, module.structure(z)).rsample()
    assert all(slope.abs().max() > 0 for slope in torch.autograd.grad(draw.square().sum(), [loc, scale, module.weight]))


@KINDS
def test_natural_gradients_are_those_of_the_fisher_information(kind):
    """The Fisher information of a Normal law, ½ tr(C⁻¹ ∂C C⁻¹ ∂C) + ∂mᵀ C⁻¹ ∂m, from derivatives of mean and covariance by autograd."""
    module = correlations(kind)
    family = CorrelatedGaussian(module)
    params, gradient = 0.5 * random(2, UNITS), random(2, UNITS, seed=1)

    def moments(params):
        scale = params[1].exp()
        return params[0], scale.unsqueeze(-1) * matrix(kind, module.weight.detach()) * scale

    covariance = moments(params)[1]
    of_mean, of_covariance = torch.autograd.functional.jacobian(moments, params)
    precision = torch.linalg.inv(covariance)
    of_mean, of_covariance = of_mean.flatten(1), of_covariance.flatten(2).movedim(-1, 0)
    fisher = of_mean.T @ precision @ of_mean + 0.5 * torch.einsum("ij,ajk,kl,bli->ab", precision, of_covariance, precision, of_covariance)
    expected = torch.linalg.solve(fisher, gradient.flatten()).view(2, UNITS)
    torch.testing.assert_close(family.natural(params, gradient).detach(), expected)
    many = family.natural(params.expand(3, 4, 2, UNITS), gradient.expand(3, 4, 2, UNITS)).detach()
    torch.testing.assert_close(many, expected.expand(3, 4, 2, UNITS))


@KINDS
def test_what_the_family_says_of_moments_and_kl(kind):
    module = correlations(kind)
    family = CorrelatedGaussian(module)
    params, prior = 0.5 * random(3, 2, UNITS), 0.5 * random(3, 2, UNITS, seed=1)
    exact = reference(kind, module, params[:, 0], params[:, 1].exp())
    mean, variance = family.moments(params)
    torch.testing.assert_close((mean, variance), (exact.mean, exact.variance))
    weight = random(7, UNITS, seed=2)
    trace = torch.einsum("di,nij,dj->n", weight, exact.covariance_matrix, weight)
    torch.testing.assert_close(family.decoded_variance(params, weight), trace)
    torch.testing.assert_close(family.unit_kl(params, prior), kl_divergence(
        exact, reference(kind, module, prior[:, 0], prior[:, 1].exp())).unsqueeze(-1))
    torch.testing.assert_close(family.read(family.distribution(params)), params)


def test_a_start_without_correlations_is_the_gaussian_family():
    module = Correlations(UNITS, "full").double()
    params, prior = 0.5 * random(3, 2, UNITS), 0.5 * random(3, 2, UNITS, seed=1)
    family, z = CorrelatedGaussian(module), random(3, UNITS, seed=2)
    torch.testing.assert_close(family.distribution(params).log_prob(z), Gaussian().distribution(params).log_prob(z))
    torch.testing.assert_close(family.unit_kl(params, prior).squeeze(-1), Gaussian().unit_kl(params, prior).sum(-1))
    torch.testing.assert_close(family.natural(params, z.unsqueeze(1) * params), Gaussian().natural(params, z.unsqueeze(1) * params))


def test_a_low_rank_start_has_a_slope():
    module = Correlations(UNITS, "lowrank", 3)
    assert module.weight.shape == (UNITS, 3) and module.weight.abs().max() < 0.1
    CorrelatedGaussian(module).distribution(torch.zeros(2, UNITS)).log_prob(torch.ones(UNITS)).backward()
    assert module.weight.grad.abs().max() > 0


def test_laws_of_other_correlations_have_no_closed_kl_here():
    laws = [CorrelatedNormal(torch.zeros(UNITS), torch.ones(UNITS), Structure(tril=torch.eye(UNITS))) for _ in range(2)]
    with pytest.raises(NotImplementedError, match="share their correlations"):
        kl_divergence(*laws)


def test_images_have_the_law_of_their_flattened_pixels():
    module = Correlations(6, "full").double()
    with torch.no_grad():
        module.weight.copy_(0.5 * random(6, 6))
    base = CorrelatedNormal(random(4, 6), random(4, 6, seed=1).exp(), module.structure(random(1)))
    law, x = Reshaped(base, (2, 3)), random(4, 2, 3, seed=2)
    torch.testing.assert_close(law.log_prob(x), base.log_prob(x.flatten(1)))
    torch.testing.assert_close((law.mean, law.variance), (base.mean.view(4, 2, 3), base.variance.view(4, 2, 3)))
    assert law.sample((5,)).shape == (5, 4, 2, 3) == law.expand((5, 4)).sample().shape and law.has_rsample
    with pytest.raises(ValueError, match=r"has no images \(2, 2\)"):
        Reshaped(base, (2, 2))


def test_a_models_posterior_shares_its_correlations_and_the_elbo_its_closed_kl():
    model = zoo.build("predictive_coding", (2, 3), levels=(4, 3), precision="full").double()
    with torch.no_grad():
        for number, level in enumerate(model.levels):
            level.correlations.weight.copy_(0.5 * random(level.units, level.units, seed=number))
    x = random(6, 2, 3)
    guide = guides.build("amortized", model, encoder="lin").double()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in guide.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        closed = torch.stack([elbo(model, guide, x).value for _ in range(400)])
    posterior = inference.infer(model, x, "amortized", guide=guide, draws=2000)
    sampled = inference.log_joint(model, {name: value[0] for name, value in posterior.samples.items()}, x) - posterior.log_q[0]
    difference = closed.mean(0) - sampled.mean(0)
    assert (difference / (closed.var(0) / 400 + sampled.var(0) / 2000).sqrt()).abs().max() < 4
    assert closed.std(0).mean() < sampled.std(0).mean()


@pytest.mark.parametrize(("build", "words"), [
    (lambda: Correlations(4, "banded"), "not 'banded'"), (lambda: Correlations(4, "lowrank", 5), "from 1 to the 4 units"),
    (lambda: Correlations(4, "lowrank", 0), "from 1 to the 4 units"), (lambda: Structure(), "one of them"),
    (lambda: Structure(torch.eye(2), torch.ones(2, 1)), "one of them"),
])
def test_refusals(build, words):
    with pytest.raises(ValueError, match=words):
        build()
