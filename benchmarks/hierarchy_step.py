"""What one walk costs: a training step of a hierarchy by ``inference.fit`` against a hand-written single pass in PyTorch.

    python benchmarks/hierarchy_step.py [--model cnvae_maps_s] [--batch 128] [--steps 5] [--pairs 9] [--device cpu]

The hand-written step uses the same layers in a plain loop over the groups: encoder, then prior, posterior, sample, KL and features of each
group, then the endpoint error, backward, clipping and Adamax with a schedule. It knows no sites, plates, families or laws. The two run in
turn, A B A B …, in blocks of steps; the ratio is the median over the pairs. Target: at most 1.15.
"""

from __future__ import annotations

import argparse
import math
import statistics

import torch
from device import check_device
from record import record
from timing import seconds
from torch import Tensor, nn

import guides
import inference
import zoo

SETTINGS = {"lr": 1e-4, "beta_start": 1.0, "clip": 250.0, "progress": False}


def negative_elbo(model: nn.Module, guide: nn.Module, x: Tensor) -> Tensor:
    """Minus the ELBO of every image, ``(N,)``, of a Gaussian hierarchy with compressed latents, in one pass."""
    taps, n = guide.taps(x), len(x)
    features, divergence = model.start.expand(n, *model.start.shape), 0.0
    for name, group in model.groups.items():
        features = group.cells(features)
        heard = taps[name]
        if group.prior_net is None:
            prior = group.initial.flatten().expand(n, -1)
        else:
            prior = group.prior_net(features).flatten(1)
            heard = heard + guide.from_above[name](features)
        p_loc, p_log_scale = prior.chunk(2, dim=1)
        if group.prior_net is not None:
            p_log_scale = 4.0 * torch.tanh(p_log_scale / 4.0)
        d_loc, d_log_scale = guide.readers[name](heard).flatten(1).chunk(2, dim=1)
        log_ratio = 5.3 * torch.tanh(d_log_scale / 5.3)
        z = p_loc + d_loc + (p_log_scale + log_ratio).exp() * torch.randn_like(d_loc)
        kl = 0.5 * ((2.0 * log_ratio).exp() + (d_loc * (-p_log_scale).exp()).square() - 1.0) - log_ratio
        divergence = divergence + kl.sum(1)
        features = group.join(torch.cat([features, group.spread(z[:, :, None, None])], 1))
    error = (x - model.post(features)).square().sum(1).clamp(min=torch.finfo(x.dtype).tiny).sqrt().sum((1, 2))
    scale, pixels = model.scale, x.shape[-1] * x.shape[-2]
    return error / scale + pixels * (math.log(2.0 * math.pi) + 2.0 * scale.log()) + divergence


def hand_written(model: nn.Module, guide: nn.Module, x: Tensor, steps: int, batch: int) -> None:
    """The loop a careful person would write."""
    parameters = [*guide.parameters(), *(p for p in model.parameters() if p.requires_grad)]
    optimizer = torch.optim.Adamax(parameters, lr=SETTINGS["lr"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.randperm(len(x), device=x.device)
    for step in range(steps):
        loss = negative_elbo(model, guide, x[order[step * batch % len(x):][:batch]]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, SETTINGS["clip"])
        optimizer.step()
        schedule.step()


def check(model: nn.Module, guide: nn.Module, x: Tensor) -> None:
    """Both must be the same loss, of the same draws."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        ours = -inference.elbo(model, guide, x).value
        torch.manual_seed(0)
        theirs = negative_elbo(model, guide, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cnvae_maps_s",
                        help="a Gaussian hierarchy with compressed latents, additive, of endpoint errors (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5, help="steps in a block (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="of PyTorch")
    options = parser.parse_args()
    check_device(parser, options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    model = zoo.build(options.model, (2, 17, 17)).to(device)
    guide = guides.build("hierarchical", model).to(device)
    x = zoo.data.load("rofl/fixate-1", n_train=options.batch * options.steps, n_validation=1, n_test=1, cache=False).train.x.to(device)
    check(model, guide, x[: options.batch])

    def ours() -> None:
        inference.fit(model, guide, x, steps=options.steps, batch_size=options.batch, log_every=options.steps, **SETTINGS)

    def theirs() -> None:
        hand_written(model, guide, x, options.steps, options.batch)

    ours(), theirs()
    times = [(seconds(ours, device) / options.steps, seconds(theirs, device) / options.steps) for _ in range(options.pairs)]
    ratios = sorted(a / b for a, b in times)
    quarter = len(ratios) // 4
    record(f"hierarchy_step_{options.model}_{options.device}", {
        "ratio_median": statistics.median(ratios), "ratio_quartiles": [ratios[quarter], ratios[-1 - quarter]], "pairs": options.pairs,
        "fit_ms_per_step": 1e3 * statistics.median(a for a, _ in times),
        "hand_written_ms_per_step": 1e3 * statistics.median(b for _, b in times)},
        notes=f"{options.model}, batches of {options.batch} frames 2 x 17 x 17; target: ratio at most 1.15")


if __name__ == "__main__":
    main()
