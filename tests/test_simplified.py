"""Recorded graphs with less to do give what the functions give, also after their constants have changed."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from inference.mcmc.simplified import simplified

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def record(function, *inputs):
    return simplified(make_fx(function)(*inputs))


def slope(weight, log_scale):
    """A density and its gradient, with all that autograd leaves in a record."""

    def density(z):
        z = z.detach().requires_grad_(True)
        with torch.enable_grad():
            scale = log_scale.exp().expand(len(z), -1)
            error = (X - z.tanh() @ weight.mT) / scale
            value = -0.5 * error.square().sum(-1) - scale.log().sum(-1) + 0.0 + z.new_zeros(len(z))
            gradient, = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient

    return density


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(1)
    weight, log_scale = (nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in ((3, 4), (1, 3)))
    return weight, log_scale, torch.randn(5, 4, generator=generator, dtype=torch.float64)


def test_it_is_the_same_function_with_fewer_operations(parts):
    weight, log_scale, z = parts
    function = slope(weight, log_scale)
    whole = make_fx(function)(z)
    before = len(whole.graph.nodes)
    short = simplified(whole)
    body = next(cell.cell_contents for cell in short.__closure__ if hasattr(cell.cell_contents, "__self__"))
    assert len(body.__self__.graph.nodes) < 0.6 * before
    for there in (z, 2.0 * z - 1.0):
        for a, b in zip(function(there), short(there), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("foreach", [False, True])
def test_it_sees_constants_that_optimizers_and_copies_write_to(parts, foreach):
    weight, log_scale, z = parts
    function = slope(weight, log_scale)
    short = record(function, z)
    short(z)
    adam = torch.optim.Adam([weight, log_scale], lr=0.3, foreach=foreach)
    for _ in range(3):
        weight.grad, log_scale.grad = torch.ones_like(weight), torch.ones_like(log_scale)
        adam.step()
        torch.testing.assert_close(short(z), function(z), rtol=1e-13, atol=1e-13)
    with torch.no_grad():
        weight.copy_(2.0 * weight)
    torch.testing.assert_close(short(z), function(z), rtol=1e-13, atol=1e-13)
    weight.data = torch.zeros_like(weight)  # other memory is seen, too
    torch.testing.assert_close(short(z), function(z), rtol=1e-13, atol=1e-13)


def test_signs_and_factors_go_to_what_is_spread(parts):
    z = parts[2]
    factor = torch.tensor([[2.0]], dtype=torch.float64)

    def function(z):
        of_rows = z.sum(-1, keepdim=True)
        return -(of_rows.expand(5, 40) * (z.repeat(1, 10) * 3.0)), factor.expand(5, 4) * (z * 0.5), (z * 3.0) * z

    whole = make_fx(function)(z)
    short = simplified(whole)
    for a, b in zip(function(z), short(z), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)
    body = next(cell.cell_contents for cell in short.__closure__ if hasattr(cell.cell_contents, "__self__"))
    large = [node for node in body.__self__.graph.nodes if node.op == "call_function" and node.meta["val"].shape == (5, 40)
             and node.target not in (torch.ops.aten.expand.default, torch.ops.aten.repeat.default)]
    assert len(large) == 1, large  # the product alone


def gained(x, gain):
    """A linear decoder whose gain is made of constants that are spread."""
    return (x * torch.exp(-(gain.expand(4) * torch.arange(4.0, dtype=torch.float64)))).sum(-1)


@pytest.mark.parametrize("function", [
    lambda z, _: (((z.sum(-1, keepdim=True).expand(5, 40) * 2.0) * 3.0).sum(-1),),
    lambda z, _: (-(z.sum(-1, keepdim=True).expand(5, 40) * 2.0),),
    lambda z, gain: (gained(z, gain), gained(z, gain) * 2.0),
    lambda z, gain: (gain.expand(5, 40) * (z.repeat(1, 10) * 2.0),),
    lambda z, gain: (gain.expand(5, 4) * (gain.expand(5, 4) * 2.0) * z,),
    lambda z, _: (-((i := (z * 10).long()).sum(-1, keepdim=True).expand(5, 4) * i), i.sum(-1, keepdim=True).expand(5, 4) * (z * 2.5)),
    lambda z, _: (sum(p.exp() * q for p, q in zip((z * 2.0).chunk(2, -1), (z + 1.0).chunk(2, -1), strict=True)), z.max(0)[0]),
], ids=["numbers", "negative number", "constants", "parameter", "twice constant", "integers", "parts"])
def test_other_factors(parts, function):
    gain = nn.Parameter(torch.tensor([0.3], dtype=torch.float64))
    z = parts[2]
    short = record(lambda z: tuple(value.detach() for value in function(z, gain)), z)
    for there in (z, 2.0 * z - 1.0):
        for a, b in zip(function(there, gain), short(there), strict=True):
            torch.testing.assert_close(a.detach(), b, rtol=1e-13, atol=1e-13)


def test_what_is_handed_out_may_be_written_to(parts):
    weight, _, z = parts
    short = record(lambda z: (z + 1.0, weight.detach() * 2.0), z)
    short(z)[1].zero_()
    assert torch.equal(short(z)[1], 2.0 * weight)


def test_random_numbers_are_drawn_at_every_call_and_types_are_kept(parts):
    z = parts[2]
    short = record(lambda z: (z + torch.rand_like(X).sum(), torch.arange(3) + 0.0), z)
    first, second = short(z), short(z)
    assert not torch.equal(first[0], second[0]) and first[1].dtype == torch.float32


def test_a_graph_that_writes_in_place_is_left_alone(parts):
    z = parts[2]

    def function(z):
        total = torch.zeros(5, 4, dtype=torch.float64)
        total.add_(z)
        return (total.mul_(2.0),)

    short = record(function, z)
    assert torch.equal(short(z)[0], 2.0 * z) and torch.equal(short(z)[0], 2.0 * z)
