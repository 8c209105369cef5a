r"""The same program in the space of its prediction errors ``e``, with :math:`z = \mathrm{loc} + \mathrm{scale} \cdot e`.

Pyro's non-centred form (``LocScaleReparam(0.)``; Papaspiliopoulos, Roberts & Sköld 2007), site by site. In predictive coding it is error
optimization (Goemaere et al.): gradients reach all levels at once, so that depth does not make inference ill-conditioned. Where scales
depend on no other latent the mode is the same point; where they do, it is another one, as the densities differ by their logarithms.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor
from torch.distributions import Distribution

from zoo.density import latent_sites, log_sites, uncounted

__all__ = ["ErrorSpace"]

SUFFIX = "_decentered"
SHAPES = ("df", "structure")  # parameters of a law that stay as they are


class ErrorSpace:
    """A Pyro program whose latents are the standardized errors of another's; latents that have no location and scale stay what they are.

    Arguments:
        model: A Pyro program ``model(x)``.
        x: Images to see its sites with, as many as it will be given if the program is of these.

    Attributes:
        moved: The sites that are in error space; their errors are at the sites ``"<site>_decentered"``.
    """

    def __init__(self, model: Callable, x: Tensor) -> None:
        self.model = model
        shapes = {name: _shapes(site["fn"]) for name, site in latent_sites(model, x).items()}
        self.moved = [name for name, shape in shapes.items() if shape is not None]
        self._program = poutine.reparam(model, config={name: LocScaleReparam(0.0, shape_params=shapes[name]) for name in self.moved})

    def __call__(self, *arguments: object, **options: object) -> object:
        return self._program(*arguments, **options)

    def site(self, name: str) -> str:
        """Where a latent of the model is found in this program."""
        return name + SUFFIX if name in self.moved else name

    @torch.no_grad()
    def errors(self, values: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        """What stands here for the values of the model's latents ``{site: (…, N, *event)}``."""
        with uncounted():
            sites = log_sites(self.model, values, x)
        found = {}
        for name, value in values.items():
            law = _base(sites[name]["fn"])
            found[self.site(name)] = (value - law.loc) / law.scale if name in self.moved else value
        return found

    @torch.no_grad()
    def values(self, errors: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        """The way back: values of the model's latents."""
        with uncounted():
            sites = log_sites(self, errors, x)
        names = [name.removesuffix(SUFFIX) if name.removesuffix(SUFFIX) in self.moved else name for name in errors]
        return {name: sites[name]["value"] for name in names}


def _base(law: Distribution) -> Distribution:
    while hasattr(law, "reinterpreted_batch_ndims"):
        law = law.base_dist
    return law


def _shapes(law: Distribution) -> tuple[str, ...] | None:
    """The parameters beside loc and scale that make a law; None of a law that these do not shift and stretch on the whole line."""
    base = _base(law)
    known = {"loc", "scale", *SHAPES}
    moves = {"loc", "scale"} <= set(base.arg_constraints) <= known and not hasattr(base, "base_dist")
    return tuple(name for name in SHAPES if hasattr(base, name)) if moves else None
