r"""The other half of a hierarchy: one pass up through the image, then posteriors read on the model's own walk down.

At a group with features ``s`` from above and the tap ``t`` of the way up, :math:`\mathrm{params}(q) = \mathrm{params}(p)(s) + \delta`,
:math:`\delta = \mathrm{reader}(t + W s)` (the residual posterior of Vahdat & Kautz 2020, as in the cNVAE of Vafaii, Yates & Butts 2023).
Where the model multiplies a draw by the features (``coupling="gain"``), the guide multiplies what it reads, too,
:math:`\mathrm{gain}(s) \cdot t + W s`: under ``x = A(s) z`` the slope of log p(x | z, s) in z is ``A(s)ᵀ(x − A(s) z) / σ²``, a product.
Log-scales keep to the families' own bounds, the prior's within ±4 and a posterior's within ±5.3 of it; in the published code their sum is
within ±4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guides.base import Conditionals, Guide, center
from zoo.latents.base import Family
from zoo.models.hierarchy import Hierarchy, Plan, on_maps, reader, split
from zoo.networks.blocks import Conv

__all__ = ["Hierarchical"]

LENGTH = 0.7  # of the readers' filters at the start


class Hierarchical(Guide):
    """A guide for :class:`~zoo.models.hierarchy.Hierarchy`: a tower of cells up, one reader for each group.

    Arguments:
        model: The hierarchy.
        seed: Seed of the initial weights.
    """

    mean_field = False

    def __init__(self, model: nn.Module, data: object = None, *, seed: int = 0) -> None:
        super().__init__(model)
        plan, places = model.plan, model.plan.places
        self.counts = {name: len(family.parameters) for name, (family, _) in model.latents.items()}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem = _stem(plan)
            self.pre = _pre(plan)
            # From the image upwards: the cells before each group's tap, the finest scale first.
            self.tower = nn.ModuleDict({name: _before(plan, places, i) for i, (name, _, _) in reversed(list(enumerate(places)))})
            widths = {name: plan.widths[scale] for name, scale, _ in places}
            top = places[0][0]
            self.top = Conv(widths[top], widths[top], 1, norm=1.0)
            self.readers = nn.ModuleDict({name: reader(plan, group.family, group.units, scale, model.spatial, LENGTH)
                                          for (name, scale, _), group in zip(places, model.groups.values(), strict=True)})
            self.from_above = nn.ModuleDict({name: Conv(widths[name], widths[name], 1, bias=False, norm=1.0) for name, _, _ in places[1:]})
            self.gains = nn.ModuleDict({name: plan.gain(widths[name]) for name, group in model.groups.items() if group.gain is not None})
            for gain in self.gains.values():
                nn.init.ones_(gain[-1].bias)

    @staticmethod
    def misfit(model: nn.Module) -> str | None:
        return None if isinstance(model, Hierarchy) else "it is for hierarchies (zoo.models.hierarchy)"

    def taps(self, x: Tensor) -> dict[str, Tensor]:
        """What the way up says to each group, ``{site: (N, C, h, w)}``, for images ``(N, *event_shape)``."""
        plan: Plan = self.model.plan
        features = self.pre(self.stem(x if plan.cells == "conv" else x.reshape(len(x), -1, 1, 1)))
        found = {}
        for name, cells in self.tower.items():
            features = cells(features)
            found[name] = features
        top = plan.places[0][0]
        found[top] = self.top(found[top]) if plan.cells == "lin" else nn.functional.silu(self.top(nn.functional.silu(found[top])))
        return found

    def read(self, name: str, tap: Tensor, above: Tensor | None) -> Tensor:
        """A group's delta ``(…, N, P, K)`` from its tap and the features from above, where it has any."""
        if name in self.gains:
            tap = on_maps(self.gains[name], above) * tap
        heard = tap if above is None or name not in self.from_above else tap + on_maps(self.from_above[name], above)
        return split(on_maps(self.readers[name], heard), self.counts[name])

    def conditionals(self, x: Tensor) -> Conditionals:
        taps = self.taps(x)
        return lambda name, family, prior, above=None: family.posterior(prior, self.read(name, taps[name], above))

    def delta(self, x: Tensor) -> dict[str, Tensor]:
        """The deltas given the means of the latents above, ``{site: (N, P, K)}``: where inference for each image can start from.

        A guide with these deltas is not this one, whose deltas follow the draws above.
        """
        taps, deltas = self.taps(x), {}

        def keep(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
            deltas[name] = self.read(name, taps[name], above)
            return center(family.distribution(family.posterior(prior, deltas[name])))

        self.model.descend(keep, x)
        return deltas


def _stem(plan: Plan) -> nn.Module:
    """From the image to a map of an even number of pixels, or to a single vector."""
    if plan.cells != "conv":
        return Conv(torch.Size(plan.event_shape).numel(), plan.channels, 1, norm=1.0)
    odd = [n % 2 for n in plan.event_shape[1:]]
    return Conv(plan.event_shape[0], plan.channels, tuple(3 - n for n in odd), padding=tuple(1 - n for n in odd), norm=1.0)


def _pre(plan: Plan) -> nn.Sequential:
    """The cells before the first tap: at every halving, the last of them halves the map and doubles the channels."""
    channels, (cells, nodes), body = plan.channels, plan.pre, []
    for _ in plan.halvings:
        body += [plan.cell(channels, channels, nodes) for _ in range(cells - 1)]
        body.append(plan.cell(channels, 2 * channels, nodes, down="phases"))
        channels *= 2
    if plan.cells == "mlp":
        body += [plan.cell(channels, channels, nodes) for _ in range(cells)]
    return nn.Sequential(*body)


def _before(plan: Plan, places: list[tuple[str, int, bool]], i: int) -> nn.Sequential:
    """The cells between the tap of the group below and that of group ``i`` (counted from the top)."""
    cells, nodes = plan.up if plan.cells != "lin" else (0, 0)
    scale = places[i][1]
    body: list[nn.Module] = []
    if i + 1 < len(places) and places[i + 1][1] != scale and plan.cells == "conv":
        body.append(plan.cell(plan.widths[scale + 1], plan.widths[scale], nodes, down="phases"))
    body += [plan.cell(plan.widths[scale], plan.widths[scale], nodes) for _ in range(cells)]
    return nn.Sequential(*body)
