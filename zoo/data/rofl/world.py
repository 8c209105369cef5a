"""The world of retinal optic flow: what can be set, what is refused, and what its factors are called.

An eye at the origin looks at a wall one metre away, in front of which flat discs float parallel to it. Settings and laws are those of the
published data sets (Vafaii, Yates & Butts 2023, "Hierarchical VAEs provide a normative account of motion processing in the primate
brain").
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property

__all__ = ["KINDS", "MOST_OBJECTS", "World"]

MOST_OBJECTS = 8
KINDS = {
    "fixate": "the eye moves and its gaze tracks a point of the wall",
    "transl": "the eye moves and does not rotate",
    "obj": "the eye rests",
    "terrain": "the eye moves parallel to the wall past resting discs, its gaze tracking what it sees straight ahead",
    "pursuit": "the eye moves and its gaze tracks object 0",
}
FEWEST = {"fixate": 0, "transl": 0, "obj": 1, "terrain": 1, "pursuit": 1}
PUBLISHED_MIN_SIZE = {17: 3.5, 33: 10.5, 65: 6.0}  # pixels


@dataclass(frozen=True)
class World:
    """Settings of the simulator; the defaults are those of the published data sets.

    Arguments:
        category: ``"fixate-n"``, ``"transl-n"``, ``"obj-n"``, ``"terrain-n"`` or ``"pursuit-n"`` with n objects, at most 8.
        resolution: Pixels ``N`` along each side of the field; odd, so that one lies on the fovea.
        grid: Whether the discs' angles lie on pixels strictly inside the field, as published, instead of anywhere in the field. The
            laws differ a little: at 17 × 17, 87.7 % of the frames are accepted with the grid, 87.3 % without.
        residual: Whether a disc's velocity is relative to the eye; of no effect in ``terrain``, whose discs rest.
        speed: Least and greatest speed of eye and discs, m/s.
        depth: Least and greatest depth of a disc, m; the wall is at 1 m.
        radius: Radius of a disc, m.
        fov: Half the width of the field of view, degrees.
        min_size: A disc counts as seen if more pixels than this are visible; as published where that is known, else in proportion to
            the field's pixels.
        min_objects: So many discs must be seen for a frame to be accepted; ``n // 2 + 1`` (1 for n ≤ 2) by default, as published.

    Raises:
        ValueError: for an unknown category or a setting that is impossible.
    """

    category: str = "fixate-1"
    resolution: int = 17
    grid: bool = False
    residual: bool = False
    speed: tuple[float, float] = (0.01, 1.0)
    depth: tuple[float, float] = (0.5, 1.0)
    radius: float = 0.25
    fov: float = 45.0
    min_size: float | None = None
    min_objects: int | None = None

    def __post_init__(self) -> None:
        found = re.fullmatch(r"([a-z]+)-(\d)", self.category) if isinstance(self.category, str) else None
        kind, objects = (found[1], int(found[2])) if found else (None, 0)
        if kind not in KINDS or not FEWEST[kind] <= objects <= MOST_OBJECTS:
            known = ", ".join(f"{name}-{least}…{MOST_OBJECTS}" for name, least in FEWEST.items())
            raise ValueError(f"unknown category {self.category!r}; there are {known}: the number says how many objects")
        if not _whole(self.resolution) or self.resolution < 3 or self.resolution % 2 == 0:
            raise ValueError(f"resolution must be an odd number of pixels, at least 3 (17, 33, 65, …), not {self.resolution!r}")
        _check_range("speed", self.speed, 0.0, math.inf)
        _check_range("depth", self.depth, 0.0, 1.0)
        if not 0.0 < self.radius < math.inf:
            raise ValueError(f"radius must be positive (metres), not {self.radius}")
        if not 0.0 < self.fov <= 45.0:
            raise ValueError(f"fov must be above 0 and at most 45 degrees (beyond, rays miss the wall), not {self.fov}")
        if self.min_size is None:
            scaled = PUBLISHED_MIN_SIZE[17] * (self.resolution / 17) ** 2
            object.__setattr__(self, "min_size", PUBLISHED_MIN_SIZE.get(self.resolution, scaled))
        if self.min_objects is None:
            object.__setattr__(self, "min_objects", 0 if objects == 0 else 1 if objects == 2 else objects // 2 + 1)
        if not 0.0 <= self.min_size < self.resolution**2:
            raise ValueError(f"min_size must be from 0 to less than the {self.resolution**2} pixels of the field, not {self.min_size}")
        if not _whole(self.min_objects) or not 0 <= self.min_objects <= objects:
            raise ValueError(f"min_objects must be from 0 to the {objects} objects of {self.category}, not {self.min_objects!r}")

    @cached_property
    def kind(self) -> str:
        """The category without its number: a key of :data:`KINDS`."""
        return self.category.split("-")[0]

    @cached_property
    def objects(self) -> int:
        """Number of discs."""
        return int(self.category.split("-")[1])

    @property
    def self_moves(self) -> bool:
        """Whether the eye moves."""
        return self.kind != "obj"

    @property
    def tracks(self) -> bool:
        """Whether the eye rotates to keep what it looks at on the fovea."""
        return self.kind in ("fixate", "terrain", "pursuit")

    @property
    def objects_move(self) -> bool:
        """Whether there are discs that move."""
        return self.objects > 0 and self.kind != "terrain"

    @cached_property
    def factor_names(self) -> tuple[str, ...]:
        """The K factors a frame is drawn from, velocities in polar coordinates: 2 of gaze, 3 of the eye, 6 for each disc
        (terrain: 2, 2 and 3). In ``pursuit`` two of them, the angles of object 0, are always 0."""
        names = ["fix_x", "fix_y"]
        if self.self_moves:
            names += ["slf_v_norm", "slf_v_phi"] if self.kind == "terrain" else ["slf_v_norm", "slf_v_theta", "slf_v_phi"]
        for i in range(self.objects):
            names += [f"obj{i}_alpha_x", f"obj{i}_alpha_y", f"obj{i}_z"]
            names += [f"obj{i}_v_{part}" for part in ("norm", "theta", "phi")] if self.objects_move else []
        return tuple(names)

    @cached_property
    def cartesian_names(self) -> tuple[str, ...]:
        """As many factors in Cartesian world coordinates (m, m/s), those of the published figures."""
        names = ["fix_x", "fix_y"]
        if self.self_moves:
            names += ["slf_v_x", "slf_v_y"] + ([] if self.kind == "terrain" else ["slf_v_z"])
        for i in range(self.objects):
            names += [f"obj{i}_{axis}" for axis in "xyz"]
            names += [f"obj{i}_v_{axis}" for axis in "xyz"] if self.objects_move else []
        return tuple(names)


def _whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def _check_range(name: str, bounds: tuple[float, float], least: float, most: float) -> None:
    try:
        low, high = bounds
        fine = least < low < high <= most and high < math.inf
    except (TypeError, ValueError):
        fine = False
    if not fine:
        limits = f"above {least:g}" + (f" and at most {most:g}" if most < math.inf else "")
        raise ValueError(f"{name} must be (least, greatest), both {limits}, the least first; not {bounds!r}")
