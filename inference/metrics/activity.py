"""Which latents a model uses, as a curve over thresholds instead of a hand-tuned rule for each model."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ACTIVE_KL", "active_curve"]

ACTIVE_KL = 1e-2  # nats; the threshold behind the table's single number "active"


def active_curve(unit_kl: Tensor, thresholds: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Fraction of latents whose KL divergence, averaged over images, exceeds each threshold.

    Arguments:
        unit_kl: KL of each latent in nats, ``(K,)``.
        thresholds: Increasing thresholds in nats ``(T,)``; 10⁻⁵ to 10 by default.

    Returns:
        The thresholds ``(T,)`` and the fractions ``(T,)``, which never increase.
    """
    if thresholds is None:
        thresholds = torch.logspace(-5, 1, 121)
    thresholds = thresholds.to(unit_kl)
    return thresholds, (unit_kl.unsqueeze(0) > thresholds.unsqueeze(1)).to(unit_kl.dtype).mean(1)
