"""One posterior, all its numbers: reconstruction, KL, bounds on the evidence, sparsity, activity, cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution

from inference.metrics.activity import ACTIVE_KL
from inference.metrics.evidence import iwae_bound
from inference.metrics.importance import log_importance_weights, weight_diagnostics
from inference.metrics.sparsity import fraction_of_zeros, lifetime_sparsity, population_sparsity
from inference.posterior import Posterior
from zoo.density import log_terms, observation

__all__ = ["COLUMNS", "Scores", "score"]

COLUMNS: dict[str, str] = {
    "nelbo": "distortion + kl, the literature's negative ELBO (no constants); lower is better",
    "nelbo_se": "standard error of nelbo over images",
    "mse": "sum of squared errors over the pixels of an image, expected over exact (unrelaxed) draws; lower is better",
    "mse_mean": "the same for the decoded posterior mean of the code; lower is better",
    "distortion": "expected −log p(x | z) less its constant, nats: mse / (2σ²) under Gaussian noise, so mse at the default σ = √½",
    "kl": "KL divergence of the posterior from the prior, nats per image",
    "elbo": "evidence lower bound under the model's own likelihood, nats per image; higher is better",
    "log_px_bound": "importance-weighted bound on log p(x), nats per image; higher is better",
    "log_px_bound_se": "standard error of log_px_bound over images",
    "pareto_k": "shape of the tail of the importance weights behind log_px_bound, median over images; above .7 they cannot be relied on",
    "r2": "1 − squared error / variance around the image's own mean, mean over images; higher is better",
    "decodability": "R² of a linear readout of the true causes (where known) on held-out images, mean over causes; higher is better",
    "lifetime_sparsity": "Treves–Rolls sparsity of a unit over images, mean over units, 0 to 1",
    "population_sparsity": "Treves–Rolls sparsity of an image over units, mean over images, 0 to 1",
    "zeros": "fraction of exact zeros in the code",
    "active": f"fraction of latents with a mean KL above {ACTIVE_KL:g} nats (the figure shows all thresholds)",
    "rhat": "rank-normalized split R-hat of an image's worst latent (plain where not all draws were kept), its 90 % quantile over images",
    "ess": "effective draws of an image's worst latent, all chains together, median over images",
    "gradient_evaluations": "gradients of the density or the ELBO, per image",
    "ms_per_image": "wall-clock milliseconds of inference per image, in a batch",
    "kb_per_image": "memory of inference per image, kilobytes",
}


@dataclass(frozen=True)
class Scores:
    """Numbers of one posterior.

    Attributes:
        values: One number for each of :data:`COLUMNS` (NaN where a method has no such number).
        per_image: The per-image numbers ``(N,)`` behind them: ``mse``, ``distortion``, ``kl``, ``nelbo``, ``elbo``, ``r2``,
            ``log_px_bound``.
        unit_kl: KL divergence of each latent, mean over images, ``(K,)``, or None.
    """

    values: dict[str, float]
    per_image: dict[str, Tensor]
    unit_kl: Tensor | None


@torch.no_grad()
def score(model: Callable, x: Tensor, posterior: Posterior, *, k: int = 100, seed: int = 0) -> Scores:
    """Scores the posterior of images ``x`` under the model.

    Arguments:
        k: Draws of the importance-weighted bound.
        seed: Seed of those draws.

    A posterior whose draws carry their density (``log_q``: flows, correlated Normals, Laplace's approximation; several latent sites, and
    programs from outside the zoo) is scored from these draws: ``kl`` is the mean of log q − log p(z) over them, and the
    importance-weighted bound is of the first ``k`` of them (of all, if they are fewer).

    Every number honours the family's activation: what is decoded and what sparsity is measured on is the code.
    """
    squares, log_likelihood, peak, code_mean = _reconstruct(model, x, posterior)
    n = len(x)
    nan = torch.full((n,), torch.nan, device=x.device)
    kl, unit_kl, bound, shape = nan, None, nan.clone(), nan
    if posterior.log_q is None and posterior.params is not None and hasattr(model, "observation"):
        kl, unit_kl = _kl(model, posterior)
        if k < 2:
            bound = iwae_bound(model, x, posterior.params, k, seed=seed)
        else:
            log_weights = log_importance_weights(model, x, posterior, k, seed=seed)
            bound, shape = log_weights.logsumexp(0) - math.log(k), weight_diagnostics(log_weights)["pareto_k"]
    elif posterior.log_q is not None and posterior.log_weights is None:
        log_ratio, log_weights = _of_draws(model, x, posterior)
        kl, log_weights = log_ratio.mean(0), log_weights[:k]
        bound = log_weights.logsumexp(0) - math.log(len(log_weights))
        shape = weight_diagnostics(log_weights)["pareto_k"] if len(log_weights) > 1 else shape
    flat = x.flatten(1)
    spread = (flat - flat.mean(1, keepdim=True)).square().sum(1)
    distortion = peak - log_likelihood
    per_image = {"mse": squares, "distortion": distortion, "kl": kl, "nelbo": distortion + kl, "elbo": log_likelihood - kl,
                 "r2": 1.0 - squares / (spread + torch.finfo(x.dtype).eps), "log_px_bound": bound}
    code = _code(model, posterior)
    values = {name: value.mean().item() for name, value in per_image.items()}
    values |= {f"{name}_se": (per_image[name].std() / math.sqrt(n)).item() if n > 1 else math.nan for name in ("nelbo", "log_px_bound")}
    values["pareto_k"] = shape.median().item()
    values["mse_mean"] = (flat - code_mean.flatten(1)).square().sum(1).mean().item()
    values["lifetime_sparsity"] = lifetime_sparsity(code).mean().item() if n > 1 else math.nan
    values["population_sparsity"] = population_sparsity(code).mean().item() if code.shape[1] > 1 else math.nan
    values["zeros"] = fraction_of_zeros(code).item()
    values["active"] = math.nan if unit_kl is None else (unit_kl > ACTIVE_KL).to(x.dtype).mean().item()
    values["decodability"] = math.nan  # needs other images: see inference.metrics.decodability
    values["rhat"] = values["ess"] = math.nan  # of chains
    values["gradient_evaluations"] = posterior.cost.get("gradient_evaluations", math.nan)
    values["ms_per_image"] = 1e3 * posterior.cost.get("seconds", math.nan) / n
    values["kb_per_image"] = posterior.cost.get("bytes_per_image", math.nan) / 1e3
    return Scores({name: values[name] for name in COLUMNS}, per_image, unit_kl)


def _reconstruct(model: Callable, x: Tensor, posterior: Posterior) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Expected squared error ``(N,)``, expected log p(x | z) ``(N,)``, the greatest it could be ``(N,)``, and the decoded mean code.

    In closed form for linear decoders, otherwise means over the draws.
    """
    mean = _decoded_mean(model, x, posterior)
    if posterior.params is not None and getattr(model, "linear", False):
        spread = model.family.decoded_variance(posterior.params["z"], model.decoder.weight)
        squares = (x - mean).flatten(1).square().sum(1) + spread
        return squares, model.expected_log_prob(x, posterior.params), _peak(model.observation(mean)), mean
    chains, draws = next(iter(posterior.samples.values())).shape[:2]
    squares = log_likelihood = torch.zeros(len(x), device=x.device)
    for chain in range(chains):
        for draw in range(draws):
            law = observation(model, {name: value[chain, draw] for name, value in posterior.samples.items()}, x)
            squares = squares + (x - law.mean).flatten(1).square().sum(1)
            log_likelihood = log_likelihood + law.log_prob(x)
    return squares / (chains * draws), log_likelihood / (chains * draws), _peak(law), mean


def _peak(law: Distribution) -> Tensor:
    """The greatest log p(x | z) that a law of this kind can give an image, ``(N,)``: the constant that a distortion leaves out."""
    if isinstance(getattr(law, "base_dist", law), Bernoulli):
        return torch.zeros(law.batch_shape, device=law.mean.device)
    return law.log_prob(law.mean)


def _decoded_mean(model: Callable, x: Tensor, posterior: Posterior) -> Tensor:
    if posterior.params is not None and hasattr(model, "family"):
        return model.mean(model.family.moments(posterior.params["z"])[0])
    if hasattr(model, "family"):
        return model.mean(model.family.code(posterior.samples["z"]).mean((0, 1)))
    return observation(model, posterior.mean, x).mean


def _kl(model: Callable, posterior: Posterior) -> tuple[Tensor, Tensor | None]:
    """KL of every image ``(N,)`` and of every latent ``(K,)``; by Monte Carlo over the draws where there is no closed form."""
    per_image, units = [], []

    def walk(name: str, family: object, prior: Tensor, above: Tensor | None = None) -> Tensor:
        q = posterior.params[name]
        unit_kl = family.unit_kl(q, prior)
        if unit_kl is None:
            z = posterior.samples[name]
            log_ratio = family.distribution(q).log_prob(z) - family.distribution(prior).log_prob(z)
            per_image.append(log_ratio.mean((0, 1)))
        else:
            per_image.append(unit_kl.sum(-1))
            units.append(unit_kl.mean(0))
        return posterior.samples[name][0, 0]

    model.descend(walk)
    return sum(per_image), torch.cat(units) if len(units) == len(per_image) else None


def _of_draws(model: Callable, x: Tensor, posterior: Posterior) -> tuple[Tensor, Tensor]:
    """Of each draw, log q(z) − log p(z) and log p(x, z) − log q(z), each ``(draws, N)``, all chains in one row."""
    chains, draws = posterior.log_q.shape[:2]
    ratios, weights = [], []
    for chain in range(chains):
        for draw in range(draws):
            z = {name: value[chain, draw] for name, value in posterior.samples.items()}
            prior, likelihood = log_terms(model, z, x)
            ratios.append(posterior.log_q[chain, draw] - prior)
            weights.append(likelihood - ratios[-1])
    return torch.stack(ratios), torch.stack(weights)


def _code(model: Callable, posterior: Posterior) -> Tensor:
    """What the decoder sees, of one draw per image: ``(N, K)``."""
    first = {name: value[0, 0] for name, value in posterior.samples.items()}
    if hasattr(model, "family"):
        return model.family.code(first["z"]).flatten(1)
    return torch.cat([value.reshape(len(value), -1) for value in first.values()], dim=1)
