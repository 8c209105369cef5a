r"""Simulation-based calibration: does a way of inferring give, on average over the model's own images, the posteriors that it claims?

Causes :math:`z^*` and an image x are drawn from the model, x is inferred, and :math:`z^*` is ranked among L independent posterior draws. If
these come from the posterior, :math:`z^*` and they are exchangeable and each rank is uniform over its L + 1 values, exactly and for any
model (Talts, Betancourt, Simpson, Vehtari & Gelman 2018). The same holds for any number computed from latents and image; the log joint
density is one that also finds what marginals hide, as draws from the prior instead of the posterior (Modrák et al. 2023). Ranks of a
posterior that is too narrow pile up at both ends, of one that is too wide in the middle, and of a biased one at one end. Nothing is said
about single images, nor about images that the model does not make.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from inference.mcmc.diagnostics import ess
from inference.methods import registry
from inference.methods.run import infer
from inference.metrics.uniformity import ecdf_p_values, holm
from inference.posterior import Posterior
from inference.resampling import resample
from zoo.density import log_joint, sites

__all__ = ["Calibration", "ranks_of", "sbc", "simulate"]

PILOT_IMAGES, PILOT_DRAWS = 50, 400  # of the run that thinning is read off
SLOWEST = 0.1  # the quantile of the pilot's effective sample sizes that thinning goes by
MOST_THIN = 64

Quantity = Callable[[dict[str, Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Calibration:
    """Ranks of the truth among posterior draws.

    Attributes:
        method: Name of the way of inferring.
        ranks: ``{site or quantity: (N, K)}``, whole numbers from 0 to ``levels`` − 1, of each of N simulated images.
        levels: Number of values that a rank can have, L + 1.
        p_values: ``{site or quantity: (K,)}``: probability of ranks that are this far from uniform, if the method is right.
        thin: Iterations of a chain for each draw that was ranked.
    """

    method: str
    ranks: dict[str, Tensor]
    levels: int
    p_values: dict[str, Tensor]
    thin: int = 1

    @property
    def adjusted(self) -> dict[str, Tensor]:
        """The p-values adjusted for their number by Holm's method: all below α may be called failures at a family-wise error of α."""
        every = holm(torch.cat(list(self.p_values.values())))
        return dict(zip(self.p_values, every.split([len(value) for value in self.p_values.values()]), strict=True))

    def passed(self, alpha: float = 0.05) -> dict[str, Tensor]:
        """Whether each latent and quantity passes, ``{name: (K,)}``; a right method fails in any of them with a chance below ``alpha``."""
        return {name: value >= alpha for name, value in self.adjusted.items()}


def sbc(model: Callable, method: str = "mcmc", *, guide: nn.Module | None = None, images: int = 1000, draws: int = 99,
        thin: int | None = None, quantities: Mapping[str, Quantity] | None = None, batch_size: int = 1000, seed: int = 0,
        **options: Any) -> Calibration:
    """Calibrates a method on images that the model makes.

    Arguments:
        model: A program that draws images from its prior as ``model(None, size=n)``; all its sample sites but ``"x"`` are latents.
        method: A way of inferring that returns draws, as in :func:`~inference.methods.run.infer`.
        guide: Its guide, if it uses one.
        images: Images that are simulated, N.
        draws: Posterior draws of each image that the truth is ranked among, L, of all chains together.
        thin: Iterations for each draw, for methods with chains. If None, so many that they are nearly independent, as ranks of correlated
            draws are not uniform: iterations for each effective draw, at most 64, in a pilot run, of an image among its slowest tenth and
            the slowest of its latents and log joint density.
        quantities: What else is ranked: ``{name: f}`` with ``f(latents, x)`` of shape ``(…, N)`` or ``(…, N, M)`` for latents
            ``{site: (…, N, *event)}``. ``"log_joint"`` always is, and the ``"code"`` where a family's code is not its latent.
        batch_size: Images inferred at once.
        seed: Seed of all that is random.
        options: The method's own options.

    Raises:
        ValueError: for numbers out of range, a method that does not give as many draws, a program whose latents differ once it is
            conditioned, a quantity of the wrong shape or with the name of a latent, and whatever the method raises.
    """
    for name, value, least in (("images", images, 2), ("draws", draws, 1), ("thin", thin, 1), ("batch_size", batch_size, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
    accepted = inspect.signature(registry[method]).parameters
    chains = options.get("chains", accepted["chains"].default) if "chains" in accepted else 1
    seeds = torch.randint(2**62, (2 + math.ceil(images / batch_size),), generator=torch.Generator().manual_seed(seed)).tolist()
    truth, x = simulate(model, images, seeds[0])

    def run(part: Tensor, count: int, seed: int, **more: Any) -> Posterior:
        return infer(model, part, method, guide=guide, draws=math.ceil(count / max(chains, 1)), seed=seed, **options, **more)

    if "thin" not in accepted:
        thin = _only_one(method, thin)
    elif thin is None:
        thin = _thinning(model, run(x[:PILOT_IMAGES], PILOT_DRAWS, seeds[1]), x[:PILOT_IMAGES])
    more = {"thin": thin} if "thin" in accepted else {}
    parts = []
    generator = torch.Generator().manual_seed(seeds[1])
    for i, start in enumerate(range(0, images, batch_size)):
        part = slice(start, start + batch_size)
        z = _flat_draws(run(x[part], draws, seeds[2 + i], **more), draws)
        parts.append(ranks_of(model, {name: value[part] for name, value in truth.items()}, z, x[part], quantities, generator))
    ranks = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Calibration(method, ranks, draws + 1, {name: ecdf_p_values(value, draws + 1) for name, value in ranks.items()}, thin)


@torch.no_grad()
def simulate(model: Callable, images: int, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Latents ``{site: (N, *event)}`` and images ``(N, *event_shape)`` drawn from a program's joint law."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        values = {name: site["value"] for name, site in sites(poutine.trace(model).get_trace(None, size=images), observed=False).items()}
    if "x" not in values:
        raise ValueError(f"the program draws no image: it has no sample site 'x', but {', '.join(values) or 'none'}")
    return values, values.pop("x")


@torch.no_grad()
def ranks_of(model: Callable, truth: dict[str, Tensor], draws: dict[str, Tensor], x: Tensor,
             quantities: Mapping[str, Quantity] | None = None, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Ranks of the truth among draws, ``{site or quantity: (N, K)}``: how many of L are below; ties are broken at random.

    Arguments:
        truth: What made the images, ``{site: (N, *event)}``.
        draws: Posterior draws ``{site: (L, N, *event)}``.
        x: The images.
        quantities: As in :func:`sbc`.
        generator: Breaks the ties.
    """
    if set(truth) != set(draws):
        raise ValueError(f"the model draws the latents {', '.join(truth)}, the method infers {', '.join(draws)}")
    every = {name: torch.cat([value[None], draws[name].to(value)]) for name, value in truth.items()}  # the truth comes first
    computed: dict[str, Quantity] = {"log_joint": lambda z, x: log_joint(model, z, x), **(quantities or {})}
    if hasattr(model, "family") and not _same(model.family.code(every["z"]), every["z"]):
        computed["code"] = lambda z, x: model.family.code(z["z"])
    if clash := set(computed) & set(every):
        raise ValueError(f"{', '.join(clash)} is a latent of the model already: give the quantity another name")
    ranks = {name: _rank(value.flatten(2) if value.dim() > 2 else value[..., None], 0.0, generator) for name, value in every.items()}
    for name, quantity in computed.items():
        value = quantity(every, x)
        if value.dim() not in (2, 3) or value.shape[:2] != (1 + len(next(iter(draws.values()))), len(x)):
            raise ValueError(f"the quantity {name!r} must give (…, N) or (…, N, M) for latents (…, N, *event), not {tuple(value.shape)}")
        value = value if value.dim() == 3 else value[..., None]
        # Equal latents may give numbers that differ by rounding; which of them comes first must then be chance.
        ranks[name] = _rank(value, 16 * torch.finfo(value.dtype).eps * value.abs().amax(0), generator)
    return ranks


def _rank(values: Tensor, tolerance: Tensor | float, generator: torch.Generator | None) -> Tensor:
    """Ranks ``(N, K)`` of the first of values ``(1 + L, N, K)`` among the others."""
    away = values[1:].double() - values[0].double()
    below, ties = (away < -tolerance).sum(0).cpu(), (away.abs() <= tolerance).sum(0).cpu()
    return below + (torch.rand(ties.shape, generator=generator, dtype=torch.float64) * (ties + 1)).long()


def _flat_draws(posterior: Posterior, count: int) -> dict[str, Tensor]:
    """``count`` draws that count alike, of all chains, ``{site: (L, N, *event)}``."""
    given = math.prod(next(iter(posterior.samples.values())).shape[:2])
    if given < count:
        raise ValueError(f"the method {posterior.method!r} gives {given} of {count} draws; the truth can only be ranked among draws")
    flat = {name: value.transpose(0, 1).flatten(0, 1) for name, value in posterior.samples.items()}
    if posterior.log_weights is not None:
        chosen = resample(posterior.log_weights.transpose(0, 1).flatten(0, 1))
        flat = {name: value[chosen, torch.arange(len(posterior), device=chosen.device)] for name, value in flat.items()}
    return {name: value[given - count:] for name, value in flat.items()}


def _thinning(model: Callable, posterior: Posterior, x: Tensor) -> int:
    """Iterations for each effective draw of a pilot run."""
    samples = posterior.samples
    chains, draws = next(iter(samples.values())).shape[:2]
    with torch.no_grad():
        values = [log_joint(model, samples, x)[..., None], *(value.reshape(*value.shape[:3], -1) for value in samples.values())]
    least = torch.stack([ess(value).nan_to_num(nan=torch.inf).amin(-1) for value in values]).amin(0)  # NaN: never moves
    if torch.isinf(least).all():
        return 1
    return min(max(math.ceil(chains * draws / least.quantile(SLOWEST, interpolation="lower").item()), 1), MOST_THIN)


def _only_one(method: str, thin: int | None) -> int:
    if thin not in (None, 1):
        raise ValueError(f"the draws of {method!r} are independent: thin must be 1, not {thin}")
    return 1


def _same(code: Tensor, z: Tensor) -> bool:
    return code.numel() == z.numel() and torch.equal(code.flatten(), z.flatten())
