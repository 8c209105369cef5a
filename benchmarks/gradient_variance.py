r"""How noisy the encoder's gradient is: ELBO, IWAE by plain reparameterization, and IWAE by doubly reparameterized gradients (DReG).

    python benchmarks/gradient_variance.py [--families gaussian laplace] [--particles 1 4 16 64] [--images 50] [--repeats 200]

A linear model of natural image patches and its linear encoder are trained on the exact ELBO and stand still; then the gradient of the
mean bound of the same held-out patches in the encoder's weights is taken again and again with fresh draws. ``variance`` is the trace of
its covariance; ``snr`` the length of its mean over the root of that: how many times the signal is above the noise of one step. Of the
mean's squared length, what is noise (variance / repeats) is taken off; 0 if nothing is left, as where training has brought the gradient
to zero. ``early`` is after a tenth of the training, with posteriors far off, ``trained`` after as much again as the whole of it. For plain
IWAE the ratio falls with the number of particles (Rainforth et al. 2018), for DReG it does not (Tucker et al. 2019).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from record import record
from torch import Tensor, nn

import guides
import inference
import zoo
from guides.bounds import dreg, elbo, iwae
from zoo.frozen import frozen

OBJECTIVES = {"elbo": elbo, "iwae": iwae, "dreg": dreg}


def spread(objective: Callable, model: nn.Module, guide: nn.Module, x: Tensor, particles: int, repeats: int) -> dict[str, float]:
    """Variance (nats² per unit of the weights squared) and signal-to-noise ratio of the gradient of the mean bound."""
    parameters = list(guide.parameters())
    total = square = 0.0
    with frozen(model):
        for _ in range(repeats):
            surrogate = objective(model, guide, x, particles=particles).surrogate.mean()
            gradient = torch.cat([part.flatten() for part in torch.autograd.grad(surrogate, parameters)]).double()
            total, square = total + gradient, square + gradient.square()
    mean = total / repeats
    variance = ((square - repeats * mean.square()).sum() / (repeats - 1)).item()
    signal = max(mean.square().sum().item() - variance / repeats, 0.0)
    return {"variance": variance, "snr": (signal / variance) ** 0.5}


def measured(family: str, options: argparse.Namespace) -> dict:
    """All objectives for all numbers of particles, early in training and at its end."""
    data = zoo.data.load("patches")
    model = zoo.build(family, data, latents=options.latents, seed=options.seed)
    guide = guides.build("amortized", model, seed=options.seed)
    x, results = data.test.x[: options.images], {}
    for when, steps in (("early", options.steps // 10), ("trained", options.steps)):
        inference.fit(model, guide, data, objective="exact", steps=steps, batch_size=250, lr=1e-2, seed=options.seed, progress=False)
        torch.manual_seed(options.seed)
        cells = {name: {str(k): spread(objective, model, guide, x, k, options.repeats) for k in options.particles}
                 for name, objective in OBJECTIVES.items()}
        ratio = {k: cells["dreg"][k]["variance"] / cells["iwae"][k]["variance"] for k in cells["dreg"]}
        results[when] = cells | {"dreg_over_iwae_variance": ratio}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=["gaussian", "laplace"], help="reparameterized ones (default: %(default)s)")
    parser.add_argument("--particles", nargs="+", type=int, default=[1, 4, 16, 64], help="default: %(default)s")
    parser.add_argument("--latents", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--images", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=200, help="gradients for each number (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="of training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if min(*options.particles, options.latents, options.images) < 1 or options.repeats < 2 or options.steps < 10:
        parser.error("particles, latents and images must be at least 1, --repeats at least 2, --steps at least 10")
    with torch.random.fork_rng():
        results = {family: measured(family, options) for family in options.families}
    record("gradient_variance", results, seed=options.seed,
           notes=f"gradient of the mean bound of {options.images} patches in the weights of a linear encoder, K = {options.latents}, "
                 f"{options.repeats} repeats; snr: length of the mean gradient over the root of the trace of its covariance")


if __name__ == "__main__":
    main()
