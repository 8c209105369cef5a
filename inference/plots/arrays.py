"""Reading what is to be drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = ["array"]


def array(values: Any, name: str) -> np.ndarray:
    """A tensor, array or nested list as a float array in memory.

    Raises:
        TypeError: if it is not made of numbers.
    """
    try:
        return torch.as_tensor(values).detach().cpu().double().numpy()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a tensor or an array of numbers, not {type(values).__name__}") from error
