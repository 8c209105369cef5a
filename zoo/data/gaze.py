"""Where a drifting eye looks: smooth random paths over a bounded field."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from zoo.data.ornstein_uhlenbeck import ornstein_uhlenbeck

__all__ = ["gaze"]

DTYPE = torch.float64


def gaze(n: int, frames: int, room: tuple[float, float], *, speed: float = 0.5, persistence: float = 8.0, saccades: float = 0.0,
         generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Paths of a gaze that drifts over a field: places ``(n, frames, 2)`` in pixels, and the drift from one to the next
    ``(n, frames − 1, 2)``.

    Its velocity is an Ornstein–Uhlenbeck process, so the path is persistent over short times and a random walk over long ones. (Ocular
    drift is persistent over short times and bounded over long ones, which this path is only by the field's border: Engbert, Mergenthaler,
    Sinn & Pikovsky 2011, "An integrated model of fixational eye movements and microsaccades", PNAS 108.) Where it meets the border it is
    reflected, so that at every frame the gaze is anywhere in the field with equal probability. A saccade takes it anywhere in the field.

    Arguments:
        room: Extent of the field along x and y: the greatest coordinates, pixels; the least are 0.
        speed: Root mean square speed, pixels per frame: each coordinate's velocity has the standard deviation ``speed`` / √2.
        persistence: Time constant of the velocity, frames.
        saccades: Probability of a saccade between two frames; there the drift is 0.
        generator: Source of randomness; PyTorch's own if None.

    Raises:
        ValueError: for a setting out of range.
    """
    if not (isinstance(speed, Real) and 0.0 <= speed < math.inf):
        raise ValueError(f"speed must be at least 0 and finite (pixels per frame), not {speed!r}")
    if not (isinstance(persistence, Real) and persistence > 0.0):
        raise ValueError(f"persistence must be positive (frames), not {persistence!r}")
    if not (isinstance(saccades, Real) and 0.0 <= saccades <= 1.0):
        raise ValueError(f"saccades must be a probability, not {saccades!r}")
    if not all(0.0 < extent < math.inf for extent in room):
        raise ValueError(f"the field must have positive, finite extents (pixels), not {room}")

    def uniform(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=DTYPE).uniform_(generator=generator)

    velocity = ornstein_uhlenbeck(n, frames, (2,), persistence, generator=generator, dtype=DTYPE)[:, 1:] * (speed / math.sqrt(2.0))
    # The plane is tiled with mirror images of the field: a straight path there is a reflected one here, two tiles on nothing has changed,
    # and a saccade adds what is uniform over two tiles.
    period = 2.0 * torch.tensor(room, dtype=DTYPE)
    jumps = uniform(n, frames - 1, 1) < saccades
    moves = torch.where(jumps, period * uniform(n, frames - 1, 2), velocity)
    start = period * uniform(n, 1, 2)
    unfolded = torch.cat([start, start + moves.cumsum(1)], 1)
    extent = 0.5 * period
    places = extent - (unfolded.remainder(period) - extent).abs()
    return places, torch.where(jumps, 0.0, places.diff(dim=1))
