"""Five ways of learning one generative model of MNIST, each with four ways of inferring: what point estimates cost and buy.

    ZOO_DATA=… python benchmarks/predictive_coding_mnist.py [--steps 400] [--seeds 0 1]

The model is a chain 64 – 128 – 128 – 784 of Normal levels, tanh between them, unit noise in every level and σ = √½ of a pixel (so that
nelbo = mse + kl); its 125,968 parameters are those of the published predictive-coding networks. It is learned by predictive coding (20
gradient steps on the latents, then one on the weights), by its incremental form (both at every tick; as many gradients in all), by Monte
Carlo EM with Langevin chains (MALA), with an amortized guide, and with an iterative one. Every model is then frozen, and held-out images
are inferred by their most probable latents, by an encoder and by learned updates (those it was learned with; otherwise trained on the
frozen model), and by Hamiltonian chains. ``pixels`` and ``pca`` (64 components) are what no learning of causes gives.

Reconstructions are sums of squares over an image; ``mse_top`` is that of what the top level alone predicts. ``accuracy`` is of a logistic
regression of the digit on posterior means, of all levels or of the top one. log p(x) in nats: annealed importance sampling from the
prior, and the importance-weighted bound of the encoder; both are low on average. Published for five networks, after many epochs of 60,000
images: predictive coding R² .8963, mse 7.24, accuracy 90.74 %; incremental R² .8978, mse 7.12, accuracy 91.60 %. Writes
``results/predictive_coding_mnist.json`` (with ``--points``, by the most probable latents alone: ``…_points.json``).
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from device import check_device
from record import record
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import guides
import inference
import zoo
from inference.mcmc.annealing import ais
from inference.methods.amortized import means
from inference.metrics.importance import importance
from zoo.density import counting

PUBLISHED = {"pc": {"mse": 7.242, "r2": 0.8963, "accuracy": 0.9074}, "incremental": {"mse": 7.122, "r2": 0.8978, "accuracy": 0.9160}}
TICKS = 20
# Weight steps for each of predictive coding's, their rate, and what else fit is told.
WAYS: dict[str, dict[str, Any]] = {
    "pc": {"times": 1, "lr": 3e-3, "method": "map", "dynamics": {"steps": TICKS}},
    "incremental": {"times": (TICKS + 2) // 3, "lr": 1e-3, "method": "map", "dynamics": {"steps": TICKS, "incremental": True}},
    "mcmc": {"times": 1, "lr": 3e-3, "method": "mcmc", "sampler": "mala", "transitions": TICKS // 2},
    "amortized": {"times": 3, "lr": 1e-3, "guide": "amortized", "beta_start": 1.0},
    "iterative": {"times": 1, "lr": 1e-3, "guide": "iterative", "beta_start": 1.0},
}
GUIDES: dict[str, dict[str, Any]] = {
    "amortized": {"encoder": "elu"},
    "iterative": {"network": "units", "encodes": ("image", "params", "gradient"), "steps": 5, "particles": 1},
}
AT_ONCE = 2000


def learn(way: str, data: Any, seed: int, options: argparse.Namespace) -> tuple[nn.Module, dict[str, nn.Module], dict[str, Any]]:
    """The model as one of the ways learns it, its guides for inference, and what the learning cost."""
    settings = dict(WAYS[way])
    steps, name = options.steps * settings.pop("times"), settings.pop("guide", None)
    model = zoo.build("predictive_coding", data, levels=(128, 128, 64), activation="tanh", seed=seed).to(options.device)
    own = {} if name is None else {name: guides.build(name, model, seed=seed, **GUIDES[name])}
    common = {"batch_size": options.batch_size, "optimizer": "adam", "seed": seed, "progress": False, "log_every": max(steps // 10, 1)}
    with counting() as cost:
        history = inference.fit(model, own.get(name), data, steps=steps, device=options.device, final_lr=settings["lr"] / 10, **settings,
                                **common)
    seconds = history.rows[-1]["seconds"]
    spent = {"weight_steps": steps, "seconds": seconds, "ms_per_weight_step": 1e3 * seconds / steps,
             "gradients_per_image_of_a_batch": cost.gradients / (steps * options.batch_size),
             "history": [{key: row[key] for key in ("step", "elbo", "log_joint", "slope", "accepted", "seconds") if key in row}
                         for row in history.rows]}
    for other, build in GUIDES.items():
        if other not in own and not options.points:
            own[other] = guides.build(other, model, seed=seed, **build)
            inference.fit(model, own[other], data, steps=options.steps * WAYS[other]["times"] // 2, lr=1e-3, final_lr=1e-4,
                          beta_start=1.0, freeze_model=True, device=options.device, **common)
    return model, own, spent


def codes(infer: Callable[[Tensor], Any], x: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Posterior means ``{site: (N, K)}`` by a way of inferring, and gradients and milliseconds for each image."""
    parts, gradients, began = [], 0, time.perf_counter()
    for batch in x.split(AT_ONCE):
        with counting() as cost:
            parts.append({name: value[0, 0] for name, value in infer(batch).samples.items()})
        gradients += cost.gradients
    spent = {"gradients": gradients / len(x), "ms": 1e3 * (time.perf_counter() - began) / len(x)}
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, spent


def accuracy(fit_on: Tensor, labels: Tensor, scored: Tensor, truth: Tensor) -> float:
    """Of a logistic regression on standardized numbers, on images it has not seen."""
    scaler = StandardScaler().fit(fit_on.flatten(1).cpu().numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it could be fitted for longer, which changes little
        readout = LogisticRegression(max_iter=100).fit(scaler.transform(fit_on.flatten(1).cpu().numpy()), labels.numpy())
    return float(readout.score(scaler.transform(scored.flatten(1).cpu().numpy()), truth.numpy()))


def reconstruction(x: Tensor, prediction: Tensor) -> dict[str, float]:
    """Sum of squared errors, and R² around each image's own mean, as in the literature."""
    squares = (x - prediction).flatten(1).square().sum(1)
    spread = (x - x.mean((1, 2, 3), keepdim=True)).flatten(1).square().sum(1)
    return {"mse": squares.mean().item(), "r2": (1.0 - squares / spread).mean().item()}


@torch.no_grad()
def of_means(model: nn.Module, infer: Callable[[Tensor], Any], data: Any) -> dict[str, float]:
    """What posterior means know of the digit and of the image: all training images against all held-out ones."""
    train, _ = codes(infer, data.train.x)
    test, spent = codes(infer, data.test.x)
    every = [torch.cat(list(part.values()), 1) for part in (train, test)]
    top = model.predict(0, model.predict(1, model.predict(2, test["z3"])))
    labels = data.train.labels, data.test.labels
    return {"accuracy": accuracy(every[0], labels[0], every[1], labels[1]),
            "accuracy_top": accuracy(train["z3"], labels[0], test["z3"], labels[1]), **reconstruction(data.test.x, model.decode(test)),
            "mse_top": reconstruction(data.test.x, top)["mse"], **spent}


def of_draws(model: nn.Module, x: Tensor, posterior: Any) -> dict[str, float]:
    """What its draws are worth, on a few images: nelbo and elbo where its density is known, expected errors."""
    values = inference.score(model, x, posterior).values
    names = {"nelbo": "nelbo", "nelbo_se": "nelbo_se", "elbo": "elbo", "mse": "mse_of_draws", "r2": "r2_of_draws"}
    return {names[name]: values[name] for name in names if not math.isnan(values[name])}


def evidence(model: nn.Module, x: Tensor, guide: nn.Module, seed: int) -> dict[str, float]:
    """log p(x) in nats per image, with standard errors over images; ``chains_se`` is the estimates' own."""
    annealed = ais(model, x, chains=4, temperatures=240, seed=seed)
    weighted = importance(model, x, guide, k=500, seed=seed)

    def error(values: Tensor) -> float:
        return (values.std() / math.sqrt(len(values))).item()

    return {"ais": annealed.log_evidence.mean().item(), "ais_se": error(annealed.log_evidence), "chains_se": annealed.se.mean().item(),
            "iwae": weighted["log_px"].mean().item(), "iwae_se": error(weighted["log_px"]),
            "pareto_k": weighted["pareto_k"].median().item()}


def run(way: str, data: Any, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One model: how it was learned, and every way of inferring under it."""
    model, own, training = learn(way, data, seed, options)
    few = data.test.x[: options.few]
    print(way, seed, {name: value for name, value in training.items() if name != "history"}, flush=True)
    row: dict[str, Any] = {"learning": way, "seed": seed, "training": training,
                           "weight_norms": [part.weight.norm().item() for part in model.maps]}
    by = {"map": lambda x: inference.infer(model, x, "map", steps=options.map_steps)}
    if not options.points:
        row["evidence"] = evidence(model, few, own["amortized"], seed)
        print(row["evidence"], flush=True)
        by |= {name: lambda x, guide=guide: means(guide, x) for name, guide in own.items()}
    row["inferring"] = {name: of_means(model, infer, data) for name, infer in by.items()}
    for name, guide in own.items() if not options.points else ():
        row["inferring"][name] |= of_draws(model, few, inference.infer(model, few, name, guide=guide, draws=50, seed=seed))
    if not options.points:
        chains = inference.infer(model, few, "mcmc", guide=own["amortized"], sampler="hmc", steps=8, draws=100, warmup=100, chains=2,
                                 seed=seed)
        row["inferring"]["mcmc"] = {"gradients": chains.cost["gradient_evaluations"], "ms": 1e3 * chains.cost["seconds"] / len(few),
                                    "rhat_median": chains.stats["rhat"].median().item(), **of_draws(model, few, chains)}
    for name, found in row["inferring"].items():
        print(way, name, {key: round(value, 4) for key, value in found.items()}, flush=True)
    return row


def baselines(data: Any) -> dict[str, dict[str, float]]:
    """Pixels, and as many principal components as the top level has units."""
    x, center = data.train.x.flatten(1), data.train.x.flatten(1).mean(0)
    axes = torch.linalg.eigh((x - center).T @ (x - center)).eigenvectors[:, -64:]
    train, test = ((part.x.flatten(1) - center) @ axes for part in (data.train, data.test))
    labels = data.train.labels, data.test.labels
    back = (center + test @ axes.T).reshape(data.test.x.shape)
    return {"pixels": {"accuracy": accuracy(data.train.x, labels[0], data.test.x, labels[1])},
            "pca": {"accuracy": accuracy(train, labels[0], test, labels[1]), **reconstruction(data.test.x, back)}}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and standard deviations where there are several."""
    table: dict[str, Any] = {}
    for way in dict.fromkeys(row["learning"] for row in rows):
        mine = [row for row in rows if row["learning"] == way]
        for name in mine[0]["inferring"]:
            found = [row["inferring"][name] for row in mine]
            table[f"{way} / {name}"] = {key: [statistics.mean(part[key] for part in found)] + (
                [statistics.stdev(part[key] for part in found)] if len(found) > 1 else []) for key in found[0]}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="weight steps of predictive coding (default: %(default)s)")
    parser.add_argument("--images", type=int, default=10_000, help="training images (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=10_000, help="held-out images (default: %(default)s)")
    parser.add_argument("--few", type=int, default=100, help="of them, images of evidence and chains (default: %(default)s)")
    parser.add_argument("--map-steps", type=int, default=50, help="Adam steps of the most probable latents (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--points", action="store_true", help="infer by the most probable latents alone: no guides, chains or evidence")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    check_device(parser, options.device)
    data = zoo.data.load("mnist", n_train=options.images, n_test=options.held_out)
    began, rows = time.perf_counter(), []
    other = baselines(data)
    print(other, flush=True)
    data = data if options.device == "cpu" else data.to(options.device)
    for seed in options.seeds:
        for way in options.ways:
            rows.append(run(way, data, seed, options))
            results = {"summary": summary(rows), "baselines": other, "published": PUBLISHED, "rows": rows,
                       "minutes": (time.perf_counter() - began) / 60}
            record("predictive_coding_mnist" + "_points" * options.points, results, seed=options.seeds[0],
                   notes=f"{options.images} training images, {options.steps} weight steps of predictive coding; summary: mean and, of "
                         "several seeds, standard deviation; the machine was shared while this ran: compare seconds within this file only")


if __name__ == "__main__":
    main()
