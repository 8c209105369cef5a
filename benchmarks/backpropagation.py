"""Which modes of predictive coding give the gradients of backpropagation: the table of relative errors, in float64.

    python benchmarks/backpropagation.py [--images 100] [--hidden 30] [--seed 0]

A supervised network of four predictions, 64 pixels of handwritten digits to 10 classes, tanh, unit variances. Errors and cosines are of
all weights and biases as one vector, against autograd from end to end. The modes are those of Rosenbaum 2022; nudges are those of
``inference.nudging``. About a minute of one core.
"""

from __future__ import annotations

import argparse
import copy
import math
from itertools import pairwise

import torch
from record import record
from torch import Tensor, nn

import zoo
from inference.backpropagation import (
    agreement,
    backpropagated_gradients,
    clamped,
    exact_gradients,
    fixed_prediction_gradients,
    forward_pass,
    strict_gradients,
)
from inference.local_learning import local_gradients
from inference.nudging import SIGNS, nudged_gradients, settled
from zoo.models.clamped import Clamped
from zoo.models.predictive_coding import PredictiveCoding

FIXED = ((1.0, 4), (1.0, 3), (0.1, 20), (0.1, 200))
STRICT = ((0.1, 20), (0.1, 400), (0.1, 4000))
BETAS = (0.3, 0.1, 0.03, 0.01, 0.003)
STEP = 1e-3  # of weights, so small that what follows is linear in it
NOTES = (
    "relative_error: |g - backprop| / |backprop| over all weights and biases; cosine: of the same vectors. modes: categorical outputs; "
    "fixed_prediction: errors that weights see are those at the start of the last step. nudges: 'likelihood' weighs the likelihood by "
    "beta, 'output' clamps the output to u + beta (y - u), Normal outputs; order: exponent of beta between rows. learning: Normal "
    "outputs clamped to one-hot targets, each image learned alone by one small step; target_alignment: cosine of the output's change "
    "with target - output, mean over images; prospective: cosine of the hidden activities' change by inference, before weights change, "
    "with the change of the forward pass by learning; in backpropagation inference changes nothing.")

Case = tuple[PredictiveCoding, Tensor, Tensor]


def case(options: argparse.Namespace, likelihood: str) -> Case:
    """The network, its inputs in [-1, 1] and one-hot targets."""
    data = zoo.data.load("digits").train
    inputs = 2.0 * data.x[:options.images].flatten(1).double() - 1.0
    targets = nn.functional.one_hot(data.labels[:options.images].long(), 10).double()
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        levels = (*[options.hidden] * 3, inputs.shape[1])
        network = zoo.build("predictive_coding", (10,), levels=levels, activation="tanh", gain=3**-0.5, scale=1.0, likelihood=likelihood)
    return network.double(), inputs, targets


def modes(network: PredictiveCoding, inputs: Tensor, targets: Tensor) -> list[dict]:
    """The table: exact, fixed predictions and strict."""
    truth = backpropagated_gradients(network, inputs, targets)
    rows = [{"mode": "exact"} | _agreement(exact_gradients(network, inputs, targets), truth)]
    for name, settings, rule in (("fixed_prediction", FIXED, fixed_prediction_gradients), ("strict", STRICT, strict_gradients)):
        for eta, steps in settings:
            found = rule(network, inputs, targets, eta=eta, steps=steps)
            rows.append({"mode": name, "eta": eta, "steps": steps} | _agreement(found, truth))
    return rows


def nudges(network: PredictiveCoding, inputs: Tensor, targets: Tensor, nudge: str) -> list[dict]:
    """Errors against backpropagation on a grid of β, and the exponent with which they fall."""
    truth, rows = backpropagated_gradients(network, inputs, targets), []
    for sign in SIGNS:
        these = [{"nudge": nudge, "likelihood": network.likelihood, "sign": sign, "beta": beta}
                 | _agreement(nudged_gradients(network, inputs, targets, beta=beta, sign=sign, nudge=nudge), truth) for beta in BETAS]
        for more, less in pairwise(these):
            less["order"] = math.log(more["relative_error"] / less["relative_error"]) / math.log(more["beta"] / less["beta"])
        rows += these
    return rows


def learning(network: PredictiveCoding, inputs: Tensor, targets: Tensor) -> dict[str, float]:
    """What one small step on one image alone changes, by predictive coding and by backpropagation."""
    before = clamped(network, inputs, targets)
    start, at_rest, predicted = forward_pass(before), settled(before, targets), before.predict()
    found: dict[str, list[float]] = {"target_alignment_predictive_coding": [], "target_alignment_backpropagation": [],
                                     "prospective_predictive_coding": []}
    for n in range(len(inputs)):
        here, goal = slice(n, n + 1), targets[n] - predicted[n]
        alone = Clamped(network, {before.site: inputs[here]})
        local = local_gradients(alone, {name: value[here] for name, value in at_rest.items()}, targets[here])
        after = _learned(network, {name.removeprefix("model."): change for name, change in local.items()}, inputs[here], targets[here])
        rival = _learned(network, backpropagated_gradients(network, inputs[here], targets[here]), inputs[here], targets[here])
        found["target_alignment_predictive_coding"].append(_cosine(after.predict()[0] - predicted[n], goal))
        found["target_alignment_backpropagation"].append(_cosine(rival.predict()[0] - predicted[n], goal))
        then = forward_pass(after)
        by_inference, by_learning = (torch.cat([to[name][i] - start[name][n] for name in start]) for to, i in ((at_rest, n), (then, 0)))
        found["prospective_predictive_coding"].append(_cosine(by_inference, by_learning))
    means = {name: sum(values) / len(values) for name, values in found.items()}
    return means | {f"{name}_se": torch.tensor(values).std().item() / len(values) ** 0.5 for name, values in found.items()}


@torch.no_grad()
def _learned(network: PredictiveCoding, changes: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Clamped:
    network = copy.deepcopy(network)
    for name, parameter in network.named_parameters():
        parameter.add_(changes[name], alpha=STEP)
    return clamped(network, inputs, targets)


def _agreement(found: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    return dict(zip(("relative_error", "cosine"), agreement(found, truth), strict=True))


def _cosine(a: Tensor, b: Tensor) -> float:
    return nn.functional.cosine_similarity(a, b, dim=0).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--hidden", type=int, default=30, help="units of each of three hidden levels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if min(options.images, options.hidden) < 1:
        parser.error("images and hidden must be at least 1")
    categorical, normal = case(options, "categorical"), case(options, "normal")
    results = {"modes": modes(*categorical),
               "nudges": nudges(*categorical, "likelihood") + nudges(*normal, "likelihood") + nudges(*normal, "output"),
               "learning": learning(*normal)}
    for row in results["modes"] + results["nudges"]:
        print("  ".join(f"{value:9.3g}" if isinstance(value, float) else f"{value!s:>16}" for value in row.values()))
    record("backpropagation", results, seed=options.seed, notes=NOTES)


if __name__ == "__main__":
    main()
