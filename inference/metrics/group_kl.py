r"""What each group of latents costs: :math:`E_{q(z_{>l} | x)}\, KL(q(z_l \mid z_{>l}, x) \,\|\, p(z_l \mid z_{>l}))`, unit by unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pyro
import torch
from pyro.distributions import Delta
from torch import Tensor

from inference.metrics.activity import ACTIVE_KL
from zoo.latents.base import Family

__all__ = ["active_units", "group_kl"]


@torch.no_grad()
def group_kl(model: Callable, x: Tensor, guide: Callable, *, draws: int = 16, seed: int = 0, per_image: bool = False) -> dict[str, Tensor]:
    """KL divergence from the prior of every unit in every group, in nats, ``{site: (K,)}``, mean over images.

    In closed form given the latents above, and the mean over draws of those: one walk of model and guide for each draw, all images
    together. Summed over all units it is what the evidence bound pays, up to the error of these draws.

    Arguments:
        model: A model of the zoo.
        x: Images ``(N, *event_shape)``.
        guide: A guide of the zoo that infers each latent given those above (``conditionals``).
        draws: Walks; one is enough where no latent is below another and the KL has a closed form.
        seed: Seed of the draws; the global generator is left alone.
        per_image: Whether to keep the images apart, ``{site: (N, K)}``.

    A family whose units share one KL has one column, and so has one without a closed form, whose log-ratios of drawn latents are
    averaged. Points have none: deterministic codes and silent groups (:class:`~guides.lesioned.Lesioned`) are NaN.

    Raises:
        ValueError: for fewer than 1 draw, programs from outside the zoo, guides with a joint law, or a guide at a temperature above 0.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, not {draws}")
    if not hasattr(guide, "conditionals") or not hasattr(model, "observation"):
        raise ValueError("the KL of each group is known for models of the zoo and guides with conditionals, "
                         f"not for {type(model).__name__} and {type(guide).__name__}")
    if guide.temperature > 0.0:
        raise ValueError(f"the guide would draw relaxed latents, at temperature {guide.temperature:g}; set its temperature to 0")
    total: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        conditional = guide.conditionals(x)

        def draw(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
            params = conditional(name, family, prior, above)
            q = guide.distribution(family, params)
            z = q.sample()
            point = isinstance(getattr(q, "base_dist", q), Delta)
            unit_kl = torch.full_like(params[..., 0, :], torch.nan) if point else family.unit_kl(params, prior)
            if unit_kl is None:
                unit_kl = (q.log_prob(z) - family.distribution(prior).log_prob(z)).unsqueeze(-1)
            total[name] = total.get(name, 0.0) + unit_kl / draws
            return z

        for _ in range(draws):
            model.descend(draw, x)
    return {name: value if per_image else value.mean(0) for name, value in total.items()}


def active_units(kl: Mapping[str, Tensor], threshold: float = ACTIVE_KL) -> dict[str, float]:
    """Fraction of each group's units whose KL ``(K,)``, mean over images, is above the threshold in nats; NaN for points."""
    return {name: torch.where(value.isnan(), value, (value > threshold).to(value.dtype)).mean().item() for name, value in kl.items()}
