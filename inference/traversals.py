"""What a latent means to its model: images as one latent is swept, and as some levels of a hierarchy are drawn again from the prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from guides.base import center
from zoo.latents.base import Family
from zoo.latents.support import support_kind

__all__ = ["Traversal", "most_active", "prior_mean", "resample", "traverse"]

REACH = 2.0  # prior standard deviations to either side
COUNTS = 7  # 0 to 6, of counts


@dataclass(frozen=True)
class Traversal:
    """Images as one latent takes several values, all else equal.

    Attributes:
        site, unit: The latent; of one-hots its group's first unit.
        values: What each value is, in words.
        images: ``(values, *event_shape)``.
    """

    site: str
    unit: int
    values: tuple[str, ...]
    images: Tensor


@torch.no_grad()
def traverse(model: nn.Module, z: Mapping[str, Tensor], site: str, unit: int, *, count: int = COUNTS, codes: Tensor | None = None,
             below: str = "held") -> Traversal:
    """Sweeps one latent of one image.

    Real latents go from −2 to 2 standard deviations around their mean under the prior (given the latents above), or, where ``codes`` are
    given, from their 1 % to their 99 % quantile; counts from 0 to ``count`` − 1; one-hots through their categories, the ``count`` most
    probable under the prior if there are more.

    Arguments:
        model: A model of the zoo.
        z: Values of all latents of one image, ``{site: (*event)}``: means or draws of its posterior, or :func:`prior_mean`.
        site, unit: Which latent.
        count: How many values.
        codes: Values that the site takes over images, ``(n, K)``, for real latents.
        below: ``"held"``: latents below stay at ``z``. ``"prior"``: they follow their prior's means given what is above.

    Raises:
        ValueError: for an unknown site, a unit that it does not have, fewer than 2 values, another ``below``, or deterministic latents
            without ``codes``.
    """
    if site not in model.latents or not 0 <= unit < model.latents[site][1]:
        known = ", ".join(f"{name} (0 to {units - 1})" for name, (_, units) in model.latents.items())
        raise ValueError(f"the model has no unit {unit} of {site!r}; it has {known}")
    if count < 2 or below not in ("held", "prior"):
        raise ValueError(f"count must be at least 2 and below 'held' or 'prior', not {count} and {below!r}")
    swept: list[tuple[int, tuple[str, ...]]] = []
    names = list(model.latents)

    def follow(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
        law = family.distribution(prior)
        if name == site:
            first, labels, value = _sweep(family, law, z[name], unit, count, codes)
            swept.append((first, labels))
            return value
        if below == "prior" and names.index(name) > names.index(site):
            return center(law)
        return z[name]

    with pyro.validation_enabled(False):
        images = model.observation(model.decode(model.descend(follow))).mean
        images = images.expand(len(swept[0][1]), *images.shape[-len(model.event_shape):])  # of a latent that the image does not see
    (first, labels), = swept
    return Traversal(site, first, labels, images)


@torch.no_grad()
def prior_mean(model: nn.Module) -> dict[str, Tensor]:
    """Every latent at its prior's mean, given the means above, ``{site: (*event)}``."""
    return dict(model.descend(lambda name, family, prior, above=None: center(family.distribution(prior))))


@torch.no_grad()
def resample(model: nn.Module, held: Mapping[str, Tensor], count: int, *, seed: int = 0) -> Tensor:
    """Mean images ``(count, *event_shape)`` with some latents held and all others drawn from the prior, given those above.

    Arguments:
        model: A model of the zoo.
        held: Values of one image, ``{site: (*event)}``; none of them for plain draws of the prior.
        count: How many.
        seed: Seed of the draws; the global generator is left alone.

    Raises:
        ValueError: for a site that the model does not have, or fewer than 1 image.
    """
    if unknown := set(held) - set(model.latents):
        raise ValueError(f"the model has no latents {', '.join(sorted(unknown))}; it has {', '.join(model.latents)}")
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")

    def follow(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
        if name in held:
            return held[name].expand(count, *held[name].shape)
        law = family.distribution(prior)
        return law.sample((count,)) if law.batch_shape == () else law.sample()

    device = next(iter(model.state_dict().values())).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        images = model.observation(model.decode(model.descend(follow))).mean
    return images.expand(count, *images.shape[-len(model.event_shape):])


def most_active(model: nn.Module, kl: Mapping[str, Tensor], levels: Mapping[str, Sequence[str]], count: int) -> list[tuple[str, int]]:
    """The latents ``(site, unit)`` that cost most in each level, at most ``count`` of each, levels top-down, the dearest first.

    Units of one one-hot group are one latent, named by its first unit.

    Arguments:
        kl: ``{site: (K,)}``, from :func:`~inference.metrics.group_kl.group_kl`. NaN and shared costs come last.
        levels: ``{name: sites}``.
    """
    chosen: list[tuple[str, int]] = []
    for sites in levels.values():
        costs = []
        for site in sites:
            family, units = model.latents[site]
            groups = units // _group_size(family, units)
            shares = kl[site].nan_to_num(0.0) if len(kl[site]) == units else torch.zeros(units)
            costs += [(-cost, site, i * (units // groups)) for i, cost in enumerate(shares.reshape(groups, -1).sum(1).tolist())]
        chosen += [(site, unit) for _, site, unit in sorted(costs, key=lambda row: row[0])[:count]]
    return chosen


def _sweep(family: Family, law: Distribution, z: Tensor, unit: int, count: int,
           codes: Tensor | None) -> tuple[int, tuple[str, ...], Tensor]:
    """The unit that names the latent, its values in words, and the site's values ``(values, *event)``."""
    kind = support_kind(law.support)
    if kind == "one_hot":
        return _categories(family, law, z, unit, count)
    if kind == "count":
        values, labels = torch.arange(count).to(z), tuple(map(str, range(count)))
    elif codes is not None:
        low, high = codes[:, unit].quantile(codes.new_tensor([0.01, 0.99]))
        values = torch.linspace(float(low), float(high), count).to(z)
        labels = tuple(f"{value:.2g}".replace("-", "−") for value in values.tolist())
    else:
        away = torch.linspace(-REACH, REACH, count).to(z)
        mean, sd = center(law), law.stddev
        if not (sd > 0).any():
            raise ValueError("a code that has no prior is swept between its quantiles over images: give codes=")
        values = (mean + away.unsqueeze(-1) * sd).reshape(count, -1)[:, unit]
        labels = tuple(f"{value:+.1f} sd".replace("-", "−") if abs(value) > 0.01 else "mean" for value in away.tolist())
    swept = z.repeat(count, *(1 for _ in z.shape))
    swept[:, unit] = values
    return unit, labels, swept


def _categories(family: Family, law: Distribution, z: Tensor, unit: int, count: int) -> tuple[int, tuple[str, ...], Tensor]:
    size = z.shape[-1]
    group = unit // size
    chosen = law.mean.reshape(-1, size)[group].topk(min(count, size)).indices.sort().values
    swept = z.reshape(-1, size).repeat(len(chosen), 1, 1)
    swept[:, group] = nn.functional.one_hot(chosen, size).to(z)
    return group * size, tuple(f"category {i}" for i in chosen.tolist()), swept.reshape(len(chosen), *z.shape)


def _group_size(family: Family, units: int) -> int:
    """Units that are one latent together."""
    law = family.distribution(torch.zeros(len(family.parameters), units))
    return law.event_shape[-1] if support_kind(law.support) == "one_hot" else 1
