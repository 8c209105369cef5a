r"""Inference without an encoder: natural-gradient steps on the free energy, derived from the model itself.

:math:`\delta \leftarrow \delta + \eta\, F^{-1} \nabla_q \big(E_q[\log p(x|z)] - \beta\, KL(q \| p)\big)`, with the Fisher information
``F`` of the latents' family (Amari 1998). For Poisson latents with log-rates u under a linear decoder, ``F`` cancels the rate, and a step
is the membrane dynamics of a spiking network (Vafaii, Galor & Yates 2025, "Brain-like variational inference"):

.. math:: \Delta u = \eta\, [\Phi^\top \Sigma^{-1} (x - \Phi e^u) - \tfrac12 \mathrm{diag}(W) - \beta (u - u_0)]

with :math:`W = \Phi^\top \Sigma^{-1} \Phi`: drive, lateral competition, self-cost, leak. With Normal latents the same step is that of a
Gaussian network. With ``prior="static"`` the leak pulls to the model's prior, and inference minimizes the free energy. With
``prior="online"`` the prior of a step is the posterior before it: no leak, whatever the number of steps, and
:func:`guides.objectives.online.online` is what such a guide is trained by.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from guides.base import Fixed
from guides.natural_steps import closed_form_slope, free_energy, guarded_step, moved, sampled_slope
from guides.stepwise import Deltas, Stepwise, has_exact_elbo
from zoo.density import log_terms, uncounted
from zoo.frozen import frozen
from zoo.latents.base import Family
from zoo.latents.poisson import Poisson
from zoo.models.one_layer import OneLayer

__all__ = ["Natural"]

PUBLISHED_FLOOR = -8.0  # lowest log-rate of the iterative Poisson VAE
LOG_SELF_COST_INIT = -3.0  # where its learned self-costs start
# Slopes from relaxed samples are noisy, and the inverse Fisher information makes noise large: step size, bound, and when steps have halved.
SAMPLED_STEP, SAMPLED_BOUND, HALF_LIFE = 0.2, 1.0, 20.0


class Natural(Stepwise):
    r"""A guide whose every step is a natural-gradient step, all images in one batch.

    Linear decoders with closed-form KL divergences need no sampling; elsewhere slopes come from relaxed samples.

    Arguments:
        data: Unused; guides are built with it.
        steps: Steps of a call.
        step_size: η, a number, or ``"learned"``: one positive number for all steps, which starts at 1. If None 1, or 0.2 where slopes
            are sampled; steps then shrink with their number k as η / (1 + k/20), so that noise averages out (Robbins & Monro 1951).
            Guarded steps take η as their greatest gain. The exponential Euler scheme of step h is η = (1 − e^{−βh}) / β.
        prior: ``"static"``: what the model says; ``"online"``: the posterior before the step.
        self_cost: ``"analytic"``: ½ diag W, as the expected squared error has it; ``"learned"``: exp(log_self_cost) for each unit in its
            place, as published, which starts at e⁻³. It weighs the variance of a unit's code.
        guarded: Whether each image's gain is halved until its free energy rises no more (Armijo's rule), so that no image's ELBO falls
            but for rounding. By default wherever nothing has to be learned through the steps, in the closed form, for a static prior.
        halvings: Most halvings in a step; an image that needs more stays where it is, and tries a smaller gain in the next one.
        beta: Weight of the leak.
        kl_rate: What the KL divergence of a step in the objective "online" is multiplied by: ``"prior"``, as is right, or ``"posterior"``,
            too much by the factor e^{Δu}, which the published numbers of the iterative Poisson VAE come from.
        step_bound: Greatest change of a parameter in a step, by a tanh; none if None (1 where slopes are sampled).
        floor: Lowest log-rate of Poisson latents; −8 (published) for an online prior, else none. Posterior rates have a ceiling, e^5.3,
            from their family (published: e^c with c from 2 to 10 over the warm-up); log-scales stay within 30 of the prior's, one-hots'
            logits within 60 of a group's greatest.
        unrolled: Whether gradients flow back through all steps; if None, for an online prior in the closed form.
        particles, slope_temperature: Draws per image of sampled slopes, and their temperature.
        burn_in: Of the steps of a call, how many come before those that training learns from; they are taken without gradients, and δ is
            carried on (truncated back-propagation through time). If inference has settled by then, model and guide learn from where
            it ends for the price of a few steps; before that, what the first steps do to the last ones is left out. May be changed.

    Raises:
        ValueError: for options out of range or that do not go together.
    """

    def __init__(self, model: nn.Module, data: object = None, *, steps: int = 100, step_size: float | str | None = None,
                 prior: str = "static", self_cost: str = "analytic", guarded: bool | None = None, halvings: int = 6, beta: float = 1.0,
                 kl_rate: str = "prior", step_bound: float | None = None, floor: float | None = None, unrolled: bool | None = None,
                 particles: int = 4, slope_temperature: float = 0.1, burn_in: int = 0) -> None:
        super().__init__(model, steps)
        self.burn_in = burn_in
        self._check_burn_in()
        self.exact = has_exact_elbo(model)
        default_size, default_bound = (1.0, None) if self.exact else (SAMPLED_STEP, SAMPLED_BOUND)
        step_size = default_size if step_size is None else step_size
        self.prior, self.kl_rate, self.beta, self.halvings = prior, kl_rate, beta, halvings
        self.particles, self.slope_temperature = particles, slope_temperature
        self.step_bound = default_bound if step_bound is None else step_bound
        self.floor = PUBLISHED_FLOOR if floor is None and prior == "online" else floor
        _check(model, self.exact, step_size=step_size, prior=prior, self_cost=self_cost, guarded=guarded, halvings=halvings, beta=beta,
               kl_rate=kl_rate, step_bound=self.step_bound, unrolled=unrolled)
        as_it_is = self_cost == "analytic" and step_size != "learned" and not unrolled
        self.guarded = self.exact and prior == "static" and as_it_is if guarded is None else guarded
        self.truncated = not (self.exact and prior == "online" and _differentiable(model) if unrolled is None else unrolled)
        self.log_step_size = nn.Parameter(torch.zeros(())) if step_size == "learned" else None
        self._step_size = None if step_size == "learned" else float(step_size)
        learned = self_cost == "learned"
        self.log_self_cost = nn.Parameter(torch.full((model.units,), LOG_SELF_COST_INIT)) if learned else None

    @staticmethod
    def misfit(model: nn.Module) -> str | None:
        """Why natural gradients cannot infer a model's latents, or None: every family needs a Fisher information, and images a gradient."""
        with torch.random.fork_rng():
            for name, (family, units) in model.latents.items():
                prior = family.initial_prior(units)
                try:
                    family.natural(prior, torch.ones_like(prior))
                except NotImplementedError as error:
                    return f"the latent {name!r} has no natural gradient ({error})"
            if not has_exact_elbo(model) and not _gradient_flows(model):
                return "no gradient flows from its images to its latents"
        return None

    @property
    def scored(self) -> range:
        self._check_burn_in()
        return super().scored

    def _check_burn_in(self) -> None:
        if not 0 <= self.burn_in < self.steps:
            raise ValueError(f"burn_in must be at least 0 and below the number of steps, {self.steps}, not {self.burn_in}")

    @property
    def step_size(self) -> float | Tensor:
        """η as it is now."""
        return self._step_size if self.log_step_size is None else self.log_step_size.exp()

    def refine(self, x: Tensor, deltas: Deltas, memory: Deltas | None) -> tuple[Deltas, Deltas | None]:
        """One step from ``deltas``; what is remembered is each image's gain ``(N,)``, or how many sampled steps there were."""
        return self._step(x, deltas, memory, None)

    @torch.no_grad()
    def filter(self, frames: Tensor, steps: int | None = None, forget: float = 0.0) -> Iterator[Fixed]:
        """Follows image sequences: the posterior of a frame is the prior of the next one.

        With ``prior="static"`` the leak of a frame's steps pulls to the posterior of the frame before it. If the cause stands still, that
        is Bayes' rule frame by frame, within the family.

        Arguments:
            frames: ``(T, N, *event_shape)``.
            steps: Steps for each frame, the guide's own number if None.
            forget: How far a posterior returns to the model's prior from one frame to the next, in unconstrained parameters: 0 not at
                all, 1 all the way, so that every frame stands alone.

        Yields:
            For each frame the posterior as a guide: ``posterior(x)`` has its parameters, a call draws.

        Raises:
            ValueError: for frames of another shape, ``forget`` out of range, no step, or a family without a closed-form KL divergence.
        """
        shape = tuple(self.model.event_shape)
        if frames.dim() != len(shape) + 2 or tuple(frames.shape[2:]) != shape:
            raise ValueError(f"expected frames (T, N, {', '.join(map(str, shape))}), got {tuple(frames.shape)}")
        if not 0.0 <= forget <= 1.0:
            raise ValueError(f"forget must be between 0 and 1, not {forget}")
        steps = self.steps if steps is None else steps
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        _need_closed_form_kl(self.model, "a sequence")
        deltas = self.start(frames[0])
        for x in frames:
            before = {name: (1.0 - forget) * delta for name, delta in deltas.items()}
            deltas, memory = before, None
            for _ in range(steps):
                deltas, memory = self._step(x, deltas, memory, before)
            yield self.at(deltas)

    def _sampled_step(self, x: Tensor, deltas: Deltas, memory: Deltas | None, before: Deltas | None, beta: float) -> tuple[Deltas, Deltas]:
        direction = sampled_slope(self.model, x, deltas, before, beta, self.particles, self.slope_temperature)
        count = x.new_zeros(()) if memory is None else memory["count"]
        gain = self.step_size / (1.0 + count / HALF_LIFE)
        return moved(self.model, x, deltas, direction, gain, self.step_bound, self.floor), {"count": count + 1.0}

    def _step(self, x: Tensor, deltas: Deltas, memory: Deltas | None, before: Deltas | None) -> tuple[Deltas, Deltas | None]:
        """One step; the leak of a static prior pulls to the posterior at ``before``, to the model's prior if None."""
        beta = self.beta if self.prior == "static" else 0.0
        graph = torch.is_grad_enabled() and (not self.truncated or self.log_self_cost is not None)
        if not self.exact:
            return self._sampled_step(x, deltas, memory, before, beta)
        with frozen(self.model) if self.truncated else nullcontext():  # a model learns from bounds, not from how they were climbed
            value, slope, direction = closed_form_slope(self.model, x, deltas, before, beta, self.log_self_cost, graph)

        def candidate(gain: float | Tensor) -> Deltas:
            return moved(self.model, x, deltas, direction, gain, self.step_bound, self.floor)

        if not self.guarded:
            return candidate(self.step_size), None
        # An online prior pulls nowhere at a step's start, but does once the posterior has moved.
        anchor, weight = (before, beta) if self.prior == "static" else (deltas, self.beta)

        def value_at(new: Deltas) -> Tensor:
            return free_energy(self.model, x, new, anchor, weight)

        promise = sum((slope[name] * direction[name]).flatten(1).sum(1) for name in slope)
        start = None if memory is None else memory["gain"]
        deltas, gain = guarded_step(candidate, value_at, value, promise, start, self.step_size, self.halvings)
        return deltas, {"gain": gain}


def _check(model: nn.Module, exact: bool, **given: object) -> None:
    """Raises ValueError for options out of range or that do not go together."""
    for name, choices in (("prior", ("static", "online")), ("self_cost", ("analytic", "learned")), ("kl_rate", ("prior", "posterior"))):
        if given[name] not in choices:
            raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, not {given[name]!r}")
    step_size = given["step_size"]
    if isinstance(step_size, str) and step_size != "learned" or not isinstance(step_size, str) and not step_size > 0:
        raise ValueError(f"step_size must be a positive number or 'learned', not {step_size!r}")
    if given["step_bound"] is not None and not given["step_bound"] > 0:
        raise ValueError(f"step_bound must be positive, not {given['step_bound']}")
    if given["halvings"] < 0:
        raise ValueError(f"halvings must not be negative, but is {given['halvings']}")
    if not given["beta"] >= 0:
        raise ValueError(f"beta must not be negative, but is {given['beta']}")
    if given["self_cost"] == "learned" and not (isinstance(model, OneLayer) and exact):
        raise ValueError("a learned self-cost needs a one-layer model with a linear decoder (decoder='lin')")
    if given["guarded"]:
        if not exact:
            raise ValueError("guarded steps need the ELBO in closed form: a linear decoder, and KL divergences in closed form")
        if given["self_cost"] == "learned" or step_size == "learned" or given["unrolled"]:
            raise ValueError("guarded steps climb the ELBO itself and are not differentiated: self_cost must be 'analytic', step_size a "
                             "number, and unrolled False")
    if given["unrolled"] and not (exact and _differentiable(model)):
        raise ValueError("gradients flow back through steps only in closed form, for families with their own natural gradient; "
                         "use unrolled=False")
    if given["prior"] == "online":
        _need_closed_form_kl(model, "an online prior")
    if given["kl_rate"] == "posterior" and not all(isinstance(family, Poisson) for family, _ in model.latents.values()):
        raise ValueError("kl_rate='posterior' is a factor of the Poisson family's KL divergence; use 'prior'")


def _differentiable(model: nn.Module) -> bool:
    """Whether every family writes its natural gradient out; the general one keeps the Fisher information fixed under differentiation."""
    return all(type(family).natural is not Family.natural for family, _ in model.latents.values())


def _need_closed_form_kl(model: nn.Module, what: str) -> None:
    for name, (family, units) in model.latents.items():
        params = torch.zeros(len(family.parameters), units)
        if family.unit_kl(params, params) is None:
            raise ValueError(f"{what} needs a closed-form KL divergence between posteriors, which the latent {name!r} does not have")


def _gradient_flows(model: nn.Module) -> bool:
    """Whether log p(x | z) has a gradient in some latent, at latents of the start."""
    place = next((p for p in model.parameters()), torch.zeros(()))
    x = torch.zeros(2, *model.event_shape, dtype=place.dtype, device=place.device)
    deltas = {name: x.new_zeros(2, len(family.parameters), units) for name, (family, units) in model.latents.items()}
    with torch.no_grad():
        latents = Fixed(model, deltas, 0.5)(x)
    with torch.enable_grad():
        latents = {name: value.detach().requires_grad_(True) for name, value in latents.items()}
        with uncounted():
            likelihood = log_terms(model, latents, x)[1]
        if not (isinstance(likelihood, Tensor) and likelihood.requires_grad):
            return False
        slopes = torch.autograd.grad(likelihood.sum(), list(latents.values()), allow_unused=True)
    return any(slope is not None and slope.any() for slope in slopes)
