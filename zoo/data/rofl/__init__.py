"""Retinal optic flow learning (ROFL): a world of which every cause is known, as a simulator and as data sets.

``sample`` draws causes, ``accepted`` says which frames count, ``generate`` does both until there are enough, ``flow`` renders causes,
``factors`` names them. ``rofl`` gives fixed splits, :class:`Stream` fresh frames without end.
"""

from zoo.data.rofl.acceptance import accepted, generate, visible
from zoo.data.rofl.factors import causes_of, factors, world_position
from zoo.data.rofl.render import cause_shapes, flow, masks, render, sizes
from zoo.data.rofl.sampling import sample
from zoo.data.rofl.splits import frames, rofl
from zoo.data.rofl.storage import read, write
from zoo.data.rofl.streaming import Stream
from zoo.data.rofl.world import World

__all__ = ["Stream", "World", "accepted", "cause_shapes", "causes_of", "factors", "flow", "frames", "generate", "masks", "read", "render",
           "rofl", "sample", "sizes", "visible", "world_position", "write"]
