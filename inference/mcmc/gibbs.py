r"""Gibbs sampling of counts and one-hots under a linear decoder with Gaussian noise: each unit from its exact conditional law.

Given the other units, :math:`\log p(z_k = v \mid \cdot) = \log p_0(v) + h_k (v - z_k) - \tfrac12 G_{kk} (v - z_k)^2` up to a constant, with
:math:`G = \Phi^\top \Sigma^{-1} \Phi`, :math:`h = \Phi^\top \Sigma^{-1} (x - \Phi z - b)`; for a group of one-hot units likewise, over its
categories. A sweep goes over the units once, all chains of all images together. Nothing is proposed, so nothing is rejected.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, OneHotCategorical, constraints

from inference.mcmc.chains import collect
from inference.mcmc.target import blend
from zoo.density import count, log_joint
from zoo.latents.base import Family
from zoo.latents.support import support_kind
from zoo.models.one_layer import OneLayer

__all__ = ["Sweeps", "can_sweep", "gibbs", "sweeps"]

NEGLIGIBLE = 40.0  # nats below the most probable count at which one has no weight; all beyond have less
MOST = 10_000  # counts of a unit
REFRESH = 16  # sweeps after which the residual is computed anew, lest rounding adds up


def can_sweep(model: Callable) -> bool:
    """Whether the model has such conditionals: one layer of counts or one-hots, a linear decoder, Gaussian noise."""
    if not isinstance(model, OneLayer) or not model.linear:
        return False
    law = model.family.distribution(model.prior)
    base = law.base_dist if isinstance(law, Independent) else law
    if support_kind(law.support) == "one_hot":
        return isinstance(base, OneHotCategorical)
    plain = type(model.family).code is Family.code  # the decoder is linear in the counts themselves
    return plain and isinstance(law, Independent) and base.support is constraints.nonnegative_integer


@torch.no_grad()
def gibbs(model: OneLayer, x: Tensor, start: Tensor, draws: int, *, warmup: int = 100, thin: int = 1,
          report: Callable[[int, int], None] | None = None) -> tuple[Tensor, Tensor]:
    """Runs C chains for each of N images; returns draws ``(C, S, N, *event)`` and their log joint densities ``(C, S, N)``.

    Arguments:
        model: A one-layer model with a linear decoder and counts or one-hots (:func:`can_sweep`).
        x: Images ``(N, *event_shape)``.
        start: Initial values ``(C, N, *event)``.
        draws, warmup, thin: Sweeps kept of each chain, not kept before, and made for each that is kept.
        report: Called with (sweep, sweeps) after each sweep.

    Raises:
        ValueError: for a model without such conditionals.
    """
    kernel = Sweeps(model, x, start)
    run = collect(kernel.move, lambda: kernel.values() | {"log_prob": kernel.log_joint()}, draws, warmup=warmup, thin=thin,
                  report=None if report is None else lambda done, total, *_: report(done, total))
    return run.kept["z"], run.kept["log_prob"]


class Sweeps:
    """The latents ``z`` of C chains for N images; one of the :mod:`inference.mcmc.blocks` of a program.

    Arguments:
        model, x, start: As of :func:`gibbs`.
    """

    names = ("z",)

    def __init__(self, model: OneLayer, x: Tensor, start: Tensor) -> None:
        if not can_sweep(model):
            raise ValueError("Gibbs sampling needs a one-layer model of counts or one-hots with a linear decoder")
        self.model, self.x, self.z, self.made = model, x, start.clone(), 0
        self.sweep, self.residual = sweeps(model, x)
        self.rest = self.residual(self.z)

    def values(self) -> dict[str, Tensor]:
        """Where the chains are, ``{"z": (C, N, *event)}``; changed in place by :meth:`move`."""
        return {"z": self.z}

    def log_joint(self) -> Tensor:
        """Log joint density there, ``(C, N)``."""
        with torch.no_grad():
            return log_joint(self.model, {"z": self.z}, self.x)

    def condition(self, given: dict[str, Tensor]) -> None:
        """There are no other latents."""
        if given:
            raise ValueError(f"Gibbs sweeps move the only latent z; there are others: {', '.join(given)}")

    def move(self) -> Tensor:
        """One sweep; returns ones ``(N,)``, as nothing is rejected."""
        self.sweep(self.z, self.rest)
        self.made += 1
        if self.made % REFRESH == 0:
            self.rest = self.residual(self.z)
        count(self.rest[..., 0])
        return self.x.new_ones(len(self.x))

    def stats(self, moves: int) -> dict[str, Tensor]:
        """Nothing: there are no settings."""
        return {}


def sweeps(model: OneLayer, x: Tensor, initial: Distribution | None = None) -> tuple[Callable[..., None], Callable[[Tensor], Tensor]]:
    """What Gibbs sampling does, in two functions.

    Arguments:
        initial: A law of ``z`` of the prior's kind, of batch shape ``(N,)``, from which ``beta`` leads to the posterior; the prior if None.

    Returns:
        ``sweep(z, rest, beta=1.0)``, which redraws all units of ``z`` ``(C, N, *event)`` in place under the initial law to the power
        ``1 - beta`` times the joint density to the power ``beta``, and keeps ``rest`` up to date; and ``residual(z)``, which is that: what
        z leaves unexplained of the images, in standard deviations of the noise, ``(C, N, D)``.
    """
    noise = model.scale.detach().expand(model.event_shape).flatten()
    weight = model.decoder.weight.detach() / noise[:, None]
    law = model.family.distribution(model.prior.detach())
    blank = model.decoder(torch.zeros_like(weight[0])).detach().flatten()
    target = (x.flatten(1) - blank) / noise
    if support_kind(law.support) == "count":
        sweep = _count_sweep(law, weight, initial or law)
    else:
        sweep = _one_hot_sweep(law, weight, model.family.groups, initial or law)
    return sweep, lambda z: target - model.family.code(z).flatten(2) @ weight.T


def _count_sweep(law: Independent, weight: Tensor, initial: Independent) -> Callable[[Tensor, Tensor], None]:
    """Redraws all counts ``(C, N, K)`` in place, keeping the residual ``(C, N, D)`` up to date.

    Of each unit the counts up to a greatest are looked at. Where that was too few is asked once, at the end of a sweep, as asking halts a
    GPU; such a sweep is made again with more, which happens while chains are far from where they will stay.
    """
    columns, curvature = weight.T.contiguous(), weight.square().sum(0)
    tops = [int(top) + 8 for top in (law.mean + 4.0 * law.variance.sqrt()).tolist()]
    table, initial_table = _table(law, weight), _table(initial, weight)

    def redraw(z: Tensor, rest: Tensor, beta: float) -> Tensor:
        """Redraws in place; returns of which units higher counts matter, ``(K,)``."""
        matter = []
        for k, column in enumerate(columns):
            now = z[..., k].clone()
            slope = rest @ column  # of the log-likelihood in z_k
            move = torch.arange(tops[k] + 1, dtype=z.dtype, device=z.device) - now[..., None]
            logits = table(k, tops[k]) + slope[..., None] * move - 0.5 * curvature[k] * move.square()
            if beta < 1.0:
                logits = blend(initial_table(k, tops[k]), logits, beta)
            matter.append((logits[..., -1] > logits.amax(-1) - NEGLIGIBLE).any())
            new = _draw(logits).to(z.dtype)
            z[..., k] = new
            rest -= (new - now)[..., None] * column
        return torch.stack(matter)

    def sweep(z: Tensor, rest: Tensor, beta: float = 1.0) -> None:
        before = z.clone(), rest.clone()
        while short := redraw(z, rest, beta).nonzero().flatten().tolist():
            for k in short:
                if tops[k] > MOST:
                    raise ValueError(f"a count of unit {k} may be above {MOST}, beyond what is looked at; is the noise too small?")
                tops[k] *= 2
            z.copy_(before[0])
            rest.copy_(before[1])

    return sweep


def _table(law: Independent, like: Tensor) -> Callable[[int, int], Tensor]:
    """Log probability of the counts 0 … top of one unit, ``(…, top + 1)`` for a law ``(…, K)``, from a table that grows when it has to."""
    held = {"log": like.new_zeros(0)}

    def look_up(k: int, top: int) -> Tensor:
        if len(held["log"]) <= top:
            values = torch.arange(2 * top + 2, dtype=like.dtype, device=like.device)
            held["log"] = law.base_dist.log_prob(values.view(-1, *[1] * len(law.base_dist.batch_shape)))
        return held["log"][: top + 1, ..., k].movedim(0, -1)

    return look_up


def _one_hot_sweep(law: Distribution, weight: Tensor, groups: int, initial: Distribution) -> Callable[[Tensor, Tensor], None]:
    """Redraws all groups of one-hots in place, keeping the residual up to date."""
    columns = weight.T.unflatten(0, (groups, -1))  # (G, categories, D)
    length = columns.square().sum(-1)
    logits, first = (_logits(each).unflatten(-1, (groups, -1)) for each in (law, initial))

    def sweep(z: Tensor, rest: Tensor, beta: float = 1.0) -> None:
        flat = z.view(*z.shape[:2], groups, -1)
        for g in range(groups):
            rest += flat[:, :, g] @ columns[g]  # what is left without this group
            here = logits[g] + rest @ columns[g].T - 0.5 * length[g]
            index = _draw(here if beta == 1.0 else blend(first[..., g, :], here, beta))
            flat[:, :, g] = torch.nn.functional.one_hot(index, here.shape[-1]).to(z.dtype)
            rest -= columns[g][index]

    return sweep


def _logits(law: Distribution) -> Tensor:
    """Logits of one or several groups of one-hots, side by side."""
    return law.base_dist.logits.flatten(-2) if isinstance(law, Independent) else law.logits


def _draw(logits: Tensor) -> Tensor:
    """An index for each row of unnormalized log probabilities, by the Gumbel trick."""
    return (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)
