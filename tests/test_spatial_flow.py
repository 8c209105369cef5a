"""Affine flows over images: densities against multivariate Normals, determinants against autograd, closed forms against gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, TransformedDistribution

from zoo import flows
from zoo.flows.base import Stack
from zoo.flows.density import FlowDensity
from zoo.flows.matrices import KINDS, moments, row_statistics
from zoo.flows.spatial import spatial

SHAPE = (1, 2, 3)
KIND = pytest.mark.parametrize("kind", KINDS)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(n=400, seed=1):
    """Correlated images with a mean."""
    return (normal(n, 6, seed=seed) @ normal(6, 6, seed=7) + normal(6, seed=8)).unflatten(-1, SHAPE)


def random_flow(kind, seed=3):
    flow = spatial(kind, SHAPE).double()
    if kind == "pca":
        flow.axes.copy_(torch.linalg.qr(normal(6, 6, seed=9))[0])
    with torch.no_grad():
        for i, parameter in enumerate(flow.parameters()):
            parameter.copy_(0.4 * normal(*parameter.shape, seed=seed + i))
    return flow


@KIND
def test_the_density_is_that_of_a_multivariate_normal(kind):
    flow, x = random_flow(kind), normal(5, *SHAPE, seed=2)
    matrix = flow.matrix().detach()
    truth = MultivariateNormal(flow.loc.detach(), precision_matrix=matrix.T @ matrix).log_prob(x.flatten(1))
    torch.testing.assert_close(FlowDensity(flow).double().log_prob(x), truth, rtol=0, atol=1e-8)
    base = Normal(torch.zeros(SHAPE, dtype=torch.float64), 1.0)
    torch.testing.assert_close(TransformedDistribution(base, flow).log_prob(x), truth, rtol=0, atol=1e-8)


@KIND
def test_fitted_in_closed_form_all_kinds_give_the_normal_of_the_data(kind):
    x = images()
    mean, covariance = x.flatten(1).mean(0), x.flatten(1).T.cov(correction=0)
    flow = spatial(kind, SHAPE).double().fit(x, ridge=0.0)
    truth = MultivariateNormal(mean, covariance).log_prob(x.flatten(1))
    torch.testing.assert_close(FlowDensity(flow).double().log_prob(x), truth, rtol=0, atol=1e-8)
    y = flow.inv(x).flatten(1)
    torch.testing.assert_close(y.T.cov(correction=0), torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-10)


@KIND
def test_no_gradient_is_left_at_the_closed_form(kind):
    density = FlowDensity(spatial(kind, SHAPE).double().fit(images(), ridge=0.0)).double()
    density.log_prob(images()).mean().backward()
    for name, parameter in density.named_parameters():
        assert parameter.grad.abs().max() < 1e-9, name


@KIND
def test_the_determinant_is_that_of_the_jacobian(kind):
    flow, y = random_flow(kind), normal(*SHAPE, seed=4)
    jacobian = torch.autograd.functional.jacobian(flow, y).reshape(6, 6)
    torch.testing.assert_close(flow.log_abs_det_jacobian(y, flow(y)), torch.linalg.slogdet(jacobian)[1])
    torch.testing.assert_close(torch.linalg.inv(jacobian), flow.matrix())


@KIND
def test_there_and_back_with_dimensions_to_the_left(kind):
    flow, x = random_flow(kind), normal(2, 3, 4, *SHAPE, seed=5)
    y, log_det = flow.whiten(x)
    assert log_det.shape == ()  # one for all images: nothing of size D³ is done for each
    torch.testing.assert_close(flow(y), x)
    torch.testing.assert_close(flow.inv(flow(x)), x)
    torch.testing.assert_close(y[1, 2, 3], flow.whiten(x[1, 2, 3])[0])
    assert flow.log_abs_det_jacobian(y, x).shape == (2, 3, 4)


def test_each_kind_keeps_its_structure():
    zca, cholesky, pca = (random_flow(kind).matrix().detach() for kind in ("zca", "cholesky", "pca"))
    torch.testing.assert_close(zca, zca.T)
    assert torch.linalg.eigvalsh(zca)[0] > 0
    assert not cholesky.triu(1).any() and (cholesky.diagonal() > 0).all() and cholesky.tril(-1).any()
    gram = pca @ pca.T
    torch.testing.assert_close(gram, gram.diagonal().diag())


def test_closed_form_matrices():
    mean, covariance = moments(images(), 3)
    inverse = torch.linalg.inv(covariance)
    zca, cholesky, pca = (KINDS[kind](covariance) for kind in ("zca", "cholesky", "pca"))
    torch.testing.assert_close(zca, zca.T)
    torch.testing.assert_close(zca @ zca, inverse)
    assert torch.linalg.eigvalsh(zca)[0] > 0
    torch.testing.assert_close(cholesky.T @ cholesky, inverse)
    assert cholesky.triu(1).abs().max() < 1e-12
    torch.testing.assert_close(pca.T @ pca, inverse)
    lengths = pca.norm(dim=1)
    assert (lengths.diff() > 0).all()  # the axis of largest variance, whose filter is the shortest, comes first
    with_ridge = moments(images(), 3, ridge=0.1)[1] - covariance
    torch.testing.assert_close(with_ridge, 0.1 * covariance.diagonal().mean() * torch.eye(6, dtype=torch.float64))


def test_zca_learned_by_gradient_is_the_closed_form():
    x = images()
    flow = spatial("zca", SHAPE).double()
    density = FlowDensity(flow).double()
    search = torch.optim.LBFGS(flow.parameters(), max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-10, tolerance_change=0)

    def loss():
        search.zero_grad()
        value = -density.log_prob(x).mean()
        value.backward()
        return value

    search.step(loss)
    torch.testing.assert_close(flow.matrix().detach(), KINDS["zca"](moments(x, 3)[1]), rtol=0, atol=1e-4)


def test_fit_climbs_to_the_greatest_likelihood(unchanged_generator):
    x = images().float()
    best = FlowDensity(spatial("cholesky", SHAPE).fit(x)).log_prob(x).mean().item()
    density = FlowDensity(spatial("cholesky", SHAPE))
    with unchanged_generator():
        history = density.fit(x, steps=600, batch_size=100, lr=0.05, seed=2)
    reached = density.log_prob(x).mean().item()
    assert history[0] < best - 1.0 and best - 0.05 < reached <= best + 1e-4
    same, again, other = (FlowDensity(spatial("cholesky", SHAPE)).fit(x, steps=3, batch_size=10, seed=seed) for seed in (2, 2, 3))
    assert same == again != other


def test_a_diagonal_base_has_its_closed_form_and_draws_follow_the_density(unchanged_generator):
    x = images()
    density = FlowDensity(Stack([], SHAPE), base="diagonal").double().start(x, ridge=0.0)
    truth = Normal(x.mean(0), x.std(0, correction=0)).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(density.log_prob(x), truth)
    carried = FlowDensity(random_flow("zca"), base="diagonal").double()
    with unchanged_generator():
        drawn = carried.sample(20_000, seed=3)
    assert torch.equal(drawn, carried.sample(20_000, seed=3)) and not torch.equal(drawn, carried.sample(20_000, seed=4))
    covariance = torch.linalg.inv(carried.flow.matrix().detach() @ carried.flow.matrix().detach().T)
    error = (drawn.flatten(1).T.cov() - covariance).abs().max() / covariance.abs().max()
    assert error < 0.05


def test_stacks_whiten_from_the_data_inwards():
    first, second = random_flow("cholesky"), random_flow("zca", seed=20)
    stack, x = Stack([first, second]), normal(3, *SHAPE, seed=6)
    y, log_det = stack.whiten(x)
    torch.testing.assert_close(y, second.inv(first.inv(x)))
    torch.testing.assert_close(stack(y), x)
    torch.testing.assert_close(log_det, first.log_det() + second.log_det())
    fitted = Stack([spatial("zca", SHAPE), spatial("pca", SHAPE)]).double().fit(images(), ridge=0.0)
    torch.testing.assert_close(fitted.flows[1].log_scale.detach(), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-9)
    assert [type(flow).__name__ for flow in flows.build("ar+zca", (4, *SHAPE), past=2).flows] == ["Autoregression", "PerFrame"]


def test_what_a_row_looks_like():
    row = torch.zeros(5, 5)
    row[2, 2], row[2, 1], row[1, 2], row[2, 3], row[3, 2], row[1, 1], row[0, 0] = 2.0, -0.8, -0.4, -0.4, -0.4, 0.4, 1.0
    told = row_statistics(row.flatten(), (1, 5, 5), (2, 2))
    assert told["neighbour"] == pytest.approx(-0.25) and told["left"] == pytest.approx(-0.4) and told["up"] == pytest.approx(-0.2)
    assert told["diagonal"] == pytest.approx(0.05) and told["sum"] == pytest.approx(0.7)
    squares = torch.tensor([1.0, 0.16, 0.04, 0.04, 0.04, 0.04, 0.25])
    assert told["energy_3x3"] == pytest.approx((squares[:6].sum() / squares.sum()).item())
    assert told["participation"] == pytest.approx((squares.sum() ** 2 / squares.square().sum() / 25).item())
    with pytest.raises(ValueError, match="border"):
        row_statistics(row.flatten(), (1, 5, 5), (0, 2))


def test_bad_input_is_told():
    with pytest.raises(ValueError, match="unknown spatial flow 'svd'; known are: zca, cholesky, pca"):
        spatial("svd", SHAPE)
    with pytest.raises(ValueError, match="unknown flows 'svd'"):
        flows.build("svd", SHAPE)
    with pytest.raises(ValueError, match="no option past; it accepts: none"):
        flows.build("zca", SHAPE, past=2)
    with pytest.raises(ValueError, match=r"takes \(…, 1, 2, 3\); got \(4, 1, 3, 2\)"):
        spatial("zca", SHAPE)(torch.zeros(4, 1, 3, 2))
    with pytest.raises(ValueError, match="not positive definite"):
        spatial("zca", SHAPE).fit(torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)), ridge=0.0)
    with pytest.raises(ValueError, match="at least 2 images"):
        spatial("zca", SHAPE).fit(torch.zeros(1, *SHAPE))
    with pytest.raises(ValueError, match="one event shape"):
        Stack([spatial("zca", SHAPE), spatial("zca", (1, 2, 2))])
    with pytest.raises(ValueError, match="event_shape"):
        Stack([])
    with pytest.raises(ValueError, match="base must be"):
        FlowDensity(spatial("zca", SHAPE), base="student")
    with pytest.raises(ValueError, match="steps and batch_size"):
        FlowDensity(spatial("zca", SHAPE)).fit(torch.zeros(4, *SHAPE), steps=0)
    with pytest.raises(FloatingPointError, match="at step 0"):
        FlowDensity(spatial("zca", SHAPE)).fit(torch.full((4, *SHAPE), math.inf), steps=1)
