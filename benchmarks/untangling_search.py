"""One search for both rivals of ``untangling.py``: the same learning rates and likelihood scales, on frames that its scores never see.

    python benchmarks/untangling_search.py [--models cnvae_s vae_s] [--steps 800] [--lr .006 .02 .06] [--scale .05 .1 .2] [--threads 1]

Every model is trained once for each pair, with the schedule of ``untangling.py``, and read out on held-out frames of another seed. The pair
with the best ELBO on its last (never repeated) frames is what ``untangling.py`` then runs with fresh seeds: who trains a model has an ELBO,
but no true causes. The pairs with the best readouts are told as well. Trials that are recorded already are not made again.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import torch
from record import record, recorded
from untangling import CODES, made, run, settings_of

import zoo

SEED = 100  # of the networks, the stream and the held-out frames: none that untangling.py is run with
NOTES = ("one training for each pair; r2: of least squares from posterior means to 11 causes, fitted on as many held-out frames as "
         "--frames says and scored on as many others, of another seed than those of untangling.py; r2_drawn: from one draw; best: of each "
         "model, the pairs of the highest ELBO, r2 and r2_drawn; trials may have been added by several commands, of which the last is told")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["cnvae_s", "vae_s"], help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", nargs="+", type=float, default=[6e-3, 2e-2, 6e-2])
    parser.add_argument("--scale", nargs="+", type=float, default=[0.05, 0.1, 0.2], help="of the likelihood, rad/s")
    parser.add_argument("--settings", default="{}", help="further options by model, as JSON")
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument("--name", default="untangling_search", help="of the file of results")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    data = zoo.data.load("rofl/fixate-1", n_train=1, n_validation=options.frames, n_test=options.frames, seed=SEED)
    trials = recorded(options.name, "trials")
    for lr, scale, name in itertools.product(options.lr, options.scale, options.models):
        settings = settings_of(options, name, lr, scale)
        if not made(trials, name, SEED, settings):
            trials.append(run(name, SEED, data, settings))
            record(options.name, {"trials": trials, "best": best(trials)}, notes=NOTES)


def best(trials: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """``{model: {"elbo": trial, "r2": trial}}``: the trials of the highest ELBO and of the highest readout."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in dict.fromkeys(trial["model"] for trial in trials):
        rows = [{"lr": trial["lr"], "scale_rad_per_s": trial["scale_rad_per_s"], "elbo": trial["curve"][-1]["elbo"]} | {
                    code: trial["trained"][code] for code in CODES} for trial in trials if trial["model"] == name]
        found[name] = {by: max(rows, key=lambda row: row[by]) for by in ("elbo", *CODES)}
    return found


if __name__ == "__main__":
    main()
