r"""Inference as motion uphill: the latents of every image follow the gradient of :math:`\log p(x, z)`, all images in one batch.

With Normal levels this is predictive coding (Rao & Ballard 1999; Marino 2022), :math:`\dot z_l = J_{l-1}^\top \varepsilon_{l-1} -
\varepsilon_l`; with any other law it is what autograd makes of the same sentence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.mcmc.target import Target
from inference.schedules import cosine
from zoo.density import count

__all__ = ["OPTIMIZERS", "Moment", "ascend", "stable_step"]

OPTIMIZERS = ("adam", "gradient")
ADAM_LR = 0.1


@dataclass(frozen=True)
class Moment:
    """Where the ascent of each image is.

    Attributes:
        u: Unconstrained coordinates of all real-valued latents, ``(N, K)``.
        value: Log density there, nats, ``(N,)``.
        gradient: Its gradient ``(N, K)``.
    """

    u: Tensor
    value: Tensor
    gradient: Tensor

    @property
    def slope(self) -> Tensor:
        """Length of the gradient, ``(N,)``; 0 at a mode."""
        return self.gradient.norm(dim=-1)


@torch.no_grad()
def ascend(target: Target, u: Tensor, *, steps: int, lr: float | Tensor | None = None, optimizer: str = "adam",
           decay: bool = True) -> Iterator[Moment]:
    """The way uphill: the start, and where it is after each of ``steps`` steps; every step is taken when it is asked for.

    Arguments:
        target: The density.
        u: Where to start, ``(N, K)``.
        lr: Size of a step. Of ``"adam"`` .1 if None. Of ``"gradient"``, u ← u + lr · gradient, with one lr for all images or one for each,
            ``(N, 1)``; if None what is stable for each image at its start (:func:`stable_step`), halved for an image whenever it
            would step to a lower density, a step that is not taken.
        optimizer: ``"adam"``, which is robust against scale, or ``"gradient"``, the dynamics as written.
        decay: Whether the steps of ``"adam"`` fall to 0 by a cosine.

    Raises:
        ValueError: for an unknown optimizer, negative steps, or a step size that is not positive.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {optimizer!r}; the latents climb by: {', '.join(OPTIMIZERS)}")
    if steps < 0 or (isinstance(lr, float | int) and not 0.0 < lr < math.inf):
        raise ValueError(f"steps must not be negative and lr positive; got {steps} and {lr}")
    u = u.detach().clone()
    here = Moment(u, *target.value_and_grad(u))
    if optimizer == "gradient":
        found = lr is None
        lr = stable_step(target, u) if found and steps else lr
        yield here
        for _ in range(steps):
            u = torch.addcmul(here.u, here.gradient, lr) if isinstance(lr, Tensor) else here.u.add(here.gradient, alpha=lr)
            there = Moment(u, *target.value_and_grad(u))
            if found:
                there, lr = _no_lower(here, there, lr)
            here = there
            yield here
        return
    lr = ADAM_LR if lr is None else lr
    yield here
    u = u.clone()  # which Adam moves in place
    adam = torch.optim.Adam([u], lr=lr)
    for step in range(steps):
        adam.param_groups[0]["lr"] = cosine(step / steps, lr, 0.0, 0.0) if decay else lr
        u.grad = -here.gradient
        adam.step()
        at = u.clone()
        here = Moment(at, *target.value_and_grad(at))
        yield here


def _no_lower(here: Moment, there: Moment, lr: Tensor) -> tuple[Moment, Tensor]:
    """Where each image is after a step that it takes unless its density falls by more than rounding; and its next step size."""
    slack = 10.0 * torch.finfo(here.value.dtype).eps * (1.0 + here.value.abs())
    worse = ~(there.value >= here.value - slack).unsqueeze(-1)
    u, gradient = torch.where(worse, here.u, there.u), torch.where(worse, here.gradient, there.gradient)
    return Moment(u, torch.where(worse[..., 0], here.value, there.value), gradient), torch.where(worse, 0.5 * lr, lr)


def stable_step(target: Target, u: Tensor, *, iterations: int = 30) -> Tensor:
    """One over the largest curvature of each image's log density at ``u`` ``(N, K)``, ``(N, 1)``: the largest eigenvalue of its Hessian by
    size, by power iteration. Steps up to twice that are stable as long as curvature does not grow on the way.

    Arguments:
        iterations: Of the power iteration, each of which costs two gradients.
    """
    generator = torch.Generator(u.device).manual_seed(0)
    direction = torch.randn(u.shape[-1], generator=generator, dtype=u.dtype, device=u.device).expand_as(u)
    largest = u.new_zeros(len(u), 1)
    u = u.detach().requires_grad_(True)
    with torch.enable_grad():
        gradient, = torch.autograd.grad(target.log_prob(u).sum(), u, create_graph=True)
        for _ in range(iterations):
            direction = torch.nn.functional.normalize(direction, dim=-1)
            moved, = torch.autograd.grad(gradient, u, direction, retain_graph=True)
            largest, direction = moved.norm(dim=-1, keepdim=True), moved.detach()
            count(largest.expand(-1, 2), gradient=True)
    return 1.0 / largest.detach().clamp(min=torch.finfo(u.dtype).tiny)
