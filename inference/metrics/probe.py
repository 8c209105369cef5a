r"""What a representation knows about each factor in whatever form: the R² of a small neural network in place of a linear readout.

A factor that a network reads out far better than a linear readout is there, but entangled: what the difference to
:func:`~inference.metrics.decodability.linear_decodability` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from inference.metrics.decodability import linear_decodability

__all__ = ["nonlinear_decodability"]


def nonlinear_decodability(z_fit: Tensor, factors_fit: Mapping[str, Tensor], z_score: Tensor, factors_score: Mapping[str, Tensor], *,
                           epochs: int = 100, patience: int = 10, hidden: Sequence[int] = (256, 256), batch_size: int = 256,
                           lr: float = 1e-3, held_out: float = 0.15, seed: int = 0) -> dict[str, float]:
    """R² of each factor as a multilayer perceptron reads it out of a representation, ``{name: number}``, on the scored set.

    One network (GELU) reads out all factors, trained on squared errors by AdamW on a part of the fitted set. The other part, held out,
    says for each factor when to stop, and whether the network is better at all than the linear readout or than the mean: the best of the
    three there is what is scored. So what is linear is read out at least about as well as by
    :func:`~inference.metrics.decodability.linear_decodability`, and what is not there at all has an R² of about 0. It is a lower
    bound of what is known: more images and a larger budget may find more.

    Arguments:
        z_fit, factors_fit, z_score, factors_score: Representations ``(n, K)`` and factors ``{name: (n,)}``, as
            :func:`~inference.metrics.decodability.linear_decodability` takes them. It is computed on the device of ``z_fit``.
        epochs: The budget: passes over the fitted set, at most. The learning rate falls to 0 along half a cosine.
        patience: Epochs after which it stops if no factor was read out better meanwhile.
        hidden: Units of each hidden layer.
        batch_size: Images of a step.
        lr: Learning rate at the start.
        held_out: Fraction of the fitted set that is held out.
        seed: Of the network's initial weights, the held-out part and the order of images. The global generator is left alone.

    Raises:
        ValueError: for sets that cannot be read out, a fraction that leaves fewer than 2 held-out or K + 2 other images, factors that do
            not vary in either part, or sizes below 1.
    """
    if min(epochs, patience, batch_size, *hidden) < 1 or not hidden or not lr > 0.0 or not 0.0 < held_out < 1.0:
        raise ValueError("epochs, patience, batch_size and hidden must be at least 1, lr above 0 and held_out between 0 and 1; got "
                         f"{epochs}, {patience}, {batch_size}, {tuple(hidden)}, {lr} and {held_out}")
    linear = linear_decodability(z_fit, factors_fit, z_score, factors_score)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(z_fit), generator=generator)
    held, train = order.tensor_split([max(2, round(held_out * len(order)))])
    if len(train) < z_fit.flatten(1).shape[1] + 2:
        raise ValueError(f"with {len(held)} of {len(order)} images held out, {len(train)} are too few to fit a readout of "
                         f"{z_fit.flatten(1).shape[1]} units: give more images, or hold out fewer")
    part = [{name: factors_fit[name].to(rows.device)[rows] for name in factors_fit} for rows in (train, held)]
    baseline = linear_decodability(z_fit.cpu()[train], part[0], z_fit.cpu()[held], part[1])
    z, scored = _standardized(z_fit, z_score, train)
    g, truth = _targets(factors_fit, factors_score, train, z.device)
    best, found = (torch.tensor(list(scores.values()), dtype=torch.float64, device=g.device) for scores in (baseline, linear))

    def keep(held_prediction: Tensor, prediction: Tensor) -> bool:
        r2 = _r2(held_prediction, g[held])
        better = r2 > best
        best[better] = r2[better]
        found[better] = _r2(prediction, truth)[better]
        return bool(better.any())

    keep(torch.zeros_like(g[held]), torch.zeros_like(truth))
    network = _network(z.shape[1], hidden, g.shape[1], seed).to(z.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=1e-2)
    steps = -(-len(train) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    waited = 0
    with torch.enable_grad():
        for _ in range(epochs):
            for rows in train[torch.randperm(len(train), generator=generator)].split(batch_size):
                optimizer.zero_grad()
                (network(z[rows]) - g[rows]).square().mean().backward()
                optimizer.step()
                schedule.step()
            with torch.no_grad():
                waited = 0 if keep(network(z[held]), network(scored)) else waited + 1
            if waited >= patience:
                break
    return dict(zip(factors_fit, found.tolist(), strict=True))


def _network(inputs: int, hidden: Sequence[int], outputs: int, seed: int) -> nn.Module:
    """A multilayer perceptron that starts at 0, the mean of the targets."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU only: those of other devices are not forked
        sizes = [inputs, *hidden]
        layers = [layer for a, b in zip(sizes, hidden, strict=False) for layer in (nn.Linear(a, b), nn.GELU())]
        last = nn.Linear(sizes[-1], outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


def _standardized(z_fit: Tensor, z_score: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """Both representations in units of the training part's spread, single precision; constant latents are 0."""
    fit, score = z_fit.detach().flatten(1).double(), z_score.detach().flatten(1).double().to(z_fit.device)
    seen = fit[train]
    alive = seen.amax(0) > seen.amin(0)
    center, spread = seen.mean(0), torch.where(alive, seen.std(0), 1.0)
    return tuple(torch.where(alive, (part - center) / spread, 0.0).float() for part in (fit, score))


def _targets(factors_fit: Mapping[str, Tensor], factors_score: Mapping[str, Tensor], train: Tensor,
             device: torch.device) -> tuple[Tensor, Tensor]:
    """Factors of both sets ``(n, factors)`` in units of the training part's spread."""
    fit, score = (torch.stack([factors[name] for name in factors_fit], 1).double().cpu() for factors in (factors_fit, factors_score))
    center, spread = fit[train].mean(0), fit[train].std(0)
    if still := [name for name, sd in zip(factors_fit, spread, strict=True) if not sd > 0.0]:
        raise ValueError(f"the factors {', '.join(still)} do not vary in the part that is trained on")
    return tuple(((part - center) / spread).float().to(device) for part in (fit, score))


def _r2(prediction: Tensor, truth: Tensor) -> Tensor:
    deviation = (truth - truth.mean(0)).double().square().sum(0)
    return 1.0 - (truth - prediction).double().square().sum(0) / deviation
