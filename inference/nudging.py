r"""Learning from outputs that are nudged towards their targets a little, instead of clamped to them.

Activities settle with the output pulled by β, weights change by local rules, divided by β. Two ways to pull are known:

- ``"likelihood"``: settle on :math:`\log p(z) + \beta \log p(y \mid z)`, the target seen with β times its precision. As β goes to 0 the
  gradients become those of backpropagation (Millidge, Song, Salvatori, Lukasiewicz & Bogacz 2023). A loss that is averaged over B images
  while their activities settle is such a nudge, with β = 1/B.
- ``"output"``: settle with the output clamped to :math:`u + \beta (y - u)`, u what the forward pass predicts (Pinchetti et al. 2025). As β
  goes to 0 the gradients become those of backpropagation from another output error, :math:`S^{-1} (y - u)` with the covariance S of all
  noise between input and output, not of the output's own alone; the same only where the noise of levels is small beside the output's.

One-sided estimates are off by an amount linear in β, the mean of a positive and a negative nudge by one quadratic in it (Laborieux et al.
2021; Scellier et al. 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor

from inference.backpropagation import clamped, forward_pass
from inference.gradient_dynamics import ascend, stable_step
from inference.local_learning import synaptic_gradients
from inference.mcmc.target import Target
from inference.prediction_errors import prediction_errors
from zoo.frozen import frozen
from zoo.models.clamped import Clamped
from zoo.models.predictive_coding import PredictiveCoding

__all__ = ["NUDGES", "SIGNS", "nudged_gradients", "settled"]

SIGNS = {"positive": (1.0,), "negative": (-1.0,), "centred": (1.0, -1.0)}
NUDGES = ("likelihood", "output")


def nudged_gradients(network: PredictiveCoding, inputs: Tensor, targets: Tensor, *, beta: float, sign: str = "centred",
                     nudge: str = "likelihood", tolerance: float | None = None, max_steps: int = 10_000) -> dict[str, Tensor]:
    """Gradients of weights and biases, from activities that settle under a nudge.

    Arguments:
        network: A chain; ``K_L`` are its inputs and its event shape that of the outputs.
        inputs: ``(N, K_L)``.
        targets: ``(N, *event_shape)``.
        beta: Size of the nudge, positive; 1 with ``"positive"`` is predictive coding with the output clamped to its target.
        sign: ``"positive"`` (towards the target), ``"negative"`` (away from it, the gradients' sign changed), ``"centred"`` (their mean).
        nudge: ``"likelihood"`` or ``"output"``, see above; the latter takes Normal outputs.
        tolerance, max_steps: Of :func:`settled`.

    Returns:
        ``{name of a weight or bias: gradient}``, nats, uphill, averaged over images.

    Raises:
        TypeError, ValueError: as :func:`inference.backpropagation.clamped`; for unknown names, a β that is not positive, or activities
            that do not settle.
    """
    if sign not in SIGNS:
        raise ValueError(f"unknown sign {sign!r}; nudges are: {', '.join(SIGNS)}")
    if nudge not in NUDGES or not beta > 0.0:
        raise ValueError(f"nudge must be {' or '.join(map(repr, NUDGES))} and beta positive; got {nudge!r} and {beta}")
    supervised = clamped(network, inputs, targets)
    if nudge == "output" and network.likelihood != "normal":
        raise ValueError(f"outputs between prediction and target are Normal, not {network.likelihood!r}; take nudge='likelihood'")
    parts = []
    for strength in (beta * side for side in SIGNS[sign]):
        seen, power = targets, strength
        if nudge == "output":
            prediction = supervised.predict()
            seen, power = prediction + strength * (targets - prediction), 1.0
        values = settled(supervised, seen, power=power, tolerance=tolerance, max_steps=max_steps)
        errors = prediction_errors(supervised, values, seen)
        errors = {name: error * (power if name == "x" else 1.0) / strength for name, error in errors.items()}
        parts.append(synaptic_gradients(network, values | {supervised.site: supervised.top}, errors))
    return {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}


def settled(supervised: Clamped, targets: Tensor, *, power: float = 1.0, tolerance: float | None = None,
            max_steps: int = 10_000) -> dict[str, Tensor]:
    """Activities ``{site: (N, K)}`` at rest, uphill from the forward pass: a mode of log p(z | inputs) + power · log p(targets | z).

    Arguments:
        power: Weight of the likelihood; a negative one pushes away from the targets.
        tolerance: How far the slope of each image must fall, of what it was at first; the root of the machine's precision if None.
        max_steps: Largest number of gradient steps, of the size that is stable at the start.

    Raises:
        ValueError: if they do not come to rest.
    """
    tolerance = torch.finfo(targets.dtype).eps ** 0.5 if tolerance is None else tolerance
    with frozen(supervised):
        target = Target(supervised, targets, of_values=True)
        target.beta = power
        start = target.unconstrain(forward_pass(supervised))
        first = None
        lr = stable_step(target, start) / max(1.0, abs(power))  # which is that of power 1
        for moment in ascend(target, start, steps=max_steps, lr=lr, optimizer="gradient"):
            first = moment.slope if first is None else first
            if (moment.slope <= tolerance * first).all():
                return target.constrain(moment.u)
    left = (moment.slope / first).max().item()
    raise ValueError(f"activities did not settle in {max_steps} steps: the slope is {left:.1e} times that at the start, not "
                     f"{tolerance:.1e}; take more steps or a larger tolerance, or, for a small beta, float64")
