"""What a step of inference by gradient dynamics costs here and in pcx, the predictive-coding library in JAX (Pinchetti et al. 2025).

    python3 -m venv pcx && pcx/bin/pip install pcx==0.6.3 'jax[cpu]<0.5'
    python benchmarks/predictive_coding_pcx.py --python pcx/bin/python [--networks small mnist] [--batches 64 256] [--steps 50] [--turns 25]

Networks and steps are those of ``predictive_coding.py``. pcx runs in another interpreter, both on one thread, in three forms: a compiled
step called from Python ("stepped"), all steps unrolled in one compiled function, as in its examples ("unrolled"), and its ``scan``
("scanned"). All must end where ours ends. The four run in turn, A B C D A B C D …, in blocks; ratios are of blocks of one turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

FORMS = ("stepped", "unrolled", "scanned")
ONE_THREAD = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
              "OMP_NUM_THREADS": "1"}


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds that ``run`` takes, by the clock and of all of this process's threads."""
    began, busy = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - began, time.process_time() - busy


# In the interpreter that has pcx; it need not have PyTorch, so each side imports its own libraries where it needs them.


def network(weights: list, biases: list, x: list) -> Any:
    """A chain of value nodes, the top first and the clamped image ``x`` ``(N, D)`` last: h ~ N(W tanh(h above) + b, 1), the top N(0, 1)."""
    import jax.numpy as jnp
    import pcx.nn as pxnn
    import pcx.predictive_coding as pxc

    class Chain(pxc.EnergyModule):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [pxnn.Linear(len(weight[0]), len(weight)) for weight in reversed(weights)]
            for layer, weight, bias in zip(self.layers, reversed(weights), reversed(biases), strict=True):
                layer.nn.weight.set(jnp.asarray(weight))
                layer.nn.bias.set(jnp.asarray(bias))
            self.vodes = [pxc.Vode() for _ in range(len(weights) + 1)]
            self.vodes[-1].h.set(jnp.asarray(x))
            self.vodes[-1].h.frozen = True

        def __call__(self) -> None:
            h = self.vodes[0](jnp.zeros(self.layers[0].nn.weight.shape[1]))
            for layer, vode in zip(self.layers, self.vodes[1:], strict=True):
                h = vode(layer(jnp.tanh(h)))

    return Chain()


def pcx_forms(weights: list, biases: list, x: list, steps: int, lr: float) -> dict[str, Callable[[], list]]:
    """What runs each of the forms from latents of 0; returns where they end, one array for each level, the top first."""
    import jax
    import jax.numpy as jnp
    import optax
    import pcx.functional as pxf
    import pcx.predictive_coding as pxc
    import pcx.utils as pxu

    model = network(weights, biases, x)
    start = [jnp.zeros((len(x), len(weight[0]))) for weight in reversed(weights)]

    def restart() -> None:
        for vode, value in zip(model.vodes, start, strict=False):  # all but the image's
            vode.h.set(value)

    @pxf.vmap(pxu.M(pxc.VodeParam | pxc.VodeParam.Cache).to((None, 0)), out_axes=None, axis_name="batch")
    def energy(*, model: Any) -> Any:
        model()
        return jax.lax.psum(model.energy(), "batch")

    slope = pxf.value_and_grad(pxu.M_hasnot(pxc.VodeParam, frozen=True).to((False, True)), has_aux=False)(energy)

    def move(model: Any, optim: Any) -> None:
        with pxu.step(model, clear_params=pxc.VodeParam.Cache):
            _, gradient = slope(model=model)
        optim.step(model, gradient["model"])

    @pxf.jit()
    def stepped(*, model: Any, optim: Any) -> None:
        move(model, optim)

    @pxf.jit()
    def unrolled(*, model: Any, optim: Any) -> None:
        for _ in range(steps):
            move(model, optim)

    @pxf.jit()
    def scanned(*, model: Any, optim: Any) -> None:
        def body(_: None, *, model: Any, optim: Any) -> tuple[tuple, None]:
            move(model, optim)
            return (), None

        pxf.scan(body, length=steps)(model=model, optim=optim)

    restart()
    optim = pxu.Optim(lambda: optax.sgd(lr), pxu.M_hasnot(pxc.VodeParam, frozen=True)(model))

    def runner(form: Callable, calls: int) -> Callable[[], list]:
        def run() -> list:
            restart()
            for _ in range(calls):
                form(model=model, optim=optim)
            return jax.block_until_ready([vode.h.get() for vode in model.vodes[:-1]])

        return run

    return {"stepped": runner(stepped, steps), "unrolled": runner(unrolled, 1), "scanned": runner(scanned, 1)}


def serve() -> None:
    """Answers requests, one JSON line each: first a network, compiled and run in all forms, then the name of a form to be timed."""
    replies, sys.stdout = sys.stdout, sys.stderr  # so that nothing printed on the way is taken for a reply

    def reply(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=replies, flush=True)

    reply({name: version(name) for name in ("pcx", "jax", "jaxlib", "equinox", "optax")})
    runs: dict[str, Callable[[], list]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "form" in request:
            reply(dict(zip(("seconds", "cpu_seconds"), timed(runs[request["form"]]), strict=True)))
        else:
            runs = pcx_forms(**request)
            first = {name: timed(run)[0] for name, run in runs.items()}
            reply({"first_seconds": first, "ends": {name: [level.tolist() for level in run()] for name, run in runs.items()}})


# In the library's interpreter.


@contextmanager
def peer(python: str) -> Iterator[Callable[..., dict[str, Any]]]:
    """A function that sends a request to :func:`serve` in another interpreter and returns the answer; with no request, the first answer."""
    try:
        process = subprocess.Popen([python, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                   env=os.environ | ONE_THREAD)
    except OSError as error:
        raise SystemExit(f"error: --python must be a Python interpreter: {error}") from None

    def ask(**request: Any) -> dict[str, Any]:
        if request:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise SystemExit("error: pcx did not run in --python, see above; in it: pip install pcx==0.6.3 'jax[cpu]<0.5'")
        return json.loads(answer)

    with process:
        yield ask


def measure(ask: Callable[..., dict[str, Any]], pixels: int, levels: tuple[int, ...], batch: int, steps: int, turns: int) -> dict[str, Any]:
    """Milliseconds of a step in ours and in each form of pcx, and ratios of the first to the others, their quartiles and median."""
    import torch
    from predictive_coding import LR, build, recorded

    from inference.mcmc.target import Target
    from zoo.frozen import frozen

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(pixels, levels, torch.device("cpu"))
        for part in model.maps:
            torch.nn.init.normal_(part.bias, std=0.1)
        x = torch.randn(batch, pixels)
    weights, biases = ([getattr(part, what).detach().tolist() for part in model.maps] for what in ("weight", "bias"))
    theirs = ask(weights=weights, biases=biases, x=x.tolist(), steps=steps, lr=LR)
    with frozen(model):
        target, start = Target(model, x), torch.zeros(batch, sum(levels))
        first = timed(lambda: recorded(target, start, steps))[0]  # in which the density is recorded
        end = recorded(target, start, steps)
        for values in theirs["ends"].values():
            torch.testing.assert_close(torch.cat([torch.tensor(level) for level in values], -1), end, rtol=1e-3, atol=1e-4)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in ("ours", *FORMS)}
        for _ in range(turns):
            times["ours"].append(timed(lambda: recorded(target, start, steps)))
            for form in FORMS:
                answer = ask(form=form)
                times[form].append((answer["seconds"], answer["cpu_seconds"]))
    row: dict[str, Any] = {f"{name}_ms_per_step": 1e3 * statistics.median(wall for wall, _ in blocks) / steps
                           for name, blocks in times.items()}
    for form in FORMS:
        for clock, what in enumerate(("ratio", "cpu_ratio")):
            row[f"{what}_to_{form}"] = quartiles([a[clock] / b[clock] for a, b in zip(times["ours"], times[form], strict=True)])
    row["cores_used"] = {name: sum(cpu for _, cpu in blocks) / sum(wall for wall, _ in blocks) for name, blocks in times.items()}
    return row | {"first_block_seconds": {"ours": first} | theirs["first_seconds"]}


def quartiles(values: list[float]) -> dict[str, float]:
    """The median of at least two values and their quartiles."""
    return dict(zip(("lower", "median", "upper"), statistics.quantiles(values, n=4, method="inclusive"), strict=True))


def main() -> None:
    import torch
    from predictive_coding import NETWORKS
    from record import record

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="interpreter that has pcx (default: this one)")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=50, help="steps in a block (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=25, help="blocks of each, at least 2 (default: %(default)s)")
    options = parser.parse_args()
    if min(options.batches) < 1 or options.steps < 1 or options.turns < 2:
        parser.error("batches and steps must be at least 1, --turns at least 2")
    torch.set_num_threads(1)
    rows = {}
    with peer(options.python) as ask:
        versions = ask()
        for name in options.networks:
            for batch in options.batches:
                rows[f"{name}_{batch}"] = measure(ask, *NETWORKS[name], batch, options.steps, options.turns)
                print(name, batch, rows[f"{name}_{batch}"], flush=True)
    record("predictive_coding_pcx", {"versions": versions, "networks": rows}, seed=0,
           notes=f"keys are network_batch; networks (pixels, (units of z1, …)): {NETWORKS}; float32; {options.turns} turns of blocks of "
                 f"{options.steps} steps; one thread, pcx by XLA_FLAGS='{ONE_THREAD['XLA_FLAGS']}'; ratios: ours over pcx, below 1 ours is "
                 "faster; cpu_ratio: of processor time, the one to read where other work on the machine has left cores_used below 1; "
                 "compilation is in first_block_seconds alone; ours takes steps + 1 gradients, as it evaluates the end, and gives every "
                 "image's log density; unrolled and scanned are compiled for a fixed number of steps")


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["--serve"] else main()
