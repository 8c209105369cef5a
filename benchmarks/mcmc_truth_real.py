r"""Chains of real-valued latents against posteriors that are known without them, in Monte-Carlo standard errors.

The standard error of a mean over C chains is the standard deviation of the chains' means over √C: nothing is assumed about autocorrelation.
The error, corrected for the skewness of the chains' means (Johnson 1978; squares are skewed), then has about a t distribution with C − 1
degrees of freedom, and is carried over to the normal quantile of the same tail, so that errors of any number of chains can be held against
the normal's.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from ideal_exact import exact_draws
from scipy import stats
from torch import Tensor, nn

import zoo
from inference import Posterior, infer
from inference.mcmc.annealing import ais
from inference.mcmc.diagnostics import ess
from zoo.density import sites
from zoo.oracles import LinearGaussian, linear_gaussian

IMAGES, CHAINS = 1000, 2000  # added to seeds: models are built with small ones, and equal seeds would make latents out of their weights
FUNNEL_NOISE, FUNNEL_LATENTS = 1.0, 9
CHUNK = 20  # images whose draws are held at once

Errors = dict[str, object]
Part = tuple[dict[str, Any], dict[str, bool]]  # numbers, and which targets are met


def drawn(model: Callable, n: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Latents ``{site: (n, …)}`` and the images ``(n, …)`` that a program drew from them; ``seed`` is moved by :data:`IMAGES`."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed + IMAGES)
        trace = pyro.poutine.trace(model).get_trace(size=n)
    return {name: site["value"] for name, site in sites(trace, observed=False).items() if name != "x"}, trace.nodes["x"]["value"]


def errors(values: Tensor, expected: Tensor | float) -> Tensor:
    """Errors of the means of ``(C, S, …)`` against what is expected, ``(…)``, in standard errors, as normal quantiles."""
    chains = len(values)
    means = values.double().mean(1)
    away, sd = means.mean(0) - expected, means.std(0)
    ratio = away / (sd / math.sqrt(chains))
    skewness = (means - means.mean(0)).pow(3).mean(0) / sd.pow(3)
    ratio = (ratio + skewness / (6.0 * math.sqrt(chains)) * (1.0 + 2.0 * ratio.square())).cpu()
    tail = torch.as_tensor(stats.t.sf(ratio.abs().numpy(), chains - 1)).clamp(min=1e-300)
    return ratio.sign() * -torch.special.ndtri(tail).clamp(max=0.0)


def between(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Difference of two estimates (mean, standard error), in standard errors of the difference."""
    return (first[0] - second[0]) / (first[1].square() + second[1].square()).sqrt()


def compared(z: Tensor) -> Errors:
    """What can be said of errors in standard errors ``(N, …)``, beside what normal ones would give.

    ``as_normal``: the greatest is below the 99.9 % quantile of the greatest of as many independent normal errors, and the shares beyond 2
    and 3 are within 4 of their standard errors (over images; with fewer than 10, they are only reported) of the normal's.
    """
    flat = z.double().reshape(len(z), -1).abs()
    count, greatest = flat.numel(), flat.max().item()
    found: Errors = {"comparisons": count, "greatest": greatest, "greatest_of_normal_median": _greatest(count, 0.5),
                     "greatest_of_normal_99.9": _greatest(count, 0.999), "mean_square": flat.square().mean().item()}
    fine = greatest < _greatest(count, 0.999)
    for beyond in (2.0, 3.0, 4.0):
        share, normal = (flat > beyond).double().mean(1), 2.0 * float(stats.norm.sf(beyond))
        se = share.std().item() / math.sqrt(len(share)) if len(share) > 1 else math.nan
        found[f"share_beyond_{beyond:g}"] = {"share": share.mean().item(), "se": se if len(share) > 1 else None, "normal": normal}
        if len(share) >= 10 and beyond < 4.0:
            least = math.sqrt(normal / count)  # of independent comparisons: with no exceedance there is no spread
            fine = fine and abs(share.mean().item() - normal) < 4.0 * max(se, least)
    return found | {"within_4": greatest < 4.0, "as_normal": bool(fine)}


def _greatest(count: int, level: float) -> float:
    """Quantile of the greatest of ``count`` independent absolute normal numbers."""
    return float(stats.norm.isf(-math.expm1(math.log(level) / count) / 2.0))


def moments(values: Tensor, mean: Tensor, variance: Tensor) -> dict[str, Errors]:
    """Errors of posterior means and variances ``(N, …)`` of draws ``(C, S, N, …)``."""
    away = values.double() - mean
    sizes = away.mean(1).std(0) / math.sqrt(len(away)) / variance.sqrt()
    return {"mean": compared(errors(away, 0.0)) | {"se_in_posterior_sd_greatest": sizes.max().item()},
            "variance": compared(errors(away.square(), variance))}


def badly_scaled(size: int = 50, condition: float = 1e4, seed: int = 0) -> tuple[LinearGaussian, Tensor]:
    """A Gaussian posterior whose precision has eigenvalues from 1 to ``condition``, evenly spaced in their logarithms, and a random basis.

    Returns:
        The oracle, under a standard normal prior, and the eigenvectors ``(size, size)`` of the posterior's covariance.
    """
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))[0]
    model = linear_gaussian(size, (1, 1, size), scale=1.0, seed=seed)
    with torch.no_grad():
        model.decoder.weight.copy_((torch.logspace(0.0, math.log10(condition), size, dtype=torch.float64) - 1.0).sqrt()[:, None] * turn.T)
    return model, turn


def bare_funnel(x: Tensor | None = None, size: int | None = None) -> Tensor:
    """Neal's funnel as he wrote it, non-centred: v ~ N(0, 3²), y = exp(v / 2) e with e ~ N(0, I); images say nothing of it."""
    with pyro.plate("data", size if x is None else x.shape[-2]):
        pyro.sample("v", dist.Normal(torch.tensor(0.0), 3.0))
        pyro.sample("e", dist.Normal(torch.zeros(FUNNEL_LATENTS), 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1), obs=x)


def funnel(x: Tensor | None = None, size: int | None = None) -> Tensor:
    """Neal's funnel, non-centred: v ~ N(0, 3²), y ~ N(0, I) and, so that there is something to infer, a noisy view of exp(v / 2) y."""
    with pyro.plate("data", size if x is None else x.shape[-2]):
        v = pyro.sample("v", dist.Normal(torch.tensor(0.0), 3.0))
        y = pyro.sample("y", dist.Normal(torch.zeros(FUNNEL_LATENTS), 1.0).to_event(1))
        return pyro.sample("x", dist.Normal((v / 2.0).exp()[..., None] * y, FUNNEL_NOISE).to_event(1), obs=x)


def funnel_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Exact means and variances of (v, y), ``(N, 10)``, and log evidence ``(N,)`` of :func:`funnel`: v on a grid, y given v Normal."""
    v = torch.linspace(-30.0, 30.0, 12_001, dtype=torch.float64)[:, None, None]
    x = x.double()
    total = v.exp() + FUNNEL_NOISE**2
    log_joint = dist.Normal(0.0, 3.0).log_prob(v[..., 0]) + dist.Normal(0.0, total.sqrt()).log_prob(x).sum(-1)
    weight = log_joint.softmax(0)[..., None]
    mean_y, variance_y = (v / 2.0).exp() * x / total, FUNNEL_NOISE**2 / total
    first = torch.cat([(weight * v).sum(0), (weight * mean_y).sum(0)], -1)
    second = torch.cat([(weight * v.square()).sum(0), (weight * (variance_y + mean_y.square())).sum(0)], -1)
    return first, second - first.square(), log_joint.logsumexp(0) + math.log(60.0 / 12_000)


def bare_funnel_errors(posterior: Posterior) -> dict[str, Errors]:
    """Errors of the means and variances of v and log |y|; for a normal e, log |e| has mean −(γ + log 2) / 2 and variance π² / 8."""
    v, e = (posterior.samples[name].double() for name in ("v", "e"))
    values = torch.cat([v[..., None], v[..., None] / 2.0 + e.abs().log()], -1)
    mean = torch.tensor([0.0] + [-0.5 * (np.euler_gamma + math.log(2.0))] * FUNNEL_LATENTS, dtype=torch.float64)
    variance = torch.tensor([9.0] + [9.0 / 4.0 + math.pi**2 / 8.0] * FUNNEL_LATENTS, dtype=torch.float64)
    return moments(values, mean, variance)


def sparse_code(seed: int = 0) -> nn.Module:
    """Sixteen Laplace latents under a linear decoder with 64 pixels, columns of length about 2.8 in units of the noise."""
    model = zoo.build("laplace", (1, 8, 8), latents=16, decoder="lin")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.decoder.weight.copy_(2.0 * torch.randn(64, 16, generator=generator) / 8.0)
    return model


def linear_gaussian_moments(options: argparse.Namespace) -> Part:
    """512 Gaussian latents, 256 pixels: means and variances of all images against the closed form."""
    model = linear_gaussian(512, (1, 16, 16)).to(options.device)
    _, x = drawn(model, options.images, options.seed)
    mean, covariance = (value.detach() for value in model.posterior(x))
    runs, parts, began = [], {"mean": [], "variance": []}, time.perf_counter()
    for at in range(0, len(x), CHUNK):
        posterior = infer(model, x[at: at + CHUNK], "mcmc", draws=50, warmup=150, chains=64, seed=options.seed + CHAINS + at)
        away = posterior.samples["z"].double() - mean[at: at + CHUNK]
        parts["mean"].append(errors(away, 0.0))
        parts["variance"].append(errors(away.square(), covariance.diagonal()))
        runs.append(told(posterior, 64))
        print(f"{min(at + CHUNK, len(x))} of {len(x)} images, {time.perf_counter() - began:.0f} s", flush=True)
    results = {name: compared(torch.cat(z)) for name, z in parts.items()}
    totals = {f"{name}_total": sum(run[name] for run in runs) for name in ("sampling_seconds", "stuck_chains", "divergences")}
    return {"images": len(x), "gradients_of_a_chain": sum(run["gradients_of_a_chain"] for run in runs) / len(runs)} | totals | results, \
        normal(results) | {"no_chain_stuck": totals["stuck_chains_total"] == 0}


def badly_scaled_gaussian(options: argparse.Namespace) -> Part:
    """Fifty dimensions, condition number 1e4, in the coordinates and along the axes of the posterior."""
    model, turn = badly_scaled()
    _, x = drawn(model, min(options.images, 10), options.seed)
    posterior = infer(model, x, "mcmc", draws=1000, warmup=1000, chains=32, seed=options.seed + CHAINS)
    z, (mean, covariance) = posterior.samples["z"].double(), (value.detach() for value in model.posterior(x))
    axes = moments(z @ turn, mean @ turn, (turn.T @ covariance @ turn).diagonal())
    results = {f"axes_{name}": value for name, value in axes.items()}
    results |= {f"coordinates_{name}": value for name, value in moments(z, mean, covariance.diagonal()).items()}
    return told(posterior, 32) | results, normal(results)


def neals_funnel(options: argparse.Namespace) -> Part:
    """Ten dimensions, non-centred: bare, and seen through noise (against quadrature; three kinds of start); log evidence, no target."""
    _, x = drawn(funnel, min(options.images, 100), options.seed)
    mean, variance, exact = funnel_moments(x)
    bare = infer(bare_funnel, torch.zeros(len(x), 1), "mcmc", draws=500, warmup=500, chains=32, seed=options.seed + CHAINS)
    found = bare_funnel_errors(bare)
    results: dict[str, Any] = {"bare": told(bare, 32) | found}
    passed = normal({f"bare_{name}": part for name, part in found.items()})
    passed |= {"bare_no_chain_stuck": results["bare"]["stuck_chains"] == 0}
    for start in ("prior", "map", "annealed"):
        posterior = infer(funnel, x, "mcmc", draws=500, warmup=500, chains=32, start=start, seed=options.seed + CHAINS)
        found = moments(torch.cat([posterior.samples["v"][..., None], posterior.samples["y"]], -1), mean, variance)
        results[start] = told(posterior, 32) | found
        passed |= normal({f"{start}_{name}": part for name, part in found.items()})
        passed |= {f"{start}_no_chain_stuck": results[start]["stuck_chains"] == 0}
        print(f"funnel, start={start}: {told(posterior, 32)}", flush=True)
    below = ais(funnel, x, chains=64, temperatures=200, seed=options.seed + CHAINS)
    off = (below.log_evidence - exact).abs()
    quantiles = off.quantile(off.new_tensor([0.5, 0.9, 1.0])).tolist()
    results["evidence"] = {"error_quantiles_50_90_100": quantiles, "se_mean": below.se.mean().item()}
    return results, passed


def laplace(options: argparse.Namespace) -> Part:
    """Sixteen Laplace latents, two images, against the No-U-Turn sampler run for long."""
    model = sparse_code()
    _, x = drawn(model, 2, options.seed)
    ours = infer(model, x, "mcmc", draws=500, warmup=300, chains=32, seed=options.seed + CHAINS)
    theirs = infer(model, x, "mcmc", sampler="nuts", draws=options.nuts_draws, warmup=500, chains=4, seed=options.seed + CHAINS + 1)
    z = differences(ours.samples["z"], theirs.samples["z"])
    results = {name: compared(value) for name, value in z.items()}
    return told(ours, 32) | {"nuts": told(theirs, 4)} | results, normal(results)


def optic_flow(options: argparse.Namespace) -> Part:
    """Causes of three frames of fixate-0 against exact draws and against the No-U-Turn sampler."""
    model = zoo.build("optic_flow", category="fixate-0")
    _, x = drawn(model, 3, options.seed)
    exact, log_weights = exact_draws(x, model.world, model.scale.item(), draws=20_000, seed=options.seed)
    ours = infer(model, x, "mcmc", draws=500, warmup=500, chains=16, start="map", seed=options.seed + CHAINS)
    theirs = infer(model, x, "mcmc", sampler="nuts", draws=min(options.nuts_draws, 150), warmup=150, chains=2, start="map",
                   seed=options.seed + CHAINS + 1)
    flat = {name: torch.cat([draws["fixation"], draws["self_velocity"]], -1).double()
            for name, draws in (("ours", ours.samples), ("nuts", theirs.samples), ("exact", exact))}
    weights, middle, results = log_weights.softmax(1)[..., None], flat["ours"].mean((0, 1)), {}
    for order in (1, 2):
        part = {name: (value - middle) ** order for name, value in flat.items()}
        mean = (weights * part["exact"]).sum((0, 1))
        known = mean, (weights * (part["exact"] - mean)).square().sum((0, 1)).sqrt()
        for name in ("ours", "nuts"):
            results[f"{name}_against_exact_moment_{order}"] = compared(between(estimate(part[name]), known))
    results |= {f"ours_against_nuts_{name}": compared(value) for name, value in differences(flat["ours"], flat["nuts"]).items()}
    ours_only = {name: value for name, value in results.items() if name.startswith("ours")}
    return told(ours, 16) | {"nuts": told(theirs, 2)} | results, normal(ours_only)


def told(posterior: Posterior, chains: int) -> dict[str, float]:
    """What a run cost, what its own diagnostics say, and how many chains stay where they were from the first draw to the last."""
    found = {name: getattr(posterior.stats[name], how)().item()
             for name, how in (("rhat", "max"), ("ess", "min"), ("accepted", "mean"), ("divergences", "sum")) if name in posterior.stats}
    moved = torch.stack([(value[:, 1:] != value[:, :1]).flatten(3).any(-1).any(1) if value.dim() > 3 else
                         (value[:, 1:] != value[:, :1]).any(1) for value in posterior.samples.values()]).any(0)
    found |= {"stuck_chains": int((~moved).sum()), "images_with_stuck_chains": int((~moved).any(0).sum()),
              "images_with_rhat_above_1.05": int((posterior.stats["rhat"] > 1.05).sum())}
    return {"images": len(posterior), "sampling_seconds": posterior.cost["seconds"],
            "gradients_of_a_chain": posterior.cost["gradient_evaluations"] / chains} | found


def normal(results: dict[str, Any]) -> dict[str, bool]:
    return {f"{name}_as_normal": part["as_normal"] for name, part in results.items()}


def estimate(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard error: from the spread of many chains, else from effective sample sizes."""
    sd = values.mean(1).std(0) / math.sqrt(len(values)) if len(values) >= 16 else values.flatten(0, 1).std(0) / ess(values).sqrt()
    return values.mean((0, 1)), sd


def differences(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Differences of the first two moments about a common point, in standard errors."""
    middle = first.double().mean((0, 1))
    powers = [[(value.double() - middle) ** order for value in (first, second)] for order in (1, 2)]
    return {f"moment_{order}": between(*map(estimate, pair)) for order, pair in enumerate(powers, 1)}
