"""One posterior, all its numbers: reconstruction, KL, bounds on the evidence, sparsity, activity, cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Bernoulli, Distribution

from inference.methods.amortized import Means
from inference.metrics.activity import ACTIVE_KL
from inference.metrics.evidence import iwae_bound
from inference.metrics.group_kl import group_kl
from inference.metrics.importance import log_importance_weights, weight_diagnostics
from inference.metrics.sparsity import fraction_of_zeros, lifetime_sparsity, population_sparsity
from inference.posterior import Posterior
from zoo.density import log_terms, observation

__all__ = ["COLUMNS", "Scores", "score"]

AT_ONCE = 1024  # draws of images that are decoded together

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
        unit_kl: KL divergence of each latent, mean over images, ``(K,)``, of several sites one after the other, or None.
    """

    values: dict[str, float]
    per_image: dict[str, Tensor]
    unit_kl: Tensor | None


@torch.no_grad()
def score(model: Callable, x: Tensor, posterior: Posterior, *, k: int = 100, seed: int = 0, guide: Callable | None = None) -> Scores:
    """Scores the posterior of images ``x`` under the model.

    Arguments:
        k: Draws of the importance-weighted bound.
        seed: Seed of those draws.
        guide: The guide that the posterior was drawn from (of lesioned draws a :class:`~guides.lesioned.Lesioned` one). Where latents
            are below others, ``unit_kl`` and ``active`` are known from it alone (:func:`~inference.metrics.group_kl.group_kl`).

    A posterior whose draws carry their density (``log_q``: flows, correlated Normals, Laplace's approximation; several latent sites, and
    programs from outside the zoo) is scored from these draws: ``kl`` is the mean of log q − log p(z) over them, and the
    importance-weighted bound is of the first ``k`` of them (of all, if they are fewer).

    Points have errors, but no KL divergence and no bounds: deterministic codes, silent groups, and posterior means in the place of draws
    (:class:`~inference.methods.amortized.Means`). The errors of these are those of the image that the means decode to, and no sparsity
    is told of them, as a mean of counts is no count.

    Every number honours the family's activation: what is decoded and what sparsity is measured on is the code.
    """
    squares, log_likelihood, peak, code_mean = _reconstruct(model, x, posterior)
    n = len(x)
    nan = torch.full((n,), torch.nan, device=x.device)
    kl, unit_kl, bound, shape = nan, None, nan.clone(), nan
    if posterior.log_q is None and _has_bounds(model, posterior):
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
    if guide is not None and unit_kl is None and hasattr(guide, "conditionals") and hasattr(model, "observation"):
        unit_kl = torch.cat(list(group_kl(model, x, guide, seed=seed).values()))
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
    drawn = not isinstance(posterior, Means)
    values["lifetime_sparsity"] = lifetime_sparsity(code).mean().item() if n > 1 and drawn else math.nan
    values["population_sparsity"] = population_sparsity(code).mean().item() if code.shape[1] > 1 and drawn else math.nan
    values["zeros"] = fraction_of_zeros(code).item() if drawn else math.nan
    known = None if unit_kl is None else unit_kl[~unit_kl.isnan()]  # points have no KL
    values["active"] = math.nan if known is None else (known > ACTIVE_KL).to(x.dtype).mean().item()
    values["decodability"] = math.nan  # needs other images: see inference.metrics.decodability
    values["rhat"] = values["ess"] = math.nan  # of chains
    values["gradient_evaluations"] = posterior.cost.get("gradient_evaluations", math.nan)
    values["ms_per_image"] = 1e3 * posterior.cost.get("seconds", math.nan) / n
    values["kb_per_image"] = posterior.cost.get("bytes_per_image", math.nan) / 1e3
    return Scores({name: values[name] for name in COLUMNS}, per_image, unit_kl)


def _has_bounds(model: Callable, posterior: Posterior) -> bool:
    """Whether the posterior's parameters tell its density: those of one site of a model of the zoo, under a law that has one."""
    if isinstance(posterior, Means) or posterior.params is None or not hasattr(model, "observation"):
        return False
    if len(posterior.samples) > 1 or set(posterior.params) != set(posterior.samples):
        return False
    (name, params), = posterior.params.items()
    law = model.latents[name][0].distribution(params)
    return not isinstance(getattr(law, "base_dist", law), Delta)


def _reconstruct(model: Callable, x: Tensor, posterior: Posterior) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Expected squared error ``(N,)``, expected log p(x | z) ``(N,)``, the greatest it could be ``(N,)``, and the decoded mean code.

    In closed form for linear decoders, otherwise means over the draws.
    """
    mean = _decoded_mean(model, x, posterior)
    if posterior.params is not None and getattr(model, "linear", False) and not isinstance(posterior, Means):
        spread = model.family.decoded_variance(posterior.params["z"], model.decoder.weight)
        squares = (x - mean).flatten(1).square().sum(1) + spread
        return squares, model.expected_log_prob(x, posterior.params), _peak(model.observation(mean)), mean
    squares, log_likelihood = [], []
    for z in _draws(model, posterior):
        law = observation(model, z, x)
        squares.append((x - law.mean).square().flatten(1 - x.dim()).sum(-1).reshape(-1, len(x)))
        log_likelihood.append(law.log_prob(x).reshape(-1, len(x)))
    return torch.cat(squares).mean(0), torch.cat(log_likelihood).mean(0), _peak(law).reshape(-1, len(x))[-1], mean


def _draws(model: Callable, posterior: Posterior) -> Iterator[dict[str, Tensor]]:
    """The draws of all chains: several at once ``{site: (draws, N, *event)}`` for models of the zoo, else one by one ``(N, *event)``."""
    flat = {name: value.flatten(0, 1) for name, value in posterior.samples.items()}
    several = max(1, AT_ONCE // len(posterior)) if hasattr(model, "observation") else 0
    for start in range(0, len(next(iter(flat.values()))), several or 1):
        yield {name: value[start: start + several] if several else value[start] for name, value in flat.items()}


def _peak(law: Distribution) -> Tensor:
    """The greatest log p(x | z) that a law of this kind can give an image, ``(N,)``: the constant that a distortion leaves out."""
    if isinstance(getattr(law, "base_dist", law), Bernoulli):
        return torch.zeros(law.batch_shape, device=law.mean.device)
    return law.log_prob(law.mean)


def _decoded_mean(model: Callable, x: Tensor, posterior: Posterior) -> Tensor:
    """The image that the posterior mean of the code decodes to."""
    if posterior.params is not None and hasattr(model, "family"):
        return model.mean(model.family.moments(posterior.params["z"])[0])
    if hasattr(model, "family"):
        return model.mean(model.family.code(posterior.samples["z"]).mean((0, 1)))
    return observation(model, posterior.mean | _coded(model, posterior), x).mean


def _coded(model: Callable, posterior: Posterior) -> dict[str, Tensor]:
    """Of latents behind an activation, the values whose code is the posterior mean of their code."""
    values = {}
    for name, (family, _) in model.latents.items() if hasattr(model, "observation") else ():
        activation = getattr(family, "activation", "identity")
        if activation != "identity":
            code = posterior.average(family.code(posterior.samples[name]))
            values[name] = code.log() if activation == "exp" else code
    return values


def _kl(model: Callable, posterior: Posterior) -> tuple[Tensor, Tensor | None]:
    """KL of every image ``(N,)`` and of every unit of the one latent ``(K,)``; over the draws where there is no closed form."""
    found = []

    def walk(name: str, family: object, prior: Tensor, above: Tensor | None = None) -> Tensor:
        q, z = posterior.params[name], posterior.samples[name]
        unit_kl = family.unit_kl(q, prior)
        if unit_kl is None:
            found.append(((family.distribution(q).log_prob(z) - family.distribution(prior).log_prob(z)).mean((0, 1)), None))
        else:
            found.append((unit_kl.sum(-1), unit_kl.mean(0)))
        return z[0, 0]

    model.descend(walk)
    return found[0]


def _of_draws(model: Callable, x: Tensor, posterior: Posterior) -> tuple[Tensor, Tensor]:
    """Of each draw, log q(z) − log p(z) and log p(x, z) − log q(z), each ``(draws, N)``, all chains in one row."""
    priors, likelihoods = zip(*(log_terms(model, z, x) for z in _draws(model, posterior)), strict=True)
    prior, likelihood = (torch.cat([part.reshape(-1, len(x)) for part in parts]) for parts in (priors, likelihoods))
    ratio = posterior.log_q.flatten(0, 1) - prior
    return ratio, likelihood - ratio


def _code(model: Callable, posterior: Posterior) -> Tensor:
    """What the decoder sees, of one draw per image, all sites side by side: ``(N, K)``."""
    parts = []
    for name, value in posterior.samples.items():
        z = value[0, 0]
        parts.append((model.latents[name][0].code(z) if hasattr(model, "observation") else z).reshape(len(z), -1))
    return torch.cat(parts, dim=1)
