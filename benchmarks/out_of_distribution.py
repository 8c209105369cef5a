"""A model infers what it has not seen: rotated and noisy images, other kinds of images. Encoders against inference as a process.

    ZOO_DATA=… python benchmarks/out_of_distribution.py [--family poisson] [--data mnist] [--model-steps 4000] [--guide-steps 600]

One frozen model (linear decoder) and one linear encoder; an iterative guide trained on the same images; natural-gradient steps and the
encoder's refinement need no training. NELBO in nats per image; accuracy of a logistic regression on posterior means of the code. Of digits
it is fitted on clean training digits inferred in the same way, of Omniglot, whose classes are others, on half of each held-out character's
images and tested on the other half. Models of ``--data patches`` (whitened, each of mean 0 and variance 1) see digits and characters shrunk
to 16 × 16 pixels and brought to the same mean and variance; patches themselves have no classes, and by angles that are not right ones
they are turned at a loss of contrast (empty corners, smoothing), so that their NELBO falls; ways compare all the same. Writes
``results/out_of_distribution_<family>[_<data>].json`` and a figure.
"""

from __future__ import annotations

import argparse
import math
from typing import Any, NamedTuple

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

ANGLES = (15, 30, 60, 90, 180)  # degrees
NOISES = {"mnist": (0.1, 0.2, 0.4), "patches": (0.25, 0.5, 1.0)}  # standard deviations, of pixels in [0, 1] and of variance 1

TRAINED_ON = {"mnist": "upright, clean MNIST", "patches": "natural patches"}


class Kind(NamedTuple):
    """Images of one kind ``(N, …)``, their classes, and images with classes for a classifier to be fitted on; None where there are none."""

    x: Tensor
    labels: Tensor | None = None
    fitted_on: tuple[Tensor, Tensor] | None = None


def rotated(x: Tensor, degrees: float) -> Tensor:
    """Images ``(N, channels, height, width)`` turned counterclockwise by bilinear interpolation, zeros outside."""
    turn = math.radians(degrees)
    matrix = torch.tensor([[math.cos(turn), -math.sin(turn), 0.0], [math.sin(turn), math.cos(turn), 0.0]]).to(x)
    grid = functional.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)


def shifts(x: Tensor, noises: tuple[float, ...], seed: int) -> dict[str, Tensor]:
    """The images as they are, turned, and with Gaussian noise."""
    generator = torch.Generator(x.device).manual_seed(seed)
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    return ({"as trained": x} | {f"rotated {angle}°": rotated(x, angle) for angle in ANGLES}
            | {f"noise {sd}": x + sd * noise for sd in noises})


def shrunk(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Images of another size, each of mean 0 and variance 1."""
    x = functional.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
    x = x - x.mean((-2, -1), keepdim=True)
    return x / x.square().mean((-2, -1), keepdim=True).sqrt().clamp(min=1e-6)


def kinds(data: Any, options: argparse.Namespace) -> dict[str, Kind]:
    """What is shown, by name."""
    digits, letters = zoo.data.load("mnist").to(options.device), zoo.data.load("omniglot").to(options.device).test
    same = shifts(data.test.x[: options.images], NOISES[options.data], options.seed)
    few, held_out, letters_x = digits.train[: options.fitted_on], digits.test[: options.images], letters.x
    if options.data == "mnist":
        found = {kind: Kind(x, held_out.labels, (few.x, few.labels)) for kind, x in same.items()}
    else:
        size = tuple(data.event_shape[1:])
        letters_x = shrunk(letters_x, size)
        found = {kind: Kind(x) for kind, x in same.items()}
        found["MNIST"] = Kind(shrunk(held_out.x, size), held_out.labels, (shrunk(few.x, size), few.labels))
    first = torch.arange(len(letters_x)) % 2 == 0
    found["Omniglot"] = Kind(letters_x[~first], letters.labels[~first], (letters_x[first], letters.labels[first]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="poisson")
    parser.add_argument("--data", default="mnist", choices=NOISES)
    parser.add_argument("--latents", type=int, default=512)
    parser.add_argument("--images", type=int, default=500, help="held-out images of each kind but Omniglot (default: %(default)s)")
    parser.add_argument("--fitted-on", type=int, default=2000, help="training digits of the classifier (default: %(default)s)")
    parser.add_argument("--model-steps", type=int, default=4000)
    parser.add_argument("--guide-steps", type=int, default=600)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    check_device(parser, options.device)
    data = zoo.data.load(options.data).to(options.device)
    shown = kinds(data, options)
    model, ways = trained(data, options)
    rows: list[dict[str, Any]] = []
    for way, (method, guide, settings) in ways.items():
        def codes(x: Tensor, method: str = method, guide: nn.Module | None = guide, settings: dict = settings) -> Tensor:
            return mean_code(model, inference.infer(model, x, method, guide=guide, draws=1, **settings)).cpu()

        classifiers: dict[int, Any] = {}
        for name, kind in shown.items():
            row = {"way": way, "images": name, **_bound(model, kind.x, method, guide, settings)}
            if kind.fitted_on is not None:
                fit_x, fit_labels = kind.fitted_on
                if id(fit_x) not in classifiers:  # the same digits serve all shifts of digits
                    classifiers[id(fit_x)] = _classifier(codes(fit_x), fit_labels)
                row["accuracy"] = classifiers[id(fit_x)].score(codes(kind.x).numpy(), kind.labels.cpu().numpy())
                row["chance"] = 1 / len(fit_labels.unique())
            rows.append(row)
            print(row, flush=True)
    results = {"rows": rows, "guide_steps": options.guide_steps, "model_steps": options.model_steps}
    name = f"out_of_distribution_{options.family}" + ("" if options.data == "mnist" else f"_{options.data}")
    path = record(name, results, seed=options.seed, notes=(
        "NELBO in nats per image ± standard error over images; accuracy: logistic regression on posterior means, held out; model and "
        f"guides were trained on {TRAINED_ON[options.data]}"))
    title = f"{options.family.capitalize()} latents, trained on {TRAINED_ON[options.data]}: inference out of distribution"
    save(plot_shift(rows, title=title), RESULTS / f"{path.stem}.png")


def trained(data: Any, options: argparse.Namespace) -> tuple[nn.Module, dict[str, tuple[str, nn.Module | None, dict[str, Any]]]]:
    """The frozen model, and the ways of inferring: method, guide and options."""
    objective = choose_objective(options.family, "lin")
    model = zoo.build(options.family, data, latents=options.latents, seed=options.seed)
    encoder = guides.build("amortized", model, encoder="lin", seed=options.seed)
    settings = recipe("default", options.data) | {"steps": options.model_steps}
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
