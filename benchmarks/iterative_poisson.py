"""Inference without an encoder: reconstruction against sparsity of the iterative Poisson VAE, and of amortized ones beside it.

    python benchmarks/iterative_poisson.py [--data van_hateren] [--beta 24] [--iterations 4000] [--amortized 0.01 0.1]

A linear decoder with learned pixel noise learns through T unrolled natural-gradient steps (Vafaii, Galor & Yates 2025, "Brain-like
variational inference"); then held-out images are shown for up to 1000 steps. For each number of steps: R² of one draw of spikes (per
image, around its own mean, then averaged; ``r2_map``: of the rates), the fraction of exact zeros among the spikes, the distance to the
ideal corner d = sqrt((1 − R²)² + (1 − zeros)²), and ``du_norm``, the change of the log-rates in the last step. Published, 120,000
iterations: iterative .284 (T = 16, beta = 24), LCA .282, amortized .379; MNIST (T = 128, beta = 128, K = 512, 240,000 iterations): R² .951,
zeros .844; as there, ``--data mnist --t 128 --beta 128 --lr 0.002 --clip 3000 --iterations 240000 --noise-limit 3.45 --amortized``.

``--then T BETA ITERATIONS`` trains each model on with longer presentations, as short ones leave a network that has not settled when it is
looked at: half as large batches, .3 of the learning rate (or ``--then-lr``), a constant beta. (Σ KL over a path shrinks as 1 / T, and the
objective takes its mean, so that the same pressure needs a beta that grows as T².) With ``--burn-in`` steps of each presentation pass
before those that it learns from, and then next to nothing is paid for KL. In the closed form the expected squared error, at the best rates
r_k, rises with the length of each atom, by r_k |W_k|² / 2σ² per e-fold: smaller atoms with higher rates code with less noise. What stops
that is the cost of getting there, which the first steps pay; the last ones alone let atoms shrink for as long as they are trained, so that
R² rises and zeros fall with the number of iterations. ``--weights`` keeps the weights between the two.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import torch
import torch.nn.utils.parametrize
from device import check_device
from record import record
from torch import Tensor, nn

import guides
import inference
import zoo
from inference.metrics.sparsity import fraction_of_zeros

AMORTIZED_LR = {"lin": 1e-2, "mlp": 2e-3}
FIRST = ("data", "latents", "t", "iterations", "batch", "lr", "clip", "weight_decay", "init_scale", "scale", "noise_limit", "step_bound",
         "self_cost", "kl_rate", "sampled", "seed")  # what shapes a first training
PUBLISHED = {
    "van_hateren": "of patches of other photographs, with 120,000 iterations: iterative .284, LCA .282, amortized .379; LCA on these "
                   "images: sparse_frontier_van_hateren",
    "mnist": "with 240,000 iterations: iterative R2 .951, zeros .844"}
HORIZONS = (16, 32, 64, 100, 200, 500, 1000)


def r2(x: Tensor, y: Tensor) -> float:
    """Share of an image's variance over its pixels that ``y`` explains, mean over images ``(n, …)``."""
    x, y = x.flatten(1), y.flatten(1)
    total = (x - x.mean(1, keepdim=True)).square().sum(1)
    return (1.0 - (x - y).square().sum(1) / (total + torch.finfo(torch.float32).eps)).mean().item()


def corner(row: dict[str, float]) -> dict[str, float]:
    """The row with its distances to R² = 1, zeros = 1."""
    for name in ("r2", "r2_map"):
        row[name.replace("r2", "d")] = ((1 - row[name]) ** 2 + (1 - row["zeros"]) ** 2) ** 0.5
    return {name: round(value, 4) for name, value in row.items()}


def scores(model: nn.Module, program: nn.Module, x: Tensor) -> dict[str, float]:
    """R² and zeros of one draw of a guide."""
    rates = program.posterior(x)["z"]
    spikes = model.family.distribution(rates).sample()
    return {"r2": r2(x, model.decode({"z": spikes})), "r2_map": r2(x, model.decoder(model.family.moments(rates)[0])),
            "zeros": fraction_of_zeros(spikes).item()}


@torch.no_grad()
def unroll(model: nn.Module, guide: nn.Module, x: Tensor) -> list[dict[str, float]]:
    """Scores after each of :data:`HORIZONS`, from one path."""
    torch.manual_seed(0)
    rows, before = [], None
    for step, deltas in enumerate(guide.path(x, HORIZONS[-1])):
        now = guide.at(deltas)
        if step in HORIZONS:
            rates = now.posterior(x)["z"]
            row = scores(model, now, x) | {"du_norm": (rates - guide.at(before).posterior(x)["z"]).flatten(1).norm(dim=1).mean().item()}
            rows.append({"steps": step} | corner(row))
        before = deltas
    return rows


class SoftClamp(nn.Module):
    """Keeps log-noise within ``± limit`` smoothly: pixels that never change would otherwise be explained without any noise."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, log_scale: Tensor) -> Tensor:
        return self.limit * torch.tanh(log_scale / self.limit)


def train(model: nn.Module, guide: nn.Module, data: object, options: argparse.Namespace, steps: int, batch: int,
          **settings: object) -> float:
    """What both trainings share; returns the seconds that it took."""
    def report(step: int, steps: int, row: dict[str, float]) -> None:
        print(step, steps, {name: round(row[name], 3) for name in ("elbo", "kl", "seconds")}, flush=True)

    history = inference.fit(model, guide, data, objective="online" if options.sampled else "online_exact", steps=steps, batch_size=batch,
                            clip=options.clip, weight_decay=options.weight_decay, device=options.device, log_every=100, progress=report,
                            **settings)
    return history.rows[-1]["seconds"]


def train_first(model: nn.Module, guide: nn.Module, data: object, options: argparse.Namespace, beta: float) -> float:
    """The first training, or what it has left in the folder of weights; returns the seconds that it took.

    Raises:
        ValueError: if the folder holds weights that other options made.
    """
    made_by = {"beta": beta} | {name: getattr(options, name) for name in FIRST}
    kept = None if options.weights is None else options.weights / f"{options.data.replace('/', '_')}_{beta:g}.pt"
    if kept is not None and kept.exists():
        found = torch.load(kept, map_location="cpu")
        if found["made_by"] != made_by:
            raise ValueError(f"{kept} was made by {found['made_by']}, not by {made_by}: give another folder")
        model.load_state_dict(found["model"])
        guide.load_state_dict(found["guide"])
        for part in (model, guide):
            part.to(options.device or "cpu").eval()
        return found["seconds"]
    seconds = train(model, guide, data, options, options.iterations, options.batch, lr=options.lr, beta=beta, beta_start=1e-4,
                    beta_warmup=0.1, warmup=0.005, temperature=(1.0, 0.05), seed=options.seed)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_suffix(".tmp")
        torch.save({"made_by": made_by, "model": model.state_dict(), "guide": guide.state_dict(), "seconds": seconds}, temporary)
        temporary.rename(kept)
    return seconds


def iterative(data: object, x: Tensor, options: argparse.Namespace, beta: float) -> dict[str, object]:
    """Trains and evaluates one iterative Poisson VAE."""
    model = zoo.build("poisson", data, latents=options.latents, scale=options.scale, learn_scale="pixel", init_scale=options.init_scale)
    if options.noise_limit is not None:
        nn.utils.parametrize.register_parametrization(model, "log_scale", SoftClamp(options.noise_limit))
    guide = guides.build("natural", model, steps=options.t, prior="online", step_size="learned", self_cost=options.self_cost,
                         kl_rate=options.kl_rate, step_bound=options.step_bound)
    row: dict[str, object] = {"guide": "natural", "t": options.t, "beta": beta, "iterations": options.iterations}
    seconds, seen = train_first(model, guide, data, options, beta), options.iterations * options.batch
    if options.then is not None:
        guide.steps, longer_beta, iterations = int(options.then[0]), options.then[1], int(options.then[2])
        guide.burn_in = options.burn_in
        batch, lr = max(options.batch // 2, 1), 0.3 * options.lr if options.then_lr is None else options.then_lr
        seconds += train(model, guide, data, options, iterations, batch, lr=lr, beta=longer_beta, beta_start=longer_beta, warmup=0.02,
                         temperature=(0.05, 0.05), seed=options.seed + 1)
        seen += iterations * batch
        row["then"] = {"t": guide.steps, "burn_in": guide.burn_in, "beta": longer_beta, "iterations": iterations, "batch": batch, "lr": lr}
    parameters = sum(p.numel() for part in (model, guide) for p in part.parameters() if p.requires_grad)
    return row | {"parameters": parameters, "epochs": round(seen / len(data.train), 2), "training_seconds": round(seconds),
                  "step_size": round(guide.step_size.item(), 4), "pixel_noise": round(model.scale.mean().item(), 4),
                  "atom_length": round(model.decoder.weight.norm(dim=0).mean().item(), 4),
                  "horizons": unroll(model, guide, x)}


def amortized(data: object, x: Tensor, options: argparse.Namespace, beta: float, encoder: str) -> dict[str, object]:
    """Trains and evaluates a Poisson VAE with an encoder, σ² = ½, without sampling, as usual for a linear decoder."""
    model = zoo.build("poisson", data, latents=options.latents)
    guide = guides.build("amortized", model, encoder=encoder)
    inference.fit(model, guide, data, objective="exact", steps=options.amortized_iterations, batch_size=250,
                  lr=AMORTIZED_LR[encoder], beta=beta,
                  seed=options.seed, device=options.device, progress=False)
    with torch.no_grad():
        torch.manual_seed(0)
        return {"guide": "amortized", "encoder": encoder, "beta": beta, "iterations": options.amortized_iterations,
                **corner(scores(model, guide, x))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="van_hateren", help="default: %(default)s")
    parser.add_argument("--latents", type=int, default=512)
    parser.add_argument("--t", type=int, default=16, help="steps of a presentation in training (default: %(default)s)")
    parser.add_argument("--beta", type=float, nargs="*", default=[24.0], help="default: 24; none to leave the iterative ones out")
    parser.add_argument("--iterations", type=int, default=4000, help="for each beta (default: %(default)s; published 120,000)")
    parser.add_argument("--then", nargs=3, type=float, metavar=("T", "BETA", "ITERATIONS"),
                        help="train on with longer presentations and half as large batches")
    parser.add_argument("--burn-in", type=int, default=0, help="steps of a longer presentation that pass before those it learns from")
    parser.add_argument("--then-lr", type=float, help="learning rate of the longer presentations; .3 of the first if not given")
    parser.add_argument("--weights", type=Path, help="folder where the first training's weights are kept, and taken from if they are there")
    parser.add_argument("--batch", type=int, default=100, help="default: %(default)s; published 200")
    parser.add_argument("--lr", type=float, default=1e-2, help="default: %(default)s; published, for the longer training, 0.005")
    parser.add_argument("--clip", type=float, default=300.0)
    parser.add_argument("--weight-decay", type=float, default=3e-4)
    parser.add_argument("--init-scale", type=float, default=0.01, help="of the dictionary (default: %(default)s; published 0.0001)")
    parser.add_argument("--scale", type=float, default=0.6, help="pixel noise at the start (default: %(default)s; published 1)")
    parser.add_argument("--noise-limit", type=float, help="soft bound of the log of the pixel noise; none if not given (published 3.45)")
    parser.add_argument("--step-bound", type=float, default=1.0, help="greatest change of a log-rate in a step (default: %(default)s)")
    parser.add_argument("--self-cost", choices=("analytic", "learned"), default="learned")
    parser.add_argument("--kl-rate", choices=("prior", "posterior"), default="prior", help="'posterior': the published factor")
    parser.add_argument("--sampled", action="store_true", help="learn from relaxed spikes instead of in closed form")
    parser.add_argument("--amortized", type=float, nargs="*", default=[0.01, 0.1, 1.0], help="betas of amortized models (default: three)")
    parser.add_argument("--encoders", nargs="+", choices=AMORTIZED_LR, default=list(AMORTIZED_LR),
                        help="encoders of the amortized models (default: all)")
    parser.add_argument("--amortized-iterations", type=int, default=4000)
    parser.add_argument("--images", type=int, default=1000, help="held-out images, the first of the test part (default: %(default)s)")
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="name of the result; iterative_poisson_<data> if not given")
    options = parser.parse_args()
    if options.device:
        check_device(parser, options.device)
    if options.then is None and (options.burn_in or options.then_lr is not None):
        parser.error("--burn-in and --then-lr are of the longer presentations of --then")
    if options.then is not None and not 0 <= options.burn_in < options.then[0]:
        parser.error(f"--burn-in must be below the {options.then[0]:g} steps of --then, not {options.burn_in}")
    data = zoo.data.load(options.data)
    x = data.test.x[:options.images].to(options.device or "cpu")
    rows = []
    for beta in options.beta:
        rows.append(iterative(data, x, options, beta))
        print(rows[-1], flush=True)
    for beta, encoder in product(options.amortized, options.encoders):
        rows.append(amortized(data, x, options, beta, encoder))
        print(rows[-1], flush=True)
    published = PUBLISHED.get(options.data, "nothing")
    record(options.name or f"iterative_poisson_{options.data}", {"rows": rows}, seed=options.seed,
           notes=f"first {options.images} test images; one draw of true spikes; d is the distance to R2 = 1, zeros = 1; rates, not "
                 f"spikes, drive the dynamics, and KL divergences have the prior's rate; published: {published}")


if __name__ == "__main__":
    main()
