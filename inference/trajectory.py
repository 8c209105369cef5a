"""Where inference is after each of its steps, and how long a step took: for every guide, as data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guides.base import Fixed, Guide
from guides.stepwise import Deltas, Stepwise
from inference.methods.amortized import draw
from inference.metrics.scores import score
from inference.metrics.sparsity import fraction_of_zeros, population_sparsity
from zoo.density import uncounted
from zoo.program import adopt

__all__ = ["Trajectory", "trajectory"]


@dataclass(frozen=True)
class Trajectory:
    """The posterior of ``N`` images before the first step and after each of ``T``.

    Attributes:
        elbo, nelbo, mse, kl, r2: Per image, ``(T + 1, N)``, as defined by :data:`inference.metrics.scores.COLUMNS`.
        zeros: Fraction of exact zeros in the code, ``(T + 1,)``.
        sparsity: Population sparsity of the code, mean over images, ``(T + 1,)``.
        code: Posterior mean of the code of the first images, ``(T + 1, keep, K)``.
        reconstruction: Their mean images, ``(T + 1, keep, *event_shape)``.
        seconds: Wall clock of all images since the start, ``(T + 1,)``; what it takes to look is not counted.
    """

    elbo: Tensor
    nelbo: Tensor
    mse: Tensor
    kl: Tensor
    r2: Tensor
    zeros: Tensor
    sparsity: Tensor
    code: Tensor
    reconstruction: Tensor
    seconds: Tensor

    def __len__(self) -> int:
        """Number of steps, the start not counted."""
        return len(self.seconds) - 1


def trajectory(model: Callable, x: Tensor, guide: Guide, *, steps: int | None = None, draws: int = 16, keep: int = 16,
               seed: int = 0) -> Trajectory:
    """Follows a guide's inference step by step.

    Arguments:
        x: Images ``(N, *event_shape)``.
        guide: A guide that infers in steps, or any other one of the zoo: it has one step, from the prior to its posterior.
        steps: Steps to take, for a guide that infers in steps; its own number if None.
        draws: Draws per image of what has no closed form.
        keep: Images whose codes and reconstructions are kept.
        seed: Seed of the draws.

    Raises:
        ValueError: if the guide does not infer by parameters of a latent family (chains, point estimates, flows).
    """
    if not isinstance(guide, Guide):
        raise ValueError(f"a trajectory is of a guide's parameters, which {type(guide).__name__} does not have")
    model = adopt(model, x)
    rows: dict[str, list[Tensor]] = {}
    seconds, before = [], 0.0
    was = guide.training
    guide.eval()
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        for deltas, taken in _timed(_path(guide, x, steps), x):
            before += taken
            seconds.append(before)
            with uncounted(), torch.random.fork_rng(devices=devices):
                torch.manual_seed(seed)  # the same draws at every step: differences are the posteriors'
                for name, value in _look(model, x, deltas, draws, keep).items():
                    rows.setdefault(name, []).append(value)
    guide.train(was)
    return Trajectory(seconds=torch.tensor(seconds), **{name: torch.stack(values) for name, values in rows.items()})


def _path(guide: Guide, x: Tensor, steps: int | None) -> Iterator[Deltas]:
    if isinstance(guide, Stepwise):
        yield from guide.path(x, steps)
        return
    yield {name: x.new_zeros(len(x), len(family.parameters), units) for name, (family, units) in guide.model.latents.items()}
    yield guide.delta(x)


def _timed(path: Iterator[Deltas], x: Tensor) -> Iterator[tuple[Deltas, float]]:
    while True:
        began = _now(x)
        try:
            deltas = next(path)
        except StopIteration:
            return
        yield deltas, _now(x) - began


def _look(model: nn.Module, x: Tensor, deltas: Deltas, draws: int, keep: int) -> dict[str, Tensor]:
    posterior = draw(Fixed(model, deltas), x, draws)
    scores = score(model, x, posterior, k=1)
    first = posterior.first(keep)
    code = _code(model, posterior)
    means = first.average(_code(model, first))
    return {name: scores.per_image[name] for name in ("elbo", "nelbo", "mse", "kl", "r2")} | {
        "zeros": fraction_of_zeros(code[0, 0]), "sparsity": population_sparsity(code[0, 0]).mean(), "code": means,
        "reconstruction": first.predict(model)}


def _code(model: nn.Module, posterior: object) -> Tensor:
    """What the decoder sees, ``(chain, draw, image, K)``."""
    if hasattr(model, "family"):
        return model.family.code(posterior.samples["z"])
    return torch.cat([value.flatten(3) if value.dim() > 3 else value.unsqueeze(-1) for value in posterior.samples.values()], dim=-1)


def _now(x: Tensor) -> float:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
