"""Comparing ways of inference: every method on the same frozen models and the same held-out images, cell by cell.

Models are trained with an amortized guide and then frozen; all methods infer the same images under the same weights, so that a
difference between rows of one model is a difference in inference. Rows of different models differ in the model as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import guides
import zoo
from guides.bounds import OBJECTIVES
from inference.cells import (
    Report,
    described_model,
    digest,
    fit_cell,
    guide_cell,
    infer_cell,
    load_data,
    read_fit,
    read_reference,
    reference_cell,
)
from inference.checkpoint import load
from inference.choices import choose_device, choose_latents, choose_objective, choose_options
from inference.gaps import distance_cell, evidence_cell
from inference.methods import fitting, misfit
from inference.methods import registry as methods_registry
from inference.recipes import recipe
from inference.report import write_report
from inference.table import Row, gather

__all__ = ["Comparison", "compare"]

# What a budget means beside the training recipe: sizes of data and of what is inferred.
SIZES: dict[str, dict[str, Any]] = {
    "smoke": {"data_options": {"n_train": 2000, "n_validation": 400, "n_test": 64}, "images": 64, "draws": 16, "k": 8, "keep": 16,
              "local_steps": 30, "probe": 400, "mcmc": {"draws": 16, "chains": 4, "warmup": 30, "keep": 8},
              "evidence": {"chains": 8, "temperatures": 40}, "guide_steps": 40},
    "default": {"data_options": {}, "images": 200, "draws": 100, "k": 100, "keep": 50, "local_steps": 300, "probe": 10_000,
                "mcmc": {"draws": 150, "chains": 4, "warmup": 100, "keep": 25},
                "evidence": {"chains": 8, "temperatures": 100}, "guide_steps": 500},
    "paper": {"data_options": {}, "images": 1000, "draws": 100, "k": 1000, "keep": 100, "local_steps": 1000, "probe": 10_000,
              "mcmc": {"draws": 2000, "chains": 4, "warmup": 500, "keep": 100},
              "evidence": {"chains": 32, "temperatures": 1000}, "guide_steps": 20_000},
}
# Methods that draw from a guide which must be trained on the frozen model first, and how.
TRAINED = ("iterative", "flow", "full", "lowrank")
SCORED_BY_DRAWS = ("flow", "full", "lowrank", "laplace_approximation")  # whose bounds are of their own draws
POINTS = ("map", "ista", "fista", "lca")  # which have no distance from chains
GUIDE_TRAINING = {"batch_size": 250, "optimizer": "adam", "lr": 3e-3, "final_lr": 1e-4, "warmup": 0.02, "beta_start": 1.0, "clip": 100.0}
FOUR = ("gaussian", "laplace", "categorical", "poisson")
SECONDS = {"amortized": 3.0, "local": 8.0, "map": 6.0, "mcmc": 60.0, "evidence": 30.0, "guide": 60.0}  # rough shares of the progress bar


@dataclass(frozen=True)
class Comparison:
    """A finished comparison: its folder and its rows (see :data:`inference.metrics.scores.COLUMNS` for the numbers)."""

    folder: Path
    rows: list[Row]

    @property
    def records(self) -> list[dict[str, Any]]:
        """The rows of ``table.csv`` as dictionaries."""
        return [row.record for row in self.rows]


def compare(
    data: str = "patches",
    models: Sequence[str] | None = None,
    methods: Sequence[str] = ("amortized", "local", "map", "mcmc"),
    seeds: Sequence[int] = (0,),
    *,
    budget: str = "default",
    out: str | Path = "zoo-comparison",
    latents: int | None = None,
    decoder: str = "lin",
    encoder: str = "lin",
    objective: str | None = None,
    trained: Sequence[str | Path] = (),
    device: str | None = None,
    progress: bool | Callable[[str, float], None] = True,
) -> Comparison:
    """Trains models, infers held-out images with each method, scores, and writes a folder.

    Arguments:
        data: Name of a data set.
        models: Names of models to train: latent families, each of which stands for its one-layer model, or others (``zoo list``); the
            zoo's four families if None.
        methods: Names of ways of inferring, each of which must fit every model. Those that draw from a guide of their own
            (``"iterative"``, ``"flow"``, …) train it on the frozen model. With ``"mcmc"`` among them, images' log evidence is estimated,
            too, and the other posteriors are held against that of the chains.
        seeds: Seeds; each gives a training and an inference of its own.
        budget: ``"smoke"``, ``"default"`` or ``"paper"``: training recipe, sizes of data and of the evaluation.
        out: Folder for ``table.csv``, ``report.md``, figures, ``posteriors/`` and the cells. What is there already is not
            computed again.
        latents: Latents of a family's model; if None 512 (for ``rofl`` 128, and 420 on the paper budget), or 64 on the smoke budget.
        decoder, encoder: Networks of models and guides; a named model has its own decoder, and a hierarchy its own encoder.
        objective: Training objective; if None, ``"exact"`` where the decoder is linear and the KL has a closed form, else ``"elbo"``.
        trained: Folders of saved models (``zoo fit``) to compare on instead of training. Models, latents, networks and objective are
            then theirs and must not be given, and there can be one seed only: there is one training to look at.
        device: Where to compute; a GPU if there is one, else the CPU, if None.
        progress: Whether to show progress, or what to call with (what is being done, fraction of all work done).

    Raises:
        ValueError: for unknown names or an empty choice, before anything is computed.
        FileNotFoundError: for a folder in ``trained`` without a saved model.
    """
    out, device = Path(out), choose_device(device)
    if trained:
        choices = {"models": models is not None, "latents": latents is not None, "decoder": decoder != "lin", "encoder": encoder != "lin",
                   "objective": objective is not None, "more than one seed": len(seeds) > 1}
        given = [name for name, is_given in choices.items() if is_given]
        if given:
            raise ValueError(f"{', '.join(given)} cannot be chosen for saved models, which were trained as they are")
    models = FOUR if models is None else models
    _check("models", models, [*zoo.latents.registry, *zoo.models.registry])
    _check("methods", methods, [*methods_registry])
    _check("seeds", seeds, None)
    _check("decoders", [decoder], [*zoo.networks.decoders])
    _check("encoders", [encoder], [*zoo.networks.encoders])
    if objective is not None:
        _check("objectives", [objective], [*OBJECTIVES])
    if objective == "exact" and decoder != "lin":
        raise ValueError(f"the objective 'exact' needs the decoder 'lin', not {decoder!r}")
    if latents is not None and latents < 1:
        raise ValueError(f"latents must be at least 1, not {latents}")
    if data.split("/")[0] not in zoo.data.registry:
        raise ValueError(f"unknown data {data!r}; known are: {', '.join(zoo.data.registry)}")
    settings = recipe(budget, data)
    sizes = SIZES[budget]
    data_options = _accepted(data, sizes["data_options"])
    if trained:
        fits = [_saved(Path(folder), data, data_options, seed, device, methods) for folder in trained for seed in seeds]
        names = [described["model"] for described in fits if described["seed"] == seeds[0]]
        if len(set(names)) < len(names):
            raise ValueError(f"the saved models are {', '.join(names)}: compare one of each, as rows are told apart by the model's name")
    else:
        chosen = {"latents": latents, "decoder": None if decoder == "lin" else decoder}
        fits = [{"data": data, "data_options": data_options, "model": model, **_sizes(model, chosen, budget, data), "encoder": encoder,
                 "objective": objective or choose_objective(model, decoder), "settings": settings, "seed": seed,
                 "device": device, "source": _source(model)} for seed in seeds for model in models]
    work = [(described, [_inference(described, method, sizes) for method in methods]) for described in fits]
    extra = [*(["evidence"] if "mcmc" in methods else []), *(["guide"] * len(set(methods) & set(TRAINED)))]
    total = sum(_training_seconds(described) + sum(SECONDS.get(m, 20.0) for m in [*methods, *extra])
                for described, _ in work) / 0.98  # the rest is for the figures

    cells: list[tuple[Path, Path]] = []
    evidence: dict[tuple[Path, int], Path] = {}
    distances: dict[Path, Path] = {}
    with _display(progress) as show:
        show("data", 0.0)
        components = _check_readouts(fits, sizes["probe"])
        _check_methods(fits, methods)
        out.mkdir(parents=True, exist_ok=True)
        done = 0.0
        for described, inferences in work:
            name, share = described["model"], _training_seconds(described)

            def training(fraction: float, name=name, share=share, before=done) -> None:
                show(f"training {name}", (before + share * fraction) / total)

            folder = Path(described["saved"]) if "saved" in described else fit_cell(described, out, training)
            done += share
            inferred: dict[str, Path] = {}
            steps: list[tuple[str, Callable[[Report], Path]]] = []
            for inference in inferences:
                if "guide" in inference:
                    steps.append(("guide", partial(guide_cell, inference["guide"], out, folder)))
                steps.append((inference["method"], partial(infer_cell, inference, out, folder)))
            if "mcmc" in methods:
                same = {key: inferences[0][key] for key in ("fit", "data", "data_options", "seed", "device", "images")}
                described_evidence = same | sizes["evidence"]
                steps.append(("evidence", partial(evidence_cell, described_evidence, out, folder)))
            for what, run in steps:
                share = SECONDS.get(what, 20.0)

                def running(fraction: float, what=f"{name}: {what}", share=share, before=done) -> None:
                    show(what, (before + share * fraction) / total)

                running(0.0)
                inferred[what] = run(running)
                done += share
            if "mcmc" in methods:
                evidence[folder, described["seed"]] = inferred.pop("evidence")
                distances |= {path: distance_cell(path, inferred["mcmc"], sizes["keep"], out) for method, path in inferred.items()
                              if method not in POINTS}
            inferred.pop("guide", None)
            cells += [(folder, path) for path in inferred.values()]
        show("figures", 0.99)
        rows, references = gather(cells, evidence, distances), {}
        if components:
            description = {"data": data, "data_options": fits[0]["data_options"], "probe": sizes["probe"], "components": components}
            references = read_reference(reference_cell(description, out, lambda fraction: None))
        write_report(out, rows, budget, references, evidence)
        show("done", 1.0)
    return Comparison(out, rows)


def _inference(fitted: dict[str, Any], method: str, sizes: dict[str, Any]) -> dict[str, Any]:
    described = {"fit": fitted, "data": fitted["data"], "data_options": fitted["data_options"], "seed": fitted["seed"],
                 "device": fitted["device"], "method": method, "options": {"steps": sizes["local_steps"]} if method == "local" else {},
                 **{key: sizes[key] for key in ("images", "draws", "k", "keep", "probe")}}
    if method in TRAINED:
        objective = fitted.get("objective", "elbo") if method == "iterative" else "elbo"
        options = {} if method == "iterative" else {"encoder": fitted.get("encoder", "lin")}
        length = {"steps": sizes["guide_steps"]}
        if method != "iterative":  # as long as the encoder, with which it is compared
            length = {key: value for key, value in fitted.get("settings", length).items() if key in ("steps", "epochs")}
        described["guide"] = {key: described[key] for key in ("fit", "data", "data_options", "seed", "device")} | {
            "guide": method, "options": options, "objective": objective, "settings": GUIDE_TRAINING | length}
    if method in SCORED_BY_DRAWS:
        described["draws"] = max(described["draws"], described["k"])
    if method == "mcmc":  # chains of the thousands of images that a readout is fitted on would take hours
        options = dict(sizes["mcmc"])
        described |= {"draws": options.pop("draws"), "options": options, "probe": 0}
    return described


def _saved(folder: Path, data: str, data_options: dict, seed: int, device: str, methods: Sequence[str]) -> dict[str, Any]:
    config = read_fit(folder) if (folder / "config.json").exists() else None
    if config is None:
        raise FileNotFoundError(f"no saved model in {folder}: config.json is missing")
    if "guide" not in config:
        raise ValueError(f"the model in {folder} was saved without a guide; a comparison needs one")
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes() + (folder / "guide.safetensors").read_bytes()).hexdigest()
    if config["guide"]["name"] not in guides.ENCODERS and "amortized" in methods:
        raise ValueError(f"the model in {folder} was saved with a guide {config['guide']['name']!r}, which is no encoder: leave out the "
                         "method 'amortized'")
    return {"saved": str(folder), "weights": weights, "model": config["model"]["name"], "data": data,
            "data_options": config.get("description", {}).get("data_options", data_options), "seed": seed, "device": device,
            "latents": sum(units for _, units in load(folder)[0].latents.values())}


def _sizes(model: str, chosen: dict[str, Any], budget: str, data: str) -> dict[str, Any]:
    """What a model is built with: a family's number of latents and decoder, or what of them was chosen for a named model."""
    if model in zoo.latents.registry:
        return {"options": {}, "latents": choose_latents(chosen["latents"], budget, data), "decoder": chosen["decoder"] or "lin"}
    given = {name: value for name, value in choose_options(model, chosen, budget, data).items() if chosen[name] is not None}
    return {"options": given, "latents": None, "decoder": None}


def _source(model: str) -> str:
    """A digest of the file a user's own model comes from, so that a changed one is not taken for the old one."""
    import inspect

    family = (zoo.latents.registry if model in zoo.latents.registry else zoo.models.registry)[model]
    family = getattr(family, "func", family)  # of a partial
    if family.__module__.startswith("zoo."):
        return "zoo"
    return digest({"source": inspect.getsource(inspect.getmodule(family))})


def _accepted(data: str, options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that the data set's loader knows."""
    import inspect

    parameters = inspect.signature(zoo.data.registry[data.split("/")[0]]).parameters
    return {name: value for name, value in options.items() if name in parameters}


def _check(what: str, chosen: Sequence, known: list[str] | None) -> None:
    if not chosen:
        raise ValueError(f"choose at least one of the {what}")
    for name in chosen:
        if known is not None and name not in known:
            raise ValueError(f"unknown {what} {name!r}; known are: {', '.join(known)}")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"{what} are named twice: {', '.join(map(str, chosen))}")


def _check_readouts(fits: Sequence[dict[str, Any]], probe: int) -> int:
    """Loads the data, checks that each model's latents can be read out, and says how many principal components to compare them with: as
    many as latents, at most as many as pixels; 0 for data without causes to read out."""
    components = 0
    for described in fits:
        data, latents = load_data(described["data"], described["data_options"]), described["latents"]
        if not (data.targets and probe):
            continue
        if latents is None:
            latents = sum(units for _, units in described_model(described, data).latents.values())
        fitted = min(probe, len(data.validation))
        if fitted < latents + 2:
            raise ValueError(f"a readout of {latents} latents cannot be fitted on {fitted} images; choose at most {fitted - 2} latents")
        components = max(components, min(latents, *data.train.x.flatten(1).shape))
    return components


def _check_methods(fits: Sequence[dict[str, Any]], methods: Sequence[str]) -> None:
    """Raises ``ValueError`` if a method does not fit a model, before anything is trained; says which methods fit all of them."""
    for described in fits:
        if "saved" in described:
            model = load(Path(described["saved"]))[0]
        else:
            model = described_model(described, load_data(described["data"], described["data_options"]))
        for method in methods:
            reason = misfit(method, model)
            if reason is not None:
                raise ValueError(f"the method {method!r} does not fit the model {described['model']!r}: {reason}; "
                                 f"methods that fit it: {', '.join(fitting(model))}")


def _training_seconds(described: dict[str, Any]) -> float:
    if "saved" in described:
        return 0.0
    return 0.01 * described["settings"].get("steps", 100 * described["settings"].get("epochs", 1)) + 1.0


def _display(progress: bool | Callable[[str, float], None]) -> Any:
    from inference.progress import silent, work_bar

    if callable(progress):
        return silent(progress)
    return work_bar() if progress else silent(lambda what, fraction: None)
