"""Measured optic flow: readers of Middlebury and KITTI files, and windows cut from them in the simulator's convention."""

from __future__ import annotations

import lzma
import math
import os
import struct
import zlib
from collections.abc import Iterable
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import BinaryIO

import numpy as np
import png
import torch
from torch import Tensor

from zoo.data.base import Data

__all__ = ["flow_windows", "read_flo", "read_kitti"]

MAGIC = struct.pack("<f", 202021.25)  # first four bytes of every .flo file; they read "PIEH"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
UNKNOWN = 1e9  # a .flo value beyond this, of either sign, marks an unknown displacement
LARGEST = 2**25  # pixels; a header that claims more is not believed

Field = str | os.PathLike[str] | Tensor


def read_flo(path: str | os.PathLike[str]) -> Tensor:
    """Displacements in a Middlebury ``.flo`` file, plain or compressed (``.flo.xz``).

    The format: the number 202021.25, width and height, then u and v of every pixel, row by row from the top; little endian, 32 bits
    each (Baker et al. 2011, "A database and evaluation methodology for optical flow", IJCV 92:1-31).

    Arguments:
        path: The file.

    Returns:
        ``(2, height, width)`` float32 in the file's convention: u, pixels per frame to the right, then v, pixels per frame downwards;
        row 0 is the top. Both are NaN where the displacement is not known.

    Raises:
        ValueError: if it is no ``.flo`` file, or its width and height make no sense.
        OSError: if it is missing (FileNotFoundError), shorter or longer than its header says, or its compression is damaged.
    """
    path = Path(path)
    compressed = path.suffix.lower() == ".xz"
    with lzma.open(path) if compressed else path.open("rb") as file:
        try:
            height, width, content = _flo_content(file, path)
        except (lzma.LZMAError, EOFError) as error:
            raise OSError(f"{path} is damaged: {error}") from error
    values = np.frombuffer(content, "<f4").reshape(height, width, 2).astype(np.float32)  # a copy, in the machine's byte order
    known = (np.abs(values) <= UNKNOWN).all(-1)  # false for NaN, too
    values[~known] = np.nan
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()


def _flo_content(file: BinaryIO, path: Path) -> tuple[int, int, bytes]:
    header = file.read(12)
    if header[:4] != MAGIC:
        raise ValueError(f"{path} is no .flo file: it starts with {header[:4]!r}, not with {MAGIC!r}")
    if len(header) < 12:
        raise OSError(f"{path} is truncated: it has {len(header)} bytes of a header of 12")
    width, height = struct.unpack("<ii", header[4:])
    _check_size(width, height, path)
    length = 8 * width * height
    content = file.read(length + 1)
    if len(content) != length:
        found = "fewer" if len(content) < length else "more"
        raise OSError(f"{path} has {found} bytes than the {length:,} that {width} × {height} pixels need after the header")
    return height, width, content


def read_kitti(path: str | os.PathLike[str]) -> Tensor:
    """Displacements in a KITTI flow file: a PNG of three channels, 16 bits each.

    Red and green hold u and v as ``64 * displacement + 2**15``; blue is 0 where the displacement is not known (Menze & Geiger 2015,
    "Object scene flow for autonomous vehicles", CVPR). A file of KITTI's usual size, 1242 × 375, takes about a second.

    Arguments:
        path: The file.

    Returns:
        ``(2, height, width)`` float32, in the convention of :func:`read_flo`; NaN where the displacement is not known.

    Raises:
        ValueError: if it is no PNG, or has other channels, another bit depth, or a width and height that make no sense.
        OSError: if it is missing (FileNotFoundError), truncated or damaged.
    """
    path = Path(path)
    content = path.read_bytes()
    if not content.startswith(SIGNATURE):
        raise ValueError(f"{path} is no PNG file")
    reader = png.Reader(bytes=content)
    try:
        reader.preamble()
    except png.Error as error:
        raise OSError(f"{path} is damaged: {error}") from error
    if (reader.planes, reader.bitdepth) != (3, 16):
        raise ValueError(f"KITTI flow has 3 channels of 16 bits; {path} has {reader.planes} of {reader.bitdepth}")
    _check_size(reader.width, reader.height, path)
    try:
        rows = list(islice(reader.read()[2], reader.height + 1))
    except (png.Error, zlib.error, struct.error, IndexError) as error:  # the last two if interlaced
        raise OSError(f"{path} is damaged: {error}") from error
    if len(rows) != reader.height or {len(row) for row in rows} != {3 * reader.width}:
        raise OSError(f"{path} is damaged: it does not have the {reader.height} rows it announces")
    red, green, blue = np.array(rows, np.float32).reshape(reader.height, reader.width, 3).transpose(2, 0, 1)
    values = (np.stack([red, green]) - 2**15) / 64
    values[:, blue == 0] = np.nan
    return torch.from_numpy(values)


def _check_size(width: int, height: int, path: Path) -> None:
    if width < 1 or height < 1 or width * height > LARGEST:
        raise ValueError(f"{path} claims to have {width} × {height} pixels; accepted are 1 to {LARGEST:,}")


def flow_windows(fields: Field | Iterable[Field], size: int = 17, *, stride: int | None = None, scale: float = 1.0) -> Data:
    """Cuts square windows from measured flow fields, turned to the convention of simulated ones.

    Image files count rows and v downwards; :mod:`zoo.data.rofl` counts rows and vertical velocity upwards. So a window's rows come in
    opposite order, and its v with opposite sign. Windows with a pixel that is not known (not finite) are left out.

    Arguments:
        fields: One field or several: paths of ``.flo``, ``.flo.xz`` or KITTI ``.png`` files, or tensors ``(2, height, width)`` as
            :func:`read_flo` gives them.
        size: Height and width of a window in pixels.
        stride: Pixels from one window to the next, down and across; ``size`` (no overlap) if None.
        scale: Factor for displacements: 1 keeps pixels per frame; frames per second × radians per pixel gives rad/s (near a camera's
            optical axis a pixel spans 1 / (focal length in pixels) radians).

    Returns:
        Windows ``(n, 2, size, size)`` float32 (channel 0 to the right, 1 upwards), with the factors ``field`` (its place among
        ``fields``), ``row`` and ``column`` (top left pixel of the window, counted from the file's top left), each ``(n,)`` int64.

    Raises:
        TypeError: for fields that are neither paths nor tensors.
        ValueError: for a file name that ends otherwise, a tensor of another shape, settings out of range, no fields, a field smaller
            than a window, or no window without unknown displacements.
        ValueError, OSError: from the readers.
    """
    stride = size if stride is None else stride
    _check_settings(size, stride, scale)
    parts = [_cut(*_field(field, number), size, stride, number) for number, field in enumerate(_several(fields))]
    if not parts:
        raise ValueError("there are no flow fields to cut windows from")
    x, places = (torch.cat(columns) for columns in zip(*parts, strict=True))
    if len(x) == 0:
        raise ValueError(f"no window of {size} × {size} pixels is without unknown displacements; ask for smaller ones or a smaller stride")
    turned = torch.stack([x[:, 0], -x[:, 1]], dim=1).flip(-2)
    return Data(turned * scale, factors=dict(zip(("field", "row", "column"), places.unbind(1), strict=True)))


def _check_settings(size: int, stride: int, scale: float) -> None:
    for name, value in (("size", size), ("stride", stride)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a whole number of pixels of at least 1, not {value!r}")
    if not (isinstance(scale, Real) and math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a positive number, not {scale!r}")


def _several(fields: Field | Iterable[Field]) -> Iterable[Field]:
    one = fields.dim() < 4 if isinstance(fields, Tensor) else isinstance(fields, str) or not isinstance(fields, Iterable)
    return [fields] if one else fields


def _field(field: Field, number: int) -> tuple[Tensor, str]:
    """The field as a tensor, and what to call it in a message."""
    if isinstance(field, Tensor):
        if field.dim() != 3 or len(field) != 2 or field.is_complex():
            raise ValueError(f"a flow field must be real and (2, height, width); number {number} is {field.dtype} {tuple(field.shape)}")
        return field.detach().to(torch.float32), f"flow field {number}"
    if not isinstance(field, str | os.PathLike):
        raise TypeError(f"flow fields must be paths or tensors (2, height, width), not {type(field).__name__}")
    name = os.fspath(field).lower()
    if name.endswith((".flo", ".flo.xz")):
        return read_flo(field), str(field)
    if name.endswith(".png"):
        return read_kitti(field), str(field)
    raise ValueError(f"{field} ends in neither .flo, .flo.xz (Middlebury) nor .png (KITTI)")


def _cut(field: Tensor, name: str, size: int, stride: int, number: int) -> tuple[Tensor, Tensor]:
    """The known windows ``(n, 2, size, size)`` of a field, in the file's convention, and their field, row and column ``(n, 3)``."""
    height, width = field.shape[1:]
    if min(height, width) < size:
        raise ValueError(f"{name} has {width} × {height} pixels, fewer than a window of {size} × {size}")
    windows = field.unfold(1, size, stride).unfold(2, size, stride).permute(1, 2, 0, 3, 4)
    known = field.isfinite().all(0).unfold(0, size, stride).unfold(1, size, stride).all(-1).all(-1)
    places = known.nonzero() * stride
    return windows[known], torch.cat([torch.full_like(places[:, :1], number), places], dim=1)
