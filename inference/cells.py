"""The two kinds of cell a comparison is made of: train a model, and infer held-out images with one method.

A cell is a pure function of its description, a JSON-able dictionary. Its result is a folder named after the description's hash,
moved into place whole, so that a run that dies loses only the cell it was in, and a second run is free.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import guides
import zoo
from guides.hierarchical import Hierarchical
from inference.checkpoint import load, save
from inference.mcmc.chains import StoppedByHand
from inference.methods import registry
from inference.methods.run import infer
from inference.metrics.decodability import linear_decodability, mean_code, principal_components
from inference.metrics.memory import bytes_per_image
from inference.metrics.scores import score
from inference.posterior import Posterior
from inference.training import fit
from inference.trajectory import Trajectory, path_of, trajectory
from zoo.files import atomic_folder

__all__ = ["Report", "described_model", "digest", "fit_cell", "folder_of", "guide_cell", "infer_cell", "load_data", "read_fit",
           "read_reference", "read_scores", "read_trajectory", "reference_cell"]

FOLLOWED = 8  # draws per image and step of a trajectory, of what has no closed form

Report = Callable[[float], None]  # called with the fraction of the cell that is done


def digest(description: dict[str, Any]) -> str:
    """Twelve hexadecimal digits that stand for a description."""
    text = json.dumps(description | {"version": version("perception-zoo")}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def folder_of(out: Path, description: dict[str, Any]) -> Path:
    """Where the result of a cell is, or will be."""
    fitted = description.get("fit", description)
    words = [fitted["model"], description.get("method", description.get("guide", "fit")), f"seed{description['seed']}"]
    return out / "cells" / "-".join([*words, digest(description)])


def described_model(description: dict[str, Any], data: Any) -> torch.nn.Module:
    """The model of a description, not yet trained: a latent family's has a number of latents and a decoder, a named one what it says."""
    sizes = {name: description[name] for name in ("latents", "decoder") if description[name] is not None}
    return zoo.build(description["model"], data, seed=description["seed"], **sizes, **description["options"])


def fit_cell(description: dict[str, Any], out: Path, report: Report) -> Path:
    """Trains the described model with an encoder (:func:`guides.default`); returns the folder, as written by :func:`inference.save`."""
    folder = folder_of(out, description)
    if folder.exists():
        report(1.0)
        return folder
    data, seed = load_data(description["data"], description["data_options"]), description["seed"]
    model = described_model(description, data)
    name = guides.default(model)
    guide = guides.build(name, model, seed=seed, **({"encoder": description["encoder"]} if name == "amortized" else {}))
    return _train(folder, model, guide, data, description, report)


def guide_cell(description: dict[str, Any], out: Path, trained: Path, report: Report) -> Path:
    """Trains the described guide on the frozen model in ``trained``; returns the folder, as written by :func:`inference.save`."""
    folder = folder_of(out, description)
    if folder.exists():
        report(1.0)
        return folder
    data = load_data(description["data"], description["data_options"])
    model, _, _ = load(trained)
    guide = guides.build(description["guide"], model, seed=description["seed"], **description["options"])
    return _train(folder, model, guide, data, description, report, freeze_model=True)


def _train(folder: Path, model: torch.nn.Module, guide: torch.nn.Module, data: Any, description: dict[str, Any], report: Report,
           **more: Any) -> Path:
    """Trains as described, goes on where a stopped training was, and moves the result into place."""
    training = folder.with_name(f".{folder.name}-training")
    history = fit(model, guide, data, objective=description["objective"], seed=description["seed"], device=description["device"],
                  progress=lambda step, steps, row: report(step / steps), checkpoint=training, **description["settings"], **more)
    save(folder, model, guide, description=description, history=history.rows)
    shutil.rmtree(training)
    return folder


def infer_cell(description: dict[str, Any], out: Path, trained: Path, report: Report) -> Path:
    """Infers the held-out images of the described data with one method on the frozen model in ``trained``.

    With a guide of its own, if one is described (:func:`guide_cell`), else with the one that the model was trained with.

    The folder holds ``scores.json``, ``arrays.safetensors`` (per-image and per-latent numbers, the first images and their
    reconstructions) and ``posterior.nc`` (ArviZ; the first images), and ``trajectory.safetensors`` for methods that
    :func:`inference.trajectory.path_of` can follow (the first images).
    """
    folder = folder_of(out, description)
    if folder.exists():
        report(1.0)
        return folder
    device = description["device"]
    model, guide, _ = load(trained if description.get("guide") is None else folder_of(out, description["guide"]))
    model.to(device)
    guide.to(device)
    x = load_data(description["data"], description["data_options"]).test.x[: description["images"]].to(device)
    options, method = description["options"], description["method"]
    shown = {"progress": lambda fraction: report(0.6 * fraction)} if "progress" in signature(registry[method]).parameters else {}
    with _whole():
        posterior = infer(model, x, method, guide=guide, draws=description["draws"], seed=description["seed"], **options, **shown)
    report(0.6)
    posterior.cost["bytes_per_image"] = bytes_per_image(model, x, description["method"], guide=guide, **options)
    scores = score(model, x, posterior, k=description["k"], seed=description["seed"], guide=guide if method == "amortized" else None)
    scores.values.update(_convergence(posterior))
    readout = _readout(model, guide, description)
    if readout:
        scores.values["decodability"] = sum(readout.values()) / len(readout)
    report(0.9)
    kept = posterior.first(description["keep"])
    arrays = dict(scores.per_image) | {"x": x[: description["keep"]], "reconstruction": kept.predict(model).detach()}
    if scores.unit_kl is not None:
        arrays["unit_kl"] = scores.unit_kl
    path = path_of(method, model, x[: description["keep"]], guide, **options)
    followed = None if path is None else trajectory(model, x[: description["keep"]], path, draws=FOLLOWED)
    with atomic_folder(folder) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in arrays.items()}, temporary / "arrays.safetensors")
        if followed is not None:
            save_file({name: value.cpu().contiguous() for name, value in vars(followed).items()}, temporary / "trajectory.safetensors")
        kept.to_netcdf(temporary / "posterior.nc")
        (temporary / "scores.json").write_text(json.dumps(
            {"description": description, "scores": scores.values, "decodability": readout}, indent=2) + "\n")
    report(1.0)
    return folder


@contextmanager
def _whole() -> Iterator[None]:
    """Lets Ctrl-C stop chains for good: a cell with some of its draws must not pass for a whole one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", StoppedByHand)
        try:
            yield
        except StoppedByHand:
            raise KeyboardInterrupt from None


def _convergence(posterior: Posterior) -> dict[str, float]:
    """How well chains have mixed, for the table; NaN for methods without chains."""
    worst, least = (posterior.stats.get(name, torch.tensor([torch.nan])) for name in ("rhat", "ess"))
    return {"rhat": worst.nanquantile(0.9, interpolation="lower").item(), "ess": least.nanmedian().item()}


def _readout(model: torch.nn.Module, guide: torch.nn.Module | None, description: dict[str, Any]) -> dict[str, float]:
    """R² of each of the data's target factors, read out of the posterior means of ``probe`` validation and test images.

    Of a hierarchy these are the means given the means above, not given draws.
    """
    data = load_data(description["data"], description["data_options"])
    if not (data.targets and description["probe"]):
        return {}
    options = description["options"]
    if description["method"] == "amortized" and isinstance(guide, Hierarchical):
        options = options | {"propagate": "means"}
    codes, factors = [], []
    for part in (data.validation[: description["probe"]], data.test[: description["probe"]]):
        posterior = infer(model, part.x.to(description["device"]), description["method"], guide=guide, draws=description["draws"],
                          seed=description["seed"], **options)
        codes.append(mean_code(model, posterior))
        factors.append({name: part.factors[name] for name in data.targets})
    return linear_decodability(codes[0], factors[0], codes[1], factors[1])


def reference_cell(description: dict[str, Any], out: Path, report: Report) -> Path:
    """The same readout of the images' own pixels and of their principal components: what a model has to beat.

    Pixels are left out where there are too few images for a readout of them.
    """
    folder = out / "cells" / f"reference-{digest(description)}"
    if folder.exists():
        report(1.0)
        return folder
    data, probe, components = load_data(description["data"], description["data_options"]), description["probe"], description["components"]
    parts = data.validation[:probe], data.test[:probe]
    factors = [{name: part.factors[name] for name in data.targets} for part in parts]
    _, *projected = principal_components(data.train.x, *(part.x for part in parts), components=components)
    readouts = {f"PCA {components}": linear_decodability(projected[0], factors[0], projected[1], factors[1])}
    pixels = [part.x.flatten(1) for part in parts]
    if len(pixels[0]) >= pixels[0].shape[1] + 2:
        readouts = {"raw pixels": linear_decodability(pixels[0], factors[0], pixels[1], factors[1])} | readouts
    with atomic_folder(folder) as temporary:
        (temporary / "readouts.json").write_text(json.dumps({"description": description, "decodability": readouts}, indent=2) + "\n")
    report(1.0)
    return folder


def read_reference(folder: Path) -> dict[str, dict[str, float]]:
    """``{"raw pixels": {factor: R²}, …}`` of a reference cell."""
    return json.loads((folder / "readouts.json").read_text())["decodability"]


def read_fit(folder: Path) -> dict[str, Any]:
    """What ``config.json`` of a trained model says, its history included."""
    return json.loads((folder / "config.json").read_text())


def read_trajectory(folder: Path) -> Trajectory | None:
    """The trajectory of an inference cell, if it has one."""
    path = folder / "trajectory.safetensors"
    return Trajectory(**load_file(path)) if path.exists() else None


def read_scores(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Scores and arrays of an inference cell."""
    return json.loads((folder / "scores.json").read_text()), load_file(folder / "arrays.safetensors")


def load_data(name: str, options: dict[str, Any]) -> Any:
    """A data set, loaded once per process."""
    return _loaded(name, json.dumps(options, sort_keys=True))


@lru_cache(maxsize=2)
def _loaded(name: str, options: str) -> Any:
    return zoo.data.load(name, **json.loads(options))
