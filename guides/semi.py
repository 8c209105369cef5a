r"""Semi-amortized inference: an encoder says where to start, and steps without an encoder go on from there (Kim et al. 2018).

The refinement is not differentiated: the encoder learns from the ELBO at its own output, the model from the ELBO at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guides.amortized import Amortized
from guides.base import Guide
from guides.natural import Natural
from guides.stepwise import Deltas, Stepwise, elbo_slope, has_exact_elbo

__all__ = ["Ascent", "Semi"]

DECAY, SQUARES, TINY = 0.9, 0.999, 1e-8  # Adam's own


class Ascent(Stepwise):
    """Stochastic variational inference as steps: each image's ELBO is climbed by Adam in its own unconstrained parameters.

    Arguments:
        steps: Steps of a call.
        lr: Step size.
        particles, temperature: Draws per image and temperature of relaxed samples, where the ELBO has no closed form.
    """

    def __init__(self, model: nn.Module, data: object = None, *, steps: int = 20, lr: float = 0.1, particles: int = 4,
                 temperature: float = 0.1) -> None:
        super().__init__(model, steps)
        if not lr > 0:
            raise ValueError(f"lr must be positive, not {lr}")
        if particles < 1 or not temperature > 0:
            raise ValueError(f"particles must be at least 1 and the temperature positive, not {particles} and {temperature}")
        self.lr, self.particles, self.inner_temperature, self.exact = lr, particles, temperature, has_exact_elbo(model)

    def refine(self, x: Tensor, deltas: Deltas, memory: Deltas | None) -> tuple[Deltas, Deltas]:
        _, slopes = elbo_slope(self.model, x, deltas, exact=self.exact, temperature=self.inner_temperature, particles=self.particles)
        count = torch.ones((), device=x.device) if memory is None else memory["count"] + 1
        after, new = {"count": count}, {}
        for name, slope in slopes.items():
            mean, square = (torch.zeros_like(slope),) * 2 if memory is None else (memory[f"mean/{name}"], memory[f"square/{name}"])
            mean = after[f"mean/{name}"] = DECAY * mean + (1 - DECAY) * slope
            square = after[f"square/{name}"] = SQUARES * square + (1 - SQUARES) * slope.square()
            size = (square / (1 - SQUARES**count)).sqrt() + TINY
            new[name] = deltas[name] + self.lr * mean / (1 - DECAY**count) / size
        return new, after


REFINEMENTS: dict[str, type[Stepwise]] = {"natural": Natural, "svi": Ascent}


class Semi(Stepwise):
    """A guide with an encoder whose output is refined for each image.

    Arguments:
        model: The model.
        encoder: Name of an encoder to train with this guide, or a trained :class:`~guides.amortized.Amortized` guide.
        refine: ``"natural"``, natural-gradient steps (:class:`~guides.natural.Natural`), or ``"svi"``, steps of Adam (:class:`Ascent`);
            if None natural steps, or Adam where the latents have no natural gradient.
        steps: Steps of a call.
        seed: Seed of the encoder's initial weights.
        options: The refinement's own options; no ``burn_in``, as the encoder learns from the start.

    Raises:
        ValueError: for an unknown refinement, an encoder of another model, or a ``burn_in``.
    """

    def __init__(self, model: nn.Module, data: object = None, *, encoder: str | Guide = "lin", refine: str | None = None, steps: int = 8,
                 seed: int = 0, **options: object) -> None:
        super().__init__(model, steps)
        reason = Natural.misfit(model)
        refine = refine or ("svi" if reason else "natural")
        if refine not in REFINEMENTS:
            raise ValueError(f"unknown refinement {refine!r}; known are: {', '.join(REFINEMENTS)}")
        if reason is not None and refine == "natural":
            raise ValueError(f"natural-gradient steps do not fit this model: {reason}; use refine='svi'")
        if "burn_in" in options:
            raise ValueError("a guide with an encoder learns from its start, too, and takes no burn_in")
        if isinstance(encoder, Guide) and _latents(encoder.model) != _latents(model):
            raise ValueError(f"the encoder infers {_latents(encoder.model)}, the model has the latents {_latents(model)}")
        self.amortized = encoder if isinstance(encoder, Guide) else Amortized(model, encoder=encoder, seed=seed)
        self.refinement = REFINEMENTS[refine](model, steps=steps, **options)

    @property
    def scored(self) -> tuple[int, ...]:
        return (0, self.steps)

    def start(self, x: Tensor) -> Deltas:
        return self.amortized.delta(x)

    def refine(self, x: Tensor, deltas: Deltas, memory: Deltas | None) -> tuple[Deltas, Deltas | None]:
        return self.refinement.refine(x, deltas, memory)


def _latents(model: nn.Module) -> str:
    return ", ".join(f"{name} ({len(family.parameters)} × {units} parameters)" for name, (family, units) in model.latents.items())
