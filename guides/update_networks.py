"""Networks that emit a gated update of a posterior's parameters: one small network for all latents, or dense layers over them.

Both take features of every site ``{site: (N, channels · P, K)}`` and of the image ``(N, pixels)``, and return for every site the logits of
the gate and what is added to the proposal, each ``(N, P, K)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["NETWORKS", "Dense", "Units"]

EMBEDDING = 4  # learned numbers that tell one latent from another

Sizes = dict[str, tuple[int, int]]
Updates = dict[str, tuple[Tensor, Tensor]]


class Units(nn.Module):
    """A network with two hidden layers shared by all latents of a site, each of which it sees alone.

    It reads the latent's features, a few numbers that are its own, and a linear map of rank ``rank`` from the image to the latents.

    Arguments:
        sizes: ``{site: (P, K)}``.
        channels: Features of each parameter.
        pixels: Length of the image's features; 0 for none.
        hidden: Units of a hidden layer, 32 if None.
    """

    def __init__(self, sizes: Sizes, channels: int, pixels: int, *, hidden: int | None = None, rank: int = 32) -> None:
        super().__init__()
        hidden = hidden or 32
        self.sizes = sizes
        self.squeeze = nn.Linear(pixels, rank) if pixels else None
        self.spread, self.own, self.layers = nn.ParameterDict(), nn.ParameterDict(), nn.ModuleDict()
        for name, (count, units) in sizes.items():
            inputs = channels * count + EMBEDDING
            if pixels:
                self.spread[_key(name)] = nn.Parameter(torch.randn(rank, count * units) * rank ** -0.5)
                inputs += count
            self.own[_key(name)] = nn.Parameter(torch.randn(EMBEDDING, units) * 0.1)
            self.layers[_key(name)] = _Layers(nn.Conv1d, inputs, hidden, 2 * count, kernel_size=1)

    def forward(self, features: dict[str, Tensor], image: Tensor | None) -> Updates:
        seen = None if self.squeeze is None else self.squeeze(image)
        updates = {}
        for name, (count, units) in self.sizes.items():
            inputs = [features[name], self.own[_key(name)].expand(len(features[name]), -1, -1)]
            if seen is not None:
                inputs.append((seen @ self.spread[_key(name)]).unflatten(-1, (count, units)))
            updates[name] = self.layers[_key(name)](torch.cat(inputs, dim=-2)).split(count, dim=-2)
        return updates


class Dense(nn.Module):
    """Two hidden layers over all latents of all sites and the image at once, as in Marino, Yue & Mandt 2018.

    Arguments:
        hidden: Units of a hidden layer, 512 if None. The others are those of :class:`Units`; ``rank`` is of no use here.
    """

    def __init__(self, sizes: Sizes, channels: int, pixels: int, *, hidden: int | None = None, rank: int = 0) -> None:
        super().__init__()
        self.sizes = sizes
        outputs = sum(count * units for count, units in sizes.values())
        self.layers = _Layers(nn.Linear, channels * outputs + pixels, hidden or 512, 2 * outputs)

    def forward(self, features: dict[str, Tensor], image: Tensor | None) -> Updates:
        inputs = [part.flatten(1) for part in features.values()] + ([] if image is None else [image])
        output = self.layers(torch.cat(inputs, dim=-1))
        parts = output.split([2 * count * units for count, units in self.sizes.values()], dim=-1)
        return {name: part.unflatten(-1, (2 * size[0], size[1])).split(size[0], dim=-2)
                for (name, size), part in zip(self.sizes.items(), parts, strict=True)}


def _key(site: str) -> str:
    """A site's name where PyTorch allows no dot."""
    return site.replace(".", "/")


class _Layers(nn.Module):
    """Two hidden ELU layers and a linear map, small at the start: the gate is half open, and the output adds little."""

    def __init__(self, layer: type[nn.Module], inputs: int, hidden: int, outputs: int, **options: object) -> None:
        super().__init__()
        self.body = nn.Sequential(layer(inputs, hidden, **options), nn.ELU(), layer(hidden, hidden, **options), nn.ELU())
        self.head = layer(hidden, outputs, **options)
        for parameter in self.head.parameters():
            nn.init.normal_(parameter, std=1e-2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs))


NETWORKS: dict[str, type[nn.Module]] = {"units": Units, "dense": Dense}
