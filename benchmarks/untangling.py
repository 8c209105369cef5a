"""What a hierarchy untangles: linear decodability of the causes of optic flow, a small cNVAE against a flat VAE of its size.

    python benchmarks/untangling.py [--models cnvae_s vae_s] [--seeds 0 1 2] [--steps 2500] [--batch 128] [--device cpu] [--threads 1]

Every model is trained on fixate-1 frames that are never repeated, with the ELBO of its own likelihood. Its codes are posterior
means at temperature zero; least squares from them to the 11 Cartesian causes is fitted on one set of held-out frames and scored on another
(Vafaii, Yates & Butts 2023: .898 and .548 at full size, after 96 million frames). Raw pixels and the models before their training are read
out beside it: any wide nonlinear code gives a readout more than pixels do. Runs that are recorded already are not made again.
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
from inference.metrics.decodability import linear_decodability, mean_code
from zoo.data.rofl import Stream

LOOKS = 4  # times a model in training is looked at
GLANCE = 10_000  # frames that such a look reads from, and as many that it scores on
SCHEDULE = {"warmup": 0.0125, "beta_warmup": 0.3, "clip": 2000.0}


def run(name: str, seed: int, options: argparse.Namespace, data: Any) -> dict[str, Any]:
    """One training, looked at on the way."""
    settings = json.loads(options.settings)
    model = zoo.build(name, data, seed=seed, scale=options.scale, **settings.get(name, {})).to(options.device)
    guide = guides.build("hierarchical", model, seed=seed).to(options.device)
    targets = list(data.targets)
    parts = [(part.x.to(options.device), {factor: part.factors[factor] for factor in targets}) for part in (data.validation, data.test)]
    curve: list[dict[str, float]] = []
    looking = 0.0

    def readout(frames: int | None = None) -> dict[str, float]:
        (fit_x, fit_g), (score_x, score_g) = [(x[:frames], {factor: value[:frames] for factor, value in g.items()}) for x, g in parts]
        fit_z, score_z = (mean_code(model, inference.infer(model, x, "amortized", guide=guide, propagate="means"))
                          for x in (fit_x, score_x))
        return linear_decodability(fit_z, fit_g, score_z, score_g)

    def look(step: int, steps: int, row: dict[str, float]) -> None:
        nonlocal looking
        began, temperature = time.perf_counter(), guide.temperature
        model.eval(), guide.eval()
        guide.temperature = 0.0
        r2 = readout(GLANCE)
        guide.temperature = temperature
        model.train(), guide.train()
        curve.append({"step": step, "r2": statistics.mean(r2.values()), "elbo": row["elbo"], "kl": row["kl"]})
        print(name, seed, {key: round(value, 3) for key, value in curve[-1].items()}, flush=True)
        looking += time.perf_counter() - began

    model.eval(), guide.eval()
    untrained = readout()
    model.train(), guide.train()
    began = time.perf_counter()
    history = inference.fit(model, guide, Stream("fixate-1", seed=seed, device=options.device), steps=options.steps,
                            batch_size=options.batch, lr=options.lr, seed=seed, **SCHEDULE, progress=look,
                            log_every=max(options.steps // LOOKS, 1))
    seconds = time.perf_counter() - began - looking
    r2 = readout()
    if options.save is not None and seed == options.seeds[0]:
        inference.save(options.save / name, model, guide, description={"data": "rofl/fixate-1", "data_options": {}}, history=history.rows)
    parameters = sum(p.numel() for part in (model, guide) for p in part.parameters())
    return {"model": name, "seed": seed, "parameters": parameters, "latents": sum(units for _, units in model.latents.values()),
            "scale_rad_per_s": float(model.scale), "frames": options.steps * options.batch, "training_seconds": seconds,
            "r2_mean": statistics.mean(r2.values()), "r2": r2, "untrained_r2_mean": statistics.mean(untrained.values()), "curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["cnvae_s", "vae_s"], help="default: %(default)s")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-2)
    parser.add_argument("--scale", type=float, help="of the likelihood, rad/s; the model's own if not given")
    parser.add_argument("--settings", default="{}", help="further options by model, as JSON")
    parser.add_argument("--frames", type=int, default=75_000, help="that readouts are fitted on, and as many that they are scored on "
                                                                   "(default, as published: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument("--save", type=Path, help="folder for the trained models of the first seed")
    parser.add_argument("--name", help="of the file of results; untangling_420_<steps> if not given")
    options = parser.parse_args()
    check_device(parser, options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    data = zoo.data.load("rofl/fixate-1", n_train=1, n_validation=options.frames, n_test=options.frames)
    options.name = options.name or f"untangling_420_{options.steps}"
    runs = recorded(options.name, "runs")
    for seed in options.seeds:
        for name in options.models:
            if not any(made["model"] == name and made["seed"] == seed for made in runs):
                runs.append(run(name, seed, options, data))
                record(options.name, {"runs": runs, "summary": summary(runs, data)}, notes=NOTES)


def summary(runs: list[dict[str, Any]], data: Any) -> dict[str, Any]:
    """Mean and spread over seeds, and what the raw pixels give."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(made["model"] for made in runs):
        values = [made["r2_mean"] for made in runs if made["model"] == name]
        found[name] = {"r2_mean": statistics.mean(values), "r2_sd": statistics.stdev(values) if len(values) > 1 else None,
                       "seeds": len(values)}
    factors = [{factor: part.factors[factor] for factor in data.targets} for part in (data.validation, data.test)]
    raw = linear_decodability(data.validation.x.flatten(1), factors[0], data.test.x.flatten(1), factors[1])
    return found | {"raw pixels": {"r2_mean": statistics.mean(raw.values())}}


NOTES = ("R2 of least squares from posterior means (temperature zero) to 11 Cartesian causes, fitted on as many held-out frames as "
         f"--frames says and scored on as many others (in a curve: {GLANCE}); untrained_r2_mean: of the same model before its training; "
         "r2_sd over seeds; training_seconds without the looks")


if __name__ == "__main__":
    main()
