"""The posteriors that the samplers' benchmarks move in: one layer of latents, trained for a moment on natural image patches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

import guides
import inference
import zoo
from inference.mcmc.diagnostics import ess

__all__ = ["Case", "case", "worst_ess"]

IMAGES_AT_ONCE = 16  # of which effective sample sizes are computed: they take many copies of the draws


@dataclass(frozen=True)
class Case:
    """A frozen model with images of the test set, and the closed form of their posteriors where there is one.

    Attributes:
        name: What the results call it.
        model: The Pyro program.
        x: Images ``(N, 1, 16, 16)``.
        exact: Posterior means and standard deviations, each ``(N, K)``, or None.
    """

    name: str
    model: nn.Module
    x: Tensor
    exact: tuple[Tensor, Tensor] | None


@lru_cache(maxsize=1)
def _patches() -> object:
    return zoo.data.load("patches")


def case(name: str, images: int, *, training: int, scale: float, seed: int, device: torch.device) -> Case:
    """Trains a model and takes images for it.

    Arguments:
        name: Family, number of latents and decoder, as in ``"laplace-64"`` or ``"laplace-64-mlp"``.
        images: N, at most 4,000.
        training: Steps of training, so that the dictionary is one of edges and its columns overlap.
        scale: Standard deviation of the pixels' noise; pixels have a variance of 1.

    Raises:
        ValueError: for a name of another form, or more images than there are.
    """
    family, latents, decoder = _parse(name)
    data = _patches()
    if not 1 <= images <= len(data.test.x):
        raise ValueError(f"images must be between 1 and {len(data.test.x):,}, not {images:,}")
    model = zoo.build(family, data, latents=latents, decoder=decoder, scale=scale, seed=seed)
    if training:
        guide = guides.build("amortized", model, encoder="lin", seed=seed)
        inference.fit(model, guide, data, objective="exact" if decoder == "lin" else "elbo", steps=training, batch_size=250, lr=1e-2,
                      seed=seed, log_every=training, progress=False)
    model = model.to(device).eval().requires_grad_(False)
    x = data.test.x[:images].to(device)
    return Case(name, model, x, _normal_posterior(model, x) if family == "gaussian" and decoder == "lin" else None)


def _parse(name: str) -> tuple[str, int, str]:
    family, _, rest = name.partition("-")
    latents, _, decoder = rest.partition("-")
    decoder = decoder or "lin"
    if family not in ("gaussian", "laplace") or not latents.isdigit() or int(latents) < 1 or decoder not in ("lin", "mlp"):
        raise ValueError("a posterior's name is gaussian or laplace, a number of latents and, if it is not linear, mlp, as in laplace-64 "
                         f"or laplace-64-mlp; got {name!r}")
    return family, int(latents), decoder


def _normal_posterior(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every latent, each ``(N, K)``: Normal prior, linear decoder."""
    weight, (loc, log_scale) = model.decoder.weight.double(), model.prior.double()
    noise, prior = model.scale.double() ** -2, (-2.0 * log_scale).exp()
    covariance = torch.linalg.inv(noise * weight.mT @ weight + prior.diag())
    mean = (noise * x.double().flatten(1) @ weight + prior * loc) @ covariance
    return mean, covariance.diagonal().sqrt().expand_as(mean)


def worst_ess(draws: Tensor) -> Tensor:
    """Bulk effective sample size of each image's worst latent, ``(N,)``, of draws ``(C, S, N, K)``; as ArviZ computes it.

    A latent that never moved counts as 1 effective draw.
    """
    parts = [ess(part).nan_to_num(nan=1.0).amin(-1) for part in draws.split(IMAGES_AT_ONCE, dim=2)]
    return torch.cat(parts).float().cpu()
