r"""What every flow here is: an invertible map of images (or of sequences of them) whose Jacobian has a known determinant.

A flow carries what is simple, y, to what is seen, x: ``flow(y)``. The other way is :meth:`Flow.whiten`, which removes from x what can be
predicted; in Marino's reading (2022) it is what lateral and temporal normalization do before any latent variable is inferred.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints

__all__ = ["Flow", "Stack"]


class Flow(TransformModule):
    """A transform of PyTorch and a module: ``x = flow(y)``; subclasses give :meth:`whiten` and ``_call``.

    Arguments:
        event_shape: Shape of one image ``(channels, height, width)``, or of one sequence ``(frames, channels, height, width)``.

    Attributes:
        closed_form: Whether :meth:`fit` finds the parameters of greatest likelihood without a search.
    """

    bijective = True
    closed_form = False

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        if not self.event_shape or not all(isinstance(n, int) and n > 0 for n in self.event_shape):
            raise ValueError(f"event_shape takes positive integers, not {event_shape!r}")
        self.domain = self.codomain = constraints.independent(constraints.real, len(self.event_shape))

    def whiten(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The way back: y ``(…, *event_shape)``, and log|det dy/dx| in nats, of shape ``(…)`` or ``()`` where it is the same for all x."""
        raise NotImplementedError

    def fit(self, x: Tensor, ridge: float = 1e-5) -> Flow:
        """Sets the parameters to those of greatest likelihood of ``x`` ``(…, *event_shape)`` under y ~ N(0, I), in closed form.

        Arguments:
            ridge: What is added to every variance, a fraction of the pixels' mean variance.

        Raises:
            ValueError: for a flow without a closed form, or images that do not fit.
        """
        raise ValueError(f"{type(self).__name__} has no closed form: learn it by gradient (FlowDensity.fit)")

    def check(self, x: Tensor) -> Tensor:
        """``x`` itself.

        Raises:
            ValueError: if it does not end in :attr:`event_shape`.
        """
        if tuple(x.shape[-len(self.event_shape):]) != self.event_shape:
            raise ValueError(f"this flow takes (…, {', '.join(map(str, self.event_shape))}); got {tuple(x.shape)}")
        return x

    def _inverse(self, x: Tensor) -> Tensor:
        return self.whiten(x)[0]

    def log_abs_det_jacobian(self, y: Tensor, x: Tensor) -> Tensor:
        """log|det dx/dy| at ``x = flow(y)``, ``(…)``."""
        return (-self.whiten(x)[1]).expand(x.shape[: x.dim() - len(self.event_shape)])


class Stack(Flow):
    """Flows one after the other, the one next to the data first: x = first(second(… y)).

    Whitening goes through them in the order given, so a stack of ``n`` temporal flows removes what ``n`` orders of prediction can.

    Arguments:
        flows: All of one event shape; none at all is the identity.
        event_shape: Needed where there are none.
    """

    def __init__(self, flows: Sequence[Flow], event_shape: Sequence[int] | None = None) -> None:
        shapes = {flow.event_shape for flow in flows} | ({tuple(event_shape)} if event_shape is not None else set())
        if len(shapes) != 1:
            raise ValueError(f"stacked flows must have one event shape, not {sorted(shapes)}" if shapes else
                             "a stack of no flows needs an event_shape")
        super().__init__(shapes.pop())
        self.flows = nn.ModuleList(flows)
        self.closed_form = all(flow.closed_form for flow in flows)

    def whiten(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, total = self.check(x), x.new_zeros(())
        for flow in self.flows:
            y, log_det = flow.whiten(y)
            total = total + log_det
        return y, total

    def _call(self, y: Tensor) -> Tensor:
        for flow in reversed(self.flows):
            y = flow(y)
        return y

    @torch.no_grad()
    def fit(self, x: Tensor, ridge: float = 1e-5) -> Stack:
        """Fits each flow to what those before it leave; flows without a closed form stay as they are.

        The result is of greatest likelihood for a single flow; of several it is what fitting one by one gives.
        """
        for flow in self.flows:
            if flow.closed_form:
                flow.fit(x, ridge)
            x = flow.whiten(x)[0]
        return self
