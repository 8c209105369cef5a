r"""What every guide does: walk the model's latents top-down and draw each from :math:`\mathrm{params}(p) + \delta(x)`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pyro
from torch import Tensor, nn
from torch.distributions import Cauchy, Distribution, StudentT

from zoo.latents.base import Family
from zoo.program import Adopted

__all__ = ["Conditionals", "Fixed", "Guide", "Held", "center", "innermost", "seen"]

Conditionals = Callable[[str, Family, Tensor, Tensor | None], Tensor]


class Guide(nn.Module):
    """A Pyro program ``guide(x)`` over the latents of ``model``; subclasses give :meth:`delta` or :meth:`conditionals`.

    The model is not a submodule: a guide's ``state_dict`` and ``parameters`` are its own.

    Attributes:
        temperature: 0 for exact samples (evaluation); above 0 for the family's relaxed twin (training).
        mean_field: Whether what it adds to a prior does not depend on the latents above, so that :meth:`delta` tells all.
    """

    mean_field = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._program = (model,)  # in a tuple, which nn.Module does not register
        self.temperature = 0.0

    @property
    def model(self) -> nn.Module:
        """The model whose latents this guide infers."""
        return self._program[0]

    def delta(self, x: Tensor) -> dict[str, Tensor]:
        """What inference adds to the prior's parameters, ``{site: (N, P, K)}``, for images ``(N, *event_shape)``.

        Raises:
            NotImplementedError: of guides whose deltas depend on the latents above, which have :meth:`conditionals` alone.
        """
        raise NotImplementedError(f"{type(self).__name__} has no delta(x)")

    def conditionals(self, x: Tensor) -> Conditionals:
        """The posterior's parameters of each latent given those above it: ``q(site, family, prior, above) -> (…, N, P, K)``.

        ``prior`` has the prior's parameters there and ``above`` what the model's walk hands down (its features, in a hierarchy), or None.
        All that depends on the images alone is computed here, once.
        """
        deltas = self.delta(x)
        return lambda name, family, prior, above=None: family.posterior(prior, deltas[name])

    def settle(self, x: Tensor) -> Guide:
        """The guide as it is for these images: all that depends on them alone is computed here, once."""
        return Held(self.model, self.conditionals(x), self.temperature)

    def posterior(self, x: Tensor) -> dict[str, Tensor]:
        """The posterior's parameters ``{site: (N, P, K)}``; of latents below others, given the means of those (temperature zero)."""
        conditional, params = self.conditionals(x), {}

        def keep(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
            params[name] = conditional(name, family, prior, above)
            return center(family.distribution(params[name]))

        self.model.descend(keep, x)
        return params

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Draws every latent; one sample site for each, in the model's own order."""
        conditional = self.conditionals(x)

        def draw(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
            return pyro.sample(name, self.distribution(family, conditional(name, family, prior, above)))

        # A program from outside the zoo enters its plate itself.
        with nullcontext() if isinstance(self.model, Adopted) else pyro.plate("data", len(x)):
            return self.model.descend(draw, x)

    def distribution(self, family: Family, params: Tensor) -> Distribution:
        """The family's exact distribution, or its relaxed twin while the temperature is above 0."""
        return family.relaxed(params, self.temperature) if self.temperature > 0 else family.distribution(params)


class Fixed(Guide):
    """A guide at given ``deltas`` ``{site: (N, P, K)}``, whatever the images.

    Arguments:
        temperature: As for every guide: 0 for exact samples.
    """

    def __init__(self, model: nn.Module, deltas: dict[str, Tensor], temperature: float = 0.0) -> None:
        super().__init__(model)
        self.deltas, self.temperature = deltas, temperature

    def delta(self, x: Tensor) -> dict[str, Tensor]:
        return self.deltas


class Held(Guide):
    """A guide with given conditionals, whatever the images."""

    def __init__(self, model: nn.Module, conditionals: Conditionals, temperature: float = 0.0) -> None:
        super().__init__(model)
        self.held, self.temperature = conditionals, temperature

    def conditionals(self, x: Tensor) -> Conditionals:
        return self.held


def seen(model: nn.Module, x: Tensor) -> Tensor:
    """What an encoder is given of images: of models behind a flow, whose latents explain the whitened images, those."""
    normalize = getattr(model, "normalize", None)
    return x if normalize is None else normalize(x)


def center(distribution: Distribution) -> Tensor:
    """A distribution's mean; for a transformed one, which tells none, its base's mean carried over (of one dimension: the median); where
    there is none (Cauchy), the mode."""
    try:
        mean = distribution.mean
        return mean.where(mean.isfinite(), distribution.mode) if isinstance(innermost(distribution), StudentT | Cauchy) else mean
    except NotImplementedError:
        value = distribution.base_dist.mean
        for transform in distribution.transforms:
            value = transform(value)
        return value


def innermost(distribution: Distribution) -> Distribution:
    """The law that a distribution is made of, without its event dimensions and transforms."""
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return distribution
