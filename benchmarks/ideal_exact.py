r"""Draws of the exact posterior of an eye that moves in front of a wall (``fixate-0``), without a Markov chain.

Given the fixation point F the flow is linear in the velocity V, x = A(F) V + noise, so that under a flat law of V both the evidence of F
and the law of V are Gaussian integrals: :math:`V \mid F, x \sim N(G^{-1}b, \sigma^2 G^{-1})` with :math:`G = A^\top A, b = A^\top x`, and
:math:`\log p(x \mid F) = b^\top G^{-1} b / 2\sigma^2 - \tfrac12 \log|G|` up to a constant. F is drawn from a fine grid and within a cell,
V given F, and both are weighted by what that leaves out: the evidence at F itself against that of the grid, and the prior of V.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo.data.rofl import World, flow

CELLS = 161  # along each side of the diamond
BLOCK = 1 << 14  # flow fields held at once, times three


def exact_draws(x: Tensor, world: World, scale: float, *, draws: int = 1000, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Weighted draws ``{"fixation": (1, draws, N, 2), "self_velocity": (1, draws, N, 3)}`` and log weights ``(1, draws, N)``.

    Arguments:
        x: Frames ``(N, 2, H, W)``, rad/s.
        world: A world of the kind ``fixate-0`` or ``transl-0``.
        scale: Standard deviation of the noise, rad/s.
    """
    generator = torch.Generator().manual_seed(seed)
    x = x.flatten(1).double()
    middles = (torch.arange(CELLS, dtype=x.dtype) + 0.5) / CELLS * 2.0 - 1.0
    grid = torch.cartesian_prod(middles, middles)  # of the square that the diamond is, turned by 45°
    gram, response = _moments(grid, x.T, world)  # (G, 3, 3), (G, 3, N)
    cell = _evidence(gram, response.movedim(-1, 0), scale).softmax(-1)  # (N, G)
    parts = []
    for i in range(len(x)):
        chosen = torch.multinomial(cell[i], draws, replacement=True, generator=generator)
        jitter = (torch.rand(draws, 2, dtype=x.dtype, generator=generator) - 0.5) * 2.0 / CELLS
        gram_f, response_f = _moments(grid[chosen] + jitter, x[i][:, None], world)
        response_f = response_f[..., 0]
        factor = torch.linalg.cholesky(gram_f)
        mean = torch.cholesky_solve(response_f[..., None], factor)
        noise = torch.randn(draws, 3, 1, dtype=x.dtype, generator=generator)
        v = (mean + scale * torch.linalg.solve_triangular(factor.mT, noise, upper=True))[..., 0]
        speed = v.norm(dim=-1)
        prior = torch.where((speed > world.speed[0]) & (speed < world.speed[1]), -2.0 * speed.log(), -math.inf)
        log_weight = _evidence(gram_f, response_f, scale) - cell[i][chosen].log() + prior
        parts.append((_turned(grid[chosen] + jitter), v, log_weight))
    fixation, velocity, log_weights = (torch.stack(part, 1)[None] for part in zip(*parts, strict=True))
    return {"fixation": fixation, "self_velocity": velocity}, log_weights


def _turned(square: Tensor) -> Tensor:
    u, v = square.unbind(-1)
    return torch.stack([0.5 * (u + v), 0.5 * (u - v)], -1)


def _moments(square: Tensor, x: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """AᵀA ``(M, 3, 3)`` and Aᵀx ``(M, 3, n)`` at points of the square ``(M, 2)``, for frames ``(P, n)``."""
    grams, responses = [], []
    for part in _turned(square).split(BLOCK):
        a = flow({"fixation": part[:, None], "self_velocity": torch.eye(3, dtype=x.dtype).expand(len(part), 3, 3)}, world).flatten(2)
        grams.append(a @ a.mT)
        responses.append(a @ x)
    return torch.cat(grams), torch.cat(responses)


def _evidence(gram: Tensor, response: Tensor, scale: float) -> Tensor:
    """log p(x | F) under a flat law of V, up to a constant, ``(…, M)``."""
    factor = torch.linalg.cholesky(gram)
    whitened = torch.linalg.solve_triangular(factor, response[..., None], upper=False)[..., 0]
    return 0.5 * whitened.square().sum(-1) / scale**2 - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
