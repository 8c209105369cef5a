r"""A flow alone as a density of images or sequences: :math:`\log p(x) = \log p(y) + \log|\det dy/dx|`, with independent Normal y."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.flows.base import Flow

__all__ = ["FlowDensity"]


class FlowDensity(nn.Module):
    """Independent Normal numbers, carried by a flow; without latents, so that there is nothing to infer.

    Arguments:
        flow: The flow; a ``Stack([], event_shape)`` leaves the base law alone.
        base: ``"standard"``, N(0, 1), or ``"diagonal"``, N(loc, scale²) with a learned mean and scale of each number of y.
    """

    def __init__(self, flow: Flow, base: str = "standard") -> None:
        super().__init__()
        if base not in ("standard", "diagonal"):
            raise ValueError(f"base must be 'standard' or 'diagonal', not {base!r}")
        self.flow, self.base = flow, base
        for name in ("loc", "log_scale"):
            zeros = torch.zeros(flow.event_shape)
            if base == "standard":
                self.register_buffer(name, zeros)
            else:
                self.register_parameter(name, nn.Parameter(zeros))

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), nats, ``(…)``, for ``(…, *event_shape)``."""
        y, log_det = self.flow.whiten(x)
        z = (y - self.loc) * (-self.log_scale).exp()
        dims = tuple(range(-len(self.flow.event_shape), 0))
        return -0.5 * z.square().sum(dims) - self.log_scale.sum() - 0.5 * self.loc.numel() * math.log(2.0 * math.pi) + log_det

    @torch.no_grad()
    def sample(self, count: int, seed: int = 0) -> Tensor:
        """``count`` draws ``(count, *event_shape)``; the global generator is left alone."""
        generator = torch.Generator(self.loc.device).manual_seed(seed)
        noise = torch.randn(count, *self.flow.event_shape, generator=generator, dtype=self.loc.dtype, device=self.loc.device)
        return self.flow(self.loc + self.log_scale.exp() * noise)

    @torch.no_grad()
    def start(self, x: Tensor, ridge: float = 1e-5) -> FlowDensity:
        """Sets what has a closed form: the flow, where it has one (:meth:`~zoo.flows.base.Flow.fit`), then the base's means and scales."""
        if self.flow.closed_form or hasattr(self.flow, "flows"):
            self.flow.fit(x, ridge)
        if self.base == "diagonal":
            y = self.flow.whiten(x)[0].double().flatten(0, x.dim() - len(self.flow.event_shape) - 1)
            variance = y.var(0, correction=0)
            self.loc.copy_(y.mean(0))
            self.log_scale.copy_(0.5 * (variance + ridge * variance.mean()).log())
        return self

    def fit(self, x: Tensor, *, steps: int = 1000, batch_size: int = 200, lr: float = 1e-2, final_lr: float = 1e-4,
            clip: float | None = 100.0, seed: int = 0) -> list[float]:
        """Maximum likelihood by Adam on minibatches drawn with replacement, the learning rate falling along a cosine.

        Arguments:
            x: Training images ``(n, *event_shape)``.
            clip: Largest norm of the gradient of the mean log density per number, or None.

        Returns:
            Mean log p(x) of each step's batch, nats per image.

        Raises:
            ValueError: for settings out of range.
            FloatingPointError: if a log density stops being finite.
        """
        if steps < 1 or batch_size < 1 or not lr > 0:
            raise ValueError(f"steps and batch_size must be at least 1 and lr positive, not {steps}, {batch_size} and {lr}")
        free = [parameter for parameter in self.parameters() if parameter.requires_grad]
        ascent = torch.optim.Adam(free, lr=lr)
        generator = torch.Generator().manual_seed(seed)
        history = []
        for step in range(steps):
            ascent.param_groups[0]["lr"] = final_lr + 0.5 * (lr - final_lr) * (1.0 + math.cos(math.pi * step / steps))
            batch = x[torch.randint(len(x), (batch_size,), generator=generator).to(x.device)]
            value = self.log_prob(batch).mean()
            history.append(value.item())
            if not math.isfinite(history[-1]):
                raise FloatingPointError(f"the log density is {history[-1]} at step {step}; try a smaller lr, or start(x) first")
            ascent.zero_grad(set_to_none=True)
            (-value / self.loc.numel()).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(free, clip)
            ascent.step()
        return history
