"""Networks in fewer digits: the bounds agree, all but networks stays float32, and nothing is left changed."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import guides
import zoo
from guides.bounds import elbo
from inference.precision import networks, precise
from inference.training import fit
from zoo.networks.blocks import Conv
from zoo.program import adopt

SHAPE = (2, 9, 9)
TINY = {"channels": 4, "groups": (1, 1), "pre": (1, 1), "up": (1, 1), "down": (1, 1), "units": 3}
X = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0)) * 0.3
CUDNN = torch.backends.cudnn


def pair(kind, family="gaussian"):
    if kind == "hierarchy":
        model = zoo.build("hierarchy", SHAPE, family=family, **TINY)
        return model, guides.build("hierarchical", model)
    model = zoo.build(family, SHAPE, latents=6, decoder="mlp")
    return model, guides.build("amortized", model, encoder="mlp")


def flags():
    """All that says whether TF32 is allowed."""
    newer = [getattr(place, "fp32_precision", None) for place in
             (torch.backends.cuda.matmul, CUDNN, getattr(CUDNN, "conv", None), getattr(CUDNN, "rnn", None), torch.backends.mkldnn)]
    return [torch.backends.cuda.matmul.allow_tf32, CUDNN.allow_tf32, torch.get_float32_matmul_precision(), *newer]


@pytest.mark.parametrize("kind", ["hierarchy", "one layer"])
def test_the_bound_in_bfloat16_is_that_in_float32(kind):
    """With the same draws, to the 8 bits of bfloat16's mantissa: the likelihood to 1 %, the KL to 3 %."""
    model, guide = pair(kind)
    bounds, gradients = {}, {}
    for precision in ("float32", "tf32", "bf16"):
        with torch.random.fork_rng(), precise(precision, model, guide):
            torch.manual_seed(1)
            bounds[precision] = elbo(model, guide, X)
            bounds[precision].surrogate.mean().backward()
        gradients[precision] = torch.cat([p.grad.flatten() for p in [*model.parameters(), *guide.parameters()]])
        model.zero_grad(), guide.zero_grad()
    full, half = bounds["float32"], bounds["bf16"]
    for one in (half.value, half.kl, gradients["bf16"]):
        assert one.dtype == torch.float32
    torch.testing.assert_close(half.log_likelihood, full.log_likelihood, rtol=0.01, atol=0.0)
    torch.testing.assert_close(half.kl, full.kl, rtol=0.03, atol=0.005)
    assert not torch.equal(half.kl, full.kl)
    assert nn.functional.cosine_similarity(gradients["bf16"], gradients["float32"], dim=0) > 0.995
    assert torch.equal(bounds["tf32"].value, full.value)  # on a CPU there is no TF32


@pytest.mark.parametrize("family", ["gaussian", "poisson", "categorical"])
def test_only_networks_lose_digits(family, monkeypatch):
    model, guide = pair("hierarchy", family)
    guide.temperature = 0.5
    types, convolved = set(), set()
    kind = type(model.groups["z1"].family)

    def spy(inner):
        def spied(self, *tensors):
            assert not torch.is_autocast_enabled("cpu")
            types.update(one.dtype for one in tensors if isinstance(one, torch.Tensor))
            return inner(self, *tensors)
        return spied

    for method in ("relaxed", "posterior", "bounded", "unit_kl", "code"):
        monkeypatch.setattr(kind, method, spy(getattr(kind, method)))
    for network in [*networks(model), *networks(guide)]:
        for part in network.modules():
            if isinstance(part, Conv) and part is not network:  # what comes out of a whole network is float32 again
                part.register_forward_hook(lambda module, inputs, output: convolved.add(output.dtype))
    with precise("bf16", model, guide):
        elbo(model, guide, X)
    assert types == {torch.float32} and convolved == {torch.bfloat16}
    convolved.clear()
    elbo(model, guide, X)
    assert convolved == {torch.float32}


def test_networks_are_the_largest_parts():
    model, guide = pair("hierarchy")
    parts = networks(model)
    assert {id(one) for one in parts} == {id(one) for group in model.groups.values() for one in group.children()} | {id(model.post)}
    assert all(not isinstance(one, nn.ModuleDict) for one in networks(guide)) and guide.stem in networks(guide)
    inner = {id(part) for one in parts for part in one.modules()}
    assert inner == {id(part) for part in model.modules()} - {id(model), id(model.groups)} - {id(group) for group in model.groups.values()}
    semi = guides.build("semi", zoo.build("gaussian", SHAPE, latents=3))
    assert all(not isinstance(one, guides.base.Guide) for one in networks(semi)) and networks(semi)


def test_a_program_of_ones_own_is_no_network():
    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 4)

        def forward(self, x=None, size=None):
            with pyro.plate("data", size if x is None else len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                assert z.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
                return pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)

    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    program = Program()
    model = adopt(program, x)
    assert networks(model) == [program.net]
    guide = guides.build("amortized", program, x)
    history = fit(model, guide, x, steps=2, batch_size=5, precision="bf16", progress=False)
    assert history.rows[-1]["elbo"] < 0 and next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_flags_and_networks_are_left_as_found(precision):
    model, guide = pair("hierarchy")
    before = flags()
    inside = None
    with pytest.raises(KeyboardInterrupt), precise(precision, model, guide):
        inside = torch.backends.cuda.matmul.allow_tf32, CUDNN.allow_tf32
        raise KeyboardInterrupt
    assert inside == {"float32": (False, False), "tf32": (True, True), "bf16": tuple(before[:2])}[precision]
    assert flags() == before
    assert all("forward" not in vars(part) for module in (model, guide) for part in module.modules())


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="PyTorch before 2.9")
def test_the_newer_flags_are_left_as_found():
    """A user may have set them alone, after which PyTorch refuses to tell the older ones."""
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        with precise("float32"):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cuda.matmul.fp32_precision = "none"  # as PyTorch starts
        with precise("tf32"):
            assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.backends.cuda.matmul.fp32_precision == "none" and not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_training_in_bfloat16():
    """The bound after 40 steps is within 2 % of that in float32, and a checkpoint knows the precision."""
    elbos = {}
    for precision in ("float32", "bf16"):
        model, guide = pair("hierarchy")
        history = fit(model, guide, X, steps=40, batch_size=8, lr=0.02, beta_warmup=0.2, precision=precision, log_every=10, progress=False)
        elbos[precision] = history.column("elbo")
        assert {p.dtype for p in [*model.parameters(), *guide.parameters()]} == {torch.float32}
    assert elbos["float32"][-1] > elbos["float32"][0] + 20
    assert elbos["bf16"][-1] == pytest.approx(elbos["float32"][-1], rel=0.02) and elbos["bf16"] != elbos["float32"]


def test_what_it_refuses(tmp_path):
    model, guide = pair("one layer")
    with pytest.raises(ValueError, match="unknown precision 'fp16'; known are: float32, tf32, bf16"):
        fit(model, guide, X, steps=1, precision="fp16", progress=False)
    with pytest.raises(ValueError, match="float32"):
        fit(model, None, X, method="mcmc", steps=1, precision="bf16", progress=False)
    options = {"steps": 2, "batch_size": 4, "checkpoint": tmp_path, "checkpoint_every": 0.0, "progress": False}
    fit(model, guide, X, precision="bf16", **options)
    with pytest.raises(ValueError, match="precision bf16 there, None here"):
        fit(model, guide, X, **options)
