r"""What a level of predictive coding predicts of the one below: :math:`h(W g(z) + b)`, synapses between two nonlinearities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "Prediction"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z, "tanh": torch.tanh, "relu": torch.relu, "elu": nn.functional.elu, "sigmoid": torch.sigmoid,
    "gelu": nn.functional.gelu}


class Prediction(nn.Module):
    """From values ``(…, K)`` above to predictions ``(…, *out_shape)`` below: ``after(W before(z) + b)``.

    Arguments:
        units: ``K``.
        out_shape: Shape of what is predicted, ``M`` numbers.
        before, after: Names of the nonlinearities, a key of :data:`ACTIVATIONS`.
        bias: Whether there is a ``b``, which starts at 0.
        modules: Number of modules side by side, each with its share of units above and below and no synapses between them: ``W`` has
            shape (modules, M / modules, K / modules).
        norm: Length that every unit's column of ``W`` has within its module, however trained, as of atoms in sparse coding; free if None.
        gain: Weights start as N(0, gain² / K) (of a module), drawn from torch's global generator.

    Raises:
        ValueError: for an unknown nonlinearity, or units that the modules do not share evenly.
    """

    def __init__(self, units: int, out_shape: int | Sequence[int], *, before: str = "identity", after: str = "identity", bias: bool = True,
                 modules: int = 1, norm: float | None = None, gain: float = 1.0) -> None:
        super().__init__()
        for name in (before, after):
            if name not in ACTIVATIONS:
                raise ValueError(f"unknown activation {name!r}; known are: {', '.join(ACTIVATIONS)}")
        self.out_shape = (out_shape,) if isinstance(out_shape, int) else tuple(out_shape)
        outputs = prod(self.out_shape)
        if modules < 1 or units % modules or outputs % modules:
            raise ValueError(f"{modules} modules do not share {units} units above and {outputs} below evenly")
        if norm is not None and not norm > 0.0:
            raise ValueError(f"norm must be positive, or None, not {norm}")
        self.before, self.after, self.module_count, self.norm = before, after, modules, norm
        shape = (outputs, units) if modules == 1 else (modules, outputs // modules, units // modules)
        self.weight = nn.Parameter(gain * torch.randn(shape) / (units // modules) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    @property
    def linear(self) -> bool:
        """Whether the prediction is linear in the values."""
        return self.before == self.after == "identity"

    @property
    def synapses(self) -> Tensor:
        """``W``: the weights, at the length that their columns must have."""
        return self.weight if self.norm is None else self.norm * nn.functional.normalize(self.weight, dim=-2)

    def presynaptic(self, z: Tensor) -> Tensor:
        """g(z), what the synapses receive."""
        return ACTIVATIONS[self.before](z)

    def drive(self, activity: Tensor) -> Tensor:
        """``W a + b`` of presynaptic activity ``(…, K)``, ``(…, M)``."""
        if self.module_count == 1:
            return nn.functional.linear(activity, self.synapses, self.bias)
        parts = activity.unflatten(-1, (self.module_count, -1)).unsqueeze(-2) @ self.synapses.mT
        drive = parts.flatten(-3)
        return drive if self.bias is None else drive + self.bias

    def forward(self, z: Tensor) -> Tensor:
        return ACTIVATIONS[self.after](self.drive(self.presynaptic(z))).unflatten(-1, self.out_shape)
