r"""Learned iterative inference: a network that reads where a posterior stands and how the ELBO slopes there, and moves it.

:math:`\delta_{i+1} = g \odot \delta_i + (1 - g) \odot f` with a gate ``g`` and a proposal ``f`` from one network shared by all steps
(Marino, Yue & Mandt 2018, "Iterative Amortized Inference"). The proposal is :math:`\delta_i` plus the saturated natural gradient, where
gradients are read, plus the network's output, so that training starts from damped natural-gradient steps. What the network reads is
detached, and no gradient flows from one step into those before it: training needs the memory of one step. Gradients are normalized image
by image: no image's inference depends on its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from guides.base import center, seen
from guides.stepwise import Deltas, Stepwise, elbo_slope, has_exact_elbo
from guides.update_networks import NETWORKS
from zoo.latents.base import Family

__all__ = ["ENCODINGS", "Iterative"]

ENCODINGS = ("image", "params", "gradient", "errors")
FLOOR = 1e-6  # added to a gradient's size before its logarithm is taken, and to what it is divided by
FAR = 20.0  # greatest asinh of a natural gradient: where a rate or a scale has vanished it overflows


class Iterative(Stepwise):
    """A guide with a learned update.

    Arguments:
        model: The model.
        encodes: What the network reads: ``"image"`` (its pixels), ``"params"`` (the posterior's, less the prior's), ``"gradient"`` (of the
            ELBO in them, and the update before), ``"errors"`` (of every level: the score of the likelihood in the image's mean; above it
            the prediction error is ``"params"`` itself). Without the image the guide needs more steps, in training and in inference.
        network: ``"units"``, one small network for all latents, which meet in the gradient; or ``"dense"``, layers over all latents.
        hidden: Units of its two hidden layers; by default 32 and 512.
        rank: Of the linear map from the pixels to the latents in the network ``"units"``.
        steps: Steps of inference, in training and afterwards (see :attr:`steps`).
        particles, temperature: Draws per image and temperature of relaxed samples for the gradient, where the ELBO has no closed form.
        seed: Seed of the initial weights.

    Raises:
        ValueError: for unknown encodings or networks, numbers out of range, or none of ``"params"``, ``"gradient"``, ``"errors"``: then
            nothing would iterate.
    """

    def __init__(self, model: nn.Module, data: object = None, *, encodes: Sequence[str] = ("image", "params", "gradient"),
                 network: str = "units", hidden: int | None = None, rank: int = 32, steps: int = 8, particles: int = 4,
                 temperature: float = 0.1, seed: int = 0) -> None:
        super().__init__(model, steps)
        if isinstance(encodes, str):
            raise ValueError(f"encodes must be a sequence of names, such as ({encodes!r},), not {encodes!r}")
        unknown = [name for name in encodes if name not in ENCODINGS]
        if unknown:
            raise ValueError(f"unknown encoding {', '.join(map(repr, unknown))}; known are: {', '.join(ENCODINGS)}")
        if not set(encodes) - {"image"}:
            raise ValueError("an iterative guide must read 'params', 'gradient' or 'errors', which change from step to step")
        if "errors" in encodes and not hasattr(model, "observation"):
            raise ValueError("'errors' can be read from the zoo's own models only, which tell their image's mean; leave it out")
        if network not in NETWORKS:
            raise ValueError(f"unknown network {network!r}; known are: {', '.join(NETWORKS)}")
        for name, count in (("hidden", 1 if hidden is None else hidden), ("rank", rank), ("particles", particles)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, not {count}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        self.encodes = tuple(encodes)
        self.particles, self.inner_temperature, self.exact = particles, temperature, has_exact_elbo(model)
        sizes = {name: (len(family.parameters), units) for name, (family, units) in model.latents.items()}
        channels = ("params" in encodes) + 4 * ("gradient" in encodes)
        pixels = prod(model.event_shape) * (("image" in encodes) + ("errors" in encodes))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = NETWORKS[network](sizes, channels, pixels, hidden=hidden, rank=rank)

    def start(self, x: Tensor) -> Deltas:
        """The prior; in training, half of the time, where ``steps`` steps have led: so that it learns to stay where it has arrived."""
        deltas = super().start(x)
        if self.training and torch.rand(()) < 0.5:
            with torch.no_grad():
                memory = None
                for _ in range(self.steps):
                    deltas, memory = self.refine(x, deltas, memory)
        return deltas

    def refine(self, x: Tensor, deltas: Deltas, memory: Deltas | None) -> tuple[Deltas, Deltas]:
        """One gated update of every site.

        Where the ELBO has a closed form, and outside training, an image keeps its update only if its ELBO does not fall. If it does, the
        image stays, and its next updates are plain natural-gradient steps (the network's own, where gradients are not read), half as long
        and halved again until one is kept: so that inference goes on where the network has nothing better to say.
        """
        if memory is None:
            memory = self._slope(x, deltas) | {f"update/{name}": torch.zeros_like(delta) for name, delta in deltas.items()}
            memory["length"] = torch.ones_like(memory["value"])
        features, image, natural = self._features(x, deltas, memory)
        updates = {}
        for name, (keep, proposal) in self.network(features, image).items():
            updates[name] = torch.sigmoid(-keep) * (natural[name] + proposal)
        if self.training or not self.exact:
            deltas = {name: delta + updates[name] for name, delta in deltas.items()}
            memory |= self._slope(x, deltas) | {f"update/{name}": update.detach() for name, update in updates.items()}
            return deltas, memory
        length = memory["length"][:, None, None]
        plain = natural if "gradient" in self.encodes else updates
        updates = {name: torch.where(length < 1.0, length * plain[name], update) for name, update in updates.items()}
        return self._guarded(x, deltas, updates, memory)

    def _guarded(self, x: Tensor, deltas: Deltas, updates: Deltas, memory: Deltas) -> tuple[Deltas, Deltas]:
        there = {name: delta + updates[name] for name, delta in deltas.items()}
        found = self._slope(x, there) | {f"update/{name}": update for name, update in updates.items()}
        better = found["value"] >= memory["value"]
        memory = {name: torch.where(better.reshape(-1, *[1] * (part.dim() - 1)), found.get(name, part), part)
                  for name, part in memory.items()}
        memory["length"] = torch.where(better, (2.0 * memory["length"]).clamp(max=1.0), 0.5 * memory["length"])
        return {name: torch.where(better[:, None, None], there[name], delta) for name, delta in deltas.items()}, memory

    def _slope(self, x: Tensor, deltas: Deltas) -> Deltas:
        value, slopes = elbo_slope(self.model, x, deltas, exact=self.exact, temperature=self.inner_temperature, particles=self.particles)
        return {"value": value} | {f"slope/{name}": slope for name, slope in slopes.items()}

    @torch.no_grad()
    def _features(self, x: Tensor, deltas: Deltas, memory: Deltas) -> tuple[dict[str, Tensor], Tensor | None, Deltas]:
        """What the network reads: of every site ``(N, channels · P, K)``, and of the image ``(N, pixels)``; and the saturated natural
        gradients ``(N, P, K)``, zeros where gradients are not read."""
        natural = {}
        bend = torch.asinh if self.exact else torch.tanh  # sampled slopes, divided by a Fisher information, can be anything

        def walk(name: str, family: Family, prior: Tensor, above: Tensor | None = None) -> Tensor:
            params = family.posterior(prior, deltas[name])
            natural[name] = bend(_natural(family, params, memory[f"slope/{name}"]).nan_to_num()).clamp(-FAR, FAR)
            return center(family.distribution(params))

        latents = self.model.descend(walk, x)
        features = {}
        for name, delta in deltas.items():
            slope, parts = memory[f"slope/{name}"], []
            if "params" in self.encodes:
                parts.append(delta)
            if "gradient" in self.encodes:
                size = slope.square().mean(-1, keepdim=True).sqrt() + FLOOR
                parts += [slope / size, size.log().expand_as(slope), natural[name], memory[f"update/{name}"]]
            features[name] = torch.cat(parts, dim=-2) if parts else delta[..., :0, :]
        image = [seen(self.model, x).flatten(1)] if "image" in self.encodes else []
        if "errors" in self.encodes:
            image.append(_error(self.model, latents, x).flatten(1))
        if "gradient" not in self.encodes:
            natural = {name: torch.zeros_like(delta) for name, delta in deltas.items()}
        return features, torch.cat(image, dim=-1) if image else None, natural


def _natural(family: Family, params: Tensor, slope: Tensor) -> Tensor:
    """The natural gradient; the gradient itself for a family whose Fisher information is not known."""
    try:
        return family.natural(params, slope)
    except NotImplementedError:
        return slope


def _error(model: nn.Module, latents: dict[str, Tensor], x: Tensor) -> Tensor:
    """The weighted prediction error of the image, the score of the likelihood in its mean, ``(N, *event_shape)``."""
    with torch.enable_grad():
        mean = model.decode(latents).detach().requires_grad_(True)
        return torch.autograd.grad(model.observation(mean).log_prob(x).sum(), mean)[0]
