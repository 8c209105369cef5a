"""The law of what a flow makes of a random image."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from zoo.flows.base import Flow

__all__ = ["Carried"]


class Carried(dist.TransformedDistribution):
    """x = flow(y) with y of law ``base``; scored with one pass of the flow for x of any batch shape that broadcasts with the base's.

    Arguments:
        base: Law of y, batch shape ``(…)``, of the flow's event shape.
        flow: The flow.
    """

    def __init__(self, base: Distribution, flow: Flow) -> None:
        self.flow = flow
        super().__init__(base, [flow], validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Carried:
        return Carried(self.base_dist.expand(torch.Size(batch_shape)), self.flow)

    @property
    def mean(self) -> Tensor:
        """The point that the mean of y is carried to: the mean of x where the flow is affine, else a point near its middle."""
        return self.flow(self.base_dist.mean)

    def log_prob(self, value: Tensor) -> Tensor:
        y, log_det = self.flow.whiten(value)
        return self.base_dist.log_prob(y) + log_det
