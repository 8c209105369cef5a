"""A model trained on digits infers what it has not seen: rotated and noisy digits, other scripts. Encoders against inference as a process.

    ZOO_DATA=… python benchmarks/out_of_distribution.py [--family poisson] [--model-steps 4000] [--guide-steps 600] [--images 500]

One frozen model (linear decoder) and one linear encoder; an iterative guide trained on the same digits; natural-gradient steps and the
encoder's refinement need no training. NELBO in nats per image; accuracy of a logistic regression on posterior means of the code, fitted on
clean training digits inferred in the same way (for Omniglot, whose classes are others: on half of each held-out character's images, tested
on the other half). Writes ``results/out_of_distribution_<family>.json`` and a figure.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from device import check_device
from out_of_distribution_figure import plot_shift
from record import RESULTS, record
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional

import guides
import inference
import zoo
from inference.choices import choose_objective
from inference.metrics.decodability import mean_code
from inference.plots.style import save
from inference.recipes import recipe

ANGLES, NOISES = (15, 30, 60, 90, 180), (0.1, 0.2, 0.4)  # degrees; standard deviations, of pixels in [0, 1]


def rotated(x: Tensor, degrees: float) -> Tensor:
    """Images ``(N, channels, height, width)`` turned counterclockwise by bilinear interpolation, zeros outside."""
    turn = math.radians(degrees)
    matrix = torch.tensor([[math.cos(turn), -math.sin(turn), 0.0], [math.sin(turn), math.cos(turn), 0.0]]).to(x)
    grid = functional.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)


def shifts(x: Tensor, seed: int) -> dict[str, Tensor]:
    """The images as they are, turned, and with Gaussian noise."""
    generator = torch.Generator(x.device).manual_seed(seed)
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    return ({"as trained": x} | {f"rotated {angle}°": rotated(x, angle) for angle in ANGLES}
            | {f"noise {sd}": x + sd * noise for sd in NOISES})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="poisson")
    parser.add_argument("--latents", type=int, default=512)
    parser.add_argument("--images", type=int, default=500, help="held-out images of each kind (default: %(default)s)")
    parser.add_argument("--fitted-on", type=int, default=2000, help="training digits of the classifier (default: %(default)s)")
    parser.add_argument("--model-steps", type=int, default=4000)
    parser.add_argument("--guide-steps", type=int, default=600)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    check_device(parser, options.device)
    digits, letters = zoo.data.load("mnist").to(options.device), zoo.data.load("omniglot").to(options.device)
    model, ways = trained(digits, options)
    few = digits.train[: options.fitted_on]
    images = shifts(digits.test.x[: options.images], options.seed)
    rows: list[dict[str, Any]] = []
    for way, (method, guide, settings) in ways.items():
        def codes(x: Tensor, method: str = method, guide: nn.Module = guide, settings: dict = settings) -> Tensor:
            return mean_code(model, inference.infer(model, x, method, guide=guide, draws=1, **settings)).cpu()

        classify = _classifier(codes(few.x), few.labels)
        for kind, x in images.items():
            accuracy = classify.score(codes(x).numpy(), digits.test.labels[: len(x)].cpu().numpy())
            rows.append({"way": way, "images": kind, **_bound(model, x, method, guide, settings), "accuracy": accuracy})
            print(rows[-1], flush=True)
        x, labels = letters.test.x, letters.test.labels.cpu()
        first = torch.arange(len(x)) % 2 == 0
        found = codes(x)
        accuracy = _classifier(found[first], labels[first]).score(found[~first].numpy(), labels[~first].numpy())
        bound = _bound(model, x[: options.images], method, guide, settings)
        rows.append({"way": way, "images": "Omniglot", **bound, "accuracy": accuracy, "chance": 1 / len(labels.unique())})
        print(rows[-1], flush=True)
    results = {"rows": rows, "guide_steps": options.guide_steps, "model_steps": options.model_steps}
    path = record(f"out_of_distribution_{options.family}", results, seed=options.seed, notes=(
        "NELBO in nats per image ± standard error over images; accuracy: logistic regression on posterior means, held out; model and "
        "guides were trained on upright, clean MNIST"))
    save(plot_shift(rows, title=f"{options.family} latents, trained on MNIST: inference out of distribution"), RESULTS / f"{path.stem}.png")


def trained(data: Any, options: argparse.Namespace) -> tuple[nn.Module, dict[str, tuple[str, nn.Module | None, dict[str, Any]]]]:
    """The frozen model, and the ways of inferring: method, guide and options."""
    objective = choose_objective(options.family, "lin")
    model = zoo.build(options.family, data, latents=options.latents, seed=options.seed)
    encoder = guides.build("amortized", model, encoder="lin", seed=options.seed)
    settings = recipe("default", "mnist") | {"steps": options.model_steps}
    inference.fit(model, encoder, data, objective=objective, seed=options.seed, device=options.device, progress=False, **settings)
    again = {"batch_size": 250, "optimizer": "adam", "lr": 3e-3, "final_lr": 1e-5, "beta_start": 1.0, "freeze_model": True,
             "progress": False, "seed": options.seed, "objective": objective}
    inference.fit(model, encoder, data, steps=options.model_steps // 2, **again)  # the encoder at its best on this very model
    learned = guides.build("iterative", model, seed=options.seed)
    inference.fit(model, learned, data, steps=options.guide_steps, **again)
    print("trained", flush=True)
    return model, {"encoder (lin)": ("amortized", encoder, {}), "iterative, 8 steps": ("iterative", learned, {"steps": 8}),
                   "iterative, 32 steps": ("iterative", learned, {"steps": 32}), "natural, 32 steps": ("natural", None, {"steps": 32}),
                   "semi, 8 steps": ("semi", encoder, {"steps": 8}), "local, 300 steps": ("local", encoder, {"steps": 300})}


def _classifier(codes: Tensor, labels: Tensor) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=0.1)).fit(codes.numpy(), labels.cpu().numpy())


def _bound(model: nn.Module, x: Tensor, method: str, guide: nn.Module | None, settings: dict[str, Any]) -> dict[str, float]:
    posterior = inference.infer(model, x, method, guide=guide, draws=2, **settings)
    values = inference.score(model, x, posterior, k=2).values
    return {"nelbo": values["nelbo"], "nelbo_se": values["nelbo_se"], "mse": values["mse"]}


if __name__ == "__main__":
    main()
