"""Where inference is after each of its steps, and how long a step took: for every guide, as data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from guides.base import Fixed, Guide
from guides.natural import Natural
from guides.semi import Semi
from guides.stepwise import Deltas, Stepwise, evaluating
from inference.methods.amortized import draw
from inference.methods.local import ascent
from inference.methods.run import now
from inference.metrics.scores import score
from inference.metrics.sparsity import fraction_of_zeros, population_sparsity
from zoo.density import uncounted
from zoo.program import adopt

__all__ = ["Trajectory", "looked_at", "path_of", "trajectory"]

EVERY = 16  # steps, from the first, all of which are looked at


@dataclass(frozen=True)
class Trajectory:
    """The posterior of ``N`` images before the first step, and after ``T`` of the steps.

    Attributes:
        step: Which steps these are, 0 for the start, ``(T + 1,)``.
        elbo, nelbo, mse, kl, r2: Per image, ``(T + 1, N)``, as defined by :data:`inference.metrics.scores.COLUMNS`.
        zeros: Fraction of exact zeros in the code, ``(T + 1,)``.
        sparsity: Population sparsity of the code, mean over images, ``(T + 1,)``; NaN for a single latent.
        code: Posterior mean of the code of the first images, ``(T + 1, keep, K)``.
        reconstruction: Their mean images, ``(T + 1, keep, *event_shape)``.
        seconds: Wall clock of all images since the start, ``(T + 1,)``; what it takes to look is not counted.
    """

    step: Tensor
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
        return int(self.step[-1])


def trajectory(model: Callable, x: Tensor, guide: Guide | Iterable[Deltas], *, steps: int | None = None, draws: int = 16, keep: int = 16,
               seed: int = 0) -> Trajectory:
    """Follows inference step by step: all of the first 16 steps, then eight in every doubling, and the last one.

    Arguments:
        x: Images ``(N, *event_shape)``.
        guide: A guide that infers in steps, or any other one of the zoo: it has one step, from the prior to its posterior. Or what a
            method does, ``{site: (N, P, K)}`` one after another (:func:`path_of`).
        steps: Steps to take, for a guide that infers in steps; its own number if None.
        draws: Draws per image of what has no closed form.
        keep: Images whose codes and reconstructions are kept.
        seed: Seed of the draws.

    Raises:
        ValueError: if the guide does not infer by parameters of a latent family (chains, point estimates, flows).
    """
    if isinstance(guide, nn.Module) and not isinstance(guide, Guide):
        raise ValueError(f"a trajectory is of a guide's parameters, which {type(guide).__name__} does not have")
    model = adopt(model, x)
    rows: dict[str, list[Tensor]] = {}
    looked, seconds, before = [], [], 0.0
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        for step, (deltas, taken, last) in enumerate(_timed(_path(guide, x, steps) if isinstance(guide, Guide) else iter(guide), x)):
            before += taken
            if not (last or looked_at(step)):
                continue
            looked.append(step)
            seconds.append(before)
            with uncounted(), torch.random.fork_rng(devices=devices):
                torch.manual_seed(seed)  # the same draws at every step: differences are the posteriors'
                for name, value in _look(model, x, deltas, draws, keep).items():
                    rows.setdefault(name, []).append(value)
    found = {name: torch.stack(values) for name, values in rows.items()}
    return Trajectory(step=torch.tensor(looked), seconds=torch.tensor(seconds), **found)


def path_of(method: str, model: Callable, x: Tensor, guide: nn.Module | None, **options: object) -> Iterator[Deltas] | None:
    """What :func:`trajectory` follows of ``infer(model, x, method, guide=guide, **options)``; None for a method without such a path."""
    if method == "local":
        program, steps = ascent(model, x, guide, **({"steps": 300} | options))
        if not program.mean_field:
            return None
        return (program.delta(x) for _ in chain([None], steps))
    steps = options.pop("steps", None)
    if method == "natural":
        guide = guide if isinstance(guide, Natural) else Natural(adopt(model, x), **options)
    if method == "semi" and not isinstance(guide, Semi):
        guide = Semi(guide.model, encoder=guide, **options)
    if method not in ("amortized", "iterative", "natural", "semi") or not getattr(guide, "mean_field", False):
        return None
    return _path(guide, x, steps)


def _path(guide: Guide, x: Tensor, steps: int | None) -> Iterator[Deltas]:
    """The guide's path in evaluation mode, which is left once it has ended or been given up."""
    with evaluating(guide):
        if isinstance(guide, Stepwise):
            yield from guide.path(x, steps)
        else:
            yield {name: x.new_zeros(len(x), len(family.parameters), units) for name, (family, units) in guide.model.latents.items()}
            yield guide.delta(x)


def looked_at(step: int) -> bool:
    """Whether a step is one of those that are looked at."""
    return step <= EVERY or step % (2 ** (step.bit_length() - 4)) == 0


def _timed(path: Iterator[Deltas], x: Tensor) -> Iterator[tuple[Deltas, float, bool]]:
    """Each of the path's posteriors, the seconds that it took, and whether it is the last one."""
    here, there = _next(path, x), None
    while here is not None:
        there = _next(path, x)
        yield *here, there is None
        here = there


def _next(path: Iterator[Deltas], x: Tensor) -> tuple[Deltas, float] | None:
    began = now(x)
    try:
        deltas = next(path)
    except StopIteration:
        return None
    return {name: delta.detach().clone() for name, delta in deltas.items()}, now(x) - began


def _look(model: nn.Module, x: Tensor, deltas: Deltas, draws: int, keep: int) -> dict[str, Tensor]:
    program = Fixed(model, deltas)
    # Parameters tell the KL divergence where no prior depends on other latents; else the draws do, by their densities.
    alone = hasattr(model, "observation") and len(model.latents) == 1
    posterior = draw(program if alone else program.forward, x, draws)
    scores = score(model, x, posterior, k=1)
    first = posterior.first(keep)
    code = _code(model, posterior)
    means = first.average(_code(model, first))
    sparsity = population_sparsity(code[0, 0]).mean() if code.shape[-1] > 1 else x.new_tensor(torch.nan)
    return {name: scores.per_image[name] for name in ("elbo", "nelbo", "mse", "kl", "r2")} | {
        "zeros": fraction_of_zeros(code[0, 0]), "sparsity": sparsity, "code": means, "reconstruction": first.predict(model)}


def _code(model: nn.Module, posterior: object) -> Tensor:
    """What the decoder sees, ``(chain, draw, image, K)``."""
    if hasattr(model, "family"):
        return model.family.code(posterior.samples["z"])
    return torch.cat([value.flatten(3) if value.dim() > 3 else value.unsqueeze(-1) for value in posterior.samples.values()], dim=-1)
