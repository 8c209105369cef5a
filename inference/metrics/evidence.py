r"""The importance-weighted bound on the log evidence, :math:`E\big[\log \tfrac1k \sum_i p(x, z_i) / q(z_i | x)\big] \le \log p(x)`.

Burda, Grosse & Salakhutdinov 2016. Draws and densities are exact: true counts and one-hots, no relaxation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.density import log_joint

__all__ = ["iwae_bound"]

CHUNK = 2**24  # numbers held at once: draws × images × latents of one chunk


@torch.no_grad()
def iwae_bound(model: Callable, x: Tensor, params: dict[str, Tensor], k: int, *, seed: int = 0) -> Tensor:
    """The bound of ``k`` draws for each image in nats, ``(N,)``.

    Arguments:
        model: A model of the zoo whose prior does not depend on other latents.
        x: Images ``(N, *event_shape)``.
        params: Parameters of the variational posterior, ``{site: (N, P, K)}``.
        k: Draws per image; with k = 1 the expectation is the ELBO's.
        seed: Seed of the draws.

    Raises:
        ValueError: if ``k`` is not positive.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    posteriors = {name: model.latents[name][0].distribution(value) for name, value in params.items()}
    numbers = sum(value.numel() for value in params.values())
    chunk = max(1, min(k, CHUNK // max(numbers, 1)))
    total = torch.full((len(x),), -torch.inf, device=x.device)
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, k, chunk):
            z = {name: q.sample((min(chunk, k - start),)) for name, q in posteriors.items()}
            log_weight = log_joint(model, z, x) - sum(q.log_prob(z[name]) for name, q in posteriors.items())
            total = torch.logaddexp(total, log_weight.logsumexp(0))
    return total - torch.log(torch.tensor(float(k)))
