"""What affine flows over space and time whiten, in nats and correlations: photographs, linear systems, drifting gaze, optic flow.

    python benchmarks/whitening.py [--steps 200] [--seed 0]

Spatial: raw 12 × 12 patches of the embedded photographs; ZCA and Cholesky learned by gradient against their closed forms. Temporal: AR(2)
processes with known coefficients, then held-out log densities of sequences with 0, 1 and 2 temporal layers, over a diagonal Gaussian and
over a spatial flow for each frame: with time first (temporal layers are learned over a diagonal base, the spatial flow is then fitted, in
closed form, to what they leave) and with space first (linear temporal layers, fitted to what the spatial flow leaves).
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from record import RESULTS, record
from torch import Tensor

import zoo
from inference.plots import plot_autocorrelation, plot_filters, save
from zoo import flows
from zoo.data.patches import TEST, TRAIN, photograph
from zoo.flows.base import Stack
from zoo.flows.correlation import autocorrelation, noise_band
from zoo.flows.density import FlowDensity
from zoo.flows.matrices import KINDS, moments, row_statistics
from zoo.flows.spatial import Spatial, spatial

PATCH, MIDDLE = (1, 12, 12), (6, 6)
LAGS = 10
LADDER = {"no layer": "", "1 layer": "{}", "2 layers": "{0}+{0}"}


def raw_patches(names: tuple[str, ...], count: int, seed: int) -> Tensor:
    """Patches of photographs of mean 0 and variance 1, not whitened, as many from each, ``(count, 1, 12, 12)``."""
    generator = np.random.default_rng(seed)
    parts = []
    for name in names:
        image = photograph(name)
        windows = np.lib.stride_tricks.sliding_window_view((image - image.mean()) / image.std(), PATCH[1:])
        parts.append(windows[tuple(generator.integers(n, size=count // len(names)) for n in windows.shape[:2])])
    return torch.from_numpy(np.concatenate(parts)[:, None].astype(np.float32))


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1].item()


def in_space(steps: int, seed: int) -> dict[str, Any]:
    train, test = raw_patches(TRAIN, 40_000, seed), raw_patches(TEST, 6_000, seed + 1)
    pixels, own = 144, MIDDLE[0] * PATCH[2] + MIDDLE[1]
    _, covariance = moments(train, 3)
    spectrum = torch.linalg.eigvalsh(covariance)
    closed = {kind: matrix(covariance) for kind, matrix in KINDS.items()}

    def per_pixel(density: FlowDensity) -> Tensor:
        with torch.no_grad():
            return density.log_prob(test).double() / pixels

    diagonal = per_pixel(FlowDensity(Stack([], PATCH), "diagonal").start(train))
    held_out = {kind: per_pixel(FlowDensity(spatial(kind, PATCH)).start(train)) for kind in KINDS}
    gains = {kind: value - diagonal for kind, value in held_out.items()}
    learned: dict[str, Spatial] = {}
    rows = {}
    for kind in ("zca", "cholesky"):
        learned[kind], began = spatial(kind, PATCH), time.perf_counter()
        density = FlowDensity(learned[kind])
        density.fit(train, steps=5 * steps, batch_size=200, lr=0.1 if kind == "zca" else 0.2, final_lr=1e-3, seed=seed)
        matrix, value = learned[kind].matrix().detach().double(), per_pixel(density)
        each = [correlation(matrix[i], closed[kind][i]) for i in range(pixels)]
        rows[kind] = {
            "correlation_with_closed_form": correlation(matrix, closed[kind]), "worst_filter_correlation": min(each),
            "nats_per_pixel_less_than_closed_form": (held_out[kind] - value).mean().item(),
            "largest_difference_of_log_density_nats_per_pixel": (held_out[kind] - value).abs().max().item(),
            "middle_filter": row_statistics(matrix[own], PATCH, MIDDLE), "fit_seconds": round(time.perf_counter() - began, 1)}
    save(plot_filters({"zca": learned["zca"].matrix(), "cholesky": learned["cholesky"].matrix(), "pca": closed["pca"]}, PATCH,
                      title="Whitening natural patches, three ways"), RESULTS / "whitening_filters.png")
    participation = {kind: (matrix.square().sum(1).square() / matrix.pow(4).sum(1)).mean().item() / pixels
                     for kind, matrix in closed.items()}
    return {
        "patches": {"train": len(train), "test": len(test), "covariance_condition": (spectrum[-1] / spectrum[0]).item()},
        "diagonal_nats_per_pixel": diagonal.mean().item(),
        "gain_over_diagonal_nats_per_pixel": {kind: value.mean().item() for kind, value in gains.items()},
        "gain_se": gains["zca"].std().item() / len(test) ** 0.5,
        "largest_difference_between_kinds_nats_per_pixel": (held_out["zca"] - held_out["cholesky"]).abs().max().item(),
        "learned": rows, "closed_form_middle_filter": {kind: row_statistics(closed[kind][own], PATCH, MIDDLE) for kind in rows},
        "mean_participation_of_filters": participation}


def autoregressive(count: int, frames: int, coefficients: Tensor, generator: torch.Generator) -> Tensor:
    """Sequences ``(count, frames, pixels)`` of AR(2) processes with coefficients ``(2, pixels)`` and unit noise, after 300 frames."""
    noise = torch.randn(count, frames + 300, coefficients.shape[1], generator=generator)
    x = torch.zeros_like(noise)
    for t in range(2, noise.shape[1]):
        x[:, t] = coefficients[0] * x[:, t - 1] + coefficients[1] * x[:, t - 2] + noise[:, t]
    return x[:, 300:]


def linear_systems(seed: int, count: int = 500, frames: int = 32, pixels: int = 36) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    radius, angle = (low + (high - low) * torch.rand(pixels, generator=generator) for low, high in ((0.6, 0.95), (0.1, 1.5)))
    truth = torch.stack([2 * radius * angle.cos(), -radius.square()])  # complex roots inside the unit circle
    train, test = (autoregressive(count, frames, truth, generator) for _ in range(2))
    band = torch.tensor([noise_band(count * (frames - lag)) for lag in range(1, LAGS + 1)])[:, None]
    tests = LAGS * pixels
    rows: dict[str, Any] = {"sequences": count, "frames": frames, "pixels": pixels, "correlations": tests,
                            "outside_by_chance": 0.05 * tests, "outside_by_chance_sd": (0.05 * 0.95 * tests) ** 0.5}
    kept = {"x": autocorrelation(test, LAGS)}
    for label, flow in (("1 layer, past 1", flows.build("ar", (frames, pixels), past=1)),
                        ("2 layers, past 1", flows.build("ar+ar", (frames, pixels), past=1)),
                        ("1 layer, past 2", flows.build("ar", (frames, pixels), past=2))):
        density = FlowDensity(flow).start(train)
        with torch.no_grad():
            kept[label] = autocorrelation(flow.inv(test), LAGS)
            value = density.log_prob(test).mean().item() / frames / pixels
        rows[label] = {"outside": int((kept[label][1:].abs() > band).sum()), "largest": kept[label][1:].abs().max().item(),
                       "nats_per_number": value}
    rows["x"] = {"outside": int((kept["x"][1:].abs() > band).sum()), "largest": kept["x"][1:].abs().max().item()}
    rows["entropy_of_the_noise_nats_per_number"] = -0.5 * (1.0 + float(np.log(2 * np.pi)))
    rows["largest_error_of_a_coefficient"] = (flow.weight[2] - truth).abs().max().item()
    pairs = [count * (frames - lag) for lag in range(LAGS + 1)]
    save(plot_autocorrelation(kept, pairs, title="36 AR(2) processes, held out"), RESULTS / "whitening_autocorrelation.png")
    return rows


def sequences(name: str, steps: int, seed: int, **options: Any) -> dict[str, Any]:
    """Held-out nats per frame for every number of temporal layers, and the correlation of neighbouring frames that is left."""
    data = zoo.data.load(name, seed=seed, **options)
    train, test = data.train.x, data.test.x
    frames = data.event_shape[0]
    rows: dict[str, Any] = {"train": len(train), "test": len(test), "shape": list(data.event_shape), **options,
                            "neighbouring_frames_correlation": autocorrelation(test, 1)[1].mean().item()}
    base: dict[str, Tensor] = {}
    for kind, past in (("ar", 2), ("conv", 2), ("var", 1)):
        for layers, pattern in LADDER.items():
            if kind != "ar" and layers == "no layer":
                continue
            began, wanted = time.perf_counter(), pattern.format(kind)
            temporal = flows.build(wanted, data.event_shape, past=past) if wanted else Stack([], data.event_shape)
            over_pixels = FlowDensity(temporal, "diagonal").start(train)
            if kind == "conv":
                over_pixels.fit(train, steps=steps, batch_size=32, lr=5e-3, seed=seed)
            with torch.no_grad():
                left = temporal.inv(test)
                per_frame = flows.build("zca", data.event_shape)
                FlowDensity(per_frame).start(temporal.inv(train))
                values = {"diagonal": over_pixels.log_prob(test) / frames,
                          "zca": FlowDensity(Stack([temporal, per_frame])).log_prob(test) / frames}
            row = {"neighbouring_frames_correlation": autocorrelation(left, 1)[1].mean().item()}
            for over, value in values.items():
                base.setdefault(over, value)
                gain = value - base[over]
                row[over] = {"nats_per_frame": value.mean().item(), "gain": gain.mean().item(),
                             "gain_se": gain.std().item() / len(test) ** 0.5}
            row["seconds"] = round(time.perf_counter() - began, 1)
            rows[layers if not wanted else f"{kind}, {layers}"] = row
            print(name, wanted or "none", row, flush=True)
    rows["space first"] = space_first(train, test)
    print(name, rows["space first"], flush=True)
    return rows


def space_first(train: Tensor, test: Tensor) -> dict[str, Any]:
    """Nats per frame of linear temporal layers over frames that are already whitened in space, and what they gain over no layer.

    Each flow is of greatest likelihood given those before it, so that on the training part none can lose.
    """
    shape, rows = tuple(train.shape[1:]), {}
    with torch.no_grad():
        for space, kind, past in (("zca", "ar", 2), ("pca", "ar", 2), ("zca", "var", 1)):
            base = FlowDensity(flows.build(space, shape).fit(train)).log_prob(test) / shape[0]
            for layers in (1, 2):
                stack = flows.build("+".join([space] + [kind] * layers), shape, past=past).fit(train)
                value = FlowDensity(stack).log_prob(test) / shape[0]
                rows[f"{space}, then {kind}, {layers} layers"] = {
                    "nats_per_frame": value.mean().item(), "gain": (value - base).mean().item(),
                    "gain_se": (value - base).std().item() / len(test) ** 0.5}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="of each convolutional flow; five times as many of a spatial one "
                                                               "(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    results = {
        "space": in_space(options.steps, options.seed), "ar2": linear_systems(options.seed),
        "moving_patches": sequences("moving_patches", options.steps, options.seed, n_train=3000, n_test=600),
        "rofl_sequences/fixate-0": sequences("rofl_sequences/fixate-0", options.steps // 2, options.seed, n_train=2000, n_test=400,
                                             n_validation=1, noise=0.02)}
    record("whitening", results | {"steps": options.steps}, seed=options.seed,
           notes="Held-out log densities. space: raw 12 x 12 patches, each photograph of mean 0 and variance 1; a filter's weights are "
                 "relative to its own pixel. ar2: correlations (pixel, lag 1 to 10) outside +-1.96 / sqrt(pairs); by chance it is one in "
                 "twenty. Sequences: gains are paired differences from 'no layer' over the same base law, standard errors over "
                 "sequences; ar and conv predict from 2 frames, var from 1; the base 'zca' is one spatial flow for all frames, fitted to "
                 "what the temporal layers leave: learned jointly, they could only be better on the training part")


if __name__ == "__main__":
    main()
