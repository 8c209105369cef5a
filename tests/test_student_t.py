"""Student-t latents: what no other family has, heavy tails, a missing mean and the sparse prior of predictive coding."""

from __future__ import annotations

import math

import pytest
import torch

import guides
import inference
import zoo
from guides.base import center
from zoo.latents.student_t import StudentT
from zoo.testing import check_family, check_model

DOUBLE = torch.float64
ANGLES = (torch.arange(200_000, dtype=DOUBLE) + 0.5) / 200_000 * math.pi - math.pi / 2  # z = tan(angle): tails and all


def expectation(family, params, of):
    """E[of(z)] of one unit, by the midpoint rule over the angle whose tangent, in units of the scale, is z."""
    loc, log_scale = params.unbind(-2)
    z = loc + log_scale.exp() * ANGLES.tan().unsqueeze(-1)
    width = log_scale.exp().squeeze() / ANGLES.cos().square() * math.pi / len(ANGLES)
    mass = family.distribution(params).log_prob(z).exp() * width
    return (mass.unsqueeze(-1) * of(z).reshape(len(z), -1)).sum(0)


@pytest.mark.parametrize("df", [0.5, 1.0, 3.0, 30.0])
def test_the_prior_is_the_normalized_form_of_the_sparse_energy(df):
    family = StudentT(df)
    prior = family.initial_prior(1).double()
    assert prior[1].exp().item() == pytest.approx(1 / math.sqrt(df), rel=1e-6)
    r = torch.linspace(-30.0, 30.0, 13, dtype=DOUBLE).unsqueeze(-1)
    alpha = df + 1.0
    energy = 0.5 * alpha * (1.0 + r.squeeze(-1).square()).log()  # α / 2 log(1 + r²), of which Rao & Ballard 1999 minimize the sum
    constant = -energy - family.distribution(prior).log_prob(r)
    torch.testing.assert_close(constant, constant[0].expand(13), rtol=1e-5, atol=1e-5)
    normalizer = expectation(family, prior, lambda z: (-0.5 * alpha * (1 + z.square()).log()).exp() / family.distribution(
        prior).log_prob(z).exp().unsqueeze(-1))
    assert normalizer.log().item() == pytest.approx(constant[0].item(), abs=2e-3 if df < 1 else 1e-4)
    total = expectation(family, prior, torch.ones_like)
    assert total.item() == pytest.approx(1.0, abs=1e-3 if df < 1 else 1e-5)


@pytest.mark.parametrize("df", [1.0, 3.0, 7.5])
def test_fisher_information_and_natural_gradient(df):
    family = StudentT(df)
    params = torch.tensor([[0.3], [-0.4]], dtype=DOUBLE)

    def outer(z):
        copies = params.expand(len(z), 2, 1).clone().requires_grad_()
        score, = torch.autograd.grad(family.distribution(copies).log_prob(z).sum(), copies)
        return score @ score.mT

    fisher = expectation(family, params, outer).view(2, 2)
    scale = params[1].exp().item()
    expected = torch.tensor([[(df + 1) / (df + 3) / scale**2, 0.0], [0.0, 2 * df / (df + 3)]], dtype=DOUBLE)
    torch.testing.assert_close(fisher, expected, atol=1e-6, rtol=1e-5)
    gradient = torch.tensor([[1.7], [-0.6]], dtype=DOUBLE)
    torch.testing.assert_close(family.natural(params, gradient), torch.linalg.solve(fisher, gradient), atol=1e-6, rtol=1e-5)


def test_many_degrees_of_freedom_are_the_gaussian_family():
    params, z = torch.tensor([[0.3, -1.0], [-0.4, 0.5]], dtype=DOUBLE), torch.tensor([[0.5, 0.1], [2.0, -3.0]], dtype=DOUBLE)
    gaussian = zoo.latents.registry["gaussian"]()
    torch.testing.assert_close(StudentT(1e9).distribution(params).log_prob(z), gaussian.distribution(params).log_prob(z), atol=1e-5, rtol=0)
    torch.testing.assert_close(StudentT(1e9).natural(params, z), gaussian.natural(params, z), atol=1e-5, rtol=0)


def test_the_cauchy_law_starts_at_its_mode():
    law = StudentT(1.0).distribution(torch.tensor([[0.7, -2.0], [0.0, 0.0]]))
    assert not law.mean.isfinite().any()
    torch.testing.assert_close(center(law), torch.tensor([0.7, -2.0]))
    torch.testing.assert_close(center(StudentT(3.0).distribution(torch.tensor([[0.7], [0.0]]))), torch.tensor([0.7]))


@pytest.mark.parametrize("df", [1.0, 3.0])
def test_a_network_with_such_a_top_is_inferred_in_every_way(df):
    model = zoo.build("rao_ballard", (3, 2, 2), levels=(6, 4), df=df, gain=0.7)
    x = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    check_model(model, x)
    guide = guides.build("amortized", model, encoder="lin")
    for method, options in (("map", {"steps": 30}), ("local", {"steps": 20, "guide": guide}), ("amortized", {"guide": guide}),
                            ("laplace_approximation", {"steps": 30}), ("mcmc", {"chains": 2, "warmup": 20})):
        posterior = inference.infer(model, x, method, draws=4, **options)
        assert all(value.isfinite().all() for value in posterior.samples.values()), method
        assert inference.log_joint(model, {name: value[0] for name, value in posterior.samples.items()}, x).isfinite().all()


def test_the_mode_of_one_unit_is_where_the_redescending_error_balances():
    model = zoo.build("predictive_coding", (1,), levels=(1,), family="student_t", bias=False, scale=0.5).double()
    with torch.no_grad():
        model.maps[0].weight.fill_(1.0)
    x = torch.tensor([[0.2], [1.0], [3.0]], dtype=DOUBLE)
    z = inference.infer(model, x, "map", steps=600).samples["z1"][0, 0].squeeze(-1)
    nu, variance = 3.0, 1.0 / 3.0  # the prior's scale is 1 / √ν
    torch.testing.assert_close((nu + 1) * z / (nu * variance + z.square()), (x.squeeze(-1) - z) / 0.25, atol=1e-6, rtol=0)
    assert (z / x.squeeze(-1)).diff().min() > 0  # what is large is shrunk less


@pytest.mark.parametrize("df", [1.0, 5.0])
def test_other_degrees_of_freedom_keep_the_families_promises(df):
    family = StudentT(df)
    if df > 2:
        check_family(family)
    params = torch.randn(3, 2, 4)
    torch.testing.assert_close(family.read(family.distribution(params)), params)
    assert torch.equal(family.posterior(params, torch.zeros(3, 2, 4)), params) and family.unit_kl(params, params) is None


@pytest.mark.parametrize("df", [0.0, -1.0, math.inf, math.nan])
def test_other_numbers_are_refused(df):
    with pytest.raises(ValueError, match="df must be positive and finite"):
        StudentT(df)
