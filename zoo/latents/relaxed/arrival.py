r"""Poisson counts by arrival times: the number of arrivals of a process of rate λ before time 1, made smooth.

Vafaii, Galor & Yates 2024, Algorithm 1: :math:`z = \sum_m f((1 - t_m)/τ)` over arrival times
:math:`t_1 < t_2 < …` that scale as 1/λ, so that :math:`dz/dλ = \sum_m f'((1 - t_m)/τ)\, t_m / (τ λ)`. They
draw a fixed number of arrivals for every unit, as many as the largest rate needs. Here a unit has its own:

- arrivals after :math:`1 + cτ` weigh nothing and are never drawn (c is the ramp's reach);
- the number of arrivals in an interval is Poisson, and given their number their times are uniform and
  independent, so no order, no running sum and no cut-off is needed;
- arrivals before :math:`1 - cτ` all weigh 1 and have no gradient: where rates are high, they are drawn as
  one count.

The law of :math:`(z, dz/dλ)` is that of Algorithm 1 with infinitely many arrivals.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import constraints

from zoo.latents.relaxed.ramps import RAMPS, Ramp, checked, find, moments

__all__ = ["RAMPS", "RelaxedPoisson", "moments"]

# Cells go through in groups and arrivals in rounds, so that temporary memory stays bounded by the output's:
CELLS = 2**14, 8  # a group has at most the larger of 2^14 and an eighth of all cells,
ARRIVALS = 2**16, 4  # a round has, on average, at most the larger of 2^16 and a quarter of the number of cells.
MOST_ARRIVALS = 1e9
LEAST_TEMPERATURE = 1e-6


class RelaxedPoisson(dist.Poisson):
    """A Poisson count with a pathwise gradient: samples are nonnegative reals, nearly counts at low τ.

    It is a ``Poisson`` of the same rate: :meth:`log_prob`, ``mean`` and ``variance`` are those of the exact
    count, and PyTorch's closed-form KL divergence between two Poissons applies. A relaxed value has no
    tractable density: do not read the :meth:`log_prob` of one as such. Mean and variance of relaxed
    samples: :func:`moments`.

    At temperature 0 samples are exact counts without a gradient. Gradients are first-order only.

    Arguments:
        rate: Rates λ ≥ 0, of the batch shape.
        temperature: τ ≥ 0, one number; positive ones are raised to 10⁻⁶.
        ramp: ``"cubic"``, ``"quintic"``, ``"linear"``, ``"cosine"`` or ``"sigmoid"``.
        straight_through: Whether samples are the hard counts of the same arrivals, with the relaxed gradient.

    Raises:
        ValueError: for an unknown ramp or a bad temperature; from sampling, for rates that are negative, NaN,
            infinite, or so high that they stand for more than a billion arrivals.
    """

    has_rsample = True
    support = constraints.nonnegative

    def __init__(self, rate: Tensor | float, temperature: float, ramp: str = "cubic",
                 straight_through: bool = False, validate_args: bool | None = None) -> None:
        find(ramp)
        self.temperature = checked(temperature)
        self.ramp = ramp
        self.straight_through = straight_through
        super().__init__(rate, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: RelaxedPoisson | None = None) -> RelaxedPoisson:
        new = self._get_checked_instance(RelaxedPoisson, _instance)
        new.temperature, new.ramp, new.straight_through = self.temperature, self.ramp, self.straight_through
        return super().expand(batch_shape, _instance=new)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Relaxed counts ``(*sample_shape, *batch_shape)``.

        Temporary memory is bounded by a few times the output's, time by the number of arrivals. On a GPU
        the host waits for the device once to plan, and once for every group of cells to read its number of
        arrivals.
        """
        rate = self.rate.expand(self._extended_shape(sample_shape))
        ramp, hard = find(self.ramp), self.straight_through
        temperature = max(self.temperature, LEAST_TEMPERATURE) if self.temperature > 0 else 0.0
        if torch.is_grad_enabled() and rate.requires_grad and temperature > 0:
            return _Pathwise.apply(rate, temperature, ramp, hard)
        return _draw(rate.detach(), temperature, ramp, hard, slopes=False)[0]

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """:meth:`rsample` without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)


class _Pathwise(torch.autograd.Function):
    """Keeps dz/dλ instead of a graph over arrivals."""

    @staticmethod
    def forward(ctx, rate: Tensor, temperature: float, ramp: Ramp, hard: bool) -> Tensor:
        z, slope = _draw(rate, temperature, ramp, hard, slopes=True)
        ctx.save_for_backward(slope)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None, None


def _draw(rate: Tensor, temperature: float, ramp: Ramp, hard: bool,
          slopes: bool) -> tuple[Tensor, Tensor | None]:
    """Samples z and, if asked for, dz/dλ, each of the shape of ``rate``."""
    shape, dtype = rate.shape, rate.dtype
    rate = rate.reshape(-1).to(torch.promote_types(dtype, torch.float32))
    groups = rate.split(max(CELLS[0], rate.numel() // CELLS[1]))
    totals = _totals(rate, groups)
    if temperature == 0:
        return torch.poisson(rate).to(dtype).view(shape), None
    starts = [_start(total, len(group), temperature, ramp)
              for total, group in zip(totals, groups, strict=True)]
    stop = 1 + ramp.reach * temperature
    arrivals = sum(total * (stop - start) for total, start in zip(totals, starts, strict=True))
    if arrivals > MOST_ARRIVALS:
        raise ValueError(f"rates that sum to {sum(totals):.3g} stand for {arrivals:.3g} arrivals to relax, "
                         f"more than {MOST_ARRIVALS:.0e}; bound the rates or lower the temperature")
    z = torch.zeros_like(rate)
    dz = torch.zeros_like(rate) if slopes else None
    most = max(ARRIVALS[0], rate.numel() // ARRIVALS[1])
    first = 0
    for group, total, start in zip(groups, totals, starts, strict=True):
        cells = slice(first, first := first + len(group))
        rounds = max(1, math.ceil(total * (stop - start) / most))
        _fill(group, temperature, ramp, hard, start, rounds, z[cells], None if dz is None else dz[cells])
    return z.to(dtype).view(shape), None if dz is None else dz.to(dtype).view(shape)


def _totals(rate: Tensor, groups: tuple[Tensor, ...]) -> list[float]:
    """Sum of the rates of each group; the one place where rates are read by the host."""
    if rate.numel() == 0:
        return [0.0] * len(groups)
    lowest, *totals = torch.stack([rate.amin(), *(group.sum() for group in groups)]).tolist()
    if not (lowest >= 0 and math.isfinite(sum(totals))):
        raise ValueError("rates must be finite and ≥ 0, but some are negative, NaN or infinite")
    return totals


def _start(total: float, cells: int, temperature: float, ramp: Ramp) -> float:
    """The time from which arrivals are drawn singly: where weights begin to fall, or 0 if that is less work."""
    certain = 1 - ramp.reach * temperature
    return certain if total * certain > cells else 0.0


def _fill(rate: Tensor, temperature: float, ramp: Ramp, hard: bool, start: float, rounds: int, z: Tensor,
          dz: Tensor | None) -> None:
    """Adds arrivals' weights to ``z`` and derivatives to ``dz``, both ``(cells,)``, in independent rounds."""
    if start > 0:
        z += torch.poisson(rate * start)
    # An arrival at time t has s = (1 − t)/τ, uniform from the ramp's foot up to that of the start.
    low, high = -ramp.reach, (1 - start) / temperature
    share = rate * (temperature * (high - low) / rounds)
    for _ in range(rounds):
        counts = torch.poisson(share).long()
        number = int(counts.sum())
        if number == 0:
            continue
        s = torch.rand(number, dtype=rate.dtype, device=rate.device).mul_(high - low).add_(low)
        owner = _owners(counts, number)
        _add(z, (s > 0).to(s.dtype) if hard else ramp.value(s), counts, owner)
        if dz is not None:
            _add(dz, ramp.slope(s).mul_(s.mul_(-temperature).add_(1)), counts, owner)
    if dz is not None:
        dz.div_((rate * temperature).clamp_min_(torch.finfo(rate.dtype).tiny))  # 0, not 0/0, at rate 0


def _owners(counts: Tensor, number: int) -> Tensor | None:
    """The cell of each arrival; None on a GPU: adding by index there has no fixed order, segment sums do."""
    return None if counts.is_cuda else torch.repeat_interleave(counts, output_size=number)


def _add(total: Tensor, values: Tensor, counts: Tensor, owner: Tensor | None) -> None:
    """Adds to each cell its arrivals' values, which lie cell after cell."""
    if owner is None:
        total += torch.segment_reduce(values, "sum", lengths=counts, unsafe=True)
    else:
        total.index_add_(0, owner, values)
