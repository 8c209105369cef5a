"""Invertible maps of images and sequences by name: affine flows over space and time, which whiten what they learned."""

from collections.abc import Sequence
from typing import Any

from zoo.registry import Registry

__all__ = ["build", "registry"]

registry = Registry("flows", {
    "zca": ("zoo.flows.builders:zca", "a symmetric matrix over the pixels of an image: centre–surround filters"),
    "cholesky": ("zoo.flows.builders:cholesky", "a lower triangular one: each pixel predicted from those before it"),
    "pca": ("zoo.flows.builders:pca", "a rotation and scales: principal axes"),
    "ar": ("zoo.flows.builders:autoregression", "over time: every pixel predicted linearly from its own last frames"),
    "var": ("zoo.flows.builders:vector_autoregression", "over time: every pixel predicted linearly from all pixels of the last frames"),
    "conv": ("zoo.flows.builders:convolutional", "over time: small convolutions of the last frames"),
})


def build(name: str, event_shape: Sequence[int], **options: Any) -> Any:
    """Builds a flow, at the identity; names joined by ``+`` are stacked, the one next to the data first (``"ar+zca"``).

    Arguments:
        event_shape: Of one image, or of one sequence ``(frames, channels, height, width)``: spatial flows are then the same for each frame.
        options: Each goes to those of the named flows that have it (``past=2`` to temporal ones, ``channels=16`` to ``"conv"``).

    Raises:
        ValueError: for an unknown name, an option that none of the flows has, or a shape that does not fit.
    """
    from zoo.flows.builders import stacked

    return stacked(name, event_shape, options)
