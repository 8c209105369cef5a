"""What every data set is: images or sequences ``x`` with, where known, ``labels`` and ``factors``, in a training and a test part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Data", "Dataset", "images_of"]


@dataclass(frozen=True, eq=False)
class Data:
    """Images, or sequences of them, and what is known of them. What is said of images elsewhere is said of sequences as well.

    Attributes:
        x: Images ``(n, channels, height, width)`` or sequences ``(n, frames, channels, height, width)``, of a floating-point type.
        labels: Class of each image ``(n,)``, or None.
        factors: Ground-truth causes ``{name: (n,)}``, or None; those that change within a sequence may be ``(n, frames)``.

    Raises:
        ValueError: for no images, integer images, values that are not finite, or labels or factors of another length.
    """

    x: Tensor
    labels: Tensor | None = None
    factors: dict[str, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.x.dim() not in (4, 5):
            raise ValueError("images must be (n, channels, height, width), sequences (n, frames, channels, height, width); "
                             f"not {tuple(self.x.shape)}")
        if not self.x.is_floating_point():
            raise ValueError(f"images must be of a floating-point type, not {self.x.dtype}")
        if len(self.x) == 0:
            raise ValueError("there are no images")
        finite = torch.isfinite(self.x).flatten(1).all(1)
        if not finite.all():
            raise ValueError(f"image {int((~finite).nonzero()[0])} has values that are not finite")
        for name, values in self._columns():
            if values.shape[:1] != self.x.shape[:1]:
                raise ValueError(f"{name} has shape {tuple(values.shape)} for {len(self.x)} images")

    def _columns(self) -> Iterator[tuple[str, Tensor]]:
        if self.labels is not None:
            yield "labels", self.labels
        yield from (self.factors or {}).items()

    def __len__(self) -> int:
        return len(self.x)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one image or sequence: all of ``x.shape`` but n."""
        return tuple(self.x.shape[1:])

    def __getitem__(self, index: slice | Tensor) -> Data:
        """The images at ``index`` (a slice, a mask or indices) with all that belongs to them."""
        factors = None if self.factors is None else {name: values[index] for name, values in self.factors.items()}
        return Data(self.x[index], None if self.labels is None else self.labels[index], factors)

    def to(self, device: str | torch.device) -> Data:
        """The same on ``device``."""
        factors = None if self.factors is None else {name: values.to(device) for name, values in self.factors.items()}
        return Data(self.x.to(device), None if self.labels is None else self.labels.to(device), factors)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set with images to learn from and images held out.

    Attributes:
        name: Its name in ``zoo list``.
        train, test: The two parts; ``about`` says how they were split.
        about: What the numbers are, in a sentence or two.
        validation: A second part that is held out, on which readouts are fitted, or None.
        targets: Names of the factors that a representation is judged by (:mod:`inference.metrics.decodability`).
        noise: Standard deviation of a pixel, in the unit of ``x``, that models of these images assume unless told otherwise; None for
            data scaled so that the models' own default fits.
    """

    name: str
    train: Data
    test: Data
    about: str
    validation: Data | None = None
    targets: tuple[str, ...] = ()
    noise: float | None = None

    def __post_init__(self) -> None:
        for part in (self.test, self.validation):
            if part is not None and part.event_shape != self.train.event_shape:
                raise ValueError(f"training images {self.train.event_shape} and held-out images {part.event_shape} differ in shape")
        for part in (self.validation, self.test) if self.targets else ():
            if part is None or not set(self.targets) <= set(part.factors or {}):
                raise ValueError(f"validation and test images must have the factors {', '.join(self.targets)}, which are the targets")

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one image or sequence."""
        return self.train.event_shape

    def to(self, device: str | torch.device) -> Dataset:
        """The same on ``device``."""
        validation = None if self.validation is None else self.validation.to(device)
        return replace(self, train=self.train.to(device), test=self.test.to(device), validation=validation)


def images_of(data: object) -> Tensor:
    """Images of a data set (its training images) or the tensor itself.

    Raises:
        ValueError: if there are none.
    """
    data = getattr(data, "train", data)
    x = getattr(data, "x", data)
    if not isinstance(x, Tensor):
        raise ValueError(f"expected images as a tensor or a data set, not {type(data).__name__}")
    return x
