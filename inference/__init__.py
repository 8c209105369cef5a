"""Fitting, inferring, scoring, comparing: what turns a model and a guide into numbers.

``fit``, ``infer``, ``compare`` and ``log_joint`` are the way in; ``inference.methods.registry``
names the ways of inferring. Importing this package
imports nothing heavy.
"""

from importlib import import_module
from typing import Any

__all__ = ["Posterior", "compare", "elbo", "fit", "infer", "learn_dictionary", "load", "log_joint", "methods", "metrics", "page",
           "plots", "save", "score"]

_ATTRIBUTES = {
    "Posterior": "inference.posterior:Posterior",
    "compare": "inference.comparison:compare",
    "elbo": "guides.bounds:elbo",
    "fit": "inference.training:fit",
    "infer": "inference.methods.run:infer",
    "learn_dictionary": "inference.dictionary:learn_dictionary",
    "load": "inference.checkpoint:load",
    "log_joint": "zoo.density:log_joint",
    "page": "inference.model_page:page",
    "save": "inference.checkpoint:save",
    "score": "inference.metrics.scores:score",
}


def __getattr__(name: str) -> Any:
    if name in _ATTRIBUTES:
        module, _, attribute = _ATTRIBUTES[name].partition(":")
        value = getattr(import_module(module), attribute)
        globals()[name] = value
        return value
    if name in ("methods", "metrics", "plots"):
        return import_module(f"inference.{name}")
    raise AttributeError(f"module 'inference' has no attribute {name!r}")
