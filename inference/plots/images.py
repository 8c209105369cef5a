"""Images as tiles: input checked, channels side by side, grey levels symmetric around zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["array", "side_by_side"]


def array(values: Any, name: str) -> np.ndarray:
    """A tensor, array or nested list as a float array in memory.

    Raises:
        TypeError: if it is not made of numbers.
    """
    try:
        return torch.as_tensor(values).detach().cpu().double().numpy()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a tensor or an array of numbers, not {type(values).__name__}") from error


def side_by_side(images: np.ndarray, event_shape: Sequence[int]) -> np.ndarray:
    """Images ``(n, D)`` or ``(n, *event_shape)`` as tiles ``(n, height, width')``, a NaN column between channels.

    ``width'`` is ``channels · (width + 1) − 1``.
    """
    channels, height, width = event_shape
    images = images.reshape(len(images), channels, height, width)
    padded = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=np.nan)
    return padded.transpose(0, 2, 1, 3).reshape(len(images), height, -1)[:, :, :-1]
