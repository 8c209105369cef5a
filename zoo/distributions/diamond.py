r"""The uniform law on the diamond :math:`|x| + |y| < 1`, and the way there from the plane."""

from __future__ import annotations

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform
from torch.nn.functional import softplus

__all__ = ["UniformDiamond", "diamond"]


class _Diamond(Constraint):
    """Points ``(…, 2)`` with |x| + |y| < 1."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return value.abs().sum(-1) < 1.0


diamond = _Diamond()


class _ToDiamond(Transform):
    """From the plane: each coordinate to (−1, 1) by a logistic function, then the square turned by 45° and shrunk into the diamond."""

    domain = constraints.real_vector
    codomain = diamond
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ToDiamond)

    def __hash__(self) -> int:
        return hash(_ToDiamond)

    def _call(self, x: Tensor) -> Tensor:
        limit = 1.0 - 2.0 * torch.finfo(x.dtype).eps  # the open square, whatever the rounding
        u, v = (0.5 * x).tanh().clamp(-limit, limit).unbind(-1)
        return torch.stack([0.5 * (u + v), 0.5 * (u - v)], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        a, b = y.unbind(-1)
        return 2.0 * torch.stack([a + b, a - b], -1).atanh()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return (math.log(2.0) - softplus(x) - softplus(-x)).sum(-1) - math.log(2.0)


@biject_to.register(_Diamond)
@transform_to.register(_Diamond)
def _to_diamond(constraint: _Diamond) -> _ToDiamond:
    return _ToDiamond()


class UniformDiamond(TorchDistribution):
    """Uniform on the diamond |x| + |y| < 1, whose area is 2; event shape ``(2,)``.

    Arguments:
        like: A tensor of the device and type that draws shall have.
    """

    arg_constraints: dict = {}
    support = diamond
    has_rsample = True

    def __init__(self, like: Tensor, batch_shape: torch.Size = torch.Size(), validate_args: bool | None = None) -> None:  # noqa: B008
        self.like = like.detach()
        super().__init__(batch_shape, torch.Size((2,)), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> UniformDiamond:
        return type(self)(self.like, torch.Size(batch_shape), validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        return self.like.new_zeros(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        return self.like.new_full(self._extended_shape(), 1.0 / 6.0)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        u, v = self.like.new_empty(self._extended_shape(sample_shape)).uniform_(-1.0, 1.0).unbind(-1)
        return torch.stack([0.5 * (u + v), 0.5 * (u - v)], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        inside = diamond.check(value)
        density = torch.where(inside, value.new_tensor(-math.log(2.0)), -math.inf)
        return density.expand(torch.broadcast_shapes(density.shape, self.batch_shape))
