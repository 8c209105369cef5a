"""Flows over time: exact for linear systems, causal, parallel in the density and sequential in drawing."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import MultivariateNormal

from zoo import flows
from zoo.flows.base import Stack
from zoo.flows.density import FlowDensity
from zoo.flows.frames import PerFrame, pasts
from zoo.flows.spatial import spatial

T, FRAME = 5, (1, 2, 2)
SHAPE = (T, *FRAME)
NAMES = pytest.mark.parametrize("name", ["ar", "var", "conv", "conv+ar", "var+zca"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_flow(name, past=2, shape=SHAPE, seed=3):
    flow = flows.build(name, shape, past=past).double()
    with torch.no_grad():
        for i, parameter in enumerate(flow.parameters()):
            parameter.copy_(0.3 * normal(*parameter.shape, seed=seed + i))
    return flow


def autoregressive(a, b, noise, n, frames, seed=0):
    """Sequences x_t = a x_{t−1} + b x_{t−2} + noise · e_t, and e, each ``(n, frames, 1)``, long after their start."""
    e = normal(n, frames + 200, 1, seed=seed)
    x = torch.zeros_like(e)
    for t in range(2, e.shape[1]):
        x[:, t] = a * x[:, t - 1] + b * x[:, t - 2] + noise * e[:, t]
    return x[:, -frames:], e[:, -frames:]


def conditioned(covariance, frames, size, past):
    """Coefficients ``(p + 1, p, D, D)`` and covariances ``(p + 1, D, D)`` of a frame given the 0 to p frames before it."""
    weight, variance = torch.zeros(past + 1, past, size, size, dtype=torch.float64), []
    for age in range(past + 1):
        now, before = slice(age * size, (age + 1) * size), slice(0, age * size)
        gain = covariance[now, before] @ torch.linalg.inv(covariance[before, before])
        variance.append(covariance[now, now] - gain @ covariance[before, now])
        for lag in range(age):
            weight[age, lag] = gain[:, (age - 1 - lag) * size: (age - lag) * size]
    return weight, torch.stack(variance)


def test_the_past_of_every_frame():
    x = normal(2, 3, T, *FRAME)
    past = pasts(x, 3, 3)
    assert past.shape == (2, 3, T, 3, *FRAME)
    for t in range(T):
        for lag in range(3):
            there = x[:, :, t - 1 - lag] if t > lag else torch.zeros(2, 3, *FRAME, dtype=x.dtype)
            assert torch.equal(past[:, :, t, lag], there)


def test_true_coefficients_leave_the_innovations():
    a, b, noise = 1.4, -0.6, 0.5
    x, e = autoregressive(a, b, noise, 20, 8)
    flow = flows.build("ar", (8, 1), past=2).double()
    with torch.no_grad():
        flow.weight[2, :, 0] = torch.tensor([a, b], dtype=torch.float64)
        flow.log_scale[2] = torch.tensor(noise, dtype=torch.float64).log()
    torch.testing.assert_close(flow.inv(x)[:, 2:], e[:, 2:])


@pytest.mark.parametrize("name", ["ar", "var"])
def test_the_density_of_a_linear_system_is_that_of_a_multivariate_normal(name):
    size, past, frames = (1, 2, 6) if name == "ar" else (2, 1, 5)
    if name == "ar":  # stationary: the covariance from the Yule–Walker recursion
        a, b = 1.2, -0.5
        rho = [1.0, a / (1 - b)]
        while len(rho) < frames:
            rho.append(a * rho[-1] + b * rho[-2])
        covariance = torch.tensor([[3.0 * rho[abs(i - j)] for j in range(frames)] for i in range(frames)], dtype=torch.float64)
    else:  # started at an arbitrary law: x_t = B x_{t−1} + e_t, e of unit variance, from x_0 of unit variance
        step = torch.tensor([[0.5, 0.6], [-0.3, 0.8]], dtype=torch.float64)
        rows = torch.cat([torch.cat([torch.linalg.matrix_power(step, i - j) if i >= j else torch.zeros(2, 2, dtype=torch.float64)
                                     for j in range(frames)], 1) for i in range(frames)])
        covariance = rows @ rows.T
    weight, variance = conditioned(covariance, frames, size, past)
    flow = flows.build(name, (frames, size), past=past).double()
    with torch.no_grad():
        flow.weight.copy_(weight if name == "var" else weight[..., 0])
        flow.log_scale.copy_(0.5 * variance.diagonal(dim1=1, dim2=2).log())
    x = normal(7, frames, size, seed=2)
    truth = MultivariateNormal(torch.zeros(frames * size, dtype=torch.float64), covariance).log_prob(x.flatten(1))
    torch.testing.assert_close(FlowDensity(flow).double().log_prob(x), truth, rtol=0, atol=1e-8)


@NAMES
def test_causal_and_the_determinant_is_that_of_the_jacobian(name):
    flow, y = random_flow(name), normal(*SHAPE, seed=1)
    x = flow(y)
    jacobian = torch.autograd.functional.jacobian(lambda y: flow(y), y).reshape(T, 4, T, 4)
    for t in range(T):
        assert not jacobian[t, :, t + 1:].any()  # no frame depends on a later one
    assert jacobian[1, :, 0].any() and jacobian[2, :, 0].any()
    truth = torch.linalg.slogdet(jacobian.reshape(4 * T, 4 * T))[1]
    torch.testing.assert_close(flow.log_abs_det_jacobian(y, x), truth)
    back = torch.autograd.functional.jacobian(lambda x: flow.inv(x), x).reshape(4 * T, 4 * T)
    torch.testing.assert_close(back @ jacobian.reshape(4 * T, 4 * T), torch.eye(4 * T, dtype=torch.float64), rtol=0, atol=1e-9)


@NAMES
def test_there_and_back_with_dimensions_to_the_left(name):
    flow, x = random_flow(name), normal(2, 3, *SHAPE, seed=5)
    y, log_det = flow.whiten(x)
    torch.testing.assert_close(flow(y), x)
    torch.testing.assert_close(flow.inv(flow(x)), x)
    one, its = flow.whiten(x[1, 2])
    torch.testing.assert_close(y[1, 2], one)
    torch.testing.assert_close(log_det.expand(2, 3)[1, 2], its)
    assert flow.log_abs_det_jacobian(y, x).shape == (2, 3) and FlowDensity(flow).double().log_prob(x).shape == (2, 3)


@pytest.mark.parametrize("name", ["ar", "var", "conv"])
def test_the_density_sees_all_frames_at_once(name, monkeypatch):
    flow, calls = random_flow(name), []
    once = flow.predict
    monkeypatch.setattr(flow, "predict", lambda past, ages: calls.append(len(ages)) or once(past, ages))
    flow.whiten(normal(2, *SHAPE))
    assert calls == [T]
    flow(normal(2, *SHAPE))
    assert calls == [T] + [1] * T


@pytest.mark.parametrize("name", ["ar", "var"])
def test_no_gradient_is_left_at_the_closed_form(name):
    x = normal(300, *SHAPE).cumsum(1) @ normal(2, 2, seed=1) + 0.7
    density = FlowDensity(flows.build(name, SHAPE, past=2).double().fit(x, ridge=0.0)).double()
    density.log_prob(x).mean().backward()
    for key, parameter in density.named_parameters():
        assert parameter.grad.abs().max() < 1e-9, key
    with torch.no_grad():
        y = density.flow.inv(x)
    torch.testing.assert_close(y.mean(0)[:2], torch.zeros(2, *FRAME, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(y.square().mean(0)[:2], torch.ones(2, *FRAME, dtype=torch.float64), rtol=0, atol=1e-9)


def test_an_autoregression_is_found_again():
    x, _ = autoregressive(1.4, -0.6, 0.5, 2000, 10)
    flow = flows.build("ar", (10, 1), past=2).double().fit(x)
    weight, scale = flow.weight[2, :, 0].detach(), flow.log_scale[2].exp().detach()
    torch.testing.assert_close(weight, torch.tensor([1.4, -0.6], dtype=torch.float64), rtol=0, atol=0.02)
    torch.testing.assert_close(scale, torch.tensor([0.5], dtype=torch.float64), rtol=0.02, atol=0)


def test_depth_is_the_order_of_differencing():
    e = normal(4, 7, 1)
    x = e.cumsum(1).cumsum(1)  # x_t − 2 x_{t−1} + x_{t−2} = e_t
    layers = [flows.build("ar", (7, 1), past=1).double() for _ in range(2)]
    with torch.no_grad():
        for layer in layers:
            layer.weight[1, 0] = 1.0
    torch.testing.assert_close(Stack(layers).inv(x), e)
    assert not torch.allclose(layers[0].inv(x), e)
    trained = FlowDensity(Stack([flows.build("ar", (7, 1), past=1).double() for _ in range(2)])).double()
    many = normal(2000, 7, 1, seed=1).cumsum(1).cumsum(1)
    trained.start(many)
    gain = trained.log_prob(many).mean() - FlowDensity(trained.flow.flows[0]).double().log_prob(many).mean()
    assert gain > 0.5 * 0.5  # one difference leaves a random walk


def test_the_number_of_past_frames_is_known():
    flow = random_flow("conv")
    past = torch.zeros(1, 3, 2, *FRAME, dtype=torch.float64)
    shift, log_scale = flow.predict(past, torch.tensor([0, 1, 2]))
    assert len({round(value, 9) for value in shift[0, :, 0, 0, 0].tolist()}) == 3
    assert len({round(value, 9) for value in log_scale[0, :, 0, 0, 0].tolist()}) == 3


def test_scales_are_bounded_smoothly():
    flow = flows.build("conv", SHAPE, past=1, bound=2.0).double()
    with torch.no_grad():
        flow.linear.bias.copy_(torch.tensor([0.0, 1e3]))
    log_scale = flow.predict(torch.zeros(1, 1, 1, *FRAME, dtype=torch.float64), torch.tensor([0]))[1]
    torch.testing.assert_close(log_scale, torch.full_like(log_scale, 2.0))
    with torch.no_grad():
        flow.linear.bias.copy_(torch.tensor([0.0, 1e-3]))
    log_scale = flow.predict(torch.zeros(1, 1, 1, *FRAME, dtype=torch.float64), torch.tensor([0]))[1]
    torch.testing.assert_close(log_scale, torch.full_like(log_scale, 1e-3), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["ar", "var", "conv", "zca", "cholesky", "pca"])
def test_flows_start_as_the_identity(name):
    flow, x = flows.build(name, SHAPE).double(), normal(3, *SHAPE)
    y, log_det = flow.whiten(x)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(log_det.expand(3), torch.zeros(3, dtype=torch.float64))


def test_a_convolution_learns_to_foretell():
    x = normal(200, *SHAPE).cumsum(1).float()
    density = FlowDensity(flows.build("conv", SHAPE, past=1, channels=4)).start(x)
    before = density.log_prob(x).mean().item()
    density.fit(x, steps=150, batch_size=100, lr=0.02)
    # Frame t has the variance t + 1; its innovation 1. Under N(0, 1) that is a gain of half of t for each pixel.
    assert density.log_prob(x).mean().item() - before > 0.9 * 0.5 * 4 * sum(range(T))


def test_one_flow_for_every_frame():
    inner = spatial("zca", FRAME).double()
    flow, x = PerFrame(inner, T), normal(50, *SHAPE) @ normal(2, 2, seed=2)
    flow.fit(x, ridge=0.0)
    torch.testing.assert_close(inner.matrix(), spatial("zca", FRAME).double().fit(x.flatten(0, 1), ridge=0.0).matrix())
    y, log_det = flow.whiten(x)
    torch.testing.assert_close(y[:, 2], inner.inv(x[:, 2]))
    torch.testing.assert_close(log_det, T * inner.log_det())


def test_bad_input_is_told():
    with pytest.raises(ValueError, match="past of 1 frame or more"):
        flows.build("ar", SHAPE, past=0)
    with pytest.raises(ValueError, match=r"\(frames, channels, height, width\)"):
        flows.build("conv", (5, 4))
    with pytest.raises(ValueError, match="channels and layers"):
        flows.build("conv", SHAPE, channels=0)
    with pytest.raises(ValueError, match="no closed form"):
        flows.build("conv", SHAPE).fit(torch.zeros(3, *SHAPE))
    with pytest.raises(ValueError, match="at least 2 sequences"):
        flows.build("ar", SHAPE).fit(torch.zeros(1, *SHAPE))
