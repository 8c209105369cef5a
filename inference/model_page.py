"""A page on one trained model: what it reconstructs and imagines, which levels are alive, what its latents mean and know."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from inference.draft import Draft, check_free
from inference.methods.run import infer
from inference.metrics.decodability import scales
from inference.metrics.group_kl import active_units, group_kl
from inference.metrics.scores import COLUMNS, score
from inference.page_factors import factors
from inference.page_pictures import prior_samples, traversals
from inference.plots.grid import plot_pairs
from inference.plots.levels import plot_group_kl
from inference.plots.training import plot_training

__all__ = ["page"]

SHOWN = {"nelbo": ".2f", "elbo": ".2f", "log_px_bound": ".2f", "distortion": ".2f", "kl": ".2f", "mse": ".3f", "mse_mean": ".3f",
         "r2": ".3f", "active": ".2f", "zeros": ".2f", "lifetime_sparsity": ".2f", "population_sparsity": ".2f"}
PICTURES = 8  # images in a row


def page(model: nn.Module, guide: nn.Module, data: Any, out: str | Path, *, title: str | None = None,
         history: Sequence[Mapping[str, float]] | None = None, images: int = 200, draws: int = 30, probe: int = 6000, seed: int = 0,
         say: Callable[[str], None] | None = None) -> Path:
    """Writes a folder with ``report.md``, its figures (PNG) and its numbers (CSV), whole or not at all; returns the folder.

    Arguments:
        model, guide: Trained, of the zoo.
        data: A data set with held-out images; where it has target factors, they are read out of the latents.
        out: The folder; that of an earlier page is replaced.
        title: Title of the page; the model's name if None.
        history: The rows of training's history, for its curve.
        images: Test images that scores are of.
        draws: Posterior draws of each, of which the importance-weighted bound is made, too.
        probe: Images of the validation set that readouts are fitted on, and of the test set that they are scored on.
        seed: Seed of all draws.
        say: Called with the name of each part before it is made.

    Raises:
        ValueError: if the folder holds anything else, ``data`` has no test images or others than the model's, or fewer are probed than a
            readout of the latents needs.
    """
    out, say = Path(out), say or (lambda name: None)
    check_free(out)
    if getattr(data, "test", None) is None:
        raise ValueError(f"a page needs a data set with test images, not {type(data).__name__}")
    if tuple(data.event_shape) != tuple(model.event_shape) or len(model.event_shape) != 3:
        raise ValueError(f"a page shows images (channels, height, width); the model is of {tuple(model.event_shape)}, the data of "
                         f"{tuple(data.event_shape)}")
    device = next(iter(model.state_dict().values())).device
    x = data.test.x[:images].to(device)
    levels = _levels(model)
    draft = Draft()
    title = title or getattr(model, "built_with", {}).get("name", type(model).__name__)
    say("scores")
    kl = group_kl(model, x, guide, draws=draws, seed=seed) if hasattr(guide, "conditionals") else {}
    coded = bool(kl) and all(units.isnan().all() for units in kl.values())  # an autoencoder: neither prior nor divergence
    _scores(draft, model, guide, x, title, draws, seed)
    if history:
        _training(draft, history, title)
    if kl and not coded:
        say("levels")
        _group_kl(draft, model, kl, levels, len(x), draws)
    say("pictures")
    if not coded:
        prior_samples(draft, model, guide, x, levels, seed)
    traversals(draft, model, guide, x, levels, {} if coded else kl, coded)
    if data.targets and data.validation is not None:
        say("factors")
        factors(draft, model, guide, data, title, probe, seed, device)
    draft.parts[:0] = _head(model, guide, data, title, len(x), draws, seed)
    draft.write(out)
    return out


def _head(model: nn.Module, guide: nn.Module, data: Any, title: str, n: int, draws: int, seed: int) -> list[str]:
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in (model, guide)]
    latents = ", ".join(f"{name} ({type(family).__name__.lower()}, {units})" for name, (family, units) in model.latents.items())
    scale = model.scale
    noise = {"normal": "Normal noise, σ", "endpoint": "endpoint error, b", "bernoulli": ""}[model.likelihood]
    told = f"; {noise} = {scale.mean():.3g}" + (" on average" if scale.dim() else "") if noise else ""
    return [f"# {title}", "", f"Data {data.name}: {data.about.rstrip('.')}. Images {' × '.join(map(str, data.event_shape))}. "
            f"Scores are of the first {n} test images, {draws} draws each, seed {seed}; likelihood {model.likelihood}{told}.", "",
            f"Latents, top-down (family, units): {latents}. {counts[0]:,} parameters in the model, {counts[1]:,} in the guide.", ""]


def _scores(draft: Draft, model: nn.Module, guide: nn.Module, x: Tensor, title: str, draws: int, seed: int) -> None:
    """The table of scores, and reconstructions."""
    posterior = infer(model, x, guide=guide, draws=draws, seed=seed)
    scores = score(model, x, posterior, k=draws, seed=seed, guide=guide)
    rows = [(name, scores.values[name], scores.values.get(f"{name}_se", math.nan)) for name in SHOWN]
    draft.tables["scores.csv"] = [["score", "value", "standard_error", "definition"], *([*row, COLUMNS[row[0]]] for row in rows)]
    lines = [f"| {name} | {_number(value, SHOWN[name])}{f' ± {se:.2f}' if math.isfinite(se) else ''} | {_cell(COLUMNS[name])} |"
             for name, value, se in rows]
    text = "\n".join(["| score | value | what it is |", "|---|---|---|", *lines, "",
                      f"± is a standard error over images; log_px_bound is of {draws} draws.{_undefined(rows)}"])
    draft.section("Scores", text)
    count = min(PICTURES, len(x))
    shown = posterior.first(count).predict(model)
    errors = [f"{value:.1f}" for value in scores.per_image["mse"][:count].tolist()]
    figure = plot_pairs(x[:count], shown, errors)
    draft.section("Reconstructions", f"The first {count} test images, and the mean over {draws} decoded draws of each; below, the squared "
                  "error summed over pixels, expected over draws.", "reconstructions", figure)


def _training(draft: Draft, history: Sequence[Mapping[str, float]], title: str) -> None:
    draft.section("Training", "−ELBO of the training images in nats, the likelihood's constant included; β, the weight of the KL, rises in "
                  "the shaded part.", "training", plot_training({title: list(history)}))


def _group_kl(draft: Draft, model: nn.Module, kl: Mapping[str, Tensor], levels: Mapping[str, Sequence[str]], n: int, draws: int) -> None:
    level_of = {site: name for name, sites in levels.items() for site in sites}
    families = {name: type(family).__name__.lower() for name, (family, _) in model.latents.items()}
    draft.tables["group_kl.csv"] = [["site", "level", "unit", "kl_nats"], *(
        [site, level_of[site], unit, value] for site, units in kl.items() for unit, value in enumerate(units.tolist()))]
    active = active_units(kl)
    rows = [f"| {name} | {sum(kl[site].sum().item() for site in sites):.2f} | "
            f"{', '.join(f'{site} {active[site]:.2f}' for site in sites)} |" for name, sites in levels.items()]
    text = "\n".join(["| level | KL (nats per image) | fraction of each group's units above 0.01 nats |", "|---|---|---|", *rows, "",
                      f"KL divergence of each latent's posterior from its prior given the latents above, mean over {n} images and {draws} "
                      "draws of those above. Of one-hots, each category's share."])
    draft.section("Which levels are alive", text, "group_kl", plot_group_kl(kl, levels=levels, families=families))


def _levels(model: nn.Module) -> dict[str, list[str]]:
    """Sites by scale; of a model without scales each site is a level."""
    return scales(model) if hasattr(model, "scales") else {name: [name] for name in model.latents}


def _number(value: float, style: str) -> str:
    return f"{value:{style}}".replace("-", "−") if math.isfinite(value) else "—"


def _cell(text: str) -> str:
    """Text that a cell of a Markdown table can hold."""
    return text.replace("|", "\\|")


def _undefined(rows: Sequence[tuple[str, float, float]]) -> str:
    missing = [name for name, value, _ in rows if not math.isfinite(value)]
    return f" Not defined for this model and guide: {', '.join(missing)}." if missing else ""
