"""What a model's latents know of the causes of its images: the sections of a page on readouts, levels and disentanglement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inference.draft import Draft
from inference.methods.run import infer
from inference.metrics.dci import dci
from inference.metrics.decodability import drawn_code, linear_decodability, mean_codes
from inference.metrics.levels import level_contributions
from inference.metrics.mutual_information import binned_mutual_information, mutual_information, mutual_information_gap
from inference.plots.decodability import plot_decodability
from inference.plots.factors import plot_factor_map, plot_level_contributions

__all__ = ["factors"]

CHUNK = 500  # images inferred at once
MI_IMAGES = 2000  # whose mutual information is estimated: time grows with them


def factors(draft: Draft, model: nn.Module, guide: nn.Module, data: Any, title: str, probe: int, seed: int, device: Any) -> None:
    """What is read out of the latents' posterior means, all together and by level, and how factors are laid out over latents."""
    parts = data.validation[:probe], data.test[:probe]
    fit, scored = (_codes(model, guide, part.x, seed, device) for part in parts)
    g_fit, g_scored = ({name: part.factors[name] for name in data.targets} for part in parts)
    z_fit, z = (torch.cat(list(codes.values()), 1) for codes in (fit, scored))
    if len(z_fit) < z_fit.shape[1] + 2:
        raise ValueError(f"a readout of {z_fit.shape[1]} latents is fitted on at least {z_fit.shape[1] + 2} images, not {len(z_fit)}: "
                         "give a larger probe")
    readouts, pixels = {}, [part.x.flatten(1) for part in parts]
    if len(pixels[0]) >= pixels[0].shape[1] + 2:
        readouts["raw pixels"] = linear_decodability(pixels[0], g_fit, pixels[1], g_scored)
    references = list(readouts)
    readouts[title] = linear_decodability(z_fit, g_fit, z, g_scored)
    drawn_fit, drawn = (_drawn(model, guide, part.x, seed, device) for part in parts)
    readouts[f"{title} · one draw"] = linear_decodability(drawn_fit, g_fit, drawn, g_scored)
    draft.tables["decodability.csv"] = [["representation", *data.targets, "mean"], *(
        [name, *row.values(), sum(row.values()) / len(row)] for name, row in readouts.items())]
    means = "; ".join(f"{name} {sum(row.values()) / len(row):.3f}" for name, row in readouts.items()).replace("-0", "−0")
    sizes = f"fitted on {len(z_fit)} validation images, scored on {len(z)} test images"
    enough = " Few images and many inputs make a readout worse: more would raise that of raw pixels."
    few = f" Raw pixels are left out: {pixels[0].shape[1]} of them cannot be fitted on {len(pixels[0])} images."
    told = ("R² of least squares from the latents' posterior means (given the means above), and from one draw of the posterior, in which "
            f"latents that have learned nothing say nothing; {sizes}. Mean over {len(data.targets)} factors: {means}.")
    draft.section("What a linear readout finds", told + (enough if references else few), "decodability",
                  plot_decodability(readouts, references=references, title=""))
    if len(fit) > 1:
        contributions = level_contributions(fit, g_fit, scored, g_scored)
        draft.tables["levels.csv"] = [["factor", "level", "alone", "without", "together"], *(
            [factor, level, contributions.alone[i, j].item(), contributions.without[i, j].item(), contributions.together[i].item()]
            for i, factor in enumerate(contributions.factors) for j, level in enumerate(contributions.levels))]
        draft.section("What each level knows", f"The same readout from one level alone, and how much R² is lost without it; {sizes}.",
                        "levels", plot_level_contributions(contributions))
    _layout(draft, z_fit, g_fit, z, g_scored, {name: codes.shape[1] for name, codes in scored.items()}, sizes, seed)


def _layout(draft: Draft, z_fit: Tensor, g_fit: Mapping[str, Tensor], z: Tensor, g: Mapping[str, Tensor], levels: Mapping[str, int],
            sizes: str, seed: int) -> None:
    found = {importance: dci(z_fit, g_fit, z, g, importance) for importance in ("regression", "permutation")}
    rows = [f"| {name} | {each.disentanglement:.3f} | {each.completeness:.3f} | {each.informativeness:.3f} |"
            for name, each in found.items()]
    _, gap = mutual_information_gap(binned_mutual_information(z, g))
    draft.tables["dci.csv"] = [["importance", "disentanglement", "completeness", "informativeness", "mig"], *(
        [name, each.disentanglement, each.completeness, each.informativeness, gap] for name, each in found.items())]
    draft.section("Disentanglement", "\n".join([
        "| importance of a latent for a factor | disentanglement | completeness | informativeness |", "|---|---|---|---|", *rows, "",
        f"Eastwood & Williams 2018, 0 to 1, of the linear readout {sizes}. Importances are sizes of standardized coefficients, or the "
        "expected drop of R² when the latent is shuffled over images: numbers of one kind are to be compared only with each other. "
        f"Mutual information gap (Chen et al. 2018; 20 bins, {len(z)} test images): {gap:.3f}."]))
    few, factors = z[:MI_IMAGES], {name: value[:MI_IMAGES] for name, value in g.items()}
    information = mutual_information(few, factors, seed=seed)
    draft.tables["mutual_information.csv"] = [["factor", *range(few.shape[1])], *(
        [name, *row] for name, row in zip(factors, information.tolist(), strict=True))]
    draft.section("Mutual information", f"Of each factor with the posterior mean of each latent, in nats: nearest neighbours (Kraskov et "
                    f"al. 2004, k = 3), {len(few)} test images, seed {seed}; latents by level, top-down.", "mutual_information",
                    plot_factor_map(information, list(factors), levels=levels))


def _codes(model: nn.Module, guide: nn.Module, x: Tensor, seed: int, device: Any) -> dict[str, Tensor]:
    """Posterior means of the codes by level; given the means above, where the guide infers latent by latent."""
    options = {"propagate": "means"} if hasattr(guide, "conditionals") else {}
    by = "scale" if hasattr(model, "scales") else "site"
    parts = [mean_codes(model, infer(model, part.to(device), guide=guide, seed=seed, **options), by) for part in x.split(CHUNK)]
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}


def _drawn(model: nn.Module, guide: nn.Module, x: Tensor, seed: int, device: Any) -> Tensor:
    """One draw of the codes for each image."""
    return torch.cat([drawn_code(model, infer(model, part.to(device), guide=guide, draws=1, seed=seed + i)).cpu()
                      for i, part in enumerate(x.split(CHUNK))])
