"""What Pyro costs: a training step of ``inference.fit`` against a hand-written PyTorch loop of the same mathematics.

    python benchmarks/fit.py [--device cuda] [--pairs 9]

Both loops do the same: minibatch by index, encoder, (relaxed) sample, decoder, sum of squares, closed-form KL, backward, gradient
clipping, Adamax with a schedule. They run in turn, A B A B …, in blocks of steps; the ratio is the median over the pairs.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from record import record
from torch import Tensor

import guides
import inference
import zoo
from zoo.latents.relaxed.arrival import RelaxedPoisson

BATCH, LATENTS = 1000, 512
SETTINGS = {"batch_size": BATCH, "lr": 1e-4, "temperature": (0.5, 0.5), "beta_start": 1.0, "progress": False}


def gaussian(x: Tensor, encoder: Callable, decoder: Callable, prior: Tensor) -> Tensor:
    loc, log_scale = encoder(x).chunk(2, dim=-1)
    loc = prior[0] + loc
    log_scale = prior[1] + 5.3 * torch.tanh(log_scale / 5.3)
    z = loc + log_scale.exp() * torch.randn_like(loc)
    log_ratio = log_scale - prior[1]
    kl = 0.5 * ((2.0 * log_ratio).exp() + ((loc - prior[0]) * (-prior[1]).exp()).square() - 1.0) - log_ratio
    return (x - decoder(z)).square().flatten(1).sum(1) + kl.sum(1)


def poisson_rates(x: Tensor, encoder: Callable, prior: Tensor) -> tuple[Tensor, Tensor]:
    limit = (5.3 - prior).clamp(0.0, 10.0)
    delta = encoder(x)
    softplus = torch.nn.functional.softplus
    delta = delta - softplus(delta - limit) + softplus(-limit)
    kl = prior.exp() * (1.0 + delta.exp() * (delta - 1.0))
    return (prior + delta).exp(), kl.sum(1)


def poisson(x: Tensor, encoder: Callable, decoder: Callable, prior: Tensor) -> Tensor:
    rate, kl = poisson_rates(x, encoder, prior)
    z = RelaxedPoisson(rate, 0.5, "cubic", validate_args=False).rsample()
    return (x - decoder(z)).square().flatten(1).sum(1) + kl


def poisson_exact(x: Tensor, encoder: Callable, decoder: Callable, prior: Tensor) -> Tensor:
    rate, kl = poisson_rates(x, encoder, prior)
    return (x - decoder(rate)).square().flatten(1).sum(1) + rate @ decoder.weight.square().sum(0) + kl


def hand_written(loss: Callable, model: torch.nn.Module, guide: torch.nn.Module, x: Tensor, steps: int) -> None:
    model.train()
    guide.train()
    parameters = [*guide.parameters(), *model.parameters()]
    ascent = torch.optim.Adamax(parameters, lr=1e-4)
    order = torch.randperm(len(x), device=x.device)
    for step in range(steps):
        batch = step % (len(x) // BATCH)
        images = x[order[batch * BATCH:(batch + 1) * BATCH]]
        ascent.param_groups[0]["lr"] = 1e-4 * 0.5 * (1 + math.cos(math.pi * step / steps))
        value = loss(images, guide.encoder, model.decoder, model.prior).mean()
        ascent.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 500.0)
        ascent.step()


def seconds(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=100, help="steps in a block")
    options = parser.parse_args()
    x = zoo.data.load("patches", n_train=4 * BATCH).train.x.to(options.device)
    cases = {"gaussian lin|lin elbo": ("gaussian", "lin", "elbo", gaussian), "poisson lin|lin elbo": ("poisson", "lin", "elbo", poisson),
             "poisson lin|lin exact": ("poisson", "lin", "exact", poisson_exact),
             "poisson conv|lin elbo": ("poisson", "conv", "elbo", poisson)}
    results = {}
    for name, (family, encoder, objective, loss) in cases.items():
        model = zoo.build(family, x.shape[1:], latents=LATENTS).to(options.device)
        guide = guides.build("amortized", model, encoder=encoder).to(options.device)
        steps, pairs = (options.steps, options.pairs) if encoder == "lin" else (max(options.steps // 25, 1), max(options.pairs // 2, 3))
        ours = lambda s=steps, o=objective, m=model, g=guide: inference.fit(m, g, x, objective=o, steps=s, log_every=s, **SETTINGS)  # noqa: E731
        theirs = lambda s=steps, f=loss, m=model, g=guide: hand_written(f, m, g, x, s)  # noqa: E731
        ours(), theirs()
        times = [(seconds(ours, options.device) / steps, seconds(theirs, options.device) / steps) for _ in range(pairs)]
        ratios = sorted(a / b for a, b in times)
        quarter = len(ratios) // 4
        results[name] = {
            "ratio_median": statistics.median(ratios), "ratio_quartiles": [ratios[quarter], ratios[-1 - quarter]], "pairs": pairs,
            "fit_ms_per_step": 1e3 * statistics.median(a for a, _ in times),
            "hand_written_ms_per_step": 1e3 * statistics.median(b for _, b in times)}
        print(name, results[name], flush=True)
    record(f"fit_{options.device}", results, notes=f"K = {LATENTS}, batch {BATCH}, 16 x 16 patches; target: ratio at most 1.05")


if __name__ == "__main__":
    main()
