"""Ways of inferring: each takes a program and images and returns a :class:`~inference.posterior.Posterior`."""

from importlib import import_module
from typing import Any

import guides
from zoo.registry import Registry

__all__ = ["fitting", "misfit", "registry"]

registry = Registry("methods", {
    "amortized": ("inference.methods.amortized:amortized", "one pass of the encoder; samples from its posterior"),
    "iterative": ("inference.methods.stepwise:iterative", "the learned steps of an iterative guide"),
    "semi": ("inference.methods.stepwise:semi", "an encoder's start, refined for each image by natural-gradient steps or Adam"),
    "local": ("inference.methods.local:local", "variational parameters optimized for each image, from the encoder or the prior"),
    "natural": ("inference.methods.natural:natural", "natural-gradient steps on the free energy of each image, without an encoder"),
    "flow": ("inference.methods.amortized:flow", "samples from a trained normalizing flow"),
    "full": ("inference.methods.amortized:full", "samples from a trained Normal posterior with a full covariance"),
    "lowrank": ("inference.methods.amortized:lowrank", "samples from a trained Normal posterior with a low-rank covariance"),
    "laplace_approximation": ("inference.methods.laplace_approximation:laplace_approximation",
                              "a Normal at each image's mode, its covariance the inverse curvature there"),
    "map": ("inference.methods.point:point", "the most probable latents: gradient ascent, or ascent on the lattice of counts"),
    "ista": ("inference.methods.ista:ista", "sparse codes by iterative shrinkage (Laplace latents, linear decoder)"),
    "fista": ("inference.methods.ista:fista", "the same, accelerated"),
    "lca": ("inference.methods.lca:lca", "the same, by neurons that inhibit one another: the locally competitive algorithm"),
    "mcmc": ("inference.methods.mcmc:mcmc", "Markov chains for every image at once: HMC, Gibbs sweeps, moves on the lattice of counts"),
})


def misfit(name: str, model: Any, x: Any = None) -> str | None:
    """Why the method ``name`` cannot infer a model's latents, in a phrase; None if it can.

    A method says so in its attribute ``misfit``, a function of model and images; one that is named after a guide leaves it to that guide.

    Arguments:
        x: Images, for programs from outside the zoo.
    """
    if name != "amortized" and import_module("zoo.latents.deterministic").is_deterministic(model):
        return "its codes are deterministic, so that there is no posterior to infer"
    says = getattr(registry[name], "misfit", None)
    if says is not None:
        return says(model, x)
    return guides.misfit(name, model, x) if name in guides.registry else None


def fitting(model: Any, x: Any = None) -> list[str]:
    """Names of the methods that can infer a model's latents."""
    return [name for name in registry if misfit(name, model, x) is None]
