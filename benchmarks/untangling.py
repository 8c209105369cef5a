"""What a hierarchy untangles: linear decodability of the causes of optic flow, a small cNVAE against a flat VAE of its size.

    python benchmarks/untangling.py [--models cnvae_s vae_s] [--seeds 0 1 2] [--steps 2500] [--lr .02] [--threads 1] [--name NAME]

Every model is trained on fixate-1 frames that are never repeated, with the ELBO of its own likelihood. Its codes are posterior means at
temperature zero, as published, and single draws of the posterior; least squares from them to the 11 Cartesian causes is fitted on one set
of held-out frames and scored on another (Vafaii, Yates & Butts 2023: .898 and .548 at full size, after 96 million frames). Raw pixels and
the models before their training are read out beside it: any wide nonlinear code gives a readout of its means more than pixels do, while of
a latent that has learned nothing a draw tells nothing. Runs that are recorded already are not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from device import check_device
from record import record, recorded

import guides
import inference
import zoo
from inference.metrics.decodability import drawn_code, linear_decodability, mean_code
from zoo.data.rofl import Stream

LOOKS = 4  # times a model in training is looked at
GLANCE = 10_000  # frames that such a look reads from, and as many that it scores on
CHUNK = 5_000  # frames inferred at once
SCHEDULE = {"warmup": 0.0125, "beta_warmup": 0.3, "clip": 2000.0}
CODES = {"r2": (mean_code, {"propagate": "means"}), "r2_drawn": (drawn_code, {"draws": 1})}


def readouts(model: Any, guide: Any, data: Any, frames: int | None = None) -> dict[str, dict[str, float]]:
    """R² of each cause from posterior means, and from one draw of the posterior."""
    parts = [part if frames is None else part[:frames] for part in (data.validation, data.test)]
    causes = [{name: part.factors[name] for name in data.targets} for part in parts]
    device = next(model.parameters()).device
    found = {}
    for name, (code, how) in CODES.items():
        fit, score = (torch.cat([code(model, inference.infer(model, x.to(device), "amortized", guide=guide, **how)).cpu()
                                 for x in part.x.split(CHUNK)]) for part in parts)
        found[name] = linear_decodability(fit, causes[0], score, causes[1])
    return found


def run(name: str, seed: int, data: Any, settings: dict[str, Any], device: str = "cpu", save: Path | None = None) -> dict[str, Any]:
    """One training, looked at on the way. ``settings``: steps, batch, lr, scale_rad_per_s, and options of the model."""
    model = zoo.build(name, data, seed=seed, scale=settings["scale_rad_per_s"], **settings["options"]).to(device)
    guide = guides.build("hierarchical", model, seed=seed).to(device)
    curve: list[dict[str, float]] = []
    looking = 0.0

    def look(step: int, steps: int, row: dict[str, float]) -> None:
        nonlocal looking
        began, temperature = time.perf_counter(), guide.temperature
        model.eval(), guide.eval()
        guide.temperature = 0.0
        curve.append({"step": step, "elbo": row["elbo"], "kl": row["kl"]} | means(readouts(model, guide, data, GLANCE)))
        guide.temperature = temperature
        model.train(), guide.train()
        print(name, seed, {key: round(value, 3) for key, value in curve[-1].items()}, flush=True)
        looking += time.perf_counter() - began

    model.eval(), guide.eval()
    untrained = readouts(model, guide, data)
    model.train(), guide.train()
    began = time.perf_counter()
    history = inference.fit(model, guide, Stream("fixate-1", seed=seed, device=device), steps=settings["steps"],
                            batch_size=settings["batch"], lr=settings["lr"], seed=seed, **SCHEDULE, progress=look,
                            log_every=max(settings["steps"] // LOOKS, 1))
    seconds = time.perf_counter() - began - looking
    trained = readouts(model, guide, data)
    if save is not None:
        inference.save(save / f"{name}-{seed}", model, guide, description={"data": "rofl/fixate-1", "data_options": {}},
                       history=history.rows)
    return {"model": name, "seed": seed, **settings, "parameters": sum(p.numel() for part in (model, guide) for p in part.parameters()),
            "latents": sum(units for _, units in model.latents.values()), "training_seconds": seconds,
            "trained": means(trained) | {"by_cause": trained}, "untrained": means(untrained) | {"by_cause": untrained}, "curve": curve}


def means(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """Of each kind of code the mean over causes."""
    return {name: statistics.mean(r2.values()) for name, r2 in found.items()}


def made(runs: list[dict[str, Any]], name: str, seed: int, settings: dict[str, Any]) -> bool:
    """Whether such a run is recorded already."""
    sought = {"model": name, "seed": seed} | settings
    return any(all(run[key] == value for key, value in sought.items()) for run in runs)


def settings_of(options: argparse.Namespace, name: str, lr: float, scale: float) -> dict[str, Any]:
    """What a run is told, and is recorded with it."""
    return {"steps": options.steps, "batch": options.batch, "lr": lr, "scale_rad_per_s": scale,
            "options": json.loads(options.settings).get(name, {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["cnvae_s", "vae_s"], help="default: %(default)s")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-2)
    parser.add_argument("--scale", type=float, default=0.1, help="of the likelihood, rad/s (default: %(default)s)")
    parser.add_argument("--settings", default="{}", help="further options by model, as JSON")
    parser.add_argument("--frames", type=int, default=75_000, help="that readouts are fitted on, and as many that they are scored on "
                                                                   "(default, as published: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument("--save", type=Path, help="folder for the trained models")
    parser.add_argument("--name", default="untangling", help="of the file of results (default: %(default)s)")
    options = parser.parse_args()
    check_device(parser, options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    data = zoo.data.load("rofl/fixate-1", n_train=1, n_validation=options.frames, n_test=options.frames)
    runs = recorded(options.name, "runs")
    for seed in options.seeds:
        for name in options.models:
            settings = settings_of(options, name, options.lr, options.scale)
            if not made(runs, name, seed, settings):
                runs.append(run(name, seed, data, settings, options.device, options.save))
                record(options.name, {"runs": runs, "summary": summary(runs, data)}, notes=NOTES)


def summary(runs: list[dict[str, Any]], data: Any) -> dict[str, Any]:
    """Mean and spread over seeds, and what the raw pixels give."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(each["model"] for each in runs):
        rows = [each for each in runs if each["model"] == name]
        found[name] = {"seeds": len(rows)} | {
            f"{when}_{code}": {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}
            for when in ("untrained", "trained") for code in CODES for values in [[row[when][code] for row in rows]]}
    factors = [{factor: part.factors[factor] for factor in data.targets} for part in (data.validation, data.test)]
    raw = linear_decodability(data.validation.x.flatten(1), factors[0], data.test.x.flatten(1), factors[1])
    return found | {"raw pixels": {"r2": statistics.mean(raw.values())}}


NOTES = ("R2 of least squares to 11 Cartesian causes, fitted on as many held-out frames as --frames says and scored on as many others (in "
         f"a curve: {GLANCE}); r2: from posterior means (temperature zero), r2_drawn: from one draw of the posterior; untrained: before "
         "training; sd over seeds; training_seconds without the looks")


if __name__ == "__main__":
    main()
