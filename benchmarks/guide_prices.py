"""The price list of inference: on one frozen decoder, what every guide reaches, and what it costs, per image and in training.

    python benchmarks/guide_prices.py [--data patches] [--family poisson] [--decoder lin] [--images 200] [--steps 1500] [--threads 2]

A model is trained with a linear encoder and then frozen. Encoders, learned updates and (for real-valued latents) flows are trained on it,
each for the same number of steps, and looked at on held-out images while they are; then all of them, and the ways that need no training,
infer the same held-out images. Evidence is by annealed importance sampling from the linear encoder, of some of the images; what it is above
the ELBO of the method ``natural`` on these is what the figure draws below that method's NELBO on all. Writes
``results/guide_prices_<data>_<family>.json`` and a figure beside it.

    python benchmarks/guide_prices.py --data patches --family poisson --gap-only

trains the model alone, and adds that ELBO to a result that has none.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from device import check_device
from guide_prices_figure import plot_prices
from record import RESULTS, record
from torch import Tensor, nn

import guides
import inference
import zoo
from inference.choices import choose_objective
from inference.mcmc.annealing import ais
from inference.plots.style import save
from inference.recipes import recipe
from zoo.density import uncounted

ENCODERS = ("lin", "mlp", "conv")
REAL = ("gaussian", "laplace")
ITERATIVE_STEPS, NATURAL_STEPS, LOCAL_STEPS = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8, 16, 32, 100), (10, 30, 100, 300, 1000)
LOOKS = 12  # times a guide in training is looked at
K = 100  # draws of the importance-weighted bound


def numbers(model: nn.Module, x: Tensor, method: str, guide: nn.Module | None, draws: int, **options: Any) -> dict[str, float]:
    """NELBO, importance-weighted bound (nats per image) and milliseconds per image of one way of inferring."""
    posterior = inference.infer(model, x, method, guide=guide, draws=draws, **options)
    few = inference.infer(model, x, method, guide=guide, draws=1, **options)  # the time of inference, not of drawing
    scores = inference.score(model, x, posterior, k=K)
    kept = {name: scores.values[name] for name in ("nelbo", "nelbo_se", "elbo", "log_px_bound", "pareto_k", "mse", "zeros")}
    return kept | {"ms_per_image": 1e3 * few.cost["seconds"] / len(x), "gradient_evaluations": few.cost["gradient_evaluations"]}


def trained(model: nn.Module, data: Any, x: Tensor, name: str, options: argparse.Namespace, objective: str,
            **settings: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A guide trained on the frozen model, its held-out NELBO on the way, and what training took."""
    guide = guides.build(name, model, seed=options.seed, **settings)
    curve: list[dict[str, float]] = []
    looking = 0.0

    def look(step: int, steps: int, row: dict[str, float]) -> None:
        nonlocal looking
        began, temperature = time.perf_counter(), guide.temperature
        guide.eval()
        guide.temperature = 0.0
        with torch.no_grad(), torch.random.fork_rng(), uncounted():
            method = name if name != "amortized" else "amortized"
            posterior = inference.infer(model, x, method, guide=guide, draws=20)
            nelbo = inference.score(model, x, posterior, k=2).values["nelbo"]
        guide.train()
        guide.temperature = temperature
        curve.append({"step": step, "seconds": row["seconds"] - looking, "nelbo": nelbo})
        looking += time.perf_counter() - began

    inference.fit(model, guide, data, objective=objective, steps=options.steps, batch_size=250, optimizer="adam", lr=options.lr,
                  final_lr=1e-5, warmup=0.02, beta_start=1.0, clip=100.0, freeze_model=True, seed=options.seed, progress=look,
                  log_every=max(options.steps // LOOKS, 1))
    return guide, {"parameters": sum(p.numel() for p in guide.parameters()), "training": curve}


def base(options: argparse.Namespace) -> tuple[nn.Module, Any, str]:
    """The model that all guides share, trained with a linear encoder, its data, and the objective."""
    data = zoo.data.load(options.data)
    objective = choose_objective(options.family, options.decoder)
    model = zoo.build(options.family, data, latents=options.latents, decoder=options.decoder, seed=options.seed)
    encoder = guides.build("amortized", model, encoder="lin", seed=options.seed)
    inference.fit(model, encoder, data, objective=objective, seed=options.seed, device=options.device, progress=False,
                  **recipe("default", options.data) | {"steps": options.model_steps})
    print("model trained", flush=True)
    return model, data, objective


def _elbo_of_natural(model: nn.Module, x: Tensor, options: argparse.Namespace) -> float:
    """Mean ELBO of the method ``natural`` after its most steps; no training is needed for it."""
    posterior = inference.infer(model, x, "natural", steps=NATURAL_STEPS[-1], draws=options.draws)
    return inference.score(model, x, posterior, k=2).values["elbo"]


def priced(options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one family on one data set."""
    model, data, objective = base(options)
    x = data.test.x[: options.images].to(options.device)
    rows: list[dict[str, Any]] = []

    def add(label: str, method: str, guide: nn.Module | None, about: dict[str, Any] | None = None, **settings: Any) -> None:
        draws = 1 if objective == "exact" and method in ("amortized", "iterative", "natural", "semi", "local") else options.draws
        row = {"guide": label, "method": method, **settings, **numbers(model, x, method, guide, draws, **settings), **(about or {})}
        rows.append(row)
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items() if key != "training"}, flush=True)

    encoder: nn.Module | None = None
    for name in ENCODERS:
        guide, about = trained(model, data, x, "amortized", options, objective, encoder=name)
        add(f"amortized {name}", "amortized", guide, about)
        encoder = guide if name == "lin" else encoder
    guide, about = trained(model, data, x, "iterative", options, objective)
    for steps in ITERATIVE_STEPS:
        add("iterative", "iterative", guide, about if steps == guide.steps else None, steps=steps)
    for steps in NATURAL_STEPS:
        add("natural", "natural", None, steps=steps)
        if steps <= 32:
            add("semi", "semi", encoder, steps=steps)
    for steps in LOCAL_STEPS:
        add("local", "local", encoder, steps=steps)
    if options.family in REAL:
        for name in ("full", "lowrank", "flow"):
            guide, about = trained(model, data, x, name, options, "elbo")
            add(name, name, guide, about)
        add("Laplace approximation", "laplace_approximation", None)
    found = ais(model, x[: options.evidence_images], guide=encoder, chains=16, temperatures=options.temperatures, seed=options.seed)
    evidence = {"images": options.evidence_images, "log_evidence": found.log_evidence.mean().item(), "se_mean": found.se.mean().item(),
                "elbo_of_natural": _elbo_of_natural(model, x[: options.evidence_images], options)}
    return {"family": options.family, "rows": rows, "evidence": evidence, "objective": objective,
            "closed": _closed(rows)}


def with_gap(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """An earlier result, with the ELBO of ``natural`` on the images whose evidence it has; the model is trained again."""
    report = json.loads(path.read_text())
    results = report["results"]
    model, data, _ = base(options)
    x = data.test.x[: options.images].to(options.device)
    row = next(row for row in results["rows"] if row["guide"] == "natural" and row["steps"] == NATURAL_STEPS[-1])
    again = _elbo_of_natural(model, x, options)
    if abs(again - row["elbo"]) > 0.5:
        raise SystemExit(f"the model is not the one of {path.name}: its ELBO is {again:.2f}, there {row['elbo']:.2f}")
    results["evidence"]["elbo_of_natural"] = _elbo_of_natural(model, x[: results["evidence"]["images"]], options)
    return results | {"all_else_by": {name: report[name] for name in ("command", "commit", "date", "machine")}}


def _closed(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Share of the linear encoder's amortization gap that each row closes, measured against the lowest NELBO found within the family."""
    factorized = [row for row in rows if row["method"] in ("amortized", "iterative", "natural", "semi", "local")]
    best = min(row["nelbo"] for row in factorized)
    start = next(row["nelbo"] for row in rows if row["guide"] == "amortized lin")
    return {f"{row['guide']} {row.get('steps', '')}".strip(): (start - row["nelbo"]) / max(start - best, 1e-9) for row in factorized}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="patches", help="default: %(default)s")
    parser.add_argument("--family", default="poisson", help="default: %(default)s")
    parser.add_argument("--decoder", default="lin", help="default: %(default)s")
    parser.add_argument("--latents", type=int, default=512)
    parser.add_argument("--images", type=int, default=200, help="held-out images (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--model-steps", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=1500, help="training steps of every guide (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--evidence-images", type=int, default=50)
    parser.add_argument("--gap-only", action="store_true", help="add the ELBO on these to an earlier result")
    parser.add_argument("--temperatures", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    check_device(parser, options.device)
    torch.set_num_threads(options.threads)
    name = f"guide_prices_{options.data.replace('/', '_')}_{options.family}" + ("" if options.decoder == "lin" else f"_{options.decoder}")
    results = with_gap(RESULTS / f"{name}.json", options) if options.gap_only else priced(options)
    path: Path = record(name, results, seed=options.seed, notes=(
        "nats per image; nelbo as in table.csv (constants left out), elbo and evidence with constants; closed: share of the linear "
        "encoder's amortization gap; training seconds are of this machine and leave out the time of looking"))
    title = f"{options.family.capitalize()} latents on {'MNIST' if options.data == 'mnist' else options.data}: the price of inference"
    save(plot_prices(results, title), RESULTS / f"{path.stem}.png")


if __name__ == "__main__":
    main()
