"""How far each variational family stays from the exact posterior: KL(q || p(z | x)) in nats per latent, of trained amortized guides.

    python benchmarks/posterior_families.py [--steps 2000] [--latents 16 64] [--seed 0]

Linear-Gaussian models have correlated posteriors that are known exactly; in the plane, a likelihood of z2 + z1² bends the posterior into a
ridge, whose evidence comes from a grid. KL = log p(x) − ELBO, on held-out images that the model drew; models stay as they are.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from record import record
from torch import Tensor

import guides
import inference
from zoo.oracles import LinearGaussian, linear_gaussian

SHAPES = {16: (1, 4, 6), 64: (1, 8, 12)}
SCALE = 0.5
TRAINING, HELD_OUT, DRAWS = 10_000, 200, 200
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "amortized (mean field)": ("amortized", {}),
    "lowrank, rank 8": ("lowrank", {}),
    "full": ("full", {}),
    "full, shared factor": ("full", {"per_image": False}),
    "flow, affine couplings": ("flow", {"transform": "affine", "transforms": 4}),
    "flow, iaf": ("flow", {"transform": "iaf"}),
    "flow, nsf": ("flow", {"transform": "nsf"}),
}


def ridge(x: Tensor | None = None, size: int | None = None) -> Tensor:
    """Two standard Normal latents; x is Normal(z2 + z1² − 1, 0.25)."""
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        mean = (z[..., 1] + z[..., 0].square() - 1.0).unsqueeze(-1)
        return pyro.sample("x", dist.Normal(mean, 0.25).to_event(1), obs=x)


def grid_evidence(x: Tensor, reach: float = 7.0, points: int = 701) -> Tensor:
    """log p(x) of the plane's program, nats, ``(N,)``."""
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).unsqueeze(1)
    return inference.log_joint(ridge, {"z": grid}, x.double()).logsumexp(0) + 2 * math.log(axis[1] - axis[0])


@torch.no_grad()
def divergence(model: Callable, x: Tensor, guide: Callable, evidence: Tensor, latents: int, seed: int) -> dict[str, float]:
    """KL per latent, nats, with its standard error over images: evidence ``(N,)`` less the mean of log p(x, z) − log q(z) over draws.

    With log q of the draws themselves, not the closed-form KL, the estimate has no error where q is exact.
    """
    drawn = inference.infer(model, x, "amortized", guide=guide, draws=DRAWS, seed=seed)
    z = {name: value[0] for name, value in drawn.samples.items()}
    log_q = inference.log_joint(guide, z, x) if drawn.log_q is None else drawn.log_q[0]
    gap = (evidence - (inference.log_joint(model, z, x) - log_q).double().mean(0)) / latents
    return {"kl_per_latent": gap.mean().item(), "kl_per_latent_se": (gap.std() / math.sqrt(len(gap))).item(),
            "kl_per_latent_median": gap.median().item()}


def rows_of(model: Callable, name: str, latents: int, train: Tensor, test: Tensor, evidence: Tensor, steps: int, seed: int) -> list[dict]:
    rows = []
    for family, (kind, options) in FAMILIES.items():
        guide = guides.build(kind, model, train, seed=seed, **options)
        began = time.perf_counter()
        inference.fit(model, guide, train, freeze_model=True, steps=steps, batch_size=200, optimizer="adam", lr=0.01, warmup=0.02,
                      beta_start=1.0, seed=seed, progress=False)
        seconds = time.perf_counter() - began
        rows.append({"model": name, "family": family, **divergence(model, test, guide, evidence, latents, seed),
                     "parameters": sum(p.numel() for p in guide.parameters()), "fit_seconds": round(seconds, 1)})
        print(rows[-1], flush=True)
    began = time.perf_counter()
    modes = {key: value[0, 0] for key, value in inference.infer(model, test, "map", starts=3, seed=seed).samples.items()}
    guide = guides.build("laplace_approximation", model, test, values=modes)
    rows.append({"model": name, "family": "laplace_approximation", **divergence(model, test, guide, evidence, latents, seed),
                 "evidence_error": (guide.log_evidence.double() - evidence).abs().mean().item(),
                 "fit_seconds": round(time.perf_counter() - began, 1)})
    return rows


def linear(latents: int, steps: int, seed: int) -> list[dict]:
    model: LinearGaussian = linear_gaussian(latents, SHAPES.get(latents, (1, 1, math.ceil(1.5 * latents))), scale=SCALE, seed=seed)
    torch.manual_seed(seed)
    train, test = model(size=TRAINING).detach(), model(size=HELD_OUT).detach()
    evidence = model.log_evidence(test).detach()
    best = (evidence - model.mean_field_elbo(test)).mean().item() / latents
    name = f"linear-Gaussian, K = {latents}"
    return [{"model": name, "family": "best with independent latents (closed form)", "kl_per_latent": best},
            *rows_of(model, name, latents, train, test, evidence, steps, seed)]


def plane(steps: int, seed: int) -> list[dict]:
    torch.manual_seed(seed)
    train, test = ridge(size=TRAINING), ridge(size=HELD_OUT)
    return rows_of(ridge, "bent ridge, K = 2", 2, train, test, grid_evidence(test), steps, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="of training each guide (default: %(default)s)")
    parser.add_argument("--latents", type=int, nargs="*", default=[16, 64], help="of the linear models (default: 16 64)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = [row for latents in options.latents for row in linear(latents, options.steps, options.seed)] + plane(options.steps, options.seed)
    record("posterior_families", {"rows": rows, "steps": options.steps}, seed=options.seed,
           notes=f"KL(q || exact posterior) in nats per latent, mean over {HELD_OUT} held-out images, {DRAWS} draws each, standard errors "
                 "over images; linear encoders; evidence_error is the mean absolute error of Laplace's estimate of log p(x), nats")


if __name__ == "__main__":
    main()
