"""Compiled kernels for optic flow make the frames that the matrix products make, and say so where they cannot."""

import shutil

import pytest
import torch

from zoo.data import rofl
from zoo.data.rofl import acceptance
from zoo.data.rofl import compiled as kernels
from zoo.data.rofl.render import covered_pixels

PIECE = 64
ROUNDING = 1e-5  # rad/s, single precision
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Kernels for few frames, so that a test need not make thousands."""
    monkeypatch.setattr(kernels, "PIXELS", 1)
    kernels.kernel.cache_clear()


def frames_that_differ(x, y):
    difference = (x - y).abs().amax((1, 2, 3))
    assert difference.max() > 0.0  # they were made in two ways
    return int((difference > ROUNDING).sum())


@needs_compiler
@pytest.mark.parametrize("category", ["fixate-1", "obj-2", "terrain-1"])
def test_compiled_kernels_make_the_same_frames(category):
    """3 whole pieces and 7 frames more. A disc has some 40 pixels at its rim, of which one in a million is within rounding of it."""
    world, n = rofl.World(category, resolution=9), 3 * PIECE + 7
    causes = rofl.generate(world, n, seed=3)
    out = torch.full((n, 2, 9, 9), torch.nan)
    assert rofl.render(causes, world, out, compiled=True) is out
    assert frames_that_differ(out, rofl.render(causes, world)) == 0
    proposed = rofl.sample(world, n, generator=torch.Generator().manual_seed(4))
    for ours, theirs in zip(covered_pixels(proposed, world, compiled=True), covered_pixels(proposed, world), strict=True):
        assert ours.dtype == theirs.dtype and theirs.std() > 1.0
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.0)
    fresh = rofl.generate(world, n, seed=3, compiled=True)
    assert all(torch.equal(fresh[name], causes[name]) for name in causes)


def test_many_discs_are_counted_and_painted_alike(monkeypatch):
    """What is compiled, not compiled: four discs, of which any may hide any."""
    monkeypatch.setattr(kernels.torch, "compile", lambda function, **options: function)
    world = rofl.World("fixate-4", resolution=11)
    causes = rofl.sample(world, PIECE, generator=torch.Generator().manual_seed(6))
    ours, theirs = covered_pixels(causes, world, compiled=True), covered_pixels(causes, world)
    assert (theirs[0] - theirs[1]).max() > 10.0  # pixels that are hidden
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert frames_that_differ(rofl.render(causes, world, compiled=True), rofl.render(causes, world)) == 0
    kernels.kernel.cache_clear()


def test_frames_are_accepted_by_compiled_counts_if_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(acceptance, "covered_pixels", lambda *arguments, compiled: asked.append(compiled) or covered_pixels(*arguments))
    for compiled in (False, True):
        rofl.generate(rofl.World("fixate-1", resolution=9), 50, compiled=compiled)
    assert asked == [False, True]


def test_fewer_frames_than_a_piece_take_no_compiler(monkeypatch):
    monkeypatch.setattr(kernels, "kernel", None)
    world = rofl.World("fixate-1", resolution=9)
    causes = rofl.sample(world, PIECE - 1)
    assert torch.equal(rofl.render(causes, world, compiled=True), rofl.render(causes, world))


@pytest.mark.parametrize("n", [PIECE, PIECE + 1, 3 * PIECE - 1, 3 * PIECE])
def test_pieces_are_of_one_length_and_leave_out_no_frame(n):
    parts = kernels.pieces(n, rofl.World("fixate-1"), torch.device("cpu"))
    assert {part.stop - part.start for part in parts} == {PIECE}
    assert sorted({i for part in parts for i in range(part.start, part.stop)}) == list(range(n))
    assert len(parts) == -(-n // PIECE)


@needs_compiler
def test_a_stream_of_compiled_frames_has_the_causes_of_the_other():
    """A world without discs: nothing is rejected, so that frames of both are those of the same causes."""
    world = rofl.World("fixate-0", resolution=9)
    stream, other = rofl.Stream(world, seed=5, compiled=True), rofl.Stream(world, seed=5)
    stream.block = other.block = 2 * PIECE + 5
    assert frames_that_differ(stream.images(0, 200), other.images(0, 200)) == 0
    assert torch.equal(stream.images(130, 150), stream.images(0, 200)[130:150])
    assert stream.to("cpu").compiled and not other.compiled


def test_without_a_compiler_there_is_one_clear_error(monkeypatch):
    from torch._inductor import config, cpp_builder

    for search in (cpp_builder.get_cpp_compiler, cpp_builder.cpp_compiler_search):
        if hasattr(search, "cache_clear"):
            search.cache_clear()
    world = rofl.World("transl-0", resolution=7)
    without = config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True})
    with without, pytest.raises(OSError, match="takes a C\\+\\+ compiler"):
        rofl.render(rofl.sample(world, PIECE), world, compiled=True)


@pytest.mark.parametrize("make", [
    lambda world: rofl.render({name: value.to("meta") for name, value in rofl.sample(world, 3).items()}, world, compiled=True),
    lambda world: rofl.Stream(world, device="meta", compiled=True)])
def test_compiled_frames_are_for_a_cpu(make):
    with pytest.raises(ValueError, match="compiled=True is for a CPU, not for meta"):
        make(rofl.World("fixate-0"))
