"""What a model imagines and what its latents mean: the sections of a page on prior samples and traversals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from inference.draft import Draft
from inference.methods.run import infer
from inference.plots.prior_samples import plot_prior_samples
from inference.plots.traversal import plot_traversals
from inference.traversals import Traversal, most_active, prior_mean, resample, traverse

__all__ = ["prior_samples", "traversals"]

COLUMNS = 8  # images in a row


def prior_samples(draft: Draft, model: nn.Module, guide: nn.Module, x: Tensor, levels: Mapping[str, Sequence[str]], seed: int) -> None:
    """Draws of the whole prior, and of every level with those below it under what a test image says above."""
    rows, names = {"all latents": resample(model, {}, COLUMNS, seed=seed)}, list(levels)
    text = "Mean images of latents drawn from the prior."
    if len(names) > 1:
        i = _typical(x)
        posterior = infer(model, x[i:i + 1], guide=guide, draws=1, seed=seed)
        z = {site: value[0, 0, 0] for site, value in posterior.samples.items()}
        for at, name in list(enumerate(names))[1:]:
            held = {site: z[site] for above in names[:at] for site in levels[above]}
            rows[name + (" and below" if at + 1 < len(names) else " alone")] = resample(model, held, COLUMNS, seed=seed)
        text = ("Mean images of latents drawn from the prior: of all levels, then of the levels named only, those above being held at a "
                "posterior draw of a test image of median contrast. The more the images of a row differ, the more its levels say.")
    draft.section("Prior samples", text, "prior_samples", plot_prior_samples(rows))


def traversals(draft: Draft, model: nn.Module, guide: nn.Module, x: Tensor, levels: Mapping[str, Sequence[str]],
               kl: Mapping[str, Tensor], coded: bool) -> None:
    """The latents that cost most, or where that is not known, vary most over images; codes without a prior between their quantiles."""
    found = {site: value[0, 0] for site, value in infer(model, x, guide=guide, propagate="means").samples.items()}
    activity = kl or {site: value.flatten(1).var(0, correction=0) for site, value in found.items()}
    if coded:
        z = {site: value.mean(0) for site, value in found.items()}
    elif len(levels) > 1:  # which may multiply each other: nothing is seen beside a prior's mean of zero
        typical = _typical(x)
        z = {site: value[typical] for site, value in found.items()}
    else:
        z = prior_mean(model)
    chosen = most_active(model, activity, levels, max(1, min(3, 9 // len(levels))) if len(levels) > 1 else 6)
    rows = [_swept(model, z, site, unit, found[site] if coded else None) for site, unit in chosen]
    figure = plot_traversals(rows, levels=levels if len(levels) > 1 else None, kl=kl or None)
    which = "cost most" if kl else "vary most over images"
    held = "posterior's means of a test image of median contrast" if len(levels) > 1 else "prior's means"
    how = (f"means over {len(x)} test images: from the 1 % to the 99 % quantile of their codes." if coded else
           f"{held}: real ones over two standard deviations of their prior, given the latents above, to either side; counts from 0; "
           "one-hots through their most probable categories. Where the image sees the lowest level alone, the others "
           "follow.")
    told = ", and its KL," if kl else ""
    draft.section("Traversals", f"The latents that {which} at each level, swept with all others held at their {how} "
                  f"The site and the unit's number{told} are to the left.", "traversals", figure)


def _swept(model: nn.Module, z: Mapping[str, Tensor], site: str, unit: int, codes: Tensor | None) -> Traversal:
    """With the other latents held; where the image is then always the same, those below follow the swept one by their prior's means."""
    row = traverse(model, z, site, unit, codes=codes)
    return row if (row.images != row.images[:1]).any() else traverse(model, z, site, unit, below="prior", codes=codes)


def _typical(x: Tensor) -> int:
    """Which image is of median length."""
    return int(x.flatten(1).square().sum(1).argsort()[len(x) // 2])
