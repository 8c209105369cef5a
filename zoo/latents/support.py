"""Which of three kinds a latent's support is, as methods must treat them differently: real, count or one-hot."""

from __future__ import annotations

from torch.distributions import constraints

__all__ = ["support_kind"]


def support_kind(support: constraints.Constraint) -> str:
    """``"real"`` (any continuous support), ``"count"`` (integers from 0) or ``"one_hot"``.

    Raises:
        ValueError: for another discrete support.
    """
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if not support.is_discrete:
        return "real"
    if isinstance(support, type(constraints.one_hot)):
        return "one_hot"
    if support is constraints.nonnegative_integer or getattr(support, "lower_bound", None) == 0:
        return "count"
    raise ValueError(f"latents with support {support} are not handled; accepted are real, count and one-hot supports")
