r"""Ramps :math:`f`: an arrival at time :math:`t` counts :math:`f((1 - t)/\tau)` instead of :math:`1[t < 1]`.

A ramp climbs from 0 to 1 on :math:`(-c, c)` with :math:`f(s) + f(-s) = 1`. The sigmoid is the one of the
Poisson VAE (Vafaii, Galor & Yates 2024); the ramps with c = 1 keep the mean of a count exactly for every
temperature up to 1 ("A hitchhiker's guide to Poisson gradient estimation", 2026, which recommends the
cubic).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RAMPS", "Ramp", "moments"]


@dataclass(frozen=True)
class Ramp:
    r"""A ramp and its integrals.

    Attributes:
        value: :math:`f(s)`, of any shape; exactly 0 for ``s ≤ −reach`` and 1 for ``s ≥ reach``.
        slope: :math:`f'(s)`; 0 outside ``(−reach, reach)``.
        reach: The ``c`` beyond which a ramp is flat.
        areas: ``s ↦`` :math:`(\int_{-\infty}^s f,\ \int_{-\infty}^s f^2)`.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    reach: float
    areas: Callable[[float], tuple[float, float]]


def _polynomial(*coefficients: float) -> Ramp:
    """A polynomial in ``u = (s + 1)/2 ∈ [0, 1]``, by rising power."""
    slopes = [k * c / 2 for k, c in enumerate(coefficients)][1:]
    squares = [0.0] * (2 * len(coefficients) - 1)
    for i, a in enumerate(coefficients):
        for j, b in enumerate(coefficients):
            squares[i + j] += a * b

    def value(s: Tensor) -> Tensor:
        return _horner(coefficients, _unit(s))

    def slope(s: Tensor) -> Tensor:
        if len(slopes) == 1:  # the linear ramp alone has a slope that jumps at the ends
            return (s.abs() < 1).to(s.dtype).mul_(slopes[0])
        return _horner(slopes, _unit(s))

    def areas(s: float) -> tuple[float, float]:
        u = min(max((s + 1) / 2, 0.0), 1.0)
        flat = max(s - 1, 0.0)
        first, second = (sum(2 * c * u ** (k + 1) / (k + 1) for k, c in enumerate(polynomial))
                         for polynomial in (coefficients, squares))
        return first + flat, second + flat

    return Ramp(value, slope, 1.0, areas)


def _unit(s: Tensor) -> Tensor:
    return ((s + 1) / 2).clamp_(0, 1)


def _horner(coefficients: Sequence[float], u: Tensor) -> Tensor:
    total = coefficients[-1] * u
    for power in range(len(coefficients) - 2, 0, -1):
        if coefficients[power]:
            total.add_(coefficients[power])
        total.mul_(u)
    return total.add_(coefficients[0]) if coefficients[0] else total


def _cosine() -> Ramp:
    def value(s: Tensor) -> Tensor:
        return _unit(s).mul_(math.pi).cos_().mul_(-0.5).add_(0.5)

    def slope(s: Tensor) -> Tensor:
        return _unit(s).mul_(math.pi).sin_().mul_(math.pi / 4).masked_fill_(s.abs() >= 1, 0)  # sin(π) is not 0 in floats

    def areas(s: float) -> tuple[float, float]:
        u = min(max((s + 1) / 2, 0.0), 1.0)
        flat = max(s - 1, 0.0)
        sine, sine2 = math.sin(math.pi * u) / math.pi, math.sin(2 * math.pi * u) / math.pi
        return u - sine + flat, 0.75 * u - sine + sine2 / 8 + flat

    return Ramp(value, slope, 1.0, areas)


def _sigmoid() -> Ramp:
    reach = 18.5  # sigmoid(−18.5) = 9.2e-9: the cut changes no weight by more than that

    def value(s: Tensor) -> Tensor:
        return torch.sigmoid(s).masked_fill_(s >= reach, 1).masked_fill_(s <= -reach, 0)

    def slope(s: Tensor) -> Tensor:
        weight = torch.sigmoid(s)
        return weight.mul_(1 - weight).masked_fill_(s.abs() >= reach, 0)

    def areas(s: float) -> tuple[float, float]:
        softplus = max(s, 0.0) + math.log1p(math.exp(-abs(s)))
        return softplus, softplus - 1 / (1 + math.exp(-s))

    return Ramp(value, slope, reach, areas)


RAMPS: dict[str, Ramp] = {
    "cubic": _polynomial(0, 0, 3, -2),
    "quintic": _polynomial(0, 0, 0, 10, -15, 6),
    "linear": _polynomial(0, 1),
    "cosine": _cosine(),
    "sigmoid": _sigmoid(),
}


def moments(ramp: str, temperature: float) -> tuple[float, float]:
    r"""Mean and variance of a relaxed count, each divided by the rate λ, in closed form; any temperature ≥ 0.

    Campbell's theorem for a Poisson process of rate λ on :math:`t > 0`:
    :math:`E[z]/λ = τ \int_{-\infty}^{1/τ} f(s)\,ds` and :math:`\mathrm{Var}[z]/λ = τ \int_{-\infty}^{1/τ} f(s)^2\,ds`. For τ
    ≤ 1 and every ramp but the sigmoid, the mean is 1 and the variance 1 − κτ with κ = 1/3 (linear), 9/35
    (cubic), 50/231 (quintic), 1/4 (cosine). For the sigmoid the mean is τ softplus(1/τ), and the variance τ
    sigmoid(1/τ) below it (its cut tails, < 1e-8, left in).

    Raises:
        ValueError: for an unknown ramp, or a temperature that is negative or not finite.
    """
    shape, temperature = find(ramp), checked(temperature)
    if temperature == 0:
        return 1.0, 1.0
    first, second = shape.areas(1 / temperature)
    return temperature * first, temperature * second


def find(ramp: str) -> Ramp:
    """The ramp of that name."""
    if ramp not in RAMPS:
        raise ValueError(f"unknown ramp {ramp!r}; known are: {', '.join(RAMPS)}")
    return RAMPS[ramp]


def checked(temperature: float) -> float:
    """The temperature as a float ≥ 0."""
    number = float(temperature)
    if not 0 <= number < math.inf:
        raise ValueError(f"temperature must be a finite number ≥ 0, not {number}")
    return number
