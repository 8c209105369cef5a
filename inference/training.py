r"""Training: minibatch gradient ascent on an evidence lower bound or another objective, with the published schedules.

Step ``i`` of ``n`` ascends :math:`\frac1B \sum_b L_\beta(x_b)` with schedules from :mod:`inference.schedules`.
Images stay on the device, shuffled there (:mod:`inference.batches`), or are made there by a stream. Monte Carlo EM
(:mod:`inference.expectation_maximization`) has Markov chains of all images in the place of the guide. In a process group of PyTorch's,
all processes train together (:mod:`inference.distributed`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from inference import checkpoint as saved
from inference.ascended import ascended, lognorms, means, of_name
from inference.batches import batches_of, length, place
from inference.distributed import team
from inference.precision import precise
from inference.schedules import cosine, ramp, temperatures
from zoo.frozen import frozen
from zoo.program import adopt

__all__ = ["History", "fit"]

OPTIMIZERS = {"adamax": torch.optim.Adamax, "adam": torch.optim.Adam}


@dataclass
class History:
    """What training went through: rows with ``step``, ``elbo`` (nats per image), ``kl``, ``lr``, ``beta``, ``temperature``,
    ``seconds``; a row's ``elbo`` and ``kl`` are means over the steps since the row before it, on training images, with β = 1
    and, where samples are relaxed, of relaxed samples: of use to see training converge, no result. ``kl`` is NaN for objectives that
    have none. Of guides that infer in steps they are means over the steps that training climbs, and under ``"online"`` and
    ``"online_exact"`` no ELBO: each step's prior is the posterior before it. Monte Carlo EM adds ``log_joint`` (mean log p(x, z) at the
    chains' states) and ``accepted`` (their mean acceptance probability); without a guide its ``elbo`` is NaN."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def column(self, name: str) -> list[float]:
        return [row[name] for row in self.rows]


def fit(
    model: Callable,
    guide: nn.Module | None,
    data: object,
    *,
    method: str = "variational",
    objective: str = "elbo",
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int = 1000,
    optimizer: str = "adamax",
    lr: float = 5e-3,
    final_lr: float = 1e-5,
    weight_decay: float = 0.0,
    warmup: float = 0.01,
    restarts: int = 0,
    norm_penalty: float = 0.0,
    clip: float | None = 500.0,
    warmup_clip: float | None = None,
    beta: float = 1.0,
    beta_start: float = 1e-4,
    beta_hold: float = 0.0,
    beta_warmup: float = 0.5,
    temperature: tuple[float, float] | None = None,
    anneal: float = 0.5,
    particles: int | None = None,
    transitions: int = 2,
    sampler: str = "auto",
    dynamics: Mapping[str, Any] | None = None,
    clamped: Mapping[str, Tensor] | None = None,
    freeze_model: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
    precision: str = "float32",
    compile: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 60.0,
    log_every: int = 50,
    progress: bool | Callable[[int, int, dict], None] = True,
) -> History:
    """Trains model and guide together, or the guide alone; in a process group every process is given the same but for ``device``.

    Arguments:
        model: The generative model, of the zoo or any Pyro program; left in evaluation mode.
        guide: Its guide; left in evaluation mode at temperature 0. The method ``"mcmc"`` needs none.
        data: A data set (its training images), images ``(n, *event_shape)``, or a stream (anything with ``images(start, stop)``, such as
            :class:`zoo.data.rofl.Stream`): then each step takes the next ``batch_size``, and none is seen twice.
        method: ``"variational"``: model and guide ascend the objective. ``"mcmc"``: Monte Carlo EM: the model ascends log p(x, z) at the
            states of Markov chains, kept for every training image, and a guide that is given learns from them, too. ``"map"``: the same
            at the most probable latents, to which each batch's climb: predictive coding. Steps are steps of the weights.
        objective: ``"elbo"`` (sampled; closed-form KL), ``"exact"`` (no sampling; linear decoders); ``"iwae"``, and the same bound with
            doubly reparameterized gradients, ``"dreg"`` (real-valued latents); reweighted wake–sleep, ``"rws"``, half of the guide's
            wake phase replaced by sleep, ``"rws_sleep"``, or the guide's ``"sleep"`` phase alone, for which the model must be frozen.
            Those from ``"iwae"`` on have no KL term, so that β must be 1, and use exact draws, whatever the temperature. Of guides that
            infer in steps ``"online"`` and ``"online_exact"``, in which each step's prior is the posterior before it. Of optic flow
            ``"relative"``, the published loss of hierarchies, whose weights of frames and groups make it no ELBO
            (:mod:`guides.objectives.relative`).
        steps, epochs: Length of training; give one of them (steps, for a stream).
        batch_size: Images per step, of all processes together; the last, smaller batch of an epoch is dropped.
        optimizer: ``"adamax"`` or ``"adam"``.
        lr, final_lr, warmup, restarts: Learning rate: linear warm-up over the fraction ``warmup`` of the steps, then cosine.
        weight_decay: L2 term added to the gradient.
        norm_penalty: Weight of the mean square of all filters' log-lengths (weight-normalized convolutions), which is subtracted from the
            objective.
        clip, warmup_clip: Largest norm of the gradient, or None; another one while the learning rate warms up, if given.
        beta, beta_start, beta_hold, beta_warmup: Weight of the KL: ``beta_start`` over the fraction ``beta_hold``, then linear to ``beta``
            over the fraction ``beta_warmup``.
        temperature, anneal: Temperature of relaxed samples at start and end, linear over the fraction ``anneal``; by default
            the family's own.
        particles: Draws per image and step, by default the objective's own number (1 for the ELBO, 8 for importance-weighted ones); of
            the method ``"mcmc"`` chains per image (1), which keep as many numbers as there are images and latents.
        transitions: Of the method ``"mcmc"``: transitions of each chain when its image comes up.
        sampler: Of the method ``"mcmc"``: ``"auto"``, ``"hmc"``, ``"mala"``, ``"gibbs"`` or ``"lattice"``
            (:class:`inference.mcmc.persistent.PersistentChains`).
        dynamics: Of the method ``"map"``: how the latents of a batch climb, and whether the weights climb with them, ``{"steps", "lr",
            "optimizer", "space", "start", "incremental", "rule"}`` as of :class:`inference.map_learning.MapEM`.
        clamped: Of the method ``"map"``: values of the model's highest latent, ``{site: (n, K)}``, where they are given with the images.
        freeze_model: Whether only the guide learns.
        seed: Seed of batches and samples; the same seed on the same device gives the same result.
        device: Where to train; where the model is if None. Model and guide are moved there and stay.
        precision: ``"float32"``, ``"tf32"`` or ``"bf16"``: what networks compute in (:func:`inference.precision.precise`).
        compile: Whether to compile bound and optimizer (``torch.compile``; needs a C++ compiler on a CPU): about half a minute at
            the start, then about twice as fast. Only for the objective "exact", which has no draws and no temperature.
        checkpoint: Folder for the state of training (with the method ``"mcmc"`` that of all chains, too); if it holds one, training goes on
            from there exactly. Of several processes the first writes it, and all read it.
        checkpoint_every: Seconds between writes of it.
        log_every: Steps between rows of the history.
        progress: Whether to show progress, or what to call with (step, steps, row) at each row.

    Raises:
        ValueError: for options out of range, images that do not fit, or a checkpoint that is damaged or of another training.
        FloatingPointError: if the bound stops being finite; says at which step.
    """
    model = adopt(model, data)
    together = team()
    if method in ("mcmc", "map") and (together.size > 1 or precision != "float32"):
        raise ValueError(f"the method {method!r} keeps latents of all images in one process, in float32")
    dynamics = dict(dynamics or {}) | ({"clamped": clamped} if clamped else {})
    batches = batches_of(data, batch_size, seed=seed, event_shape=getattr(model, "event_shape", None), device=place(model, device))
    batches = together.share(batches, batch_size)
    chosen = ascended(method, objective, model, guide, data, batches, particles=particles, freeze_model=freeze_model,
                      run={"final_beta": beta, "total": together.total}, chains={"transitions": transitions, "sampler": sampler},
                      dynamics=dynamics, batch_size=batch_size, seed=seed)
    bound_of, guide, batches, particles = chosen.bound_of, chosen.guide, chosen.batches, chosen.particles
    steps = length(steps, epochs, batches.per_epoch)
    beta_start, (start, end) = beta if chosen.exact else min(beta_start, beta), temperature or temperatures(model)
    guide.to(batches.device)
    parameters = [p for p in guide.parameters() if p.requires_grad]
    parameters += [] if freeze_model else [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("there is nothing to train: neither guide nor model has free parameters")
    norms = lognorms(guide, *([] if freeze_model else [model])) if norm_penalty else []
    ascent = of_name("optimizer", optimizer, OPTIMIZERS)(parameters, lr=lr, weight_decay=weight_decay)
    if compile:
        if objective != "exact":
            raise ValueError("compile=True needs the objective 'exact': draws whose temperature falls would be compiled anew at every step")
        ascent.param_groups[0]["lr"] = torch.tensor(lr)  # a tensor, as a number that changes would compile every step anew
        bound_of, advance = torch.compile(bound_of), torch.compile(ascent.step)
    else:
        advance = ascent.step
    settings = {
        "steps": steps, "objective": objective, "batch_size": batch_size, "images": batches.source, "optimizer": optimizer, "lr": lr,
        "final_lr": final_lr, "weight_decay": weight_decay, "warmup": warmup, "restarts": restarts, "clip": clip, "beta": beta,
        "beta_start": beta_start, "beta_warmup": beta_warmup, "temperature": [start, end], "anneal": anneal,
        "particles": particles, "freeze_model": freeze_model, "seed": seed}
    rare = {"norm_penalty": (norm_penalty, 0.0), "warmup_clip": (warmup_clip, None), "beta_hold": (beta_hold, 0.0),
            "precision": (precision, "float32"), "processes": (together.size, 1), "burn_in": (getattr(guide, "burn_in", 0), 0)}
    settings |= {name: value for name, (value, usual) in rare.items() if value != usual}
    if method == "mcmc":
        settings |= {"method": method, "transitions": transitions, "sampler": sampler}
    if method == "map":
        settings |= {"method": method, "clamped": sorted(clamped or {})}
        settings |= {name: value for name, value in dynamics.items() if name != "clamped"}
    history, first = History(), 0
    if log_every < 1:
        raise ValueError(f"log_every must be at least 1, not {log_every}")
    if not 0.0 <= beta_hold <= 1.0 or norm_penalty < 0.0 or any(bound is not None and not bound > 0.0 for bound in (clip, warmup_clip)):
        raise ValueError("beta_hold must be from 0 to 1, norm_penalty at least 0, clip and warmup_clip positive or None; "
                         f"got {beta_hold}, {norm_penalty}, {clip} and {warmup_clip}")

    with precise(precision, model, guide), _training(model, guide, freeze_model, seed), \
            _reporter(together.leads and progress, steps) as report:
        together.agree(model, guide)
        if checkpoint is not None and saved.exists(checkpoint):
            first, history.rows = saved.resume(checkpoint, model, guide, ascent, settings)
        together.check_same(first, f"not every process finds the same state of training in {checkpoint}")
        before = history.rows[-1]["seconds"] if history.rows else 0.0
        began = written = time.perf_counter()
        totals: dict[str, Tensor] = {}
        since = first
        for step in range(first, steps):
            t = step / steps
            rate = cosine(t, lr, final_lr, warmup, restarts)
            weight = ramp(t, beta_start, beta, beta_warmup, beta_hold)
            if compile:
                ascent.param_groups[0]["lr"].fill_(rate)
                weight = torch.tensor(weight)
            else:
                ascent.param_groups[0]["lr"] = rate
            guide.temperature = 0.0 if chosen.exact else ramp(t, start, end, anneal)
            together.reseed(seed, step)
            bound = bound_of(model, guide, batches.at(step), beta=weight, particles=particles)
            ascent.zero_grad(set_to_none=True)
            loss = -bound.surrogate.mean()
            if norms:
                loss = loss + norm_penalty * torch.cat(norms).square().mean()
            loss.backward()
            together.average(p.grad for p in parameters if p.grad is not None)
            limit = clip if warmup_clip is None or t >= warmup else warmup_clip
            if limit is not None:
                nn.utils.clip_grad_norm_(parameters, limit)
            advance()
            for name, value in means(bound).items():
                totals[name] = totals[name] + value if name in totals else value
            if (step + 1) % log_every == 0 or step + 1 == steps:
                row_means = torch.stack([*totals.values()]) / (step + 1 - since)
                together.average([row_means])
                row = dict(zip(totals, row_means.tolist(), strict=True))
                totals.clear()
                since = step + 1
                seconds = before + time.perf_counter() - began
                history.rows.append({"step": step + 1} | row | {"lr": rate, "beta": float(weight), "temperature": guide.temperature,
                                                                  "seconds": seconds})
                value = row.get("log_joint", row["elbo"])
                if not value - value == 0:  # inf and nan alike
                    raise FloatingPointError(f"the bound is {value} around step {step + 1}; try a smaller lr or a smaller clip")
                report(step + 1, steps, history.rows[-1])
                if checkpoint is not None and together.leads and (time.perf_counter() - written > checkpoint_every or step + 1 == steps):
                    saved.write(checkpoint, model, guide, ascent, step + 1, settings, history.rows)
                    written = time.perf_counter()
    return history


@contextmanager
def _training(model: nn.Module, guide: nn.Module, freeze_model: bool, seed: int) -> Iterator[None]:
    """Training mode, a seeded generator, the model frozen if asked; everything as before (in evaluation mode) afterwards."""
    parameters = [*guide.parameters(), *model.parameters()]
    devices = sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), frozen(model) if freeze_model else nullcontext():
        torch.manual_seed(seed)
        try:
            model.train(not freeze_model)
            guide.train()
            with pyro.validation_enabled(False):  # a third of a step otherwise, and a host sync for every site
                yield
        finally:
            model.eval()
            guide.eval()
            guide.temperature = 0.0


@contextmanager
def _reporter(progress: bool | Callable, steps: int) -> Iterator[Callable]:
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda *_: None
    else:
        from inference.progress import training_bar

        with training_bar(steps) as report:
            yield report
