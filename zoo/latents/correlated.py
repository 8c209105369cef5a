r"""Gaussian latents whose noise is correlated in a way that all images share: a full or low-rank precision of prediction errors.

:math:`z \sim N(\mathrm{loc}, S R S)` with the units' own scales in :math:`S` and the model's matrix :math:`R`. A posterior is the prior's
parameters plus what inference adds, so it has the prior's :math:`R`, with scales of its own: not a mean-field one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from zoo.distributions.correlated import CorrelatedNormal, Structure
from zoo.latents.gaussian import Gaussian

__all__ = ["CorrelatedGaussian", "Correlations"]

KINDS = ("lowrank", "full")


class Correlations(nn.Module):
    """The learned matrix R of ``K`` units: the identity (full), or close to it (low rank), at the start.

    Arguments:
        units: ``K``.
        kind: ``"full"``: C Cᵀ with a unit lower triangular C; ``"lowrank"``: I + U Uᵀ.
        rank: Columns of U.

    Raises:
        ValueError: for another kind, or a rank that is not from 1 to K.
    """

    def __init__(self, units: int, kind: str = "full", rank: int = 4) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"correlations must be {' or '.join(map(repr, KINDS))}, not {kind!r}")
        if kind == "lowrank" and not 1 <= rank <= units:
            raise ValueError(f"rank must be from 1 to the {units} units, not {rank}")
        self.kind = kind
        # At U = 0 the density has no slope in U.
        self.weight = nn.Parameter(torch.zeros(units, units) if kind == "full" else 0.01 * torch.randn(units, rank))

    def structure(self, like: Tensor) -> Structure:
        """R as it is now, of the type of ``like``."""
        weight = self.weight.to(like)
        return Structure(factor=weight) if self.kind == "lowrank" else Structure(tril=weight.tril(-1) + torch.eye(len(weight)).to(like))


class CorrelatedGaussian(Gaussian):
    """Normal latents with parameters ``loc`` and ``log_scale`` and the correlations of a model.

    Arguments:
        correlations: What computes R; its weights are the model's.
    """

    def __init__(self, correlations: Correlations) -> None:
        super().__init__()
        self.correlations = correlations

    def distribution(self, params: Tensor) -> Distribution:
        loc, log_scale = params.unbind(-2)
        return CorrelatedNormal(loc, log_scale.exp(), self.correlations.structure(params))

    def read(self, distribution: Distribution) -> Tensor:
        return torch.stack([distribution.loc, distribution.scale.log()], dim=-2)

    def unit_kl(self, q: Tensor, p: Tensor) -> Tensor:
        """The KL divergence of all units together, ``(…, 1)``."""
        structure = self.correlations.structure(q)
        laws = (CorrelatedNormal(params[..., 0, :], params[..., 1, :].exp(), structure) for params in (q, p))
        return torch.distributions.kl_divergence(*laws).unsqueeze(-1)

    def moments(self, params: Tensor) -> tuple[Tensor, Tensor]:
        law = self.distribution(params)
        return law.mean, law.variance

    def decoded_variance(self, params: Tensor, weight: Tensor, moments: tuple[Tensor, Tensor] | None = None) -> Tensor:
        scale = params[..., 1, :].exp()
        overlap = (weight.mT @ weight) * self.correlations.structure(params).matrix()
        return ((scale @ overlap) * scale).sum(-1)

    def natural(self, params: Tensor, gradient: Tensor) -> Tensor:
        """Fisher information ``(S R S)⁻¹`` for the locations and ``I + R ∘ R⁻¹`` for the log-scales."""
        structure = self.correlations.structure(params)
        to_loc, to_log_scale = gradient.unbind(-2)
        scale = params[..., 1, :].exp()
        information = torch.eye(params.shape[-1]).to(params) + structure.coupling()
        log_scale = torch.linalg.solve(information, to_log_scale.reshape(-1, len(information)).mT).mT.reshape(to_log_scale.shape)
        return torch.stack([scale * ((scale * to_loc) @ structure.matrix()), log_scale], dim=-2)
