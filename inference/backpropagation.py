r"""Predictive coding beside backpropagation: a chain whose top is clamped to inputs and whose ``"x"`` to targets is a supervised network.

Backpropagated errors are those of the forward pass sent up level by level, from ``"x"`` on: :math:`\delta_l = J_{l-1}^\top \delta_{l-1}`.
Prediction errors come to rest where :math:`\varepsilon_l = J_{l-1}^\top \varepsilon_{l-1}` as well, but at activities that have moved: the
two are the same only if predictions and Jacobians J are held at the forward pass (Millidge, Tschantz & Buckley 2022; Rosenbaum 2022).
Gradients here are of the mean over images of log p(targets | forward pass), uphill: those of minus a loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inference.gradient_dynamics import ascend
from inference.local_learning import local_gradients, synaptic_gradients
from inference.mcmc.target import Target
from inference.prediction_errors import predicted_sites
from zoo.frozen import frozen
from zoo.latents.gaussian import Gaussian
from zoo.models.clamped import Clamped
from zoo.models.predictive_coding import PredictiveCoding

__all__ = ["agreement", "backpropagated_gradients", "clamped", "exact_gradients", "fixed_prediction_gradients", "forward_pass",
           "strict_gradients"]


def clamped(network: PredictiveCoding, inputs: Tensor, targets: Tensor) -> Clamped:
    """The supervised network: the chain with its top at the inputs ``(N, K_L)``, if targets ``(N, *event_shape)`` fit it.

    Raises:
        TypeError: for another model than a chain.
        ValueError: for a single level, latents that are not Normal with independent units, or inputs or targets of another shape.
    """
    if not isinstance(network, PredictiveCoding):
        raise TypeError(f"a supervised network is a chain of levels ('predictive_coding'), not {type(network).__name__}")
    top = f"z{len(network.units)}"
    for number, level in enumerate(network.levels[:-1], 1):
        if type(level.family) is not Gaussian:
            kind = type(level.family).__name__
            raise ValueError(f"activities of a supervised network are Normal with independent units; z{number} is {kind}")
    if inputs.dim() != 2 or inputs.shape[-1] != network.units[-1]:
        raise ValueError(f"inputs must have the shape (N, {network.units[-1]}) of {top}, not {tuple(inputs.shape)}")
    if targets.shape != (len(inputs), *network.event_shape):
        raise ValueError(f"targets must have the shape {(len(inputs), *network.event_shape)}, not {tuple(targets.shape)}")
    return Clamped(network, {top: inputs})


@torch.no_grad()
def forward_pass(supervised: Clamped) -> dict[str, Tensor]:
    """Activities ``{site: (N, K)}`` with no prediction error."""
    return supervised.descend(lambda name, family, prior, above=None: prior[..., 0, :])


def backpropagated_gradients(network: PredictiveCoding, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The gradients by autograd, from end to end.

    Arguments:
        network: A chain; ``K_L`` are its inputs and its event shape that of the outputs.
        inputs: ``(N, K_L)``.
        targets: ``(N, *event_shape)``.

    Returns:
        ``{name of a weight or bias of the network: gradient}``, nats.

    Raises:
        TypeError, ValueError: as :func:`clamped`.
    """
    supervised = clamped(network, inputs, targets)
    parameters = dict(network.maps.named_parameters(prefix="maps"))
    with torch.enable_grad():
        values = supervised.descend(lambda name, family, prior, above=None: prior[..., 0, :])
        fit = supervised.observation(supervised.decode(values)).log_prob(targets).mean()
        gradients = torch.autograd.grad(fit, list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True))


def exact_gradients(network: PredictiveCoding, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """By local rules from errors that are sent up once, level by level, at the forward pass: backpropagation, written as such.

    Arguments, returns and errors are those of :func:`backpropagated_gradients`.
    """
    supervised = clamped(network, inputs, targets)
    values, errors = _start(supervised, targets)
    for number in range(1, len(network.units)):
        errors[f"z{number}"] = _pulled(network, number, values, errors)
    return synaptic_gradients(network, values, errors)


def fixed_prediction_gradients(network: PredictiveCoding, inputs: Tensor, targets: Tensor, *, eta: float = 1.0,
                               steps: int | None = None) -> dict[str, Tensor]:
    r"""By local rules from activities that settle while predictions and Jacobians stay those of the forward pass.

    All activities move at once, :math:`z_l \leftarrow z_l + \eta (J_{l-1}^\top \varepsilon_{l-1} - \varepsilon_l)`. The errors that weights
    change by are those of the last step's start, so that one reaches the highest level after as many steps as there are predictions.

    Arguments:
        eta: Size of a step; with 1, unit variances and that many steps the gradients are backpropagation's, but for rounding.
        steps: Number of steps; that of predictions (the depth) if None.

    Other arguments, returns and errors are those of :func:`backpropagated_gradients`; steps and eta must be positive.
    """
    supervised = clamped(network, inputs, targets)
    steps = len(network.units) if steps is None else steps
    if steps < 1 or not eta > 0.0:
        raise ValueError(f"steps must be at least 1 and eta positive; got {steps} and {eta}")
    values, errors = _start(supervised, targets)
    forward = {name: values[name] for name in supervised.latents}
    activities = dict(forward)
    for _ in range(steps):
        for number in range(1, len(network.units)):
            name = f"z{number}"
            errors[name] = (activities[name] - forward[name]) / network.levels[number - 1].scale.detach().square()
        for number in range(1, len(network.units)):
            name = f"z{number}"
            activities[name] = activities[name] + eta * (_pulled(network, number, values, errors) - errors[name])
    return synaptic_gradients(network, values, errors)


def strict_gradients(network: PredictiveCoding, inputs: Tensor, targets: Tensor, *, eta: float = 0.1, steps: int = 20) -> dict[str, Tensor]:
    """By local rules from activities that climb log p(targets, z | inputs), predictions moving with them: predictive coding as it is.

    Arguments:
        eta, steps: Size and number of gradient steps, from the forward pass.

    Other arguments, returns and errors are those of :func:`backpropagated_gradients`, and of :func:`inference.gradient_dynamics.ascend`.
    """
    supervised = clamped(network, inputs, targets)
    with frozen(network):
        target = Target(supervised, targets, of_values=True)
        for moment in ascend(target, target.unconstrain(forward_pass(supervised)), steps=steps, lr=eta, optimizer="gradient"):
            last = moment
    gradients = local_gradients(supervised, target.constrain(last.u), targets)
    return {name: gradients[f"model.{name}"] for name, _ in network.maps.named_parameters(prefix="maps")}


def agreement(gradients: dict[str, Tensor], truth: dict[str, Tensor]) -> tuple[float, float]:
    """Length of the difference over that of the truth, and cosine, of all parameters as one vector.

    Raises:
        ValueError: for gradients of other parameters than the truth's.
    """
    if set(gradients) != set(truth):
        raise ValueError(f"gradients must be of the same parameters; of one alone are: {', '.join(sorted(set(gradients) ^ set(truth)))}")
    ours, theirs = (torch.cat([part[name].flatten() for name in truth]) for part in (gradients, truth))
    return ((ours - theirs).norm() / theirs.norm()).item(), torch.nn.functional.cosine_similarity(ours, theirs, dim=0).item()


def _start(supervised: Clamped, targets: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All values of the forward pass, the inputs included, and the error of the output there."""
    values = forward_pass(supervised)
    sites = predicted_sites(supervised, values, targets)
    return values | {supervised.site: supervised.top}, {"x": sites["x"].error}


def _pulled(network: PredictiveCoding, number: int, values: dict[str, Tensor], errors: dict[str, Tensor]) -> Tensor:
    """The error below level ``number``, sent up to it through the prediction's Jacobian at the given values, ``(N, K)``."""
    with torch.enable_grad(), frozen(network):
        value = values[f"z{number}"].detach().requires_grad_(True)
        prediction = network.predict(number - 1, value)
        return torch.autograd.grad(prediction, value, errors["x" if number == 1 else f"z{number - 1}"])[0]
