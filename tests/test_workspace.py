"""Graphs that write to the same memory at every call give what the functions give, hand out what is fresh and change nothing else."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from inference.mcmc.simplified import simplified
from inference.mcmc.workspace import LARGE, reuse

ROWS = 400  # of 64 numbers: more than is kept by the C library, in single precision, too
UNARY = (torch.exp, torch.neg, torch.tanh, torch.sigmoid, torch.abs, torch.sin, lambda a: a.pow(2), lambda a: a * 2.0,
         lambda a: a.T.contiguous().T + 1.0, lambda a: a.view(-1, 32).neg().view(-1, 64), lambda a: a - a.mean(0))
BINARY = (torch.add, torch.sub, torch.mul, lambda a, b: torch.where(a > b, a, -b), lambda a, b: a @ (b.T @ a) / 1e3,
          lambda a, b: a.sum(-1, keepdim=True) * b, lambda a, b: -(b[:1] * a), lambda a, b: b[:1] * (a * 3.0),
          lambda a, b: a.flip(0) / (1.0 + b.abs()))


def large(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (ROWS, 64)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_function(seed: int):
    """Twelve operations, each on results of those before, of which two are handed out."""
    generator = torch.Generator().manual_seed(seed)

    def pick(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    plan = [(pick(2), pick(len(UNARY)), pick(len(BINARY)), pick(k + 2), pick(k + 2)) for k in range(12)]
    constant = large(seed + 1)

    def function(x):
        made = [x, constant]
        for two, unary, binary, i, j in plan:
            value = BINARY[binary](made[i], made[j]) if two else UNARY[unary](made[i])
            made.append(value / (1.0 + value.abs().max()))
        return made[-1], made[-4].sum(-1)

    return function, constant


@pytest.mark.parametrize("seed", range(25))
def test_random_graphs(seed):
    function, constant = random_function(seed)
    before = constant.clone()
    short = simplified(make_fx(function)(large(100)))
    kept = []
    for there in (200, 201, 200):
        x = large(there)
        found, unchanged = short(x), x.clone()
        for a, b in zip(function(x), found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        assert torch.equal(x, unchanged) and torch.equal(constant, before)
        kept.append((found, [value.clone() for value in found]))
    for found, then in kept:  # later calls have not written to what was handed out
        assert all(torch.equal(a, b) for a, b in zip(found, then, strict=True))


def memory_of(function, *inputs):
    graph = make_fx(function)(*inputs).graph
    return reuse(graph), graph


def test_elementwise_operations_write_over_what_nobody_needs():
    x, weight = large(0), large(1, 64, 64)
    memory, graph = memory_of(lambda x: ((((x @ weight).exp() * 2.0).neg() + 1.0).sum(-1),), x)
    assert len(memory) == 1 and memory[0].shape == (ROWS, 64)  # one for x @ weight and all that follows
    assert sum("out" in node.kwargs for node in graph.nodes) == 5


def test_what_is_needed_later_is_not_written_over():
    x, weight = large(0), large(1, 64, 64)
    memory, _ = memory_of(lambda x: ((y := x @ weight).exp().mul(y).sum(-1),), x)
    assert len(memory) == 2
    memory, _ = memory_of(lambda x: ((y := x @ weight).mul(y.flip(0)).sum(-1),), x)
    assert len(memory) == 1  # flip is of another kind, and stays fresh
    square = large(2, 128, 128)
    memory, graph = memory_of(lambda x: (((y := x @ square) + y.T).sum(-1),), square)
    assert len(memory) == 2, graph  # y and its transpose lie in the same memory


@pytest.mark.parametrize("binary", BINARY, ids=range(len(BINARY)))
def test_every_operation_behind_others(binary):
    first, second = large(1), large(2)

    def function(x):
        return (binary(first * x, second + x).sum(0),)

    short = simplified(make_fx(function)(large(5)))
    for there in (large(3), large(4)):
        torch.testing.assert_close(function(there), short(there), rtol=1e-10, atol=1e-10)


def test_the_view_that_products_of_batches_leave_is_one():
    weight = large(1, 64, 64)

    def function(x):
        product = x.view(10, -1, 64) @ weight
        return (((x * 1.5).view(10, -1, 64) + product).sum(-1),)

    short = simplified(make_fx(function)(large(0)))
    torch.testing.assert_close(function(large(2)), short(large(2)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", [
    lambda x: (sum(p.exp() * q for p, q in zip((x * 2.0).chunk(2, -1), (x + 1.0).chunk(2, -1), strict=True)),),
    lambda x: ((x.float() * 2.0).double() + ((x.float().sin() + 1.0) * x.exp()).cos(),),
    lambda x: ((x > 0).double().mul(2.0).neg() + (x * 10.0).long().abs() * 1.5,),
    lambda x: ((y := (x * 2.0).T).exp().T + (y.T * y.T.float()).neg(),),
    lambda x: (x.sum(0, keepdim=True).expand(ROWS, 64).exp().neg() * x.sum(0, keepdim=True).expand(ROWS, 64),),
    lambda x: ((x.view(1, -1) * 2.0).expand(3, -1).exp().sum(0) + 0.0,),
    lambda x: ((x.sort(0)[0] * 2.0).neg() + x.max(0)[0],),
], ids=["parts", "types", "integers", "transposed", "spread", "spread widely", "several results"])
def test_other_kinds_of_operands(function):
    short = simplified(make_fx(function)(large(5)))
    for there in (large(3), large(4)):
        for a, b in zip(function(there), short(there), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_small_results_and_those_of_other_types_stay_as_they_are():
    few = LARGE // 8 // 64 - 1
    assert not memory_of(lambda x: ((x.exp() * 2.0).sum(-1),), large(0, few, 64))[0]
    x = large(0)
    whole = make_fx(lambda x: ((x > 0).to(torch.float64).sum(-1),))(x)
    assert not reuse(whole.graph)
