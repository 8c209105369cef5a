r"""Per-image inference: free variational parameters :math:`\delta_n` for each image, optimized one by one (all at once).

At convergence this is the best member of the variational family for each image: what amortization is measured against
(Cremer, Li & Duvenaud 2018). The posteriors of a hierarchy's own encoder depend on the latents drawn above; what is free is then added to
them, :math:`\mathrm{params}(q) + \epsilon_n`, so that the family has the encoder in it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guides.base import Conditionals, Guide
from zoo.data.base import images_of
from zoo.frozen import frozen
from zoo.latents.base import Family

__all__ = ["Local"]


class Local(Guide):
    """A guide that stores ``delta`` for a fixed batch of images, in the batch's order.

    Arguments:
        model: The model.
        data: The images ``(N, *event_shape)`` this guide is for.
        start: A guide to start from (an encoder), or None to start from the prior. From one that is not ``mean_field`` the deltas are
            counted from its posteriors, not from the prior's; it must not change afterwards.

    Raises:
        ValueError: if no images are given, or the start has no ``delta`` (a flow); on call, if a batch of another size comes.
    """

    per_image = True

    def __init__(self, model: nn.Module, data: object = None, *, start: Guide | None = None) -> None:
        super().__init__(model)
        if data is None:
            raise ValueError("a local guide keeps parameters for each image: give the images as data")
        if start is not None and not hasattr(start, "delta"):
            raise ValueError(f"a local guide starts from what another one adds to the prior's parameters; {type(start).__name__} does not "
                             "tell it: start from the prior")
        x = images_of(data)
        self.mean_field = start is None or start.mean_field
        with torch.no_grad():
            self._base = None if self.mean_field else (start, start.conditionals(x))
            deltas = start.delta(x) if start is not None and self.mean_field else {
                name: x.new_zeros(len(x), len(family.parameters), units)
                for name, (family, units) in model.latents.items()}
        self.deltas = nn.ParameterDict({name: nn.Parameter(delta.clone()) for name, delta in deltas.items()})

    def delta(self, x: Tensor) -> dict[str, Tensor]:
        stored = len(next(iter(self.deltas.values())))
        if len(x) != stored:
            raise ValueError(f"this local guide was made for {stored} images, not for {len(x)}; build one for these")
        return dict(self.deltas.items())

    def conditionals(self, x: Tensor) -> Conditionals:
        if self._base is None:
            return super().conditionals(x)
        deltas, (start, held) = self.delta(x), self._base

        def conditional(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
            with frozen(start):
                return family.posterior(held(name, family, prior, above), deltas[name])

        return conditional
