"""Filtering by what is carried from frame to frame: temporal predictive coding, learned precision, Kalman filter.

    python benchmarks/temporal.py [--sequences 500] [--patches moving_patches] [--units 32] [--steps 600]

First, tracking in two dimensions under the true model: a position on an orbit, and one that moves by a velocity which no frame shows.
Then sequences of natural patches: a linear model is learned by the exact evidence (Kalman filter, gradient ascent), another by local
updates of its weights from point estimates, and one-step predictions of held-out frames are scored in nats under each carry. About ten
minutes of one core.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import torch
from pyro import poutine
from record import record
from torch import Tensor
from torch.nn.functional import normalize

import zoo
from inference.batches import batches_of
from inference.filtering import filter
from inference.temporal_learning import learn
from inference.temporal_precision import learn_precision
from zoo.models.temporal import TemporalPredictiveCoding
from zoo.oracles.kalman import LinearDynamicalSystem, kalman_filter, steady_state

LENGTH, SKIP = 100, 20
TURN, RADIUS, WANDER, BLUR = math.pi / 8, 0.95, 0.3, 0.7  # of the orbit
FRICTION, PUSH, DRIFT, NOISE = 0.95, 0.2, 0.05, 1.0  # of the flight
NOTES = (
    "orbit: a position in two dimensions turns by 'turn', shrinks by 'radius' and wanders by N(0, wander^2); seen is position + N(0, "
    "blur^2). flight: state (position, velocity) in two dimensions; position += velocity + N(0, drift^2), velocity = friction * velocity + "
    "N(0, push^2); seen is position + N(0, noise^2). State 1 ~ N(0, 1) in both. mse: squared error of the estimate, mean over frames after "
    "the first 'skip' and over the two coordinates; nats: log density of the next frame, per frame, as each carry claims it; _se: standard "
    "errors over sequences. point: temporal predictive coding, the precision of the temporal error is that of the state noise (in the "
    "flight nothing then corrects the velocity, which no frame shows); steady: the steady-state precision (Riccati's equation); "
    "likelihood: the precision of highest one-step likelihood on as many other sequences; local (not with fewer pixels than units): "
    "fixed point of <e e' + H^-1> on those; curvature: the Kalman filter; smoother: given all frames. patches: 'persistence' predicts "
    "the frame before, with a variance for each pixel fitted on training sequences; weights 'local' have the variances and the lengths of "
    "C's columns of 'evidence', so that only A, a, C and c are learned locally. Frame 1, which nothing precedes, is left out of all nats.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=500, help="of the tracking, to score and to learn from (default: %(default)s)")
    parser.add_argument("--patches", default="moving_patches", help="data set of sequences (default: %(default)s)")
    parser.add_argument("--train", type=int, default=4000, help="training sequences of it (default: %(default)s)")
    parser.add_argument("--test", type=int, default=500, help="held-out sequences of it (default: %(default)s)")
    parser.add_argument("--units", type=int, default=32, help="of the linear model (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=600, help="learning steps of 100 sequences (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tracks = {"orbit": tracking(orbit(), options.sequences, options.seed), "flight": tracking(flight(), options.sequences, options.seed)}
    settings = {"turn": TURN, "radius": RADIUS, "wander": WANDER, "blur": BLUR, "friction": FRICTION, "push": PUSH, "drift": DRIFT,
                "noise": NOISE, "frames": LENGTH, "skip": SKIP, "sequences": options.sequences}
    record("temporal", {"tracking": {"setting": settings, **tracks}, "patches": patches(options)}, seed=options.seed, notes=NOTES)


def orbit() -> TemporalPredictiveCoding:
    """The true model of the orbit; state (x, y)."""
    c, s = RADIUS * math.cos(TURN), RADIUS * math.sin(TURN)
    return _system(torch.tensor([[c, -s], [s, c]]), torch.eye(2), [WANDER, WANDER], BLUR)


def flight() -> TemporalPredictiveCoding:
    """The true model of the flight; state (x, y, velocity of x, velocity of y)."""
    eye, none = torch.eye(2), torch.zeros(2, 2)
    return _system(torch.cat([torch.cat([eye, eye], 1), torch.cat([none, FRICTION * eye], 1)]), torch.cat([eye, none], 1),
                   [DRIFT, DRIFT, PUSH, PUSH], NOISE)


def _system(transition: Tensor, emission: Tensor, state_scale: list[float], scale: float) -> TemporalPredictiveCoding:
    model = zoo.build("temporal", (LENGTH, 2), units=len(transition), scale=scale, decoder_bias=False).double().requires_grad_(False)
    model.transition.weight.copy_(transition)
    model.emission.weight.copy_(emission)
    model.state_log_scale.copy_(torch.tensor(state_scale).log())
    return model


def tracking(model: TemporalPredictiveCoding, count: int, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    trace = poutine.trace(model).get_trace(size=2 * count)
    x, z = trace.nodes["x"]["value"], torch.stack([trace.nodes[f"z{t}"]["value"] for t in range(1, LENGTH + 1)], 1)
    ways = {"point": ("point", None), "steady": ("precision", None), "curvature": ("curvature", None)}
    seconds = {}
    for rule in ("likelihood", "local") if model.units <= 2 else ("likelihood",):
        began = time.perf_counter()
        ways[rule] = ("precision", learn_precision(model, x[count:], rule=rule, skip=SKIP, tolerance=1e-4 if rule == "local" else 1e-6))
        seconds[rule] = time.perf_counter() - began
    x, z = x[:count], z[:count]
    oracle = LinearDynamicalSystem.of(model)
    kalman, rows = oracle.filtered(x), []
    for name, (carry, precision) in ways.items():
        found = filter(model, x, carry, precision=precision)
        rows.append({"carry": name, **_errors(found.mean, z), **_nats(found.log_density[:, SKIP:]),
                     "rms_to_kalman": (found.mean - kalman.mean)[:, SKIP:].square().mean().sqrt().item()})
    rows.append({"carry": "smoother", **_errors(oracle.smoothed(x).mean, z)})
    expected = steady_state(model.dynamics())[1].diagonal()[:2].mean().item()
    return {"rows": rows, "expected_mse_position_of_kalman": expected, "seconds_learning_precision": seconds}


def patches(options: argparse.Namespace) -> dict[str, Any]:
    data = zoo.data.load(options.patches, n_train=options.train, n_test=options.test, seed=options.seed)
    train, test = data.train.x, data.test.x
    model = zoo.build("temporal", data, units=options.units, scale=0.5, learn_scale="image", state_scale=0.3, learn_state_scale=True,
                      learn_prior=True, seed=options.seed)
    history = by_evidence(model, train, options.steps, options.seed)
    model.requires_grad_(False)
    local = zoo.build("temporal", data, units=options.units, scale=0.5, learn_scale="image", state_scale=0.3, learn_state_scale=True,
                      learn_prior=True, seed=options.seed).requires_grad_(False)
    for name in ("log_scale", "state_log_scale", "first"):
        getattr(local, name).copy_(getattr(model, name))
    local.emission.weight.copy_(normalize(local.emission.weight, dim=0) * model.emission.weight.norm(dim=0))
    rows = [{"weights": "none", "carry": "persistence", **_nats(persistence(train, test))}]
    began = time.perf_counter()
    learn(local, train, steps=options.steps, batch_size=100, lr=1e-2, seed=options.seed)
    seconds = {"evidence": history[-1]["seconds"], "local": time.perf_counter() - began}
    for weights, one in (("evidence", model), ("local", local)):
        rows += _scored(weights, one, train[:1000], test)
    system = model.dynamics()
    setting = {"data": data.name, "about": data.about, "units": options.units, "steps": options.steps, "batch_size": 100,
               "training_sequences": options.train, "held_out_sequences": options.test, "frames": train.shape[1],
               "pixels": math.prod(model.frame_shape), "learning": history[:: max(len(history) // 6, 1)], "seconds": seconds,
               "noise_scale": system.noise_variance[0].sqrt().item(),
               "radius": torch.linalg.eigvals(system.transition).abs().max().item()}
    return {"setting": setting, "rows": rows}


def by_evidence(model: TemporalPredictiveCoding, x: Tensor, steps: int, seed: int) -> list[dict[str, float]]:
    """Ascends the exact log evidence."""
    batches, began, rows = batches_of(x, 100, seed=seed, event_shape=model.event_shape, device=None), time.perf_counter(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1.0 - (step - 1) / steps)
        evidence = kalman_filter(model.dynamics(), model.frames(batches.at(step - 1))).log_evidence
        optimizer.zero_grad()
        (-evidence.mean()).backward()
        optimizer.step()
        if step % 50 == 0 or step == steps:
            rows.append({"step": step, "nats_per_frame": evidence.mean().item(), "seconds": time.perf_counter() - began})
            print(rows[-1], flush=True)
    return rows


def persistence(train: Tensor, test: Tensor) -> Tensor:
    """log N(frame; the frame before, a variance for each pixel), ``(N, T − 1)``."""
    scale = train.double().diff(dim=1).flatten(2).square().mean((0, 1)).sqrt()
    return torch.distributions.Normal(0.0, scale).log_prob(test.double().diff(dim=1).flatten(2)).sum(-1)


def _scored(weights: str, model: TemporalPredictiveCoding, train: Tensor, test: Tensor) -> list[dict[str, Any]]:
    likeliest = learn_precision(model, train, rule="likelihood", skip=3, iterations=100)
    learned = {"point": ("point", None), "likelihood": ("precision", likeliest), "curvature": ("curvature", None)}
    try:
        learned["local"] = ("precision", learn_precision(model, train[:300], skip=3, tolerance=1e-3, iterations=100))
    except RuntimeError as error:  # said in the table
        print(weights, error, flush=True)
    rows = []
    for name, (carry, precision) in learned.items():
        found = filter(model, test, carry, precision=precision)
        error = (test.double() - found.predicted_frames)[:, 1:].flatten(2).square().mean(-1)
        rows.append({"weights": weights, "carry": name, **_nats(found.log_density[:, 1:]), "mse_next_frame": error.mean().item()})
    return rows


def _errors(mean: Tensor, z: Tensor) -> dict[str, float]:
    squares = (mean - z)[:, SKIP:].square().mean(1)
    parts = {"position": squares[:, :2].mean(1)} | ({"velocity": squares[:, 2:].mean(1)} if squares.shape[1] > 2 else {})
    means = {f"mse_{name}": part.mean().item() for name, part in parts.items()}
    return means | {f"mse_{name}_se": _error(part) for name, part in parts.items()}


def _nats(density: Tensor) -> dict[str, float]:
    each = density.mean(1)
    return {"nats": each.mean().item(), "nats_se": _error(each)}


def _error(values: Tensor) -> float:
    """Standard error of the mean over sequences."""
    return (values.std() / math.sqrt(len(values))).item()


if __name__ == "__main__":
    main()
