"""What the Pyro program costs: a value and gradient of its log density against the same density written by hand.

    python benchmarks/mcmc_gradient.py [--posteriors gaussian-512 laplace-512] [--images 1000] [--chains 4] [--threads 2] [--device cuda]

``program`` is what samplers use: the operations of the Pyro program, recorded once and replayed. ``handlers`` goes through Pyro at
each call, ``compiled`` compiles the record. ``autograd`` is the density by hand and PyTorch's gradient of it; ``closed_form`` has its
gradient by hand, too, and ``products`` are the two matrix products that no implementation goes without. They run in turn; ratios are
medians.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable

import torch
from device import check_device
from mcmc_posteriors import Case, case
from record import record
from timing import seconds
from torch import Tensor

from inference.mcmc.target import Target
from zoo.density import drawn_latents

REHEARSAL = 5  # rounds before what is recorded is replayed
TOLERANCE = {"rtol": 1e-3, "atol": 1e-2}

Density = Callable[[Tensor], tuple[Tensor, Tensor]]


def by_hand(target: Case) -> tuple[Density, Density, Callable[[Tensor], Tensor]]:
    """The three: with autograd, in closed form, and the two matrix products."""
    weight, pixels = target.model.decoder.weight, target.x.flatten(1)
    noise, laplace = target.model.scale.item(), target.model.built_with["name"] == "laplace"
    loc, log_scale = target.model.prior
    precision = (-log_scale).exp()
    constant = -len(weight) * math.log(noise * math.sqrt(2.0 * math.pi)) - log_scale.sum().item() - len(loc) * (
        math.log(2.0) if laplace else 0.5 * math.log(2.0 * math.pi))

    def value_of(error: Tensor, away: Tensor) -> Tensor:
        prior = away.abs().sum(-1) if laplace else 0.5 * away.square().sum(-1)
        return constant - error.square().sum(-1) / (2.0 * noise**2) - prior

    def autograd(u: Tensor) -> tuple[Tensor, Tensor]:
        u = u.detach().requires_grad_(True)
        value = value_of(pixels - u @ weight.mT, (u - loc) * precision)
        gradient, = torch.autograd.grad(value.sum(), u)
        return value.detach(), gradient

    def closed_form(u: Tensor) -> tuple[Tensor, Tensor]:
        error, away = pixels - u @ weight.mT, (u - loc) * precision
        slope = away.sign() if laplace else away
        return value_of(error, away), (error @ weight) / noise**2 - slope * precision

    return autograd, closed_form, lambda u: (u @ weight.mT) @ weight


def measured(target: Case, options: argparse.Namespace) -> dict[str, float]:
    """Times of all, after it is seen that they agree."""
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        u = drawn_latents(target.model, target.x, options.chains)["z"]
    density, one = Target(target.model, target.x), u.new_tensor(1.0)
    program, compiled = density.value_and_grad, Target(target.model, target.x, compiled=True).value_and_grad

    def handlers(u: Tensor) -> tuple[Tensor, Tensor]:
        return density.through_handlers(u, one)

    autograd, closed_form, products = by_hand(target)
    for other in (handlers, autograd, closed_form):
        torch.testing.assert_close(other(u), program(u), **TOLERANCE)
    runs = {"program": program, "handlers": handlers, "compiled": compiled, "autograd": autograd, "closed_form": closed_form,
            "products": products}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(options.rounds + REHEARSAL):
        for name, run in runs.items():
            taken = seconds(lambda run=run: run(u), u.device)
            if i >= REHEARSAL:
                times[name].append(taken)
    ratios = {name: [a / b for a, b in zip(times["program"], times[name], strict=True)] for name in runs if name != "program"}
    return {**{f"{name}_ms": 1e3 * statistics.median(values) for name, values in times.items()},
            **{f"program_over_{name}": statistics.median(values) for name, values in ratios.items()},
            "program_over_autograd_quartiles": statistics.quantiles(ratios["autograd"], n=4)[::2]}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--posteriors", nargs="+", default=["gaussian-512", "laplace-512"],
                        help="of linear decoders, as in mcmc.py (default: %(default)s)")
    parser.add_argument("--images", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--chains", type=int, default=4, help="for each image (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of PyTorch (default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if min(options.images, options.chains, options.threads) < 1 or options.rounds < 2:
        parser.error("images, chains and threads must be at least 1, --rounds at least 2")
    if any(name.endswith("mlp") for name in options.posteriors):
        parser.error("gradients by hand are of linear decoders")
    check_device(parser, options.device)
    return options


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    results = {}
    for name in options.posteriors:
        try:
            target = case(name, options.images, training=0, scale=0.5**0.5, seed=options.seed, device=torch.device(options.device))
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
        results[name] = measured(target, options)
    where = f"cpu_{options.threads}" if options.device == "cpu" else "cuda"
    record(f"mcmc_gradient_{where}", results, seed=options.seed,
           notes=f"{options.chains} chains of {options.images} images, 256 pixels, float32; target: program_over_autograd at most 1.2")


if __name__ == "__main__":
    main()
