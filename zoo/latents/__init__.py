"""Latent families: one file each, one space of unconstrained parameters for all.

A prior of your own is a subclass of :class:`zoo.latents.Family` registered with :func:`zoo.latents.register`; every model,
guide, metric, figure and the command line then know it by name.
"""

from typing import Any

from zoo.registry import Registry

__all__ = ["Family", "register", "registry"]

registry = Registry("latents", {
    "gaussian": ("zoo.latents.gaussian:Gaussian", "real latents, Normal prior; optional activation relu or exp"),
    "laplace": ("zoo.latents.laplace:Laplace", "real latents, Laplace prior: the sparse-coding prior"),
    "student_t": ("zoo.latents.student_t:StudentT", "real latents, Student-t prior: sparse with heavy tails (df=1: Cauchy)"),
    "categorical": ("zoo.latents.categorical:Categorical", "one-hot latents, one or several groups of categories"),
    "poisson": ("zoo.latents.poisson:Poisson", "spike counts, Poisson prior with learned rates"),
})
register = registry.register


def __getattr__(name: str) -> Any:
    if name == "Family":
        from zoo.latents.base import Family

        return Family
    raise AttributeError(f"module 'zoo.latents' has no attribute {name!r}")
