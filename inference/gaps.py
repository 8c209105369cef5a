r"""What inference loses: the evidence of each image, and how far each posterior is from that of Markov chains.

.. math:: \log p(x) - L(q) = \underbrace{\log p(x) - L(q^*)}_{\text{approximation gap}}
          + \underbrace{L(q^*) - L(q)}_{\text{amortization gap}}

with :math:`q^*` the best member of the variational family for the image (Cremer, Li & Duvenaud 2018); the left side is the KL divergence of
q from the posterior. :math:`\log p(x)` is estimated by annealed importance sampling from the guide.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from inference.arviz import read_samples
from inference.cells import Report, digest, load_data
from inference.checkpoint import load
from inference.mcmc.annealing import ais
from inference.metrics.distances import distances
from inference.posterior import Posterior
from zoo.files import atomic_file, atomic_folder

__all__ = ["DISTANCE_COLUMNS", "EVIDENCE_COLUMNS", "distance_cell", "distance_scores", "evidence_cell", "evidence_scores", "write_gaps"]

EVIDENCE_COLUMNS = {
    "log_evidence": "log p(x) by annealed importance sampling from the guide, nats per image: a lower bound on "
                    "average, close where its weights vary little",
    "log_evidence_se": "its standard error: that of the sampling alone, the images being given",
    "inference_gap": "log_evidence − elbo on the same images = KL divergence of the posterior from the true one, nats per image; for "
                     "'local' it is the approximation gap, for 'amortized' the sum of approximation and amortization gap",
    "inference_gap_se": "standard error of inference_gap over images, with the sampling's own error in it",
}
DISTANCE_COLUMNS = {
    "mean_distance": "difference of posterior means from the Markov chains', in their standard deviations, root mean square over latents, "
                     "mean over the first images; the row of 'mcmc' holds half of its chains against the others: what chance gives",
    "sliced_w2": "sliced 2-Wasserstein distance from the Markov chains' posterior, in its standard deviations, mean over the first images",
    "c2st": "accuracy of a classifier that tells the posterior's draws from the Markov chains', mean over the first images; .5: it cannot",
}


def evidence_cell(description: dict[str, Any], out: Path, trained: Path, report: Report) -> Path:
    """Estimates the evidence of the first ``description["images"]`` held-out images under the frozen model in ``trained``.

    The folder holds ``evidence.safetensors``: ``log_evidence`` and its ``se``, ``(N,)``, nats.
    """
    folder = out / "cells" / f"evidence-{digest(description)}"
    if folder.exists():
        report(1.0)
        return folder
    model, guide, _ = load(trained)
    model.to(description["device"])
    guide.to(description["device"])
    x = load_data(description["data"], description["data_options"]).test.x[: description["images"]].to(description["device"])
    found = ais(model, x, guide=guide, chains=description["chains"], temperatures=description["temperatures"], seed=description["seed"],
                report=lambda done, total: report(done / total))
    with atomic_folder(folder) as temporary:
        save_file({"log_evidence": found.log_evidence.cpu(), "se": found.se.cpu()}, temporary / "evidence.safetensors")
        (temporary / "description.json").write_text(json.dumps(description, indent=2) + "\n")
    report(1.0)
    return folder


def evidence_scores(folder: Path, elbo: Tensor | None) -> dict[str, float]:
    """Numbers of :data:`EVIDENCE_COLUMNS` for a posterior with per-image bounds ``elbo``, ``(N,)``, or None."""
    arrays = load_file(folder / "evidence.safetensors")
    values, errors = arrays["log_evidence"], arrays["se"]
    n = len(values)
    gap = values - (math.nan if elbo is None else elbo.double())
    return {"log_evidence": values.mean().item(), "log_evidence_se": (errors.square().sum().sqrt() / n).item(),
            "inference_gap": gap.mean().item(), "inference_gap_se": (gap.std() / math.sqrt(n)).item()}


def distance_cell(inferred: Path, reference: Path, images: int, out: Path) -> Path:
    """Compares the stored draws of two inference cells, or of a cell's first half of chains with its second if they are the same.

    The folder holds ``distances.safetensors``, what :func:`~inference.metrics.distances.distances` gives.
    """
    description = {"inferred": inferred.name, "reference": reference.name, "images": images}
    folder = out / "cells" / f"distances-{digest(description)}"
    if folder.exists():
        return folder
    first, second = (Posterior(path.name, {name: value[:, :, :images] for name, value in read_samples(path / "posterior.nc").items()})
                     for path in (inferred, reference))
    if inferred == reference:
        half = len(next(iter(first.samples.values()))) // 2
        first, second = (Posterior(first.method, {name: value[part] for name, value in first.samples.items()})
                         for part in (slice(half), slice(half, None)))
    found = distances(first, second)
    with atomic_folder(folder) as temporary:
        save_file({name: value.contiguous() for name, value in found.items()}, temporary / "distances.safetensors")
        (temporary / "description.json").write_text(json.dumps(description, indent=2) + "\n")
    return folder


def distance_scores(folder: Path) -> dict[str, float]:
    """Numbers of :data:`DISTANCE_COLUMNS`."""
    arrays = load_file(folder / "distances.safetensors")
    return {"mean_distance": _mean(arrays["mean"]), "sliced_w2": _mean(arrays["sliced"]), "c2st": _mean(arrays["c2st"])}


def write_gaps(path: Path, bounds: Mapping[tuple[str, str, int], tuple[Path, Mapping[str, Tensor]]]) -> None:
    """Writes ``gaps.csv``, a line for each image of each (data, model, seed), all in nats.

    Arguments:
        bounds: For each of them the folder of the evidence cell, and the ELBO ``(N,)`` that each method reached.
    """
    methods = list(dict.fromkeys(name for _, elbos in bounds.values() for name in elbos))
    heads = ["data", "model", "seed", "image", "log_evidence", "log_evidence_se", *(f"elbo_{name}" for name in methods),
             "approximation_gap", "amortization_gap"]
    with atomic_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, heads)
        writer.writeheader()
        for (data, model, seed), (folder, elbos) in bounds.items():
            arrays = load_file(folder / "evidence.safetensors")
            for i, (value, se) in enumerate(zip(arrays["log_evidence"].tolist(), arrays["se"].tolist(), strict=True)):
                reached = {name: elbo[i].item() for name, elbo in elbos.items()}
                line = {"data": data, "model": model, "seed": seed, "image": i, "log_evidence": value, "log_evidence_se": se}
                line |= {f"elbo_{name}": number for name, number in reached.items()}
                if "local" in reached:
                    line["approximation_gap"] = value - reached["local"]
                if {"local", "amortized"} <= set(reached):
                    line["amortization_gap"] = reached["local"] - reached["amortized"]
                writer.writerow(line)


def _mean(values: Sequence[float] | Tensor) -> float:
    values = torch.as_tensor(values, dtype=torch.float64)
    values = values[values.isfinite()]
    return values.mean().item() if len(values) else math.nan
