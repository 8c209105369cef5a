r"""Temporal predictive coding: a state that predicts its own next value, and the frame that goes with it.

.. math::
    z_1 \sim N(m_0, S_0), \quad z_t \mid z_{t-1} \sim N(A f(z_{t-1}) + a, Q), \quad x_t \mid z_t \sim N(C f(z_t) + c, R)

with diagonal covariances (Millidge, Tang, Osanlouy, Harper & Bogacz 2024, "Predictive coding networks for temporal prediction", PLOS
Computational Biology). With the identity for f it is the linear dynamical system, of which :mod:`zoo.oracles.kalman` knows everything.
One "image" is a sequence of T frames, and the sites count **time**: ``"z1"`` is the state at the first frame (in hierarchies it is the
level nearest the data). Inference of all frames at once, which is what guides and methods of the zoo do, is smoothing;
:mod:`inference.filtering` goes frame by frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from zoo.latents.base import Family
from zoo.latents.gaussian import Gaussian
from zoo.models.image_model import UNIT_SCALE, Draw, ImageModel
from zoo.networks.lin import LinearDecoder

__all__ = ["ACTIVATIONS", "Dynamics", "TemporalPredictiveCoding"]

# f and its derivative
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "identity": (lambda z: z, torch.ones_like),
    "tanh": (torch.tanh, lambda z: 1.0 - torch.tanh(z).square()),
    "relu": (torch.relu, lambda z: (z > 0).to(z.dtype)),
}


@dataclass(frozen=True)
class Dynamics:
    """What a temporal model is made of, in float64: K units, D pixels of a frame.

    Attributes:
        transition, drift: A ``(K, K)`` and a ``(K,)``.
        emission, offset: C ``(D, K)`` and c ``(D,)``.
        state_variance: The diagonal of Q, ``(K,)``.
        noise_variance: The diagonal of R, ``(D,)``.
        first_mean, first_variance: m₀ and the diagonal of S₀, ``(K,)``.
    """

    transition: Tensor
    drift: Tensor
    emission: Tensor
    offset: Tensor
    state_variance: Tensor
    noise_variance: Tensor
    first_mean: Tensor
    first_variance: Tensor


class TemporalPredictiveCoding(ImageModel):
    """A Pyro program with latent sites ``"z1"`` … ``"zT"``, in time, and all frames observed at the site ``"x"``.

    A starts as a random rotation times ``radius``, so that every state variable keeps the variance Q / (1 − radius²) (under the identity),
    which by default is 1.

    Arguments:
        event_shape: Of a sequence: ``(T, *frame_shape)``.
        units: Numbers of a state, K.
        activation: f: ``"identity"``, ``"tanh"`` or ``"relu"``.
        radius: Spectral radius of A at the start, in [0, 1).
        state_scale: √Q at the start; √(1 − radius²) if None.
        learn_state_scale: Whether Q is learned, one number for each unit.
        first_scale: √S₀ at the start.
        learn_prior: Whether m₀ and S₀ are learned.
        scale: √R at the start.
        learn_scale: False, ``"image"`` (one number for all pixels) or ``"pixel"`` (one for each pixel of a frame; all frames share it).
        floor: Least standard deviation of what is learned of Q and R: a point estimate would let them shrink without end.
        decoder_bias: Whether there is a c, which starts at 0. The drift a is there always, and starts at 0.
        init_scale: Standard deviation of C at the start; 1/√K if None.
        seed: Seed of A and C.

    Raises:
        ValueError: if the shape is missing or has no frames, or a setting is out of range.
    """

    def __init__(self, event_shape: tuple[int, ...] | None = None, units: int = 16, *, activation: str = "identity", radius: float = 0.95,
                 state_scale: float | None = None, learn_state_scale: bool = False, first_scale: float = 1.0, learn_prior: bool = False,
                 scale: float = UNIT_SCALE, learn_scale: bool | str = False, floor: float = 1e-2, decoder_bias: bool = True,
                 init_scale: float | None = None, seed: int = 0) -> None:
        if event_shape is None or len(event_shape) < 2:
            raise ValueError("the model 'temporal' needs data (or an event shape) of sequences: (frames, *frame shape); "
                             f"got {event_shape}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; known are: {', '.join(ACTIVATIONS)}")
        if units < 1 or not 0.0 <= radius < 1.0:
            raise ValueError(f"units must be at least 1 and radius in [0, 1), not {units} and {radius}")
        state_scale = math.sqrt(1.0 - radius**2) if state_scale is None else state_scale
        if not (floor >= 0 and first_scale > 0 and state_scale > 0):
            raise ValueError("state_scale and first_scale must be positive and floor at least 0; "
                             f"got {state_scale}, {first_scale} and {floor}")
        if min([scale] * bool(learn_scale) + [state_scale] * learn_state_scale, default=math.inf) <= floor:
            raise ValueError(f"what is learned must start above floor={floor}; got scale={scale} and state_scale={state_scale}")
        super().__init__(tuple(event_shape), scale=scale, learn_scale=learn_scale)
        self.frame_shape, self.units, self.activation, self._family = tuple(event_shape[1:]), units, activation, Gaussian()
        self._floors = {"log_scale": floor if learn_scale else 0.0, "state_log_scale": floor if learn_state_scale else 0.0}
        self.transition, self.emission = _maps(units, self.frame_shape, radius, decoder_bias, init_scale, seed)
        # What is learned is stored without the floor, whose variance is added: no gradient ends at it.
        if learn_scale:
            shape = self.frame_shape if learn_scale == "pixel" else ()
            self.log_scale = nn.Parameter(torch.full(shape, _above(scale, floor)))
        self._store("state_log_scale", torch.full((units,), _above(state_scale, self._floors["state_log_scale"])), learn_state_scale)
        first = torch.stack([torch.zeros(units), torch.full((units,), math.log(first_scale))])
        self._store("first", first, learn_prior)

    @property
    def latents(self) -> dict[str, tuple[Family, int]]:
        """``{"z1": (family, K), …, "zT": (family, K)}``, in the order of time."""
        return {f"z{t}": (self._family, self.units) for t in range(1, self.event_shape[0] + 1)}

    @property
    def floors(self) -> dict[str, float]:
        """What learned scales stay above, by site; 0 for those with no floor."""
        return {f"z{t}": self._floors["state_log_scale"] for t in range(2, self.event_shape[0] + 1)} | {"x": self._floors["log_scale"]}

    @property
    def scale(self) -> Tensor:
        """√R, of shape ``()`` or ``event_shape``."""
        scale = self._floored("log_scale")
        return scale.expand(self.event_shape) if scale.dim() else scale

    @property
    def state_scale(self) -> Tensor:
        """√Q, ``(K,)``."""
        return self._floored("state_log_scale")

    def rate(self, z: Tensor) -> Tensor:
        """f(z)."""
        return ACTIVATIONS[self.activation][0](z)

    def slope(self, z: Tensor) -> Tensor:
        """f′(z), unit by unit."""
        return ACTIVATIONS[self.activation][1](z)

    def descend(self, draw: Draw, x: Tensor | None = None) -> dict[str, Tensor]:
        """Walks through time: asks ``draw`` for the state at each frame, given the one before it."""
        log_scale = self.state_scale.log()
        values = {"z1": draw("z1", self._family, self.first)}
        for t in range(2, self.event_shape[0] + 1):
            predicted = self.transition(self.rate(values[f"z{t - 1}"]))
            prior = torch.stack([predicted, log_scale.expand_as(predicted)], dim=-2)
            values[f"z{t}"] = draw(f"z{t}", self._family, prior, predicted)
        return values

    def decode(self, latents: dict[str, Tensor]) -> Tensor:
        """Means of all frames, ``(…, T, *frame_shape)``."""
        return self.emission(self.rate(torch.stack([latents[name] for name in self.latents], dim=-2)))

    def dynamics(self) -> Dynamics:
        """The model's present matrices in float64; gradients pass through."""
        emission = self.emission.weight.double()
        offset = emission.new_zeros(len(emission)) if self.emission.bias is None else self.emission.bias.double()
        loc, log_scale = self.first.double().unbind(0)
        noise = self._floored("log_scale").double().square().expand(self.frame_shape).flatten()
        return Dynamics(self.transition.weight.double(), self.transition.bias.double(), emission, offset,
                        self.state_scale.double().square(), noise, loc, (2.0 * log_scale).exp())

    def frames(self, x: Tensor) -> Tensor:
        """Sequences ``(N, T, *frame_shape)`` of any length T ≥ 1 as float64 rows ``(N, T, D)``.

        Raises:
            ValueError: for frames of another shape.
        """
        if x.dim() != len(self.frame_shape) + 2 or tuple(x.shape[2:]) != self.frame_shape or x.shape[1] < 1:
            raise ValueError(f"expected sequences (N, T, {', '.join(map(str, self.frame_shape))}), got {tuple(x.shape)}")
        return x.to(torch.float64).reshape(*x.shape[:2], prod(self.frame_shape))

    def _floored(self, name: str) -> Tensor:
        scale, floor = getattr(self, name).exp(), self._floors[name]
        return torch.hypot(scale, torch.full_like(scale, floor)) if floor else scale


def _maps(units: int, frame_shape: tuple[int, ...], radius: float, bias: bool, init_scale: float | None,
          seed: int) -> tuple[nn.Linear, LinearDecoder]:
    """A z + a and C z + c, at their start; the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        transition, emission = nn.Linear(units, units), LinearDecoder(units, frame_shape, bias=bias)
        turn, triangle = torch.linalg.qr(torch.randn(units, units, generator=generator))
        transition.weight.copy_(radius * turn * triangle.diagonal().sign())
        transition.bias.zero_()
        spread = units**-0.5 if init_scale is None else init_scale
        emission.weight.copy_(spread * torch.randn(emission.weight.shape, generator=generator))
    return transition, emission


def _above(scale: float, floor: float) -> float:
    """The logarithm of what :meth:`TemporalPredictiveCoding._floored` makes ``scale`` of."""
    return 0.5 * math.log(scale**2 - floor**2)
