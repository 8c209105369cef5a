"""Sparsity against reconstruction: the frontier of sparse coding on whitened natural image patches.

    python benchmarks/sparse_frontier.py [--data van_hateren] [--latents 512] [--steps 1000]

A dictionary is learned at one penalty λ; with it, the most probable codes of held-out patches are inferred at each of a grid of penalties
(FISTA; LCA at some, to see that both come to the same codes), and once more with a dictionary that has learned on at that penalty.
About ten minutes of one core.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

from device import check_device
from record import record
from torch import Tensor

import zoo
from inference.dictionary import learn_dictionary
from inference.methods.run import infer
from inference.metrics.scores import score

GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.5, 2.0)
NOTES = (
    "zeros: fraction of exact zeros in the code; r2: per image around its own mean, averaged; distance: to the ideal corner, "
    "sqrt((1 - r2)^2 + (1 - zeros)^2), lower is better; _se: standard errors over images; zeros_split and distance_split count an atom as "
    "two units, one for each sign, as a network with a one-sided threshold has them. dictionary: 'fixed' was learned at the one penalty "
    "--learned-at, 'own' was learned on from there at the row's penalty, for few steps: where its objective_nats is no "
    "lower than that of 'fixed', they did not pay. Whitened patches, z-scored each, of a selection of photographs; "
    "published frontiers (e.g. LCA, 512 units, one-sided: distance 0.282 at penalty 0.5, zeros 0.778, r2 0.826) are of patches of other "
    "photographs, whitened otherwise and normalized in local contrast, so that only shapes can be compared.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="van_hateren", help="default: %(default)s")
    parser.add_argument("--as-published", action="store_true", help="whiten by the filter of the Poisson VAE's public code (f0 = 0.5)")
    parser.add_argument("--latents", type=int, default=512, help="atoms (default: %(default)s)")
    parser.add_argument("--learned-at", type=float, default=0.5, help="penalty of learning the dictionary (default: %(default)s)")
    parser.add_argument("--penalties", type=float, nargs="+", default=GRID, help="default: %(default)s")
    parser.add_argument("--lca", type=float, nargs="*", default=[0.5, 0.8], help="penalties for LCA, too (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="learning steps of 250 patches (default: %(default)s)")
    parser.add_argument("--more-steps", type=int, default=60, help="steps at each penalty; 0 for none (default: %(default)s)")
    parser.add_argument("--train", type=int, default=40_000, help="training patches (default: %(default)s)")
    parser.add_argument("--images", type=int, default=1000, help="held-out patches (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    check_device(parser, options.device)
    published = {"as_published": True, "f0": 0.5} if options.as_published else {}
    data = zoo.data.load(options.data, n_train=options.train, n_test=options.images, seed=options.seed, **published).to(options.device)
    model = _model(data, options, options.learned_at)
    history = learn_dictionary(model, data, steps=options.steps, seed=options.seed)
    atoms = model.decoder.weight.detach().clone()
    rows = []
    for penalty in options.penalties:
        print(f"penalty {penalty:g}", flush=True)
        rows.append(_row(data, options, penalty, atoms, "fixed", "fista"))
        if penalty in options.lca:
            rows.append(_row(data, options, penalty, atoms, "fixed", "lca", max_steps=10_000))
        if options.more_steps:
            model = _model(data, options, penalty, atoms)
            learn_dictionary(model, data, steps=options.more_steps, lr=0.1, seed=options.seed + 1)
            rows.append(_row(data, options, penalty, model.decoder.weight.detach(), "own", "fista"))
    best = {kind: min((row for row in rows if row["dictionary"] == kind), key=lambda row: row["distance"]) for kind in ("fixed", "own")
            if any(row["dictionary"] == kind for row in rows)}
    setting = {"data": data.name, "about": data.about, "latents": options.latents, "training_patches": options.train,
               "held_out_patches": options.images, "learned_at": options.learned_at, "steps": options.steps,
               "more_steps": options.more_steps, "batch_size": 250, "learning": history.rows[:: max(len(history.rows) // 10, 1)]}
    name = f"sparse_frontier_{data.name}" + ("_as_published" if options.as_published else "")
    record(name + (f"_{options.latents}" if options.latents != 512 else ""), {"setting": setting, "best": best, "rows": rows},
           seed=options.seed, notes=NOTES)


def _model(data: Any, options: argparse.Namespace, penalty: float, atoms: Tensor | None = None) -> Any:
    model = zoo.build("sparse_coding", data, latents=options.latents, penalty=penalty, seed=options.seed).to(options.device)
    if atoms is not None:
        model.decoder.weight = atoms
    return model


def _row(data: Any, options: argparse.Namespace, penalty: float, atoms: Tensor, dictionary: str, method: str, **more: Any) -> dict:
    """The point of the frontier at one penalty."""
    model, x = _model(data, options, penalty, atoms), data.test.x
    posterior = infer(model, x, method, **more)
    values, per_image = (scores := score(model, x, posterior)).values, scores.per_image
    zeros = (posterior.samples["z"][0, 0] == 0).double().mean(1)
    split = 0.5 * (1.0 + values["zeros"])
    return {
        "penalty": penalty, "dictionary": dictionary, "method": method, "zeros": values["zeros"], "zeros_se": _error(zeros),
        "r2": values["r2"], "r2_se": _error(per_image["r2"]), "distance": math.hypot(1 - values["r2"], 1 - values["zeros"]),
        "zeros_split": split, "distance_split": math.hypot(1 - values["r2"], 1 - split), "mse": values["mse"],
        "lifetime_sparsity": values["lifetime_sparsity"], "kkt_max": posterior.stats["kkt"].max().item(),
        "objective_nats": posterior.stats["objective_trace"][-1].item(), "steps_mean": posterior.stats["steps"].mean().item(),
        "gradients_per_image": posterior.cost["gradient_evaluations"], "ms_per_image": values["ms_per_image"]}


def _error(values: Tensor) -> float:
    """Standard error of the mean over images."""
    return (values.std() / math.sqrt(len(values))).item()


if __name__ == "__main__":
    main()
