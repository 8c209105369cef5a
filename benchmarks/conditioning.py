"""How depth slows inference by gradient dynamics: orthogonal linear networks, in the space of states and in that of prediction errors.

    python benchmarks/conditioning.py [--depths 3 10 30] [--units 8] [--tolerance 2.3e-7]

Depth counts the image's level. All noises have variance 1 and all maps are orthogonal, so that the energy's curvatures are known: in states
the second difference of depth − 1 points, in errors 1 and depth. Every image climbs from the forward pass by plain gradient steps of the
best constant size, 2 / (smallest + largest curvature), through ``inference.infer(…, "map")``; counted are the steps after which no image's
energy exceeds its minimum, known in closed form, by more than ``tolerance`` times what it did at the start.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from record import record
from torch import Tensor

import inference
from inference.gradient_dynamics import ascend
from inference.mcmc.target import Target
from zoo.error_space import ErrorSpace
from zoo.oracles import LinearChain, linear_chain

IMAGES = 20
MOST = 2**14


def steps_needed(model: LinearChain, x: Tensor, lowest: Tensor, space: str, lr: float | None, tolerance: float) -> int:
    """The least number of steps, as the way uphill tells; noises of variance 1 give values and errors the same density."""
    target = Target(ErrorSpace(model, x) if space == "errors" else model, x, of_values=True)
    first = None
    for step, moment in enumerate(ascend(target, x.new_zeros(len(x), target.size), steps=MOST, lr=lr, optimizer="gradient")):
        excess = -moment.value - lowest
        first = excess if first is None else first
        if (excess < tolerance * first).all():
            return step
    raise RuntimeError(f"{MOST} steps in {space} are not enough")


def check(model: LinearChain, x: Tensor, lowest: Tensor, space: str, lr: float, tolerance: float, steps: int) -> float:
    """Holds what a user asks for against that count; returns the seconds of that many steps."""
    excess = []
    for count in (0, steps - 1, steps):
        posterior = inference.infer(model, x, "map", optimizer="gradient", lr=lr, space=space, steps=count)
        excess.append(-posterior.stats["log_joint"] - lowest)
    if not ((excess[2] < tolerance * excess[0]).all() and (excess[1] >= tolerance * excess[0]).any()):
        raise RuntimeError(f"inference.infer does not need {steps} steps in {space}")
    return posterior.cost["seconds"]


def predicted(depth: int) -> dict[str, float]:
    """Condition numbers in closed form."""
    cosine = math.cos(math.pi / depth)
    return {"states": (1.0 + cosine) / (1.0 - cosine), "errors": float(depth)}


def measure(depth: int, units: int, tolerance: float, seed: int) -> dict[str, Any]:
    """One depth in both spaces."""
    model = linear_chain((units,) * (depth - 1), (units,), seed=seed).double().requires_grad_(False)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        x = model(None, size=IMAGES)
    lowest, row = model.minimum_energy(x), {}
    for space in ("states", "errors"):
        smallest, largest = (value.item() for value in model.curvatures(space))
        best = 2.0 / (smallest + largest)
        needed = steps_needed(model, x, lowest, space, best, tolerance)
        row[space] = {"condition_number": largest / smallest, "condition_number_predicted": predicted(depth)[space],
                      "steps": needed, "steps_with_the_default_step_size": steps_needed(model, x, lowest, space, None, tolerance),
                      "seconds": check(model, x, lowest, space, best, tolerance, needed)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[3, 10, 30])
    parser.add_argument("--units", type=int, default=8)
    parser.add_argument("--tolerance", type=float, default=2.3e-7)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = {str(depth): measure(depth, options.units, options.tolerance, options.seed) for depth in options.depths}
    record("conditioning", rows, seed=options.seed,
           notes=f"{IMAGES} images of {options.units} numbers drawn from the model; steps until every image's energy is within "
                 f"{options.tolerance:g} of its initial excess over the minimum; keys are depths, the image included. The default step "
                 "size is one over the largest curvature; in errors the first gradient points along that direction alone, as all maps are "
                 "orthogonal")


if __name__ == "__main__":
    main()
