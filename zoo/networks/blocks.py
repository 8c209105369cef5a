"""Building blocks of the convolutional networks, on ``(N, channels, height, width)``; no block mixes images.

Of the convolutional networks of Vafaii, Galor & Yates 2024 (arXiv 2405.14473) and of the hierarchies of Vafaii, Yates & Butts 2023,
both after the NVAE (Vahdat & Kautz 2020). Every convolution, those of skips and pooling included, is weight-normalized and has a bias
unless told otherwise: this reading gives the published numbers of parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Conv", "ConvPool", "Expander", "Nearest", "Resize", "SqueezeExcite", "cell"]


class Conv(nn.Module):
    """A convolution whose filter for output channel o is ``exp(lognorm_o) v_o / ||v_o||``.

    ``v`` has shape (out, in / groups, height, width), ``lognorm`` and ``bias`` (out,). The filters
    start as N(0, 1 / fan-in), of length ``norm`` where that is given; the bias starts at 0.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = True,
        norm: float | None = None,
    ) -> None:
        super().__init__()
        height, width = (size, size) if isinstance(size, int) else size
        v = torch.randn(outputs, inputs // groups, height, width)
        v = v / v[0].numel() ** 0.5
        self.v = nn.Parameter(v)
        self.lognorm = nn.Parameter(v.flatten(1).norm(dim=1).log() if norm is None else torch.full((outputs,), math.log(norm)))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.stride, self.padding, self.groups = stride, padding, groups

    @property
    def weight(self) -> Tensor:
        """The filters, of the shape of ``v``."""
        scale = self.lognorm.exp() / self.v.flatten(1).norm(dim=1)
        return self.v * scale[:, None, None, None]

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] == self.v.shape[-2:] and self.padding in (0, (0, 0)) and self.groups == 1:
            # A filter as large as the map is a matrix: its product takes a quarter to two thirds of a convolution's time (CPU, batch 128).
            return functional.linear(x.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]
        return functional.conv2d(
            x, self.weight, self.bias, stride=self.stride, padding=self.padding, groups=self.groups
        )


class Expander(nn.Module):
    """Spreads ``(N, inputs, 1, 1)`` over a map ``(N, outputs, height, width)``: a weight-normalized transposed convolution as large as it.

    ``v`` has shape (in, out, height, width); a filter is all that an output channel is made of, of length ``exp(lognorm)``, 1 at the start.
    """

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.randn(inputs, outputs, *size))
        self.lognorm = nn.Parameter(torch.zeros(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    @property
    def weight(self) -> Tensor:
        """The filters, of the shape of ``v``."""
        scale = self.lognorm.exp() / self.v.transpose(0, 1).flatten(1).norm(dim=1)
        return self.v * scale[None, :, None, None]

    def forward(self, z: Tensor) -> Tensor:
        weight, places = self.weight, self.v[0, 0].numel()
        spread = functional.linear(z.flatten(1), weight.flatten(1).T, self.bias.repeat_interleave(places))
        return spread.unflatten(1, weight.shape[1:])


class SqueezeExcite(nn.Module):
    """Each channel times a gate in (0, 1), computed from the channels' means over space (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 4)
        self.gate = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((-2, -1)))[:, :, None, None]


class Phases(nn.Module):
    """The four pixel phases of a map, stacked: (N, C, H, W) to (N, 4 C, H / 2, W / 2); odd sides get a row or column of zeros."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % 2 or width % 2:
            x = functional.pad(x, (0, width % 2, 0, height % 2))
        return torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=1)


class Nearest(nn.Module):
    """Nearest-neighbour upsampling to ``size``."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, size=self.size, mode="nearest")


class Resize(nn.Module):
    """Bilinear resizing from ``old`` to ``new`` (height, width).

    Two fixed matrices rather than ``interpolate``, whose bilinear gradient is not reproducible on CUDA.
    """

    def __init__(self, old: tuple[int, int], new: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("rows", _bilinear(old[0], new[0]), persistent=False)
        self.register_buffer("columns", _bilinear(old[1], new[1]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows @ x @ self.columns.T


class Residual(nn.Module):
    """``skip(x) + weight * branch(x)``."""

    def __init__(self, skip: nn.Module, branch: nn.Module, weight: float = 1.0) -> None:
        super().__init__()
        self.skip = skip
        self.branch = branch
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.skip(x), self.branch(x), alpha=self.weight)


class ConvPool(nn.Module):
    """Mean over space plus a convolution of swish(x) as large as the map: (N, C, H, W) to (N, C, 1, 1)."""

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, size)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1), keepdim=True) + self.conv(functional.silu(x))


def cell(
    inputs: int,
    outputs: int,
    *,
    layers: int,
    down: str | None = None,
    up: tuple[int, int] | None = None,
    size: int = 3,
    norm: float | None = None,
    weight: float = 1.0,
    layer_norm: bool = False,
) -> nn.Module:
    """A residual cell: skip plus squeeze-excite of ``layers`` times (swish, convolution).

    Arguments:
        inputs, outputs: Channels; equal unless the cell goes down or up.
        layers: Number of convolutions in the branch.
        down: How the skip halves height and width: "phases" (a 1x1 convolution on each of the four pixel
            phases, their outputs stacked; even sizes) or "stride" (a 1x1 convolution with stride 2).
        up: The (height, width) to go up to, by nearest neighbour, in branch and skip.
        size: Of the convolutions, odd.
        norm: Length that all filters start with, if given.
        weight: What the branch is multiplied by.
        layer_norm: Whether the branch starts with a layer normalization, over channels and places.
    """
    branch: list[nn.Module] = [nn.GroupNorm(1, inputs)] if layer_norm else []
    for layer in range(layers):
        first = layer == 0
        branch.append(nn.SiLU())
        if first and up:
            branch.append(Nearest(up))
        stride = 2 if first and down else 1
        branch.append(Conv(inputs if first else outputs, outputs, size, stride=stride, padding=size // 2, norm=norm))
    branch.append(SqueezeExcite(outputs))
    return Residual(_skip(inputs, outputs, down, up, norm), nn.Sequential(*branch), weight)


def _skip(inputs: int, outputs: int, down: str | None, up: tuple[int, int] | None, norm: float | None) -> nn.Module:
    if down == "phases":
        return nn.Sequential(nn.SiLU(), Phases(), Conv(4 * inputs, outputs, 1, groups=4, norm=norm))
    if down == "stride":
        return nn.Sequential(nn.SiLU(), Conv(inputs, outputs, 1, stride=2, norm=norm))
    if up:
        # A 1x1 convolution and nearest-neighbour upsampling commute; this order is the cheaper one.
        return nn.Sequential(Conv(inputs, outputs, 1, norm=norm), Nearest(up))
    return nn.Identity()


def _bilinear(old: int, new: int) -> Tensor:
    """The (new, old) matrix of one-dimensional linear interpolation with pixel centres at half-integers."""
    unit = torch.eye(old)[None]
    return functional.interpolate(unit, size=new, mode="linear", align_corners=False)[0].T.contiguous()
