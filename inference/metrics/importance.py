r"""Importance sampling of each image's evidence with a guide as the proposal, and whether its answer can be trusted.

With draws :math:`z_i \sim q(z \mid x)` and weights :math:`w_i = p(x, z_i) / q(z_i \mid x)`, :math:`\hat p = \frac1k \sum_i w_i` is unbiased
for p(x), and its logarithm is one draw of the importance-weighted bound (Burda, Grosse & Salakhutdinov 2016). How fast it converges is told
by the tail of the weights: :math:`\hat k`, the shape of a generalized Pareto law fitted to the greatest of them (Vehtari, Simpson, Gelman,
Yao & Gabry 2024); for variational posteriors it says whether they are close enough to the posterior to be corrected (Yao, Vehtari, Simpson
& Gelman 2018). A guide that is too narrow and has not drawn what it lacks can hide it from every such number.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from guides.lesioned import check_density
from guides.stepwise import settled
from inference.arviz import pareto_k
from inference.methods.amortized import draw
from inference.metrics.evidence import CHUNK
from inference.posterior import Posterior
from zoo.density import log_joint

__all__ = ["importance", "log_importance_weights", "weight_diagnostics"]

WORST_K = 0.7  # of the Pareto shape, where practical convergence ends however many draws there are


def importance(model: Callable, x: Tensor, proposal: Callable | Posterior, k: int = 1000, *, seed: int = 0) -> dict[str, Tensor]:
    """Estimates the log evidence of each image.

    Arguments:
        model: Any program of images ``x``, ``(N, *event_shape)``.
        proposal: What is drawn from: a guide (any Pyro program ``guide(x)`` over the model's latents inside the plate ``"data"``), or a
            posterior with parameters under a model of the zoo whose prior does not depend on other latents (``amortized``, ``local``).
        k: Draws of each image.
        seed: Seed of the draws.

    Returns:
        ``log_px``: estimates of log p(x) in nats, low on average; and what :func:`weight_diagnostics` says of the weights. All ``(N,)``.

    Raises:
        ValueError: if there are fewer draws than 2, the proposal has no parameters or is of other images or latents, or a guide would draw
            relaxed latents.
    """
    log_weights = log_importance_weights(model, x, proposal, k, seed=seed)
    return {"log_px": log_weights.double().logsumexp(0) - math.log(k), **weight_diagnostics(log_weights)}


@torch.no_grad()
def log_importance_weights(model: Callable, x: Tensor, proposal: Callable | Posterior, k: int, *, seed: int = 0) -> Tensor:
    """log p(x, z) − log q(z | x) of ``k`` draws of the proposal for each image, ``(k, N)``. Arguments as of :func:`importance`."""
    if k < 2:
        raise ValueError(f"k must be at least 2, not {k}")
    _check(model, x, proposal)
    check_density(proposal)
    proposal = proposal if isinstance(proposal, Posterior) else settled(proposal, x)
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        first = _draw(model, x, proposal, 1)[0]
        torch.manual_seed(seed)
        chunk = max(1, min(k, CHUNK // max(sum(value.numel() for value in first.values()), x.numel())))
        weights = []
        for start in range(0, k, chunk):
            z, log_q = _draw(model, x, proposal, min(chunk, k - start))
            weights.append(log_joint(model, z, x) - log_q)
    return torch.cat(weights)


def weight_diagnostics(log_weights: Tensor) -> dict[str, Tensor]:
    r"""What log importance weights ``(k, N)`` say of themselves, each ``(N,)``; −∞ is a weight of zero.

    Returns:
        ``se``: standard error of log p̂, sd(w) / (√k mean(w)), by the delta method; it means nothing where weights are not reliable.
        ``ess``: Kish's effective number of draws, (Σ w)² / Σ w². ``pareto_k``: :math:`\hat k` (see :func:`inference.arviz.pareto_k`).
        ``reliable``: whether :math:`\hat k < \min(1 - 1 / \log_{10} k, 0.7)`, the threshold of Vehtari et al. 2024.

    Raises:
        ValueError: if there are fewer than 2 weights of an image, or none of them is finite, or one is NaN or +∞.
    """
    if log_weights.dim() != 2 or len(log_weights) < 2:
        raise ValueError(f"log weights must be (k, N) with k at least 2, not {tuple(log_weights.shape)}")
    values = log_weights.detach().double()
    fine = torch.isfinite(values.amax(0)) & ~values.isnan().any(0)
    if not fine.all():
        raise ValueError(f"the log weights of image {int((~fine).nonzero()[0])} must be below infinity, and not all −infinity")
    count = len(values)
    weights = values.softmax(0) * count  # of mean 1
    shape = pareto_k(values)
    return {"se": weights.std(0) / math.sqrt(count), "ess": count**2 / weights.square().sum(0), "pareto_k": shape,
            "reliable": shape < min(1.0 - 1.0 / math.log10(count), WORST_K)}


def _draw(model: Callable, x: Tensor, proposal: Callable | Posterior, count: int) -> tuple[dict[str, Tensor], Tensor]:
    """Draws ``{site: (count, N, *event)}`` and their log densities ``(count, N)``."""
    if isinstance(proposal, Posterior):
        laws = {name: model.latents[name][0].distribution(value) for name, value in proposal.params.items()}
        z = {name: law.sample((count,)) for name, law in laws.items()}
        return z, sum(law.log_prob(z[name]) for name, law in laws.items())
    drawn = draw(proposal, x, count)
    z = {name: value[0] for name, value in drawn.samples.items()}
    return z, log_joint(proposal, z, x) if drawn.log_q is None else drawn.log_q[0]


def _check(model: Callable, x: Tensor, proposal: Callable | Posterior) -> None:
    if not isinstance(proposal, Posterior):
        if getattr(proposal, "temperature", 0.0) > 0.0:
            raise ValueError(f"the guide would draw relaxed latents, at temperature {proposal.temperature:g}; set its temperature to 0")
        return
    if proposal.params is None or not hasattr(model, "latents"):
        raise ValueError(f"the posterior of {proposal.method!r} has no parameters to draw from under this model; give its guide instead")
    if len(proposal) != len(x) or set(proposal.params) != set(model.latents):
        raise ValueError(f"the posterior is of {len(proposal)} images and the latents {', '.join(proposal.params)}; the model and images "
                         f"have {len(x)} and {', '.join(model.latents)}")
