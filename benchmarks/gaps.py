"""What inference loses, in nats: approximation and amortization gaps of each model on held-out images.

    python benchmarks/gaps.py [--data patches] [--models gaussian laplace categorical poisson] [--budget default] [--out folder]

It is ``zoo compare`` with all four ways of inferring, of which the numbers with their standard errors are recorded; cells that the folder
already holds are not computed again.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from record import record

import inference

KEPT = ("elbo", "log_evidence", "log_evidence_se", "inference_gap", "inference_gap_se", "gap", "gap_se", "mean_distance", "sliced_w2",
        "c2st", "rhat", "ess", "log_px_bound", "pareto_k", "ms_per_image")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="patches", help="default: %(default)s")
    parser.add_argument("--models", nargs="+", default=["gaussian", "laplace", "categorical", "poisson"], help="default: the four")
    parser.add_argument("--budget", default="default", help="smoke, default or paper (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("zoo-gaps"), help="folder of the comparison (default: %(default)s)")
    parser.add_argument("--device", help="cpu or cuda; a GPU if there is one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = inference.compare(options.data, options.models, seeds=[options.seed], budget=options.budget, out=options.out,
                               device=options.device)
    rows = [{"model": row["model"], "method": row["method"],
             **{name: row[name] for name in KEPT if not math.isnan(row[name])}} for row in result.records]
    record(f"gaps_{options.data.replace('/', '_')}_{options.budget}", {"rows": rows}, seed=options.seed,
           notes="nats per image; inference_gap of 'local' is the approximation gap, gap the amortization gap; standard errors over images")


if __name__ == "__main__":
    main()
