r"""How sparse a code is: Treves–Rolls sparsity over images (lifetime) and over units (population), and exact zeros.

:math:`S = \big(1 - (\sum_i |z_i|)^2 / (n \sum_i z_i^2)\big) / (1 - 1/n)` (Treves & Rolls 1991; Vinje & Gallant 2000): 0 for a
constant response, 1 for a response to one of ``n`` images, 1 by convention for a silent unit.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fraction_of_zeros", "lifetime_sparsity", "population_sparsity"]


def lifetime_sparsity(code: Tensor) -> Tensor:
    """Sparsity of each unit over images, ``(K,)``, for codes ``(n, K)`` with n ≥ 2."""
    return _sparsity(code, 0)


def population_sparsity(code: Tensor) -> Tensor:
    """Sparsity of each image's response over units, ``(n,)``, for codes ``(n, K)`` with K ≥ 2."""
    return _sparsity(code, 1)


def fraction_of_zeros(code: Tensor) -> Tensor:
    """Fraction of exact zeros, a scalar; 0 for any continuous code."""
    return (code == 0).to(torch.get_default_dtype()).mean()


def _sparsity(code: Tensor, dim: int) -> Tensor:
    n = code.shape[dim]
    if code.dim() != 2 or n < 2:
        raise ValueError(f"sparsity needs a code (images, units) with at least 2 along dimension {dim}, not {tuple(code.shape)}")
    code = code.abs().double()
    square = code.square().sum(dim)
    ratio = code.sum(dim).square() / (n * square)
    value = torch.where(square > 0, (1.0 - ratio) / (1.0 - 1.0 / n), 1.0)
    return value.to(torch.get_default_dtype())
