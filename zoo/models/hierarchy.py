r"""A hierarchy of latents, walked once from top to bottom: :math:`p(z) = \prod_l p(z_l \mid z_{>l})`.

The top-down half of the compressed hierarchical VAE (cNVAE) of Vafaii, Yates & Butts 2023, after the NVAE of Vahdat & Kautz 2020. A map of
features starts as a learned constant; each group reads its prior off the features, and adds what it drew to them (or, with
``coupling="gain"``, multiplies them by it). A group may have any latent family, may be *compressed* (a vector, computed from the whole map
and spread over it again) or spatial (one vector for each place of the map), and the maps may be those of images (``"conv"``) or single
vectors (``"mlp"``, ``"lin"``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, prod
from typing import Any

import torch
from torch import Tensor, nn

from zoo import latents as families
from zoo.latents.base import Family
from zoo.latents.deterministic import Deterministic
from zoo.latents.location_scale import LOG_SCALE_LIMIT
from zoo.models.image_model import UNIT_SCALE, Draw, ImageModel
from zoo.networks.blocks import Conv, Expander, Nearest, cell

__all__ = ["CELLS", "COUPLINGS", "Descent", "Group", "Hierarchy", "Plan", "on_maps"]

CELLS = ("conv", "mlp", "lin")
COUPLINGS = ("add", "gain")
SMALL = 1e-3  # length of the prior's filters at the start: priors are nearly constant then, and equal to the family's own


@dataclass(frozen=True)
class Plan:
    """Sizes that the two halves of a hierarchy share, the model's walk down and an encoder's way up.

    Attributes:
        event_shape: Shape of one image.
        cells: ``"conv"``: residual cells on feature maps; ``"mlp"``: the same on single vectors; ``"lin"``: none, all maps
            linear (a gain apart).
        channels: Of the maps as large as the image; doubled wherever their sides halve. Of ``"mlp"`` and ``"lin"``: of all.
        groups: Groups of latents at each scale, from the top (smallest) down.
        finest: ``"conv"``: the maps' sides are halved until they are at most this, before the first latents are read.
        pre: (cells, convolutions in each) for each of these halvings, on both ways.
        up: The same for each group on the way up.
        down: The same for each group but the first on the way down.
        post: (cells, convolutions in each) for each doubling after the last group, the cell that doubles included. With no cell
            (``"mlp"``, ``(0, 0)``) the image is a linear map of the last features.
        residual: Weight of a cell's branch.
        coupling: How the first draw at a scale meets the features from the scale above: ``"add"``, side by side with them as published, or
            ``"gain"``, multiplied by them: ``W [gain(s) · (expand(z) + bias)]``. Latents above then act on what is drawn below (and on
            its prior) as in optic flow gaze and depth act on velocities. With ``post=(0, 0)`` the image is a linear map of these products.
            A guide multiplies what the way up says there, too, as what an image says of one factor depends on the other. Later groups of
            the same scale are added.
        layer_norm: Whether the branch of every cell, and what a gain is made of, is normalized first (Ba, Kiros & Hinton 2016): not
            published.
    """

    event_shape: tuple[int, ...]
    cells: str = "conv"
    channels: int = 32
    groups: tuple[int, ...] = (3, 6, 12)
    finest: int = 8
    pre: tuple[int, int] = (3, 2)
    up: tuple[int, int] = (2, 2)
    down: tuple[int, int] = (2, 1)
    post: tuple[int, int] = (3, 1)
    residual: float = 1.0
    coupling: str = "add"
    layer_norm: bool = False

    def __post_init__(self) -> None:
        if self.coupling not in COUPLINGS:
            raise ValueError(f"coupling must be one of {', '.join(COUPLINGS)}, not {self.coupling!r}")
        if self.coupling == "gain" and len(self.groups) == 1:
            raise ValueError("coupling 'gain' lets a scale be multiplied by the one above, so it needs groups at two scales or more, "
                             f"not {self.groups}")
        if not isinstance(self.layer_norm, bool):
            raise ValueError(f"layer_norm must be True or False, not {self.layer_norm!r}")
        if self.cells not in CELLS:
            raise ValueError(f"cells must be one of {', '.join(CELLS)}, not {self.cells!r}")
        if self.cells == "conv" and (len(self.event_shape) != 3 or min(self.event_shape[1:]) < 4):
            raise ValueError(f"cells 'conv' need images (channels, height, width) of at least 4 × 4 pixels, not {self.event_shape}; "
                             "use 'mlp' or 'lin'")
        if not self.groups or min(self.groups) < 1:
            raise ValueError(f"groups must have at least one group at each scale, not {self.groups}")
        for name, least in (("pre", 1), ("post", int(self.cells == "conv")), ("up", 0), ("down", 0)):
            pair = getattr(self, name)
            if len(pair) != 2 or pair[0] < least or pair[1] < (pair[0] > 0):
                raise ValueError(f"{name} must be (cells, convolutions in each), at least {least} and 1, not {pair}")
        if not self.residual > 0.0:
            raise ValueError(f"residual must be positive, not {self.residual}")
        if self.channels < 4 or self.channels % 4 or self.finest < 1:
            raise ValueError(f"channels must be a positive multiple of 4 and finest at least 1, not {self.channels} and {self.finest}")
        if self.cells == "conv" and len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"{len(self.groups)} scales are too many: the maps have shrunk to one pixel before the last")

    @property
    def stem(self) -> tuple[int, int]:
        """Height and width of the map that the stem makes: an even number of pixels, one less where there is an odd one."""
        return (1, 1) if self.cells != "conv" else tuple(n - n % 2 for n in self.event_shape[1:])

    @property
    def halvings(self) -> list[tuple[int, int]]:
        """Sizes of the maps after each halving before the finest scale."""
        size, sizes = self.stem, []
        while self.cells == "conv" and max(size) > self.finest:
            size = _half(size)
            sizes.append(size)
        return sizes

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of the maps at each scale, from the top down."""
        sizes = [(self.halvings or [self.stem])[-1]]
        for _ in self.groups[1:]:
            sizes.append(_half(sizes[-1]) if self.cells == "conv" else sizes[-1])
        return sizes[::-1]

    @property
    def widths(self) -> list[int]:
        """Channels at each scale, from the top down."""
        if self.cells != "conv":
            return [self.channels] * len(self.groups)
        finest = self.channels * 2 ** len(self.halvings)
        return [finest * 2**scale for scale in range(len(self.groups))][::-1]

    @property
    def places(self) -> list[tuple[str, int, bool]]:
        """(site, scale, whether it is the first at its scale) of every group, top-down; the site nearest the image is ``"z1"``."""
        firsts = [(scale, i == 0) for scale, groups in enumerate(self.groups) for i in range(groups)]
        return [(f"z{len(firsts) - i}", scale, leads) for i, (scale, leads) in enumerate(firsts)]

    def cell(self, inputs: int, outputs: int, nodes: int, **change: object) -> nn.Module:
        """A residual cell of this plan."""
        return cell(inputs, outputs, layers=nodes, size=3 if self.cells == "conv" else 1, norm=1.0, weight=self.residual,
                    layer_norm=self.layer_norm, **change)

    def gain(self, channels: int) -> nn.Sequential:
        """From features to what multiplies others, channel by channel."""
        normalized = [nn.GroupNorm(1, channels)] if self.layer_norm else []
        return nn.Sequential(*normalized, nn.SiLU(), Conv(channels, channels, 1, norm=1.0))


class Group(nn.Module):
    """One group of latents in the walk: features to the prior's parameters, and a draw back into the features.

    Arguments:
        inputs, channels: Of the features that come from the scale above, and of this scale's.
        size: Of the map, where this group changes it; the map stays as it is if None.
        first: Whether it is the first group of all, whose prior depends on nothing.
        opening: Whether its draw is all that the features are made of, instead of meeting those that are there.
    """

    def __init__(self, plan: Plan, family: Family, units: int, scale: int, *, change: bool, first: bool, opening: bool, spatial: bool,
                 learn_prior: bool) -> None:
        super().__init__()
        channels, size = plan.widths[scale], plan.sizes[scale]
        cells, nodes = plan.down if plan.cells != "lin" else (0, 0)
        body: list[nn.Module] = []
        if change and plan.cells == "conv":
            body.append(plan.cell(plan.widths[scale - 1], channels, nodes, up=size))
        body += [plan.cell(channels, channels, nodes) for _ in range(0 if first else cells)]
        self.cells = nn.Sequential(*body)
        self.family, self.units, self.size, self.spatial = family.copies(prod(size)) if spatial else family, units, size, spatial
        self.count = len(family.parameters)
        initial = _spread(family, units, size, spatial)
        computed = not first and not isinstance(family, Deterministic)
        self.prior_net = _reader(channels, self.count * units, size, spatial, SMALL) if computed else None
        if computed:
            with torch.no_grad():
                self.prior_net.bias.copy_(family.initial_prior(units).flatten())
        elif learn_prior and first:
            self.initial = nn.Parameter(initial)
        else:
            self.register_buffer("initial", initial)
        gated = change and plan.coupling == "gain"
        self.gain = plan.gain(channels) if gated else None
        # What multiplies features, or is all that they are made of, has as many channels as they have.
        width = channels if opening or gated else units
        self.spread = Expander(units, width, size) if not spatial else Conv(units, width, 1, norm=1.0) if gated else nn.Identity()
        joined = channels if gated else units if opening else channels + units
        self.join = None if opening and not spatial else Conv(joined, channels, 1, bias=False, norm=1.0)

    def prior(self, above: Tensor) -> Tensor:
        """The prior's parameters for features ``(…, C, h, w)``: ``(…, P, K)``, or ``(P, K)`` where it depends on nothing."""
        if self.prior_net is None:
            return self.initial
        return self.family.bounded(split(on_maps(self.prior_net, above), self.count))

    def take(self, features: Tensor | None, z: Tensor) -> Tensor:
        """The features with a draw ``(…, *event)`` in them."""
        code = self.family.code(z).unflatten(-1, (*(self.size if self.spatial else (1, 1)), self.units)).movedim(-1, -3)
        spread = on_maps(self.spread, code)
        if self.join is None:
            return spread
        if self.gain is not None:
            spread = on_maps(self.gain, features) * spread
        elif features is not None:
            lead = torch.broadcast_shapes(features.shape[:-3], spread.shape[:-3])
            spread = torch.cat([features.expand(*lead, *features.shape[-3:]), spread.expand(*lead, *spread.shape[-3:])], -3)
        return on_maps(self.join, spread)


class Descent(dict):
    """Latents by site, with the :attr:`features` that the walk through them ended with, so that decoding need not walk again."""

    features: Tensor


class Hierarchy(ImageModel):
    """A Pyro program with latent sites ``"zL"`` (top) to ``"z1"`` and observation site ``"x"``, inside the plate ``"data"``.

    Arguments:
        plan: Sizes.
        family: Names of latent families, or families: one for all groups, one for each scale, or one for each group, top-down.
        units: Latents ``K`` in a group, or, where ``spatial``, at each place of its map: one number for all groups, one for each
            scale, or one for each group, top-down.
        spatial: Whether latents keep the map's height and width; a group's latents stand side by side then, place by
            place, ``h · w · K`` of them.
        start: Whether the walk starts from a learned constant map; without it the first draw makes the first features alone.
        learn_prior: Whether the prior of the first group is learned; the family's own habit if None.
        scale, learn_scale, likelihood: As in :class:`~zoo.models.image_model.ImageModel`.

    Raises:
        ValueError: for a number of families or of units that fits neither scales nor groups, or fewer than one unit.
    """

    def __init__(self, plan: Plan, family: str | Family | Sequence[str | Family] = "gaussian", units: int | Sequence[int] = 20, *,
                 spatial: bool = False, start: bool = True, learn_prior: bool | None = None, scale: float = UNIT_SCALE,
                 learn_scale: bool | str = False, likelihood: str = "normal") -> None:
        super().__init__(plan.event_shape, scale=scale, learn_scale=learn_scale, likelihood=likelihood)
        self.plan, self.spatial, places = plan, spatial, plan.places
        given = [family] if isinstance(family, str | Family) else list(family)
        kinds = _for_each([families.registry[kind]() if isinstance(kind, str) else kind for kind in given], plan, "families")
        counts = _for_each(list(units) if isinstance(units, Sequence) else [units], plan, "numbers of units")
        if not all(type(count) is int and count >= 1 for count in counts):
            raise ValueError(f"units must be whole numbers, at least 1 unit in each group, not {units!r}")
        self.start = nn.Parameter(torch.rand(plan.widths[0], *plan.sizes[0])) if start else None
        groups = {}
        for i, ((name, scale_, leads), kind, count) in enumerate(zip(places, kinds, counts, strict=True)):
            learned = kind.learn_prior if learn_prior is None else learn_prior
            groups[name] = Group(plan, kind, count, scale_, change=leads and i > 0, first=i == 0, opening=i == 0 and not start,
                                 spatial=spatial, learn_prior=learned)
        self.groups = nn.ModuleDict(groups)
        self.post = _post(plan)

    @property
    def latents(self) -> dict[str, tuple[Family, int]]:
        """``{site: (family, number of units)}`` in top-down order; of spatial groups the units of all places together."""
        return {name: (group.family, group.units * (prod(group.size) if self.spatial else 1)) for name, group in self.groups.items()}

    @property
    def floors(self) -> dict[str, float]:
        """What the scale of each group's prior stays above while it is learned; 0 for one with no floor."""
        return {name: 0.0 if group.prior_net is None else exp(-LOG_SCALE_LIMIT) for name, group in self.groups.items()}

    @property
    def scales(self) -> list[list[str]]:
        """The sites at each scale, from the top down."""
        return [[name for name, at, _ in self.plan.places if at == scale] for scale in range(len(self.plan.groups))]

    def descend(self, draw: Draw, x: Tensor | None = None) -> Descent:
        """The walk: every group's prior from the features so far, then ``draw``, then the draw into the features."""
        features, latents = self.start, Descent()
        for name, group in self.groups.items():
            if features is not None:
                features = on_maps(group.cells, features)
            latents[name] = draw(name, group.family, group.prior(features), features)
            features = group.take(features, latents[name])
        latents.features = features
        return latents

    def decode(self, latents: dict[str, Tensor]) -> Tensor:
        """The image's mean (or logits) from the features below the last latent; plain dictionaries of latents are walked first."""
        if not isinstance(latents, Descent):
            latents = self.descend(lambda name, family, prior, above=None: latents[name])
        return on_maps(self.post, latents.features).reshape(*latents.features.shape[:-3], *self.event_shape)


def on_maps(module: nn.Module, maps: Tensor) -> Tensor:
    """A module of ``(N, C, h, w)`` on maps with any leading dimensions."""
    lead = maps.shape[:-3]
    if len(lead) == 1:
        return module(maps)
    return module(maps.reshape(-1, *maps.shape[-3:])).unflatten(0, lead) if lead else module(maps.unsqueeze(0)).squeeze(0)


def split(maps: Tensor, count: int) -> Tensor:
    """Maps ``(…, count · K, h, w)`` as parameters ``(…, count, h · w · K)``."""
    return maps.unflatten(-3, (count, -1)).movedim(-3, -1).flatten(-3)


def reader(plan: Plan, family: Family, units: int, scale: int, spatial: bool, norm: float) -> Conv:
    """From features to a group's parameters: a convolution as large as the map, or of 3 × 3 where latents are spatial."""
    return _reader(plan.widths[scale], len(family.parameters) * units, plan.sizes[scale], spatial, norm)


def _reader(channels: int, outputs: int, size: tuple[int, int], spatial: bool, norm: float) -> Conv:
    if spatial:
        return Conv(channels, outputs, 3, padding=1, norm=norm)
    return Conv(channels, outputs, size, norm=norm)


def _spread(family: Family, units: int, size: tuple[int, int], spatial: bool) -> Tensor:
    """The family's initial prior ``(P, K)``, the same at every place of a map where latents are spatial."""
    initial = family.initial_prior(units)
    return initial.repeat(1, prod(size)) if spatial else initial


def _post(plan: Plan) -> nn.Sequential:
    """From the last features to the image: each halving undone, then as many pixels as the image has."""
    channels, body = plan.widths[-1], []
    sizes = [plan.stem, *plan.halvings][-2::-1] if plan.cells == "conv" else []
    for i, size in enumerate(sizes):
        body.append(plan.cell(channels, channels // 2, plan.post[1], up=size))
        channels //= 2
        if i + 1 == len(sizes) and size != tuple(plan.event_shape[1:]):
            body.append(Nearest(tuple(plan.event_shape[1:])))
        body += [plan.cell(channels, channels, plan.post[1]) for _ in range(plan.post[0] - 1)]
    if plan.cells == "conv":
        if not sizes and plan.stem != tuple(plan.event_shape[1:]):
            body.append(Nearest(tuple(plan.event_shape[1:])))
        return nn.Sequential(*body, Conv(channels, plan.event_shape[0], 3, padding=1, bias=False, norm=1.0))
    body = [plan.cell(channels, channels, plan.post[1]) for _ in range(plan.post[0] if plan.cells == "mlp" else 0)]
    return nn.Sequential(*body, Conv(channels, prod(plan.event_shape), 1))


def _for_each(given: list[Any], plan: Plan, what: str) -> list[Any]:
    """One for every group."""
    count, scales = sum(plan.groups), len(plan.groups)
    if len(given) == 1:
        return given * count
    if len(given) == count:
        return given
    if len(given) == scales:
        return [one for one, groups in zip(given, plan.groups, strict=True) for _ in range(groups)]
    raise ValueError(f"{what}: give one for all, one for each of {scales} scales or one for each of {count} groups, not {len(given)}")


def _half(size: tuple[int, int]) -> tuple[int, int]:
    return tuple(ceil(n / 2) for n in size)
