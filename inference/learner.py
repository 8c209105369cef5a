"""What stands where training has a guide: learners that infer for themselves, and may teach a guide."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inference.batches import Batches, batches_of

__all__ = ["Learner"]


class Learner(nn.Module):
    """Its parameters are those of the guide that learns alongside, if there is one.

    Arguments:
        guide: That guide, or None.
        x: Training images ``(n, *event_shape)``.
        batch_size: Images of a minibatch.
        seed: Seed of the minibatches.

    Attributes:
        batches: Indices of images by training step.

    Raises:
        ValueError: for a guide that keeps something for each image.
    """

    def __init__(self, guide: nn.Module | None, x: Tensor, *, batch_size: int, seed: int) -> None:
        super().__init__()
        if getattr(guide, "per_image", False):
            raise ValueError("a guide that keeps something for each of its images cannot learn from minibatches; take an 'amortized' one")
        self.guide = guide
        index = torch.arange(len(x), device=x.device)
        self.batches: Batches = batches_of(index, batch_size, seed=seed, event_shape=None, device=None)

    @property
    def temperature(self) -> float:
        """The guide's; what is inferred here is exact, whatever it is."""
        return getattr(self.guide, "temperature", 0.0)

    @temperature.setter
    def temperature(self, value: float) -> None:
        if self.guide is not None:
            self.guide.temperature = value
