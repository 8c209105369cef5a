"""The folder a comparison leaves: ``table.csv``, ``report.md``, figures as PNG, posteriors as netCDF."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from inference.cells import read_fit, read_trajectory
from inference.checkpoint import load
from inference.gaps import write_gaps
from inference.plots.activity import plot_active_curve
from inference.plots.decodability import plot_decodability
from inference.plots.dictionary import plot_dictionary
from inference.plots.frontier import plot_frontier
from inference.plots.gap import plot_gap
from inference.plots.reconstructions import plot_reconstructions
from inference.plots.style import new_figure, save
from inference.plots.training import gaussian_constant, plot_training
from inference.plots.trajectory import plot_trajectory
from inference.table import SHOWN, Row, definition, summarize, write_csv, write_decodability
from inference.trajectory import Trajectory
from zoo.files import atomic_file
from zoo.models.image_model import UNIT_SCALE

__all__ = ["write_report"]

PICTURES = 6  # images shown with their reconstructions


def write_report(out: Path, rows: Sequence[Row], budget: str, references: Mapping[str, Mapping[str, float]],
                 evidence: Mapping[tuple[Path, int], Path]) -> None:
    """Writes everything but the cells; what was there before is replaced file by file.

    Arguments:
        references: Decodability of what no model stands behind, ``{name: {factor: R²}}``; empty for data without known causes.
        evidence: Folder of the evidence cell of (trained model's folder, seed); empty if there is none.
    """
    write_csv(out / "table.csv", rows)
    if evidence:
        _gaps(out, rows, evidence)
    first = [row for row in rows if row.record["seed"] == rows[0].record["seed"]]
    figures = _figures(out, rows, first)
    if references:
        write_decodability(out / "decodability.csv", rows, references)
        figures |= _decodability(out, first, references)
    _posteriors(out, rows)
    _remove_stale(out, rows, figures)
    with atomic_file(out / "report.md") as temporary:
        temporary.write_text(_markdown(rows, figures, budget))


def _figures(out: Path, rows: Sequence[Row], first: Sequence[Row]) -> dict[str, str]:
    """Draws each figure; returns file name and caption."""
    records = [row.record for row in rows]
    captions: dict[str, str] = {}
    trained = {row.record["model"]: row for row in reversed(first)}
    trained = {name: trained[name] for name in dict.fromkeys(row.record["model"] for row in first)}
    for name, row in trained.items():
        model, _, _ = load(row.trained)
        if getattr(model, "linear", False):
            scored = next((other for other in first if other.record["model"] == name and "unit_kl" in other.arrays), None)
            kl = scored.arrays["unit_kl"] if scored else None
            figure = plot_dictionary(model.decoder.weight.detach(), model.event_shape, kl, title=f"{name}: dictionary, sorted by KL")
            save(figure, out / f"dictionary_{name}.png")
            captions[f"dictionary_{name}.png"] = f"What each latent of the {name} model adds to the image, the most used first."
    shown = {f"{row.record['model']}·{row.record['method']}":
             (row.arrays["reconstruction"][:PICTURES], row.arrays["mse"][: min(PICTURES, len(row.arrays["x"]))]) for row in first}
    save(plot_reconstructions(first[0].arrays["x"][:PICTURES], shown, title="Held-out images and their posterior reconstructions"),
         out / "reconstructions.png")
    captions["reconstructions.png"] = (
        "Held-out images, and the mean image under each posterior, with the expected squared error. Images of two channels are optic flow: "
        "hue is the direction of motion, saturation its speed.")
    save(plot_frontier(records), out / "frontier.png")
    captions["frontier.png"] = "Rate against distortion, and sparsity against distortion: which trade each model and method makes."
    if any(row.record["nelbo"] == row.record["nelbo"] for row in rows):
        save(plot_gap(records), out / "gap.png")
        captions["gap.png"] = ("NELBO by method on the same frozen model; what the best posterior of the family loses against log p(x) "
                               "(hatched), and what the encoder loses against that posterior. "
                               "± is a standard error: over images, and over seeds where there are several.")
    captions |= _trajectories(out, first)
    kls = {row.record["model"]: row.arrays["unit_kl"] for row in first if row.record["method"] == "amortized" and "unit_kl" in row.arrays}
    if kls:
        figure = new_figure(7.0, 4.5)
        plot_active_curve(kls, figure.add_subplot())
        save(figure, out / "active.png")
        captions["active.png"] = "Fraction of latents in use under the amortized posterior, for every threshold one might choose."
    histories = {name: config["history"] for name, row in trained.items() if (config := read_fit(row.trained)).get("history")}
    if histories:
        pixels, scale = first[0].arrays["x"][0].numel(), read_fit(first[0].trained)["model"].get("scale", UNIT_SCALE)
        save(plot_training(histories, offset=gaussian_constant(pixels, scale)), out / "training.png")
        captions["training.png"] = (
            "Training: the NELBO (−ELBO less its constant) on training images, against steps and seconds; β, the weight of the KL, "
            "rises in the shaded part.")
    return captions


def _trajectories(out: Path, first: Sequence[Row]) -> dict[str, str]:
    """A figure for each model that some method infers in steps."""
    followed: dict[str, dict[str, Trajectory]] = {}
    for row in first:
        trajectory = read_trajectory(row.inferred)
        if trajectory is not None:
            followed.setdefault(row.record["model"], {})[row.record["method"]] = trajectory
    captions = {}
    for model, ways in followed.items():
        if max(len(way) for way in ways.values()) > 1:
            name = f"trajectory_{model}.png"
            save(plot_trajectory(ways, title=f"{model}: inference step by step"), out / name)
            captions[name] = (f"What each step of inference buys on the {model} model: the bound against steps and time, the squared "
                              "error and the sparsity of the code; means over the first held-out images.")
    return captions


def _decodability(out: Path, first: Sequence[Row], references: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    read_out = {f"{row.record['model']} · {row.record['method']}": row.decodability for row in first if row.decodability}
    title = f"What a linear readout finds: {first[0].record['data']}"
    figure = plot_decodability({**references, **read_out}, references=list(references), title=title)
    save(figure, out / "decodability.png")
    return {"decodability.png": (
        "How much of each true cause (columns) a linear readout of a posterior's mean (rows) explains on held-out images; above, the same "
        "readout of the images' pixels and of as many principal components as the models have latents. It is fitted on other held-out "
        "images: few images and many inputs make it worse.")}


def _gaps(out: Path, rows: Sequence[Row], evidence: Mapping[tuple[Path, int], Path]) -> None:
    bounds: dict[tuple[str, str, int], tuple[Path, dict[str, Tensor]]] = {}
    for row in rows:
        key = row.record["data"], row.record["model"], row.record["seed"]
        _, elbos = bounds.setdefault(key, (evidence[row.trained, row.record["seed"]], {}))
        if row.arrays["elbo"].isfinite().all():
            elbos[row.record["method"]] = row.arrays["elbo"]
    write_gaps(out / "gaps.csv", bounds)


def _posteriors(out: Path, rows: Sequence[Row]) -> None:
    folder = out / "posteriors"
    folder.mkdir(exist_ok=True)
    for row in rows:
        name = f"{row.record['model']}-{row.record['method']}-seed{row.record['seed']}.nc"
        with atomic_file(folder / name) as temporary:
            shutil.copyfile(row.inferred / "posterior.nc", temporary)


def _remove_stale(out: Path, rows: Sequence[Row], figures: dict[str, str]) -> None:
    """Removes figures and posteriors of an earlier comparison in this folder that this one does not have."""
    posteriors = {f"{row.record['model']}-{row.record['method']}-seed{row.record['seed']}.nc" for row in rows}
    patterns = ("dictionary_*.png", "decodability.*", "trajectory_*.png", "posteriors/*.nc", "gaps.csv")
    for path in [path for pattern in patterns for path in out.glob(pattern)]:
        kept = path.name in figures or path.name in posteriors or path.with_suffix(".png").name in figures
        kept = kept or (path.name == "gaps.csv" and any(row.record["method"] == "mcmc" for row in rows))
        if not kept:
            path.unlink()


def _markdown(rows: Sequence[Row], figures: dict[str, str], budget: str) -> str:
    lines = summarize(rows)
    heads = list(lines[0])
    table = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *("| " + " | ".join(line.values()) + " |" for line in lines)]
    seeds = sorted({row.record["seed"] for row in rows})
    parts = [
        "# Comparison of ways of inference", "",
        f"Data {rows[0].record['data']}, budget {budget}, {len(rows[0].arrays['mse'])} held-out images, "
        f"seeds {', '.join(map(str, seeds))}. "
        "Models were trained with the amortized guide and then frozen: rows of one model differ in inference alone. "
        + ("Numbers are mean ± standard deviation over seeds." if len(seeds) > 1 else "One seed: no spread over seeds."), "",
        *table, "", *(f"- **{name}**: {definition(name)}" for name in SHOWN), "",
        "`map` is a single point: its distortion is that of the point, the others' an expectation over draws, which no point has to pay "
        "for. "
        "Standard errors over images are in `table.csv` (`…_se`). Times are of this machine, with whatever else ran on it."
        + (" On the smoke budget the numbers mean nothing yet." if budget == "smoke" else ""), "",
        f"`table.csv` has all columns for every seed; `posteriors/` the posteriors of the first {len(rows[0].arrays['x'])} images, to be "
        "opened with "
        "`arviz.from_netcdf`.", ""]
    for name, caption in figures.items():
        parts += [f"![{caption}]({name})", "", caption, ""]
    return "\n".join(parts)
