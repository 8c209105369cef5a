"""Generative programs, one a file; ``registry`` names those that are built without a latent family's name."""

from zoo.registry import Registry

__all__ = ["registry"]

registry = Registry("models", {
    "linear_gaussian": ("zoo.oracles:linear_gaussian", "oracle: Normal latents, linear decoder; exact posterior and log p(x)"),
    "poisson_fixture": ("zoo.oracles:poisson_fixture", "oracle: two Poisson latents; posterior and log p(x) by enumeration"),
    "sparse_coding": ("zoo.models.sparse_coding:SparseCoding", "Laplace latents, linear decoder with atoms of length 1: sparse coding"),
    "optic_flow": ("zoo.models.optic_flow:OpticFlow", "retinal optic flow from its causes: gaze, self motion, discs (data rofl/…)"),
    "mixture": ("zoo.oracles:mixture", "oracle: mixture of Gaussians; exact responsibilities and log p(x)"),
})
