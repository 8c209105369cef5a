r"""Vectors of isotropic direction and uniform length: :math:`p(v) = 1 / (4\pi |v|^2 (b - a))` for :math:`a < |v| < b`.

Their support is a shell. It is reached from space by the radial map under which the law is the image of a standard normal: the length
:math:`|v| = a + (b - a)\,F(|x|)` with F the distribution function of the chi law of three degrees of freedom. So in unconstrained
coordinates this prior is :math:`N(0, I)`.
"""

from __future__ import annotations

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform

__all__ = ["Isotropic", "Shell"]

LOG_CHI = 0.5 * math.log(2.0 / math.pi)  # log density of the chi law: LOG_CHI + 2 log r − r²/2
NEWTON = 8
OFF_CENTER = 3.0**-0.5  # the origin has no direction, and is given that of (1, 1, 1)


class Shell(Constraint):
    """Vectors ``(…, 3)`` with a length from ``low`` to ``high``."""

    event_dim = 1

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __repr__(self) -> str:
        return f"Shell({self.low}, {self.high})"

    def check(self, value: Tensor) -> Tensor:
        length = value.norm(dim=-1)
        slack = 4.0 * torch.finfo(value.dtype).eps * self.high  # lengths are rounded
        return (length >= self.low - slack) & (length <= self.high + slack)


class _ToShell(Transform):
    domain = constraints.real_vector
    bijective = True

    def __init__(self, low: float, high: float, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        self.low, self.high = low, high

    @property
    def codomain(self) -> Shell:
        return Shell(self.low, self.high)

    def with_cache(self, cache_size: int = 1) -> _ToShell:
        return self if cache_size == self._cache_size else _ToShell(self.low, self.high, cache_size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ToShell) and (self.low, self.high) == (other.low, other.high)

    def __hash__(self) -> int:
        return hash((self.low, self.high))

    def _call(self, x: Tensor) -> Tensor:
        r = _length(x)
        x = torch.where((x == 0.0).all(-1, keepdim=True), OFF_CENTER * r, x)
        return x * ((self.low + (self.high - self.low) * _chi_cdf(r)) / r)

    def _inverse(self, y: Tensor) -> Tensor:
        length = _length(y)
        return y * (_chi_quantile((length - self.low) / (self.high - self.low)) / length)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        # (d|y| / d|x|) (|y| / |x|)²; the |x|² of the chi density cancels that of the shrunk sphere.
        return LOG_CHI - 0.5 * x.square().sum(-1) + math.log(self.high - self.low) + 2.0 * _length(y).squeeze(-1).log()


@biject_to.register(Shell)
@transform_to.register(Shell)
def _to_shell(constraint: Shell) -> _ToShell:
    return _ToShell(constraint.low, constraint.high)


class Isotropic(TorchDistribution):
    """Isotropic direction, length uniform from ``low`` to ``high``; event shape ``(3,)``.

    Arguments:
        low, high: Least and greatest length, 0 ≤ low < high.
        like: A tensor of the device and type that draws shall have.

    Raises:
        ValueError: if the lengths are not in that order.
    """

    arg_constraints: dict = {}
    has_rsample = True

    def __init__(self, low: float, high: float, like: Tensor, batch_shape: torch.Size = torch.Size(),  # noqa: B008
                 validate_args: bool | None = None) -> None:
        if not 0.0 <= low < high:
            raise ValueError(f"lengths must be 0 ≤ low < high, not {low} and {high}")
        self.low, self.high, self.like = low, high, like.detach()
        super().__init__(batch_shape, torch.Size((3,)), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Shell:
        return Shell(self.low, self.high)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> Isotropic:
        return Isotropic(self.low, self.high, self.like, torch.Size(batch_shape), validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        return self.like.new_zeros(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        a, b = self.low, self.high
        return self.like.new_full(self._extended_shape(), (a * a + a * b + b * b) / 9.0)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        direction = self.like.new_empty(self._extended_shape(sample_shape)).normal_()
        length = self.like.new_empty((*direction.shape[:-1], 1)).uniform_(self.low, self.high)
        return direction * (length / _length(direction))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        length = _length(value).squeeze(-1)
        density = -math.log(4.0 * math.pi * (self.high - self.low)) - 2.0 * length.log()
        density = torch.where(Shell(self.low, self.high).check(value), density, -math.inf)
        return density.expand(torch.broadcast_shapes(density.shape, self.batch_shape))


def _length(vector: Tensor) -> Tensor:
    """Length ``(…, 1)``, never 0 and with a finite gradient at the origin."""
    return vector.square().sum(-1, keepdim=True).clamp(min=torch.finfo(vector.dtype).tiny ** 0.5).sqrt()


def _chi_cdf(r: Tensor) -> Tensor:
    # Where r is small the exact difference cancels.
    series = r**3 * (math.sqrt(2.0 / math.pi) / 3.0) * (1.0 - 0.3 * r**2 + 3.0 / 56.0 * r**4)
    exact = torch.erf(r * math.sqrt(0.5)) - math.sqrt(2.0 / math.pi) * r * torch.exp(-0.5 * r * r)
    return torch.where(r < 0.05, series, exact)


def _chi_quantile(u: Tensor) -> Tensor:
    """Inverse of :func:`_chi_cdf`: Wilson and Hilferty's approximation, then Newton's method, above the median on the logarithm of
    what is left; the last step carries the gradient."""
    eps = torch.finfo(u.dtype).eps
    fixed = u.detach().clamp(eps**2, 1.0 - eps)
    with torch.no_grad():
        z = torch.special.ndtri(fixed.double())
        cube = 1.0 - 2.0 / 27.0 + z * math.sqrt(2.0 / 27.0)
        small = (3.0 * math.sqrt(math.pi / 2.0) * fixed.double()) ** (1 / 3)  # the leading term at the origin
        r = torch.where(cube > 0.3, (3.0 * cube.clamp(min=0.3) ** 3).sqrt(), small)
        left = 1.0 - fixed.double()
        for _ in range(NEWTON):
            density = _chi_density(r)
            survival = torch.erfc(r * math.sqrt(0.5)) + density / r
            below = (fixed.double() - _chi_cdf(r)) / density
            above = (survival.log() - left.log()) * survival / density
            r = (r + torch.where(fixed > 0.5, above, below)).clamp(0.5 * r, 2.0 * r)
        r = r.to(u.dtype)
    slope = 1.0 / _chi_density(r)
    return r + (u - u.detach()) * slope


def _chi_density(r: Tensor) -> Tensor:
    return math.sqrt(2.0 / math.pi) * r * r * torch.exp(-0.5 * r * r)
