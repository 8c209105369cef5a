r"""No latents at all but a code: what turns an autoencoder into the limit of a variational one, :math:`q(z|x) = \delta(z - \mathrm{code})`.

Not among the families by name: it has no prior worth the name, no divergence and no evidence. The deterministic hierarchies of
Vafaii, Yates & Butts 2023 ("cNAE", "AE") are made of it.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from zoo.latents.base import Family

__all__ = ["Deterministic", "is_deterministic"]


class Deterministic(Family):
    """A point with the parameter ``code``; its divergence from any other is counted as 0 nats, so that no bound is one."""

    parameters = ("code",)

    def distribution(self, params: Tensor) -> Distribution:
        return dist.Delta(params.squeeze(-2), event_dim=1)

    def unit_kl(self, q: Tensor, p: Tensor) -> Tensor:
        """Zeros: an autoencoder pays nothing for its code."""
        return torch.zeros_like(q + p).squeeze(-2)

    def read(self, distribution: Distribution) -> Tensor:
        return distribution.v.unsqueeze(-2)


def is_deterministic(model: object) -> bool:
    """Whether a model has latents that are such codes: then it has neither a posterior nor an evidence."""
    return any(isinstance(family, Deterministic) for family, _ in getattr(model, "latents", {}).values())
