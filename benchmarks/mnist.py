"""The published recipe on MNIST: lin|lin, K = 512, exact objective, against the published NELBO of Vafaii, Galor & Yates 2024.

    python benchmarks/mnist.py poisson
    python benchmarks/mnist.py gaussian

About an hour on one core; ``--checkpoint folder`` makes it go on where it was stopped. Needs the MNIST files (fetched, or
taken from the folder ``ZOO_DATA``).
"""

from __future__ import annotations

import argparse

import torch
from record import record

import guides
import inference
import zoo
from inference.recipes import recipe

PUBLISHED = {"poisson": 41.46, "gaussian": 40.55, "laplace": 42.09, "categorical": 56.08}  # exact objective, mean of 5 seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=PUBLISHED)
    parser.add_argument("--epochs", type=int, default=recipe("paper", "mnist")["epochs"])
    parser.add_argument("--encoder", default="lin")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpoint")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    data = zoo.data.load("mnist")
    model = zoo.build(options.model, data, latents=512, decoder="lin", seed=options.seed)
    guide = guides.build("amortized", model, encoder=options.encoder, seed=options.seed)
    settings = recipe("paper", "mnist") | {"epochs": options.epochs}
    history = inference.fit(
        model, guide, data, objective="exact", seed=options.seed, device=options.device, compile=options.compile,
        checkpoint=options.checkpoint, log_every=3000, progress=lambda *report: print(*report, flush=True), **settings)
    x = data.test.x.to(options.device)
    posterior = inference.infer(model, x, method="amortized", guide=guide, draws=10, seed=options.seed)
    scores = inference.score(model, x, posterior, k=10)
    record(f"mnist_{options.model}_{options.encoder}", {
        "published_nelbo": PUBLISHED[options.model], "training_seconds": history.rows[-1]["seconds"], "settings": settings,
        "test": scores.values}, seed=options.seed,
        notes="nelbo = expected sum of squared errors over exact latents (closed form) + KL, on the 10,000 test images")


if __name__ == "__main__":
    main()
