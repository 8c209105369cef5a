"""Would the bound prefer an untangled code? The ELBO with an oracle for an encoder, which is told the true causes of every frame.

    python benchmarks/untangling_causes.py [--models cnvae_maps_s vae_maps_s] [--steps 1000] [--lr 1e-2] [--threads 1]

The models of ``untangling.py``, on the same frames and with the same schedules, but what is added to the prior's parameters is a linear map
of the 11 Cartesian causes, learned with the model: the strictest of untangled codes, which holds the causes and nothing else. (Codes that
hold them beside other features are not ruled out by anything here; and in a hierarchy this guide does not see what was drawn above, which
costs it some nats.) If its ELBO ends above that of ``untangling.py`` after as many steps, a small model fails to untangle as its training
does not find the better solution; if below, training gives the bound what it asks for, as far as these steps go. ELBOs of one draw on 5,000
held-out frames, nats.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from record import record
from torch import Tensor, nn

import zoo
from guides.base import Fixed
from guides.bounds import elbo
from inference.schedules import cosine, ramp
from zoo.data.rofl import Stream

IMAGES, LOOKS = 5000, 4
SCHEDULE = {"warmup": 0.0125, "beta_warmup": 0.5, "clip": 2000.0}  # of the trainings in untangling_1000.json


class Oracle(nn.Module):
    """From causes ``(N, 11)`` to what is added to the priors' parameters, ``{site: (N, P, K)}``."""

    def __init__(self, model: nn.Module, causes: int) -> None:
        super().__init__()
        self.shapes = {name: (len(family.parameters), units) for name, (family, units) in model.latents.items()}
        self.maps = nn.ModuleDict({name: nn.Linear(causes, count * units) for name, (count, units) in self.shapes.items()})

    def forward(self, g: Tensor) -> dict[str, Tensor]:
        return {name: self.maps[name](g).unflatten(-1, shape) for name, shape in self.shapes.items()}


@torch.no_grad()
def held_out(model: nn.Module, oracle: Oracle, x: Tensor, g: Tensor) -> dict[str, float]:
    """ELBO, its standard error, and the KL divergence."""
    parts = [elbo(model, Fixed(model, oracle(g_)), x_) for x_, g_ in zip(x.split(500), g.split(500), strict=True)]
    value, kl = (torch.cat([getattr(part, name) for part in parts]) for name in ("value", "kl"))
    return {"elbo": value.mean().item(), "elbo_se": (value.std() / len(value) ** 0.5).item(), "kl": kl.mean().item()}


def run(name: str, data: Any, options: argparse.Namespace) -> dict[str, Any]:
    """One training of a model and its oracle."""
    torch.manual_seed(options.seed)
    model = zoo.build(name, data, seed=options.seed, scale=options.scale)
    oracle, stream = Oracle(model, len(data.targets)), Stream("fixate-1", seed=options.seed)

    def stacked(part: Any) -> Tensor:
        return torch.stack([part.factors[target] for target in data.targets], 1)

    reference = stacked(data.validation)
    mean, sd = reference.mean(0), reference.std(0)

    def causes(part: Any) -> Tensor:
        return (stacked(part) - mean) / sd

    test = data.test[:IMAGES]
    parameters = [*model.parameters(), *oracle.parameters()]
    optimizer, curve = torch.optim.Adamax(parameters, lr=options.lr), []
    for step in range(options.steps):
        optimizer.param_groups[0]["lr"] = cosine(step / options.steps, options.lr, 1e-5, SCHEDULE["warmup"])
        frames = stream.frames(step * options.batch, (step + 1) * options.batch)
        guide = Fixed(model, oracle(causes(frames)), temperature=1.0)
        loss = -elbo(model, guide, frames.x, beta=ramp(step / options.steps, 1e-4, 1.0, SCHEDULE["beta_warmup"])).surrogate.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, SCHEDULE["clip"])
        optimizer.step()
        if (step + 1) % max(options.steps // LOOKS, 1) == 0:
            curve.append({"step": step + 1} | held_out(model, oracle, test.x, causes(test)))
            print(name, curve[-1], flush=True)
    return {"model": name, "steps": options.steps, "frames": options.steps * options.batch} | curve[-1] | {"curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["cnvae_maps_s", "vae_maps_s"], help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--scale", type=float, default=0.15, help="b of the endpoint error, rad/s (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of PyTorch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    data = zoo.data.load("rofl/fixate-1", n_train=1)
    rows = [run(name, data, options) for name in options.models]
    record(f"untangling_causes_{options.steps}", {"rows": rows}, seed=options.seed, notes=(
        f"{IMAGES} held-out frames, one draw each, nats; to be compared with the ELBO of untangling_{options.steps}.json, a mean over the "
        "last training frames, none of which was seen before"))


if __name__ == "__main__":
    main()
