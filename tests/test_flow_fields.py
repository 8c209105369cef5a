"""Measured optic flow: made files of both formats, windows in the simulator's convention, the real files where ``ZOO_DATA`` has them."""

import lzma
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import png
import pytest
import torch

from zoo.data.flow_fields import flow_windows, read_flo, read_kitti

NAN = float("nan")


def flo(field):
    """The bytes of a ``.flo`` file, number by number, of u and v at ``field[row][column]``."""
    rows, columns = len(field), len(field[0])
    values = b"".join(struct.pack("<ff", u, v) for row in field for u, v in row)
    return b"PIEH" + struct.pack("<ii", columns, rows) + values


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def packed_png(pixels, width, height, depth=16, colour=2, interlace=0, announced=None):
    """The bytes of an unfiltered PNG, packed by hand (PNG specification, ISO/IEC 15948); ``pixels[row]`` are a row's big-endian bytes."""
    header = struct.pack(">IIBBBBB", width, announced or height, depth, colour, 0, 0, interlace)
    palette = chunk(b"PLTE", bytes(6)) if colour == 3 else b""
    content = zlib.compress(b"".join(b"\0" + row for row in pixels))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + chunk(b"IDAT", content) + chunk(b"IEND", b"")


@pytest.fixture
def write(tmp_path):
    def put(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return put


@pytest.mark.parametrize("name", ["made.flo", "made.flo.xz", "MADE.FLO", "MADE.FLO.XZ"])
def test_flo(write, name):
    field = [[(1.5, -2.25), (1e9, -1e9), (2e9, 0.0)], [(0.0, -2e9), (NAN, 1.0), (-3.125, math.inf)]]  # 1e9 itself is a known value
    content = flo(field)
    read = read_flo(write(name, lzma.compress(content) if name.lower().endswith("xz") else content))
    assert read.dtype == torch.float32 and read.is_contiguous()
    expected = torch.tensor([[[1.5, 1e9, NAN], [NAN, NAN, NAN]], [[-2.25, -1e9, NAN], [NAN, NAN, NAN]]])
    torch.testing.assert_close(read, expected, rtol=0, atol=0, equal_nan=True)


GOOD = flo([[(1.0, 2.0)] * 3] * 2)


@pytest.mark.parametrize("name, content, kind, message", [
    ("a.flo", b"PIEX" + GOOD[4:], ValueError, r"a.flo is no .flo file: it starts with b'PIEX'"),
    ("a.flo", b"", ValueError, r"a.flo is no .flo file: it starts with b''"),
    ("a.flo", GOOD[:9], OSError, r"a.flo is truncated: it has 9 bytes of a header of 12"),
    ("a.flo", GOOD[:-1], OSError, r"a.flo has fewer bytes than the 48 that 3 × 2 pixels need"),
    ("a.flo", GOOD + b"\0", OSError, r"a.flo has more bytes than the 48 that 3 × 2 pixels need"),
    ("a.flo", b"PIEH" + struct.pack("<ii", 0, 3), ValueError, r"a.flo claims to have 0 × 3 pixels; accepted are 1 to"),
    ("a.flo", b"PIEH" + struct.pack("<ii", -2, -3) + bytes(48), ValueError, r"a.flo claims to have -2 × -3 pixels"),
    ("a.flo", b"PIEH" + struct.pack("<ii", 2**30, 2**30), ValueError, r"a.flo claims to have 1073741824 × 1073741824 pixels"),
    ("a.flo.xz", lzma.compress(GOOD)[:-8], OSError, r"a.flo.xz is damaged: Compressed file ended"),
    ("a.flo.xz", GOOD, OSError, r"a.flo.xz is damaged: Input format"),
    ("a.flo.xz", lzma.compress(b"picture"), ValueError, r"a.flo.xz is no .flo file"),
])
def test_a_flo_file_that_is_none(write, name, content, kind, message):
    with pytest.raises(kind, match=message):
        read_flo(write(name, content))


def test_a_long_stream_is_not_unpacked(write):
    """Reading stops where the announced pixels do: the damage, 8 MB later, is not met."""
    content = lzma.compress(flo([[(1.0, 2.0)] * 2]) + bytes(2**23), preset=0)[:-40]
    with pytest.raises(OSError, match="has more bytes"):
        read_flo(write("a.flo.xz", content))


@pytest.mark.parametrize("read", [read_flo, read_kitti, flow_windows])
@pytest.mark.parametrize("name", ["missing.flo", "missing.flo.xz", "missing.png"])
def test_a_missing_file(tmp_path, read, name):
    with pytest.raises(FileNotFoundError, match=name):
        read(tmp_path / name)


def kitti_values(height, width):
    """Encoded displacements and whether they are known: the extreme codes, zero, one step, and others at random."""
    codes = np.random.default_rng(0).integers(2**16, size=(height, width, 3))
    codes[0, :4, 0] = (0, 2**16 - 1, 2**15, 2**15 + 1)
    codes[..., 2] = np.random.default_rng(1).integers(3, size=(height, width))  # 0 unknown, 1 as KITTI has it, 2 known as well
    codes[0, :4, 2] = 1
    field = (codes[..., :2] - 32768.0) / 64.0
    return codes, np.where(codes[..., 2:] == 0, np.nan, field).transpose(2, 0, 1)


@pytest.mark.parametrize("writer", ["pypng", "by hand", "interlaced"])
def test_kitti(tmp_path, write, writer):
    height, width = 9, 12
    codes, expected = kitti_values(height, width)
    assert 0.2 < np.isnan(expected[0]).mean() < 0.5 and expected[0, 0, :4].tolist() == [-512.0, 511.984375, 0.0, 0.015625]
    if writer == "by hand":
        path = write("flow.png", packed_png([row.astype(">u2").tobytes() for row in codes], width, height))
    else:
        path = tmp_path / "flow.png"
        with path.open("wb") as file:
            png.Writer(width, height, greyscale=False, bitdepth=16, interlace=writer == "interlaced").write(
                file, codes.reshape(height, -1).tolist())
    read = read_kitti(path)
    assert read.dtype == torch.float32 and read.is_contiguous()
    np.testing.assert_array_equal(read.numpy(), expected)  # every code is exact in float32


ROWS = [bytes(18)] * 2  # 3 × 2 pixels of 3 channels and 16 bits
WHOLE = packed_png(ROWS, 3, 2)


@pytest.mark.parametrize("content, kind, message", [
    (b"PIEH", ValueError, "a.png is no PNG file"),
    (b"", ValueError, "a.png is no PNG file"),
    (packed_png([bytes(9)] * 2, 3, 2, depth=8), ValueError, "3 channels of 16 bits; .*a.png has 3 of 8"),
    (packed_png([bytes(6)] * 2, 3, 2, colour=0), ValueError, "3 channels of 16 bits; .*a.png has 1 of 16"),
    (packed_png([bytes(24)] * 2, 3, 2, colour=6), ValueError, "3 channels of 16 bits; .*a.png has 4 of 16"),
    (packed_png([bytes(3)] * 2, 3, 2, depth=8, colour=3), ValueError, "3 channels of 16 bits; .*a.png has 1 of 8"),
    (packed_png(ROWS, 2**15, 2**15), ValueError, "a.png claims to have 32768 × 32768 pixels"),
    (packed_png(ROWS, 0, 2), ValueError, "a.png claims to have 0 × 2 pixels"),
    (WHOLE[:20], OSError, "a.png is damaged: "),
    (WHOLE[:-14], OSError, "a.png is damaged: "),
    (WHOLE[:50] + b"\xff" + WHOLE[51:], OSError, "a.png is damaged: "),
    (WHOLE.replace(WHOLE[33:-12], chunk(b"IDAT", b"not zlib")), OSError, "a.png is damaged: "),
    (packed_png([bytes(17)] * 2, 3, 2), OSError, "a.png is damaged: "),
    (packed_png(ROWS, 3, 2, announced=3), OSError, "a.png is damaged: it does not have the 3 rows"),
    (packed_png(ROWS, 3, 2, announced=1), OSError, "a.png is damaged: it does not have the 1 rows"),
    *((packed_png([bytes(length)], 3, 2, interlace=1), OSError, "a.png is damaged: ") for length in (4, 5, 21, 37)),
])
def test_a_kitti_file_that_is_none(write, content, kind, message):
    with pytest.raises(kind, match=message):
        read_kitti(write("a.png", content))


def test_windows_have_the_convention_of_the_simulator():
    """A surface that expands from the image centre, with everything drifting right and up: the same formula in angles pointing up."""
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij")  # y counts downwards
    right, down = 0.5 * (x - 2) + 3, 0.25 * (y - 2) - 7
    data = flow_windows(torch.stack([right, down]), 5)
    up, across = torch.meshgrid(torch.linspace(-2, 2, 5), torch.linspace(-2, 2, 5), indexing="ij")  # row 0 is the lowest
    torch.testing.assert_close(data.x[0], torch.stack([0.5 * across + 3, 0.25 * up + 7]), rtol=0, atol=0)


def test_windows_are_data():
    field = torch.ones(2, 6, 6, requires_grad=True)
    assert not flow_windows(field, 3).x.requires_grad


def reference(fields, size, stride, scale):
    """Windows pixel by pixel: row r of a window is row ``top + size - 1 - r`` of the file."""
    x, places = [], []
    for number, field in enumerate(fields):
        _, height, width = field.shape
        for top in range(0, height - size + 1, stride):
            for left in range(0, width - size + 1, stride):
                window = [[[sign * scale * field[channel, top + size - 1 - r, left + c].item() for c in range(size)] for r in range(size)]
                          for channel, sign in ((0, 1), (1, -1))]
                if not np.isnan(window).any():
                    x.append(window)
                    places.append((number, top, left))
    return torch.tensor(x), torch.tensor(places).T


@pytest.mark.parametrize("size, stride", [(3, None), (3, 1), (2, 5), (1, 2)])
def test_windows(size, stride):
    generator = torch.Generator().manual_seed(0)
    fields = [torch.randn(2, *shape, generator=generator, dtype=torch.float64) for shape in ((7, 11), (3, 9), (8, 4))]
    fields[0][0, 2, 4] = fields[0][1, 6, 10] = fields[2][1, 0, 0] = NAN
    data = flow_windows(fields, size, stride=stride, scale=0.25)
    x, places = reference(fields, size, stride or size, 0.25)
    torch.testing.assert_close(data.x, x, rtol=1e-6, atol=0)
    assert data.x.dtype == torch.float32 and data.labels is None and list(data.factors) == ["field", "row", "column"]
    assert torch.equal(torch.stack(list(data.factors.values())), places)


def test_sources_of_windows_agree(write):
    """One field as a tensor, as files of both formats, alone and in a list; unknown pixels stay unknown."""
    codes, expected = kitti_values(8, 10)
    codes[2:, 3:, 2] = 1
    known = codes[..., 2] > 0
    field = (codes[..., :2] - 32768.0) / 64
    tensor = torch.from_numpy(np.where(known, field.transpose(2, 0, 1), np.nan))
    middlebury = flo(np.where(known[..., None], field, 1.6e9).tolist())
    paths = [write("a.flo", middlebury), str(write("a.flo.xz", lzma.compress(middlebury))),
             write("a.PNG", packed_png([row.astype(">u2").tobytes() for row in codes], 10, 8))]
    alone = flow_windows(tensor, 3, stride=1)
    assert 1 < len(alone) < 48
    for path in paths:
        assert torch.equal(flow_windows(path, 3, stride=1).x, alone.x)
    together = flow_windows((field for field in [tensor, *paths]), 3, stride=1)
    assert torch.equal(together.x, alone.x.repeat(4, 1, 1, 1))
    assert together.factors["field"].bincount().tolist() == [len(alone)] * 4
    assert torch.equal(flow_windows(torch.stack([tensor, tensor]), 3, stride=1).x, alone.x.repeat(2, 1, 1, 1))


def test_a_field_without_a_known_window_gives_none():
    empty, full = torch.full((2, 6, 6), NAN), torch.ones(2, 6, 6)
    assert flow_windows([empty, full], 6).factors["field"].tolist() == [1]
    full[1, 3, 3] = math.inf
    with pytest.raises(ValueError, match="no window of 6 × 6 pixels is without unknown displacements"):
        flow_windows([empty, full], 6)


FIELD = torch.zeros(2, 20, 30)


@pytest.mark.parametrize("fields, options, kind, message", [
    ("flow.mat", {}, ValueError, r"flow.mat ends in neither .flo, .flo.xz \(Middlebury\) nor .png \(KITTI\)"),
    ("flow.xz", {}, ValueError, "flow.xz ends in neither"),
    ([], {}, ValueError, "there are no flow fields"),
    (3, {}, TypeError, r"paths or tensors \(2, height, width\), not int"),
    ([FIELD, None], {}, TypeError, r"paths or tensors \(2, height, width\), not NoneType"),
    (FIELD[0], {}, ValueError, r"must be real and \(2, height, width\); number 0 is torch.float32 \(20, 30\)"),
    ([FIELD, torch.zeros(3, 20, 30)], {}, ValueError, r"number 1 is torch.float32 \(3, 20, 30\)"),
    ([torch.zeros(2, 30)], {}, ValueError, r"number 0 is torch.float32 \(2, 30\)"),
    (FIELD.to(torch.complex64), {}, ValueError, "number 0 is torch.complex64"),
    ([FIELD, FIELD[:, :16]], {}, ValueError, "flow field 1 has 30 × 16 pixels, fewer than a window of 17 × 17"),
    (FIELD[:, :, :16], {}, ValueError, "flow field 0 has 16 × 20 pixels, fewer than a window of 17 × 17"),
    (FIELD, {"size": 21}, ValueError, "flow field 0 has 30 × 20 pixels"),
    (FIELD, {"size": 0}, ValueError, "size must be a whole number of pixels of at least 1, not 0"),
    (FIELD, {"size": 2.5}, ValueError, "size must be a whole number of pixels of at least 1, not 2.5"),
    (FIELD, {"stride": 0}, ValueError, "stride must be a whole number of pixels of at least 1, not 0"),
    (FIELD, {"stride": True}, ValueError, "stride must be a whole number of pixels of at least 1, not True"),
    (FIELD, {"scale": 0.0}, ValueError, "scale must be a positive number, not 0.0"),
    (FIELD, {"scale": NAN}, ValueError, "scale must be a positive number, not nan"),
    (FIELD, {"scale": math.inf}, ValueError, "scale must be a positive number, not inf"),
    (FIELD, {"scale": "2"}, ValueError, "scale must be a positive number, not '2'"),
])
def test_windows_that_cannot_be_cut(fields, options, kind, message):
    with pytest.raises(kind, match=message):
        flow_windows(fields, **options)


def test_a_small_file_is_named(write):
    with pytest.raises(ValueError, match="a.flo has 3 × 2 pixels, fewer than a window of 17 × 17"):
        flow_windows(write("a.flo", GOOD))


# The real files, where they are

MIDDLEBURY = Path(os.environ.get("ZOO_DATA", ""), "flow_middlebury")
SCENES = {"Dimetrodon": (388, 584, 10_772), "Grove3": (480, 640, 0), "Hydrangea": (388, 584, 14_880), "RubberWhale": (388, 584, 3_622),
          "Venus": (380, 420, 0)}  # height, width, unknown pixels
if os.environ.get("ZOO_DATA") and MIDDLEBURY.is_dir():

    @pytest.mark.parametrize("scene", SCENES)
    def test_the_real_files(scene):
        height, width, unknown = SCENES[scene]
        path = MIDDLEBURY / f"{scene}.flow10.flo.xz"
        raw = np.frombuffer(lzma.decompress(path.read_bytes())[12:], "<f4").reshape(height, width, 2)
        field = read_flo(path)
        assert field.shape == (2, height, width) and field.isnan().all(0).sum() == field.isnan().any(0).sum() == unknown
        known = ~field[0].isnan().numpy()
        np.testing.assert_array_equal(field.numpy()[:, known], raw[known].T)
        assert np.abs(raw[known]).max() < 20  # pixels per frame

        data = flow_windows(path, scale=0.01)
        corners = [(top, left) for top in range(0, height - 16, 17) for left in range(0, width - 16, 17)]
        corners = [(top, left) for top, left in corners if known[top:top + 17, left:left + 17].all()]
        assert list(zip(data.factors["row"].tolist(), data.factors["column"].tolist(), strict=True)) == corners
        expected = np.stack([raw[top:top + 17, left:left + 17][::-1].transpose(2, 0, 1) for top, left in corners])
        np.testing.assert_allclose(data.x.numpy(), expected * [[[0.01]], [[-0.01]]], rtol=1e-6)
