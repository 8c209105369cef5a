"""What a linear readout knows of the causes of optic flow, from raw pixels and from their principal components; and how frames are spread.

    python benchmarks/rofl_readout.py [--categories fixate-1 fixate-0 obj-1] [--grids grid continuous] [--frames 75000] [--components 420]

For each category, with the discs' angles on pixels as published (``grid``) and anywhere in the field (``continuous``), two sets of frames
are drawn from different seeds. Ordinary least squares with an intercept is fitted on one and scored on the other: R² of each factor in
Cartesian world coordinates, and their plain mean. Principal components are those of the first set. Beside them stand the values published
for the data sets (Vafaii, Yates & Butts 2023) or expected of them, where there are any.
"""

from __future__ import annotations

import argparse
import time

import torch
from record import record
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from torch import Tensor

from zoo.data.base import Data
from zoo.data.rofl import World, accepted, frames, sample

EXPECTED = {
    "fixate-1": {"r2_raw": 0.2356, "r2_components": 0.2373, "components_for_99_percent": 361, "sd": 0.222},
    "fixate-0": {"r2_raw": 0.3285, "r2_components": 0.3285, "components_for_99_percent": 6, "sd": 0.164},
    "obj-1": {"r2_raw": 0.1336, "r2_components": 0.1356, "components_for_99_percent": "more than 420", "sd": 0.136}}
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


def readout(z_fit: Tensor, z_score: Tensor, fit: Data, score: Data, names: tuple[str, ...]) -> dict[str, float]:
    """R² of each factor on the second set, from a regression on the first."""
    g_fit, g_score = (torch.stack([data.factors[name] for name in names], 1).double().numpy() for data in (fit, score))
    guess = LinearRegression(copy_X=True).fit(z_fit.numpy(), g_fit).predict(z_score.numpy())
    return dict(zip(names, map(float, r2_score(g_score, guess, multioutput="raw_values")), strict=True))


def spread(x: Tensor) -> dict[str, object]:
    """Of pixels, rad/s, and of frames' sums over pixels of the length of the flow vector."""
    norms = x.norm(dim=1).sum((-2, -1)).double()
    points = torch.quantile(norms, torch.tensor(QUANTILES, dtype=norms.dtype))
    return {"mean": x.double().mean().item(), "sd": x.double().std().item(), "least": x.min().item(), "greatest": x.max().item(),
            "sum_norm_mean": norms.mean().item(),
            "sum_norm_quantiles": {f"{q:g}": value for q, value in zip(QUANTILES, points.tolist(), strict=True)}}


def acceptance(world: World, proposals: int, seed: int) -> dict[str, float]:
    """Share of proposals that are accepted, and its standard error."""
    block, generator, kept = 1 << 14, torch.Generator().manual_seed(seed), 0
    blocks = max(proposals // block, 1)
    for _ in range(blocks):
        kept += int(accepted(sample(world, block, generator=generator), world).sum())
    rate = kept / (blocks * block)
    return {"rate": rate, "standard_error": (rate * (1.0 - rate) / (blocks * block)) ** 0.5, "proposals": blocks * block}


def measured(world: World, options: argparse.Namespace) -> dict[str, object]:
    """All numbers of one category."""
    began, names = time.perf_counter(), world.cartesian_names
    fit, score = (frames(world, options.frames, seed=options.seed + i) for i in range(2))
    a, b = (data.x.flatten(1).double() for data in (fit, score))
    pca = PCA(svd_solver="covariance_eigh").fit(a.numpy())
    kept = min(options.components, a.shape[1])
    basis, mean = torch.from_numpy(pca.components_[:kept].T.copy()), torch.from_numpy(pca.mean_)
    share = torch.from_numpy(pca.explained_variance_ratio_).cumsum(0)
    raw, components = readout(a, b, fit, score, names), readout((a - mean) @ basis, (b - mean) @ basis, fit, score, names)
    return {"r2_raw": sum(raw.values()) / len(names), "r2_components": sum(components.values()) / len(names), "components": kept,
            "components_for_99_percent": int((share < 0.99).sum()) + 1, "share_of_components": share[kept - 1].item(),
            **spread(fit.x), "acceptance": acceptance(world, 3 * options.frames, options.seed + 2),
            "r2_raw_by_factor": raw, "r2_components_by_factor": components, "expected": EXPECTED.get(world.category),
            "seconds": time.perf_counter() - began}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--categories", nargs="+", default=list(EXPECTED), help="default: all that have an expected value")
    parser.add_argument("--grids", nargs="+", choices=["grid", "continuous"], default=["grid", "continuous"],
                        help="where discs can be (default: both)")
    parser.add_argument("--frames", type=int, default=75_000, help="frames to fit on, and as many to score on (default: %(default)s)")
    parser.add_argument("--components", type=int, default=420, help="principal components that are kept (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of PyTorch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.frames < 1000 or options.components < 1 or options.threads < 1:
        parser.error("--frames must be at least 1000 (578 pixels are regressed on), --components and --threads at least 1")
    try:
        options.worlds = {f"{category} {kind}": World(category, grid=kind == "grid") for category in options.categories
                          for kind in options.grids}
    except ValueError as error:
        parser.error(str(error))
    return options


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    results = {}
    for name, world in options.worlds.items():
        results[name] = measured(world, options)
        row = results[name]
        print(f"{name}: raw {row['r2_raw']:.4f}, components {row['r2_components']:.4f}, {row['components_for_99_percent']} for 99 %, "
              f"sd {row['sd']:.4f}, expected {row['expected']} ({row['seconds']:.0f} s)", flush=True)
    record("rofl_readout", results, seed=options.seed,
           notes=f"{options.frames} frames to fit on, as many to score on, 17 x 17 pixels, no normalization; R2 on the second set, plain "
                 "mean over factors; flow in rad/s; expected: values published for the data sets or expected of them")


if __name__ == "__main__":
    main()
