"""Relaxed Poisson samples, forward and backward: arrivals drawn where they are against the dense form of Algorithm 1.

The dense form (Vafaii et al. 2024) draws 263 exponential gaps for every unit, enough for a rate of 200. On the first spread of
log-rates, both samplers run in turn in one process, and ``times_faster`` is the median over such pairs; the dense form's cost
depends neither on rates nor on temperature, so the other rows are set against its median there. Peak memory is what forward and
backward hold at once beyond the log-rates, in multiples of the output's bytes: it includes the rates, the sample, the saved
derivative and both gradients.

Three spreads of log-rates, capped at a rate of 200 as models cap them (the highest drawn is 100 to 200):

- ``sparse``: N(−4.9, 2.1²). A linear Poisson VAE (exact objective, K = 512), after one epoch on whitened 16×16 patches of van
  Hateren's images, was found at about N(−4.9, 1.6²), 1 % above −1.25 and a highest rate of 8; this is wider.
- ``moderate``: N(−1.5, 1.4²); rates of 0.6 on average.
- ``trained``: log-rates of such a VAE after a short run of the loop below on patches of random discs, stretched.

Run:  python benchmarks/relaxed_poisson.py [--device cuda] [--images 1000] [--pairs 3] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import record  # noqa: E402
from benchmarks.timing import seconds  # noqa: E402
from zoo.latents.relaxed.arrival import RelaxedPoisson  # noqa: E402
from zoo.latents.relaxed.gumbel import RelaxedCount  # noqa: E402

N_EXP = 263
LOG_CAP = 5.3


class LiveBytes(TorchDispatchMode):
    """Peak of the bytes of storages that operations made and that were alive at once (CPU)."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def ignore(self, tensor: Tensor) -> None:
        self._known.add(tensor.untyped_storage()._cdata)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def dense(log_rate: Tensor, temperature: float, ramp: str) -> Tensor:
    """Algorithm 1 with autograd: ``(N_EXP, N, K)`` gaps, running sums and weights."""
    times = dist.Exponential(log_rate.exp(), validate_args=False).rsample((N_EXP,)).cumsum(0)
    s = (1 - times) / temperature
    if ramp == "sigmoid":
        return s.sigmoid().sum(0)
    u = ((s + 1) / 2).clamp(0, 1)
    return (u * u * (3 - 2 * u)).sum(0)


def arrivals(log_rate: Tensor, temperature: float, ramp: str) -> Tensor:
    return RelaxedPoisson(log_rate.exp(), temperature, ramp, validate_args=False).rsample()


def gumbel(log_rate: Tensor, temperature: float, ramp: str) -> Tensor:
    return RelaxedCount(dist.Poisson(log_rate.exp(), validate_args=False), temperature, validate_args=False).rsample()


def step(sample: Callable, log_rate: Tensor, temperature: float, ramp: str) -> None:
    sample(log_rate, temperature, ramp).sum().backward()
    log_rate.grad = None


def peak_bytes(run: Callable[[], None], log_rate: Tensor) -> int:
    if log_rate.is_cuda:
        torch.cuda.synchronize(log_rate.device)
        torch.cuda.reset_peak_memory_stats(log_rate.device)
        before = torch.cuda.memory_allocated(log_rate.device)
        run()
        return torch.cuda.max_memory_allocated(log_rate.device) - before
    with LiveBytes() as meter:
        meter.ignore(log_rate)
        run()
    return meter.peak


def paired(log_rate: Tensor, temperature: float, ramp: str, pairs: int) -> dict[str, float]:
    """Both samplers in turn."""
    device = log_rate.device

    def ours() -> None:
        step(arrivals, log_rate, temperature, ramp)

    def theirs() -> None:
        step(dense, log_rate, temperature, ramp)

    ours()
    if log_rate.is_cuda:
        theirs()
    peak = peak_bytes(theirs, log_rate) / log_rate.nbytes
    times = [(seconds(ours, device), seconds(theirs, device)) for _ in range(pairs)]
    return {
        "arrivals_ms": 1e3 * statistics.median(a for a, _ in times),
        "dense_ms": 1e3 * statistics.median(b for _, b in times),
        "times_faster": statistics.median(b / a for a, b in times),
        "times_faster_lowest": min(b / a for a, b in times),
        "dense_peak_outputs": peak,
    }


def single(log_rate: Tensor, temperature: float, ramp: str, dense_ms: float) -> dict[str, float]:
    """The new sampler alone, against the dense form's time."""

    def ours() -> None:
        step(arrivals, log_rate, temperature, ramp)

    milliseconds = median_ms(ours, log_rate.device)
    return {"arrivals_ms": milliseconds, "times_faster": dense_ms / milliseconds,
            "arrivals_peak_outputs": peak_bytes(ours, log_rate) / log_rate.nbytes}


def median_ms(run: Callable[[], None], device: torch.device, repeats: int = 5) -> float:
    run()
    return 1e3 * statistics.median(seconds(run, device) for _ in range(repeats))


def others(log_rate: Tensor, gumbel_images: int) -> dict[str, float]:
    """Exact counts without a gradient on all images; Gumbel-softmax on the first few, as it holds ``U + 1`` numbers a unit."""
    rate = log_rate.detach().exp()
    few = log_rate.detach()[:gumbel_images].clone().requires_grad_()
    peak = peak_bytes(lambda: step(gumbel, few, 0.5, ""), few)
    per_image = median_ms(lambda: step(gumbel, few, 0.5, ""), few.device, 3) / gumbel_images
    return {
        "torch_poisson_ms": median_ms(lambda: torch.poisson(rate), rate.device),
        "gumbel_ms_per_1000_images": 1e3 * per_image,
        "gumbel_peak_outputs": peak / few.nbytes,
        "gumbel_max_count": RelaxedCount(dist.Poisson(few.detach().exp()), 0.5).max_count,
    }


def discs(count: int) -> Tensor:
    """Whitened 16×16 patches of opaque random discs, normalized one by one, ``(count, 256)``."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    image = torch.randn(count, 24, 24)
    for _ in range(25):
        radius = 1.5 * torch.rand(count, 1, 1).pow(-0.5).clamp(max=6)
        centre_y, centre_x = 24 * torch.rand(2, count, 1, 1)
        inside = (y - centre_y).square() + (x - centre_x).square() < radius.square()
        image = torch.where(inside, torch.randn(count, 1, 1), image)
    frequency = torch.fft.fftfreq(24)[:, None].square().add(torch.fft.rfftfreq(24).square()).sqrt()
    white = torch.fft.irfft2(torch.fft.rfft2(image) * frequency * torch.exp(-((frequency / 0.4) ** 4)), s=(24, 24))
    patches = white[:, 4:20, 4:20].flatten(1)
    patches = patches - patches.mean(1, keepdim=True)
    return patches / patches.std(1, keepdim=True).clamp_min(1e-3)


def trained(images: int, latents: int, steps: int = 150) -> Tensor:
    """Log-rates ``(images, latents)`` of a linear Poisson VAE trained by hand on the exact objective, on CPU."""
    x = discs(max(images, 2000))
    encode = (torch.randn(latents, 256) * 0.0125).requires_grad_()
    decode = (torch.randn(256, latents) * 0.05).requires_grad_()
    prior = (-6 + 2 * torch.rand(latents)).requires_grad_()
    optimizer = torch.optim.Adamax([encode, decode, prior], lr=5e-3)
    softplus = torch.nn.functional.softplus

    def posterior(batch: Tensor) -> Tensor:
        return LOG_CAP - softplus(LOG_CAP - prior - batch @ encode.T)

    for _ in range(steps):
        batch = x[torch.randint(len(x), (200,))]
        log_rate = posterior(batch)
        rate = log_rate.exp()
        error = (batch - rate @ decode.T).square().sum(1) + rate @ decode.square().sum(0)
        kl = (prior.exp() - rate + rate * (log_rate - prior)).sum(1)
        optimizer.zero_grad()
        (error + kl).mean().backward()
        optimizer.step()
    with torch.no_grad():
        log_rate = posterior(x[:images])
        middle = log_rate.median()
        return middle + (log_rate - middle) * (LOG_CAP - middle) / (log_rate.max() - middle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--latents", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.05, 1.0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    shape = options.images, options.latents
    spreads = {
        "sparse": (-4.9 + 2.1 * torch.randn(shape)).clamp(max=LOG_CAP),
        "moderate": (-1.5 + 1.4 * torch.randn(shape)).clamp(max=LOG_CAP),
        "trained": trained(*shape),
    }
    results = {"paired": {}}
    for name, log_rate in spreads.items():
        log_rate = log_rate.to(options.device).requires_grad_()
        rate = log_rate.detach().exp()
        results[name] = {"rate_mean": float(rate.mean()), "rate_max": float(rate.max())}
        for ramp in ("cubic", "sigmoid"):
            if ramp not in results["paired"]:
                results["paired"][ramp] = paired(log_rate, options.temperatures[0], ramp, options.pairs)
            for temperature in options.temperatures:
                row = single(log_rate, temperature, ramp, results["paired"][ramp]["dense_ms"])
                results[name][f"{ramp}_temperature_{temperature}"] = row
        results[name] |= others(log_rate, min(options.images, 100))
    record("relaxed_poisson" + ("" if options.device == "cpu" else "_" + options.device.partition(":")[0]), results,
           seed=options.seed, notes=f"shape {shape}, float32, forward and backward; dense: {N_EXP} arrivals a unit; "
           "peak memory beyond the log-rates in multiples of the output's bytes, rates, sample and gradients included")


if __name__ == "__main__":
    main()
