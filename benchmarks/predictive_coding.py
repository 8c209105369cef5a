"""What a step of inference by gradient dynamics costs: the recorded density of a Pyro program against loops written by hand in PyTorch.

    python benchmarks/predictive_coding.py [--networks small mnist] [--batches 64 256] [--steps 50] [--pairs 9] [--device cpu]

Networks are chains with tanh between Normal levels, in float32. By hand: the energy differentiated by autograd at leaves, and the equations
of predictive coding with derived gradients. All take the same steps to the same values, which is checked. They run in turn, A B C A B C …,
in blocks of steps; ratios are medians over the blocks. Target: at most 1.2 times the loop with autograd.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from device import check_device
from record import record
from timing import seconds
from torch import Tensor

import zoo
from inference.gradient_dynamics import ascend
from inference.mcmc.target import Target
from zoo.frozen import frozen
from zoo.models.predictive_coding import PredictiveCoding

NETWORKS: dict[str, tuple[int, tuple[int, ...]]] = {"small": (64, (32, 16)), "mnist": (784, (256, 256, 10))}
LR = 0.02
SCALE = 1.0


def recorded(target: Target, start: Tensor, steps: int) -> Tensor:
    """The library's dynamics; returns where they end, the top level first."""
    for moment in ascend(target, start, steps=steps, lr=LR, optimizer="gradient"):
        last = moment
    return last.u


def by_autograd(weights: list[Tensor], biases: list[Tensor], x: Tensor, start: list[Tensor], steps: int) -> list[Tensor]:
    """Leaves ``z1, z2, …`` that follow the gradient of their energy."""
    z = [value.clone().requires_grad_() for value in start]
    for _ in range(steps):
        energy, below = 0.5 * z[-1].square().sum(), x
        for value, weight, bias in zip(z, weights, biases, strict=True):
            energy = energy + 0.5 * (below - torch.nn.functional.linear(value.tanh(), weight, bias)).square().sum()
            below = value
        slopes = torch.autograd.grad(energy, z)
        with torch.no_grad():
            for value, slope in zip(z, slopes, strict=True):
                value.sub_(slope, alpha=LR)
    return [value.detach() for value in z]


@torch.no_grad()
def by_equations(weights: list[Tensor], biases: list[Tensor], x: Tensor, start: list[Tensor], steps: int) -> list[Tensor]:
    """The same by prediction errors."""
    z = [value.clone() for value in start]
    for _ in range(steps):
        active = [value.tanh() for value in z]
        values = [x, *z]
        errors = [value - torch.nn.functional.linear(above, weight, bias)
                  for value, above, weight, bias in zip(values, active, weights, biases, strict=False)] + [z[-1]]
        for level, (value, above, weight) in enumerate(zip(z, active, weights, strict=True)):
            value.add_((errors[level] @ weight) * (1.0 - above.square()) - errors[level + 1], alpha=LR)
    return z


def build(pixels: int, levels: tuple[int, ...], device: torch.device) -> PredictiveCoding:
    """A network with unit noises."""
    return zoo.build("predictive_coding", (pixels,), levels=levels, activation="tanh", scale=SCALE).to(device)


def measure(pixels: int, levels: tuple[int, ...], batch: int, steps: int, pairs: int, device: torch.device) -> dict[str, Any]:
    """Milliseconds of a step in each of the three, and ratios of the first to the others."""
    model = build(pixels, levels, device)
    x = torch.randn(batch, pixels, generator=torch.Generator().manual_seed(0)).to(device)
    weights, biases = ([getattr(part, what).detach() for part in model.maps] for what in ("weight", "bias"))
    start = [torch.zeros(batch, units, device=device) for units in levels]
    with frozen(model):
        target = Target(model, x)
        u = torch.cat(start[::-1], -1)
        runs: dict[str, Callable[[], Any]] = {
            "recorded": lambda: recorded(target, u, steps),
            "by_autograd": lambda: by_autograd(weights, biases, x, start, steps),
            "by_equations": lambda: by_equations(weights, biases, x, start, steps)}
        ends = {name: run() for name, run in runs.items()}  # and the density is recorded
        for other in ("by_autograd", "by_equations"):
            torch.testing.assert_close(ends["recorded"], torch.cat(ends[other][::-1], -1), rtol=1e-3, atol=1e-4)
        blocks = [{name: seconds(run, device) / steps for name, run in runs.items()} for _ in range(pairs)]
    row: dict[str, Any] = {f"{name}_ms_per_step": 1e3 * statistics.median(block[name] for block in blocks) for name in runs}
    for other in ("by_autograd", "by_equations"):
        ratios = sorted(block["recorded"] / block[other] for block in blocks)
        row[f"ratio_to_{other}"] = statistics.median(ratios)
        row[f"ratio_to_{other}_quartiles"] = [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=50, help="steps in a block (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="of PyTorch")
    options = parser.parse_args()
    check_device(parser, options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = {}
    for name in options.networks:
        for batch in options.batches:
            rows[f"{name}_{batch}"] = measure(*NETWORKS[name], batch, options.steps, options.pairs, torch.device(options.device))
            print(name, batch, rows[f"{name}_{batch}"], flush=True)
    record(f"predictive_coding_{options.device}", rows,
           notes=f"keys are network_batch; networks (pixels, (units of z1, …)): {NETWORKS}; {options.pairs} blocks of {options.steps} "
                 "steps; the library's step also gives every image's log density and counts evaluations; target: ratio_to_by_autograd "
                 "at most 1.2")


if __name__ == "__main__":
    main()
