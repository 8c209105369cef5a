"""Encoders and decoders: published parameter counts, shapes, and layers against PyTorch's own functions."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from zoo import networks
from zoo.networks import decoder, encoder
from zoo.networks.blocks import Conv, ConvPool, Expander, Phases, Resize, SqueezeExcite, cell
from zoo.networks.lin import LinearDecoder
from zoo.networks.mlp import ResDense
from zoo.registry import Registry

KINDS = tuple(networks.encoders)
PATCH, DIGIT, K = (1, 16, 16), (1, 28, 28), 512

# Outputs of the encoder, and learned parameters of the prior: K log rates of the Poisson, none of the others.
FAMILIES = {"poisson": (K, K), "categorical": (K, 0), "gaussian": (2 * K, 0)}
PUBLISHED = {
    ("lin", "lin", PATCH): (262_656, 262_144, 393_216),
    ("conv+b", "lin", PATCH): (1_405_596, 1_405_084, 1_471_132),
    ("lin", "lin", DIGIT): (803_328, 802_816, 1_204_224),
    ("conv+b", "lin", DIGIT): (5_432_636, 5_432_124, 5_563_708),
    ("conv+b", "conv+b", DIGIT): (6_794_246, None, 6_925_318),
}


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def seeded(build, *args, seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*args, **options)


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("names", PUBLISHED, ids=lambda names: f"{names[0]}|{names[1]}-{names[2][1]}")
def test_published_parameter_counts(names):
    first, second, shape = names
    for (outputs, prior), published in zip(FAMILIES.values(), PUBLISHED[names], strict=True):
        if published is None:
            continue
        parts = (
            encoder(first.removesuffix("+b"), shape, outputs, bias=first.endswith("+b")),
            decoder(second.removesuffix("+b"), K, shape, bias=second.endswith("+b")),
        )
        assert prior + sum(p.numel() for part in parts for p in part.parameters()) == published


@pytest.mark.parametrize(
    ("shape", "encoder_sides", "decoder_sides"),
    [
        (PATCH, [16, 16, 8, 8, 4, 4, 1], [2, 4, 4, 8, 8, 16, 16, 16]),
        (DIGIT, [26, 26, 13, 13, 7, 7, 4, 4, 1], [2, 4, 4, 8, 8, 16, 16, 14, 28, 28, 28]),
    ],
)
def test_published_map_sizes(shape, encoder_sides, decoder_sides):
    def sides(network, x):
        found = []
        for layer in network.body:
            x = layer(x)
            if isinstance(layer, Conv | ConvPool | Resize) or hasattr(layer, "skip"):
                found.append(x.shape[-1])
        return found

    assert sides(encoder("conv", shape, 3), normal(2, *shape)) == encoder_sides
    assert sides(decoder("conv", 3, shape), normal(2, 3)) == decoder_sides


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [PATCH, (2, 17, 17), (2, 16, 16), (1, 8, 8), (3, 4, 7), (1, 9, 20)])
def test_leading_dimensions(kind, shape):
    up, down = encoder(kind, shape, 5).eval(), decoder(kind, 5, shape).eval()
    x, z = normal(3, 2, *shape), normal(3, 2, 5)
    with torch.no_grad():
        flat = up(x.flatten(0, 1))
        assert flat.shape == (6, 5)
        close(up(x), flat.unflatten(0, (3, 2)))
        close(up(x[1, 0]), flat[2])
        flat = down(z.flatten(0, 1))
        assert flat.shape == (6, *shape)
        close(down(z), flat.unflatten(0, (3, 2)))
        close(down(z[1, 0]), flat[2])
        assert up(x[:, :0]).shape == (3, 0, 5) and down(z[:, :0]).shape == (3, 0, *shape)


@pytest.mark.parametrize("shape", [(1, 32, 32), DIGIT, (1, 20, 20), (1, 16, 17), (1, 33, 12)])
def test_conv_takes_other_sizes(shape):
    assert encoder("conv", shape, 5)(normal(2, *shape)).shape == (2, 5)
    assert decoder("conv", 5, shape)(normal(2, 5)).shape == (2, *shape)


@pytest.mark.parametrize("kind", ["lin", "mlp"])
def test_dense_kinds_take_any_event_shape(kind):
    assert encoder(kind, (6,), 5)(normal(2, 3, 6)).shape == (2, 3, 5)
    assert decoder(kind, 5, (2, 3, 2, 2))(normal(4, 5)).shape == (4, 2, 3, 2, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [PATCH, (2, 9, 9)])
def test_gradient_reaches_every_parameter(kind, shape):
    for network, x in [
        (seeded(encoder, kind, shape, 4), normal(16, *shape)),
        (seeded(decoder, kind, 4, shape, bias=True), normal(16, 4)),
    ]:
        y = network.eval()(x)
        (y * normal(*y.shape, seed=2)).sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_see_the_others(kind):
    for network, shape in [(encoder(kind, PATCH, 4), PATCH), (decoder(kind, 4, PATCH), (4,))]:
        x = normal(5, *shape).requires_grad_()
        (gradient,) = torch.autograd.grad(network.train()(x)[2].square().sum(), x)
        assert gradient[2].abs().max() > 0
        assert gradient[[0, 1, 3, 4]].abs().max() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_only_dropout_is_random(kind):
    x = normal(4, *PATCH)
    one, other = (seeded(encoder, kind, PATCH, 6, seed=seed) for seed in (3, 3))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert torch.equal(one.eval()(x), other.eval()(x))
    if kind in ("mlp", "conv"):
        torch.testing.assert_close(seeded(one.train(), x, seed=5), seeded(one, x, seed=5), rtol=0, atol=0)
        assert not torch.equal(seeded(one, x, seed=5), seeded(one, x, seed=6))


@pytest.mark.parametrize("scale", [0.05, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_initial_maps(kind, scale):
    final = seeded(encoder, kind, PATCH, 100, init_scale=scale).body[-1]
    phi = seeded(decoder, "lin", 100, PATCH, bias=True, init_scale=scale)
    first = decoder(kind, 7, PATCH, bias=True)
    for weight in (final.weight, phi.weight):
        n = weight.numel()
        assert abs(weight.std().item() - scale) < 4 * scale / (2 * n) ** 0.5
        assert abs(weight.mean().item()) < 4 * scale / n**0.5
    for bias in (final.bias, phi.bias, first.bias if kind == "lin" else first.body[0].bias):
        assert bias.abs().max() == 0


def test_linear_decoder_shows_phi():
    phi = decoder("lin", 6, (2, 3, 4), bias=True)
    assert isinstance(phi, LinearDecoder) and phi.linear is True
    assert phi.weight.shape == (24, 6) and phi.bias.shape == (24,)
    nn.init.normal_(phi.bias)
    for k, unit in enumerate(torch.eye(6)):
        close(phi(unit) - phi(torch.zeros(6)), phi.weight[:, k].reshape(2, 3, 4))
    close(phi(torch.zeros(6)), phi.bias.reshape(2, 3, 4))
    assert decoder("lin", 6, (2, 3, 4)).bias is None
    assert not any(getattr(decoder(kind, 6, PATCH), "linear", False) for kind in ("mlp", "conv"))


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"groups": 4}])
def test_conv_is_weight_normalized(options):
    conv = seeded(Conv, 8, 12, 3, **options)
    start = conv.weight.detach()
    fan_in = start[0].numel()
    assert abs(start.std().item() - fan_in**-0.5) < 4 * (2 * fan_in * start.numel()) ** -0.5
    with torch.no_grad():
        for parameter, seed in ((conv.v, 2), (conv.lognorm, 3), (conv.bias, 4)):
            parameter.copy_(normal(*parameter.shape, seed=seed))
    close(conv.weight.flatten(1).norm(dim=1), conv.lognorm.exp())

    reference = weight_norm(nn.Conv2d(8, 12, 3, **options))
    with torch.no_grad():
        reference.parametrizations.weight.original0.copy_(conv.lognorm.exp()[:, None, None, None])
        reference.parametrizations.weight.original1.copy_(7 * conv.v)
        reference.bias.copy_(conv.bias)
    x = normal(3, 8, 9, 9)
    close(conv(x), reference(x))


@pytest.mark.parametrize("size, options, side", [
    (3, {}, 3), (3, {"padding": 1}, 3), (3, {"padding": (1, 0)}, 3), (1, {"groups": 4}, 1), (3, {"groups": 4}, 3), (3, {"stride": 2}, 3)])
def test_filters_as_large_as_the_map(size, options, side):
    conv = seeded(Conv, 8, 4, size, **options)
    nn.init.normal_(conv.bias)
    x = normal(3, 8, side, side)
    close(conv(x), nn.functional.conv2d(x, conv.weight, conv.bias, **options))


def test_squeeze_excite_and_pool():
    x = normal(3, 32, 4, 5)
    gate = seeded(SqueezeExcite, 32)
    hidden, outer = gate.gate[0], gate.gate[2]
    assert hidden.out_features == 4 and SqueezeExcite(128).gate[0].out_features == 8
    for n in range(3):
        means = torch.stack([channel.mean() for channel in x[n]])
        inner = (hidden.weight @ means + hidden.bias).clamp(min=0)
        opening = torch.sigmoid(outer.weight @ inner + outer.bias)
        close(gate(x)[n], torch.stack([a * channel for a, channel in zip(opening, x[n], strict=True)]))
    pool = ConvPool(32, (4, 5))
    swish = x * torch.sigmoid(x)
    mapped = torch.einsum("nchw,ochw->no", swish, pool.conv.weight) + pool.conv.bias
    close(pool(x), (functional.avg_pool2d(x, (4, 5)).flatten(1) + mapped)[..., None, None])


def test_cells_add_their_skip():
    x = normal(2, 8, 6, 6)
    swish = x * torch.sigmoid(x)

    keep = cell(8, 8, layers=2)
    first, second = (layer for layer in keep.branch if isinstance(layer, Conv))
    branch = keep.branch[-1](second(functional.silu(first(swish))))
    close(keep(x), x + branch)

    phases = cell(8, 16, layers=2, down="phases").skip
    weight, bias = phases[-1].weight.chunk(4), phases[-1].bias.chunk(4)
    shifts = [swish[..., i:, j:] for i in (0, 1) for j in (0, 1)]
    parts = [functional.conv2d(s, w, b, stride=2) for s, w, b in zip(shifts, weight, bias, strict=True)]
    close(phases(x), torch.cat(parts, 1))

    stride = cell(8, 16, layers=2, down="stride").skip
    close(stride(x), functional.conv2d(swish, stride[-1].weight, stride[-1].bias, stride=2))

    up = cell(8, 4, layers=1, up=(12, 12))
    larger = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    conv = up.branch[2]
    branch = functional.conv2d(functional.silu(larger), conv.weight, conv.bias, padding=1)
    skip = functional.conv2d(larger, up.skip[0].weight, up.skip[0].bias)
    close(up(x), skip + up.branch[-1](branch))


def test_expander_spreads_a_vector_over_a_map():
    expander = Expander(3, 5, (4, 2))
    with torch.no_grad():
        expander.lognorm.copy_(torch.linspace(-1.0, 1.0, 5))
        expander.bias.normal_()
    z = torch.randn(6, 3)
    filters = expander.v / expander.v.square().sum((0, 2, 3), keepdim=True).sqrt() * expander.lognorm.exp()[:, None, None]
    by_hand = torch.einsum("nk,kohw->nohw", z, filters) + expander.bias[:, None, None]
    torch.testing.assert_close(expander(z[:, :, None, None]), by_hand)
    torch.testing.assert_close(Expander(3, 5, (4, 2)).weight.square().sum((0, 2, 3)), torch.ones(5))


def test_cells_of_a_hierarchy_start_with_filters_of_one_length():
    made = cell(4, 8, layers=2, down="phases", size=3, norm=1.0, weight=0.1)
    convolutions = [module for module in made.modules() if isinstance(module, Conv)]
    assert len(convolutions) == 3
    for convolution in convolutions:
        torch.testing.assert_close(convolution.weight.flatten(1).norm(dim=1), torch.ones(convolution.v.shape[0]))
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(made(x), made.skip(x) + 0.1 * made.branch(x))


def test_phases_of_odd_maps_get_zeros():
    x = torch.arange(1.0, 16.0).reshape(1, 1, 3, 5)
    phases = Phases()(x)
    assert phases.shape == (1, 4, 2, 3)
    assert phases[0, 0].tolist() == [[1, 3, 5], [11, 13, 15]] and phases[0, 3].tolist() == [[7, 9, 0], [0, 0, 0]]


@pytest.mark.parametrize("new", [(14, 14), (9, 5), (20, 17)])
def test_resize_is_bilinear(new):
    x = normal(2, 3, 16, 8)
    close(Resize((16, 8), new)(x), functional.interpolate(x, size=new, mode="bilinear"))
    assert Resize((16, 8), new).double()(x.double()).dtype == torch.float64
    assert not Resize((16, 8), new).state_dict()


def test_dense_block():
    block = ResDense(6, expand=3).eval()
    inner, outer = block.branch[0], block.branch[3]
    x = normal(4, 6)
    y = x + (x @ inner.weight.T + inner.bias).clamp(min=0) @ outer.weight.T + outer.bias
    assert inner.out_features == 18
    close(block(x), (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-5).sqrt())


def test_a_users_network_is_called_alike(monkeypatch):
    extra = Registry("encoders", {})
    monkeypatch.setattr(networks, "encoders", extra)
    calls = []

    @extra.register("mine", "for this test")
    def mine(event_shape, out_features, *, bias=True, init_scale=0.05):
        calls.append((event_shape, out_features, bias, init_scale))
        return nn.Identity()

    assert isinstance(encoder("mine", torch.Size(PATCH), 3, bias=False, init_scale=0.2), nn.Identity)
    assert calls == [(PATCH, 3, False, 0.2)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encoder("cnn", PATCH, 3), "known are: lin, mlp, conv"),
        (lambda: decoder("cnn", 3, PATCH), "known are: lin, mlp, conv"),
        (lambda: encoder("lin", (1, 0, 16), 3), "event_shape takes positive integers"),
        (lambda: decoder("lin", 3, 256), "event_shape takes positive integers"),
        (lambda: encoder("lin", (1, 16.0, 16), 3), "event_shape takes positive integers"),
        (lambda: encoder("lin", PATCH, 0), "out_features takes a positive integer"),
        (lambda: decoder("mlp", 2.0, PATCH), "in_features takes a positive integer"),
        (lambda: encoder("mlp", PATCH, 3, init_scale=-1.0), "init_scale is a standard deviation"),
        (lambda: decoder("lin", 3, PATCH, init_scale=float("nan")), "init_scale is a standard deviation"),
        (lambda: encoder("conv", (1, 3, 16), 3), "sides of 4 pixels"),
        (lambda: decoder("conv", 3, (1, 16, 129)), "to 128"),
        (lambda: encoder("conv", (16, 16), 3), r"\(channels, height, width\)"),
        (lambda: encoder("conv", PATCH, 3)(normal(2, 1, 17, 17)), r"16, 16\); got \(2, 1, 17, 17\)"),
        (lambda: encoder("lin", PATCH, 3)(normal(2, 256)), r"shape \(…, 1, 16, 16\); got \(2, 256\)"),
        (lambda: decoder("lin", 3, PATCH)(normal(2, 4)), r"shape \(…, 3\); got \(2, 4\)"),
        (lambda: decoder("mlp", 3, PATCH)(normal(2, 4)), r"shape \(…, 3\); got \(2, 4\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_listing_kinds_needs_no_torch():
    code = "import sys, zoo.networks as n; print(*n.encoders, *n.decoders, 'torch' in sys.modules)"
    root = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    assert run.stdout.split() == [*networks.encoders, *networks.decoders, "False"]
