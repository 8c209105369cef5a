"""What each way of inferring makes of a learned precision: the scale of a linear network's first level, against its closed forms.

    python benchmarks/precisions.py [--images 2000] [--steps 3000] [--seeds 0 1 2]

All else is fixed, at the truth. What is learned with posterior widths that are wrong is biased, and the fixed points are known, as minimum
energy, evidence and the best ELBOs of independent units and of independent prediction errors are functions of the scale in closed form:

* point estimates (``method="map"``): the energy at its minimum falls without end as the scale goes to 0, which it does, down to its floor;
* independent units, a mean field over the latents themselves: too large a scale;
* independent prediction errors, what guides of the zoo add to a prediction (``amortized``, ``local``): too small a scale;
* a full covariance, Laplace's approximation (exact here), Markov chains: that of the largest evidence.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from record import record
from torch import Tensor, nn

import guides
import inference
import zoo
from zoo.models.predictive_coding import PredictiveCoding
from zoo.oracles import LinearChain

LEVELS, PIXELS = (3, 2), 4
TRUTH, NOISE, START, FLOOR = 0.6, 1.0, 1.0, 0.02
GRID = torch.logspace(-2.0, 0.7, 541, dtype=torch.float64)
FIT = {"batch_size": 500, "lr": 1e-2, "beta_start": 1.0, "progress": False}


class IndependentUnits(nn.Module):
    """A mean field over the latents: every unit's law depends on the image, and on no other unit, not even of a level above."""

    def __init__(self, model: PredictiveCoding) -> None:
        super().__init__()
        pixels = model.event_shape[0]
        self.means = nn.ModuleDict({name: nn.Linear(pixels, units) for name, (_, units) in model.latents.items()})
        self.log_scales = nn.ParameterDict({name: nn.Parameter(torch.zeros(units)) for name, (_, units) in model.latents.items()})

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for name, mean in self.means.items():
                pyro.sample(name, dist.Normal(mean(x), self.log_scales[name].exp()).to_event(1))


def network(scale: float, seed: int, floor: float = 0.0) -> PredictiveCoding:
    """The network with this scale of the first level, which alone is learned; its maps are those of the seed."""
    model = zoo.build("predictive_coding", (PIXELS,), levels=LEVELS, bias=False, precision=["scalar", "fixed"], floor=floor,
                      level_scale=[scale, 1.0], scale=NOISE, seed=seed)
    model.maps.requires_grad_(False)
    return model


def images(seed: int, count: int) -> Tensor:
    """Images drawn from the network at the true scale."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        return network(TRUTH, seed)(None, size=count)


def closed_forms(x: Tensor, seed: int) -> dict[str, float]:
    """Where each objective is highest over the scale, from .01 to 5."""
    oracle = LinearChain.of(network(START, seed).double())
    x, rows = x.double(), []
    for scale in GRID:
        oracle.levels[0].log_scale.fill_(scale.log())
        evidence = oracle.log_evidence(x).mean()
        rows.append(torch.stack([evidence, evidence - oracle.mean_field_gap("states"), evidence - oracle.mean_field_gap("errors"),
                                 -oracle.minimum_energy(x).mean()]))
    best = GRID[torch.stack(rows).argmax(0)]
    if best[3] != GRID[0]:
        raise RuntimeError("the energy's minimum is expected to fall towards a scale of 0")
    return dict(zip(("evidence", "independent units", "independent errors"), best.tolist(), strict=False)) | {"points": FLOOR}


def by_laplace(x: Tensor, seed: int, rounds: int) -> float:
    """EM: Laplace's approximation of every image's posterior, then the scale whose square is the mean square error under it."""
    model = network(START, seed).double()
    x, weight = x.double(), model.maps[1].weight.detach()
    error = torch.cat([-weight, torch.eye(LEVELS[0], dtype=torch.float64)], 1)  # e1 = z1 - W z2, of (z2, z1)
    for _ in range(rounds):
        guide = guides.build("laplace_approximation", model, x)
        spread = ((error @ guide.scale_tril).square()).sum((-2, -1))
        squares = ((guide.loc @ error.T).square().sum(-1) + spread).mean() / LEVELS[0]
        with torch.no_grad():
            model.levels[0].log_scale.copy_(0.5 * squares.log())
    return model.levels[0].scale.item()


def fitted(x: Tensor, seed: int, steps: int, guide_of: Callable[[nn.Module], nn.Module | None], *, floor: float = 0.0,
           **options: object) -> float:
    """The scale that a training finds."""
    model = network(START, seed, floor)
    inference.fit(model, guide_of(model), x, steps=steps, seed=seed, **FIT | options)
    return model.levels[0].scale.item()


def measure(x: Tensor, seed: int, steps: int) -> dict[str, dict[str, float]]:
    """``{way of inferring: {"found", "predicted"}}``."""
    ways: dict[str, tuple[str, Callable[[], float]]] = {
        "map": ("points", lambda: fitted(x, seed, steps, lambda model: None, floor=FLOOR, method="map",
                                         dynamics={"steps": 30, "space": "errors"})),
        "amortized": ("independent errors", lambda: fitted(x, seed, steps, lambda model: guides.build("amortized", model, encoder="lin"))),
        "independent units": ("independent units", lambda: fitted(x, seed, steps, IndependentUnits)),
        "full": ("evidence", lambda: fitted(x, seed, steps, lambda model: guides.build("full", model, encoder="lin"))),
        "laplace_approximation": ("evidence", lambda: by_laplace(x, seed, 60)),
        "mcmc": ("evidence", lambda: fitted(x, seed, steps, lambda model: None, method="mcmc", sampler="hmc")),
    }
    known, found = closed_forms(x, seed), {}
    for name, (objective, run) in ways.items():
        found[name] = {"found": run(), "predicted": known[objective]}
        print(seed, name, found[name], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    runs = {seed: measure(images(seed, options.images), seed, options.steps) for seed in options.seeds}
    rows = {name: {"seeds": {str(seed): run[name] for seed, run in runs.items()},
                   "found_mean": statistics.mean(run[name]["found"] for run in runs.values()),
                   "largest_deviation": max(abs(run[name]["found"] - run[name]["predicted"]) for run in runs.values())}
            for name in next(iter(runs.values()))}
    record("precisions", rows,
           notes=f"levels {LEVELS}, {PIXELS} pixels of noise {NOISE}; true scale {TRUTH}, start {START}, floor of point estimates {FLOOR}; "
                 f"{options.images} images and random maps of each seed; predicted is where the objective of that way is highest, in "
                 "closed form, over scales from .01 to 5 (.01: it is highest at 0)")


if __name__ == "__main__":
    main()
