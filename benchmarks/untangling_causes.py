"""Why small hierarchies do not untangle: what their decoder can do with the true causes, against what it does with a code of its own.

    python benchmarks/untangling_causes.py [--models cnvae_s vae_s] [--steps 12000] [--batch 128] [--lr 6e-3] [--threads 1]

A perfectly untangled code is a linear map of the 11 Cartesian causes. Here the decoder of each model of ``untangling.py`` is trained on
such a code, the map learned with it, by log p(x | code) alone, on the frames, with the steps and the learning rate of that benchmark. Where
log p(x | true causes) ends below the log-likelihood that the model reaches with its own code, its bound prefers a tangled code, whatever
the KL divergences. Held-out frames; endpoint error: sum over pixels of the length of the error vector, rad/s.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from record import record
from torch import Tensor, nn

import zoo
from inference.schedules import cosine
from zoo.data.rofl import Stream


class FromCauses(nn.Module):
    """A model's decoder behind a learned linear map of causes ``(N, 11)``."""

    def __init__(self, model: nn.Module, causes: int) -> None:
        super().__init__()
        self.model, self.sizes = model, {name: units for name, (_, units) in model.latents.items()}
        self.map = nn.Linear(causes, sum(self.sizes.values()))

    def forward(self, g: Tensor) -> Tensor:
        parts = self.map(g).split(list(self.sizes.values()), dim=-1)
        return self.model.decode(dict(zip(self.sizes, parts, strict=True)))


def endpoint_error(x: Tensor, made: Tensor) -> Tensor:
    """Of images ``(N, 2, H, W)``, ``(N,)``."""
    return (x - made).norm(dim=1).sum((-2, -1))


def run(name: str, data: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Trains one decoder; its errors on held-out frames on the way and at the end."""
    torch.manual_seed(options.seed)
    model = zoo.build(name, data, seed=options.seed, scale=options.scale)
    network, stream = FromCauses(model, len(data.targets)), Stream("fixate-1", seed=options.seed)
    reference = torch.stack([data.validation.factors[target] for target in data.targets], 1)
    mean, sd = reference.mean(0), reference.std(0)

    def standardized(part: Any) -> Tensor:
        return (torch.stack([part.factors[target] for target in data.targets], 1) - mean) / sd

    def held_out() -> dict[str, float]:
        network.eval()
        with torch.no_grad():
            made = network(standardized(data.test[:5000]))
            error, log_likelihood = endpoint_error(data.test.x[:5000], made), model.observation(made).log_prob(data.test.x[:5000])
        network.train()
        return {"endpoint_error": error.mean().item(), "log_likelihood": log_likelihood.mean().item()}

    optimizer = torch.optim.Adamax(network.parameters(), lr=options.lr)
    curve = []
    for step in range(options.steps):
        optimizer.param_groups[0]["lr"] = cosine(step / options.steps, options.lr, 1e-5, 0.0125)
        frames = stream.frames(step * options.batch, (step + 1) * options.batch)
        loss = -model.observation(network(standardized(frames))).log_prob(frames.x).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 2000.0)
        optimizer.step()
        if (step + 1) % max(options.steps // 8, 1) == 0:
            curve.append({"step": step + 1} | held_out())
            print(name, curve[-1], flush=True)
    return {"model": name, "steps": options.steps, "frames": options.steps * options.batch} | held_out() | {"curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["cnvae_s", "vae_s"], help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=6e-3)
    parser.add_argument("--scale", type=float, default=0.15, help="b of the endpoint error, rad/s (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of PyTorch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    data = zoo.data.load("rofl/fixate-1", n_train=1)
    rows = [run(name, data, options) for name in options.models]
    shown = data.test.x[:5000].norm(dim=1).sum((-2, -1)).mean().item()
    record(f"untangling_causes_{options.steps}", {"rows": rows, "endpoint_error_of_no_flow": shown}, seed=options.seed, notes=(
        "5,000 held-out frames; decoders of true causes: no KL divergence is paid; endpoint errors in rad/s, summed over 289 pixels"))


if __name__ == "__main__":
    main()
