r"""Gradient-informed Metropolis–Hastings for counts and one-hots: all units of a site move at once, by a proposal that is locally balanced.

With :math:`\ell` the log law of the site given its parents, r the rest of the log joint density and :math:`g = \nabla r(z)`, each unit is
proposed from

:math:`q(z'_k \mid z) \propto \exp\bigl(\tfrac12 [\ell_k(z'_k) - \ell_k(z_k) + g_k (z'_k - z_k)] - (z'_k - z_k)^2 / 2\alpha\bigr)`

over the values within reach (for one-hots: all categories), and the move is accepted or rejected as a whole. This is the discrete Langevin
proposal (Zhang, Liu & Liu 2022), with the exact law of the site instead of its gradient; its square root makes it balanced to first order
(Zanella 2020; Grathwohl et al. 2021). The step size α of each image is tuned to an acceptance rate of .574 (Sun et al. 2022). No sample
is relaxed at any time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from inference.mcmc.adaptation import DualAveraging
from inference.mcmc.chains import check_moved
from inference.mcmc.target import blend
from inference.mcmc.traced import traced
from zoo.density import count, log_sites, uncounted
from zoo.latents.support import support_kind

__all__ = ["Landscape", "Lattice", "State", "transition"]

ACCEPT = 0.574


class State(NamedTuple):
    """Where chains are: values ``(C, N, *event)``, log density ``(C, N)``, and the gain that a first-order expansion of the rest and the
    exact law of the site promise for each choice of each unit, ``(C, N, *units, choices)``, −∞ for values outside the support."""

    z: Tensor
    value: Tensor
    gain: Tensor


class Landscape:
    """The log density of one discrete site of a program, around its values.

    Arguments:
        model: A Pyro program ``model(x)``.
        x: Images ``(N, *event_shape)``.
        name: The site.
        law: Its law, of which the kind is read off.
        given: Values of all other latents, ``{site: (C, N, *event)}``.
        reach: Greatest change of a count in one move.
        initial: A program over the same latents, such as a guide, that ``beta`` = 0 stands for; the model's prior if None.

    Attributes:
        beta: Power of the joint density, one number or one for each image, ``(N,)``; that of the initial law is ``1 - beta``.

    Raises:
        ValueError: for a law that is not made of independent units with a count or a one-hot each.
    """

    def __init__(self, model: Callable, x: Tensor, name: str, law: Distribution, given: dict[str, Tensor], reach: int = 2,
                 initial: Callable | None = None) -> None:
        if reach < 1:
            raise ValueError(f"reach must be at least 1, not {reach}")
        self.model, self.initial, self.x, self.name, self.given, self.beta = model, initial, x, name, dict(given), 1.0
        self.one_hot = support_kind(law.support) == "one_hot"
        unit = _units(law)
        if self.one_hot and not hasattr(unit, "logits") or not self.one_hot and unit.event_shape:
            raise ValueError(f"the latent {name!r} has the law {law}; moves on a lattice need independent counts (to_event) or one-hots")
        self.moves = torch.arange(-reach, reach + 1, device=x.device)
        self._evaluate = traced(self._value_and_gain)

    def __call__(self, z: Tensor) -> State:
        """Looks around at values ``(C, N, *event)``: one gradient of the density."""
        value, gain = self._evaluate(z.detach(), torch.as_tensor(self.beta, dtype=z.dtype, device=z.device), *self.given.values())
        count(value, gradient=True)
        return State(z.detach(), value, gain)

    def _value_and_gain(self, z: Tensor, beta: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_(True)
        with torch.enable_grad(), uncounted():
            latents = dict(zip(self.given, given, strict=True)) | {self.name: z}
            found = log_sites(self.model, latents, self.x)
            last = found[self.name]
            if self.initial is None:
                value = sum(site["log_prob"] if name in latents else beta * site["log_prob"] for name, site in found.items())
                own, gain = last["log_prob"], self._gain(z.detach(), last["fn"])
            else:
                joint, started = sum(site["log_prob"] for site in found.values()), log_sites(self.initial, latents, self.x)
                first = started[self.name]
                value = blend(sum(site["log_prob"] for site in started.values()), joint, beta)
                own = blend(first["log_prob"], last["log_prob"], beta)
                first, last = (self._gain(z.detach(), site["fn"]) for site in (first, last))
                gain = blend(first, last, beta.reshape(*beta.shape, *[1] * (last.dim() - 2)) if beta.dim() else beta)
            # What the site's own law says is known on the whole lattice; of the rest only its slope.
            slope, = torch.autograd.grad((value - own).sum(), z)
            slope = slope.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # any slope proposes rightly, but one without a value nothing
        return value.detach(), self._with_slope(z.detach(), gain, slope)

    @torch.no_grad()
    def _gain(self, z: Tensor, law: Distribution) -> Tensor:
        """What the site's own law has to say of each choice, ``(C, N, *units, choices)``."""
        unit = _units(law)
        if self.one_hot:
            return unit.logits - torch.where(z > 0, unit.logits, 0.0).sum(-1, keepdim=True)
        choices = z + self.moves.to(z.dtype).view(-1, *[1] * z.dim())
        allowed = unit.support.check(choices)
        return torch.where(allowed, unit.log_prob(torch.where(allowed, choices, z)) - unit.log_prob(z), -torch.inf).movedim(0, -1)

    def _with_slope(self, z: Tensor, gain: Tensor, slope: Tensor) -> Tensor:
        if self.one_hot:
            return gain + slope - (slope * z).sum(-1, keepdim=True)
        return gain + slope.unsqueeze(-1) * self.moves.to(z.dtype)

    def log_proposal(self, state: State, alpha: Tensor) -> Tensor:
        """Log probability of each choice of each unit, ``(C, N, *units, choices)``, for step sizes ``(N,)``."""
        alpha = alpha.view(-1, *[1] * (state.gain.dim() - 2))
        away = 2.0 * (1.0 - state.z) if self.one_hot else self.moves.square().to(alpha.dtype)
        return (0.5 * state.gain - 0.5 * away / alpha).log_softmax(-1)

    def moved(self, z: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
        """The values after a choice ``(C, N, *units)``, and the choice that leads back."""
        if self.one_hot:
            return torch.nn.functional.one_hot(choice, z.shape[-1]).to(z.dtype), z.argmax(-1)
        return z + self.moves[choice].to(z.dtype), len(self.moves) - 1 - choice


class Lattice:
    """One discrete site of C chains for N images, tuned while they warm up; one of the :mod:`inference.mcmc.blocks` of a program.

    Arguments:
        landscape: The site's log density.
        start: Initial values ``(C, N, *event)``.
        warmup: Transitions of tuning.
        accept: Mean acceptance probability that step sizes aim at.

    Raises:
        ValueError: if an initial density is not finite (says of which image).
    """

    def __init__(self, landscape: Landscape, start: Tensor, warmup: int, *, accept: float = ACCEPT) -> None:
        self.landscape, self.warmup, self.made, self.names = landscape, warmup, 0, (landscape.name,)
        if not start.is_floating_point():
            raise ValueError(f"the latent {landscape.name!r} has values of {start.dtype}; moves on a lattice need floating-point values")
        self.state = landscape(start)
        fine = torch.isfinite(self.state.value).all(0)
        if not fine.all():
            raise ValueError(f"the log density at the start of image {int((~fine).nonzero()[0])} is not finite "
                             f"({int((~fine).sum())} of {len(fine)} images; site {landscape.name!r}); start elsewhere")
        self.tuner = DualAveraging(torch.ones_like(self.state.value[0]), accept)
        self.accepted, self.taken = torch.zeros_like(self.state.value[0]), torch.zeros_like(self.state.value)

    @property
    def step(self) -> Tensor:
        """Step sizes α ``(N,)`` of the next transition."""
        return self.tuner.step if self.made < self.warmup or self.warmup == 0 else self.tuner.average

    def values(self) -> dict[str, Tensor]:
        """Where the chains are, ``{site: (C, N, *event)}``."""
        return {self.landscape.name: self.state.z}

    def log_joint(self) -> Tensor:
        """Log joint density there, ``(C, N)``."""
        return self.state.value

    def condition(self, given: dict[str, Tensor]) -> None:
        """Looks around again, with new values of the other latents."""
        self.landscape.given = given
        self.state = self.landscape(self.state.z)

    def stats(self, moves: int) -> dict[str, Tensor]:
        """Acceptance rates over the last ``moves`` transitions and step sizes, each ``(N,)``."""
        check_moved(self.taken, moves, self.names)
        return {"accepted": self.accepted / max(self.made - self.warmup, 1), f"step_size_{self.landscape.name}": self.step}

    def move(self) -> Tensor:
        """One transition of all chains; returns the mean acceptance probability of each image's, ``(N,)``."""
        self.state, chance, taken = transition(self.landscape, self.state, self.step)
        if self.made < self.warmup:
            self.tuner.update(chance.mean(0))
        else:
            self.accepted += chance.mean(0)
            self.taken += taken
        self.made += 1
        return chance.mean(0)


def transition(landscape: Landscape, state: State, alpha: Tensor) -> tuple[State, Tensor, Tensor]:
    """One proposal with step sizes α ``(N,)``, accepted or rejected; returns the new state, acceptance probabilities ``(C, N)``, and
    whether it was taken, ``(C, N)``."""
    forward = landscape.log_proposal(state, alpha)
    choice = (forward - torch.empty_like(forward).exponential_().log()).argmax(-1)
    z, back = landscape.moved(state.z, choice)
    proposal = landscape(z)
    change = _chosen(landscape.log_proposal(proposal, alpha), back) - _chosen(forward, choice)
    ratio = (proposal.value - state.value).double() + change.double()
    chance = torch.where(torch.isfinite(ratio), ratio, -torch.inf).clamp(max=0.0).exp().to(state.value.dtype)
    taken = torch.rand_like(chance) < chance
    return State(*(torch.where(taken.view(*taken.shape, *[1] * (new.dim() - 2)), new, old)
                   for new, old in zip(proposal, state, strict=True))), chance, taken


def _units(law: Distribution) -> Distribution:
    return law.base_dist if isinstance(law, Independent) else law


def _chosen(log_probs: Tensor, choice: Tensor) -> Tensor:
    """Log probability of a choice of all units, ``(C, N)``."""
    return log_probs.gather(-1, choice.unsqueeze(-1)).flatten(2).sum(-1)
