"""Variational programs for a given model: each produces ``delta``, what inference adds to the prior's parameters."""

from importlib import import_module
from typing import Any

from zoo.registry import Registry

__all__ = ["ENCODERS", "build", "default", "misfit", "registry"]

registry = Registry("guides", {
    "amortized": ("guides.amortized:Amortized", "one encoder for all images"),
    "hierarchical": ("guides.hierarchical:Hierarchical", "a hierarchy's own encoder: one way up, posteriors read on the model's walk down"),
    "flow": ("guides.flow:Flow", "one encoder and a normalizing flow: latents may depend on one another in any way"),
    "full": ("guides.covariance:FullCovariance", "one encoder, a Normal posterior with a full covariance"),
    "lowrank": ("guides.covariance:LowRank", "one encoder, a Normal posterior with a diagonal plus low-rank covariance"),
    "natural": ("guides.natural:Natural", "no encoder: natural-gradient steps on the free energy, derived from the model"),
    "iterative": ("guides.iterative:Iterative", "a learned update, from the posterior's parameters and the slope of its ELBO"),
    "local": ("guides.local:Local", "free variational parameters for each image"),
    "semi": ("guides.semi:Semi", "an encoder's start, refined for each image by natural-gradient steps or Adam"),
    "laplace_approximation": ("guides.laplace_approximation:LaplaceApproximation",
                              "a Normal at each image's mode, its covariance the inverse curvature there"),
    "map": ("guides.point:Point", "a point for each image"),
})

ENCODERS = ("amortized", "hierarchical")  # guides that infer in one pass, even if an image's code is no more than a point


def build(name: str, model: Any, data: Any = None, **options: Any) -> Any:
    """Builds the guide ``name`` for ``model``.

    Arguments:
        model: A model of the zoo, or any Pyro program ``model(x)`` with the plate ``"data"``.
        data: Images ``(N, *event_shape)``, or a data set: needed by guides that keep something per image, and for programs
            from outside the zoo.
        options: The guide's own (``encoder="conv"``, ``seed=1``, …).

    Raises:
        ValueError: for an unknown guide, or one that does not fit the model's latents; says which do.
    """
    program = _program(model, data)
    reason = misfit(name, program)
    if reason is not None:
        fitting = [other for other in registry if misfit(other, program) is None]
        raise ValueError(f"the guide {name!r} does not fit the model: {reason}; guides that fit it: {', '.join(fitting)}")
    guide = registry[name](program, data=data, **options)
    guide.built_with = {"name": name, **options}
    return guide


def default(model: Any) -> str:
    """The guide to train a model with unless another is named: ``"hierarchical"`` where that fits, else ``"amortized"``."""
    return "hierarchical" if misfit("hierarchical", model) is None else "amortized"


def misfit(name: str, model: Any, data: Any = None) -> str | None:
    """Why the guide ``name`` does not fit a model, in a phrase; None if it fits. A guide class says so in its ``misfit(model)``.

    Arguments:
        data: Images or a data set, for programs from outside the zoo.
    """
    if name not in ENCODERS and import_module("zoo.latents.deterministic").is_deterministic(model):
        return "its codes are deterministic, so that there is no posterior to approximate"
    says = getattr(registry[name], "misfit", None)
    return None if says is None else says(_program(model, data))


def _program(model: Any, data: Any) -> Any:
    return import_module("zoo.program").adopt(model, data)
