r"""The eye: where its pixels look, and how it is turned.

A pixel at the horizontal angle a and vertical angle b looks along :math:`d = (\tan a, \tan b, 1)` in the eye's own frame, and the eye
is turned so that its z axis points at the fixation point :math:`F = (X_0, Y_0, 1)`, without torsion. All that a frame does to the pixels is
linear in a few fixed functions of (a, b); these are tabulated here once, and a frame is a matrix product with them.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Gaze", "Tables", "angles", "gaze_at", "tables"]


class Tables(NamedTuple):
    """Functions of a pixel's angles, one column for each of the ``N²`` pixels (row by row, b then a).

    Attributes:
        linear: ``1, tan a, tan b``: ``(3, N²)``.
        quadratic: ``1, tan a, tan b, tan² a, tan a tan b, tan² b``: ``(6, N²)``.
        flow: cos² a · ``(1, tan a, tan² a, tan b, tan a tan b)`` for the horizontal channel, cos² b · ``(1, tan b, tan² b, tan a,
            tan a tan b)`` for the vertical one: ``(2, 5, N²)``.
    """

    linear: Tensor
    quadratic: Tensor
    flow: Tensor


def angles(resolution: int, fov: float) -> Tensor:
    """Angles of the pixels along a side, radians, ``(N,)`` in double precision."""
    return torch.linspace(-1.0, 1.0, resolution, dtype=torch.float64) * math.radians(fov)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept must be of use outside of inference mode, too
def tables(resolution: int, fov: float, dtype: torch.dtype, device: torch.device) -> Tables:
    """The tables of a retina, computed in double precision, rounded to ``dtype``."""
    tangent = angles(resolution, fov).tan()
    a = tangent.expand(resolution, resolution).flatten()
    b = tangent[:, None].expand(resolution, resolution).flatten()
    one = torch.ones_like(a)
    horizontal = torch.stack([one, a, a * a, b, a * b]) / (1.0 + a * a)
    vertical = torch.stack([one, b, b * b, a, a * b]) / (1.0 + b * b)
    parts = (torch.stack([one, a, b]), torch.stack([one, a, b, a * a, a * b, b * b]), torch.stack([horizontal, vertical]))
    return Tables(*(part.to(device, dtype) for part in parts))


class Gaze(NamedTuple):
    r"""A direction of gaze :math:`(p, q, c) = F/|F|`, and with it the rotation from the eye's coordinates to the world's,

    :math:`R = \begin{pmatrix} 1 - p^2 k & -pqk & p \\ -pqk & 1 - q^2 k & q \\ -p & -q & c \end{pmatrix}`, :math:`k = 1/(1 + c)`,

    which is the least rotation that takes the z axis to F, written so that straight ahead is no special case.
    """

    p: Tensor
    q: Tensor
    c: Tensor

    def rows(self) -> tuple[tuple[Tensor, ...], ...]:
        """The rows of R."""
        p, q, c = self
        k = 1.0 / (1.0 + c)
        return (1.0 - p * p * k, -p * q * k, p), (-p * q * k, 1.0 - q * q * k, q), (-p, -q, c)

    def to_world(self, ray: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """R · ray, for a ray given by components."""
        return tuple(sum(r * x for r, x in zip(row, ray, strict=True)) for row in self.rows())

    def to_eye(self, vector: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Rᵀ · vector, for a vector given by components."""
        return tuple(sum(r * x for r, x in zip(column, vector, strict=True)) for column in zip(*self.rows(), strict=True))

    def unsqueeze(self) -> Gaze:
        """With a dimension for the discs at the right."""
        return Gaze(*(part.unsqueeze(-1) for part in self))


def gaze_at(fixation: Tensor) -> Gaze:
    """The gaze for fixation points ``(…, 2)`` on the wall at 1 m."""
    x, y = fixation.unbind(-1)
    c = (1.0 + x * x + y * y).rsqrt()
    return Gaze(x * c, y * c, c)
