"""What the author of a new model runs: the conventions that every guide and inference method relies on."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from zoo.testing.tools import expect, near, worst

__all__ = ["check_model"]


@torch.no_grad()
def check_model(model: Callable, x: Tensor, *, seed: int = 0) -> None:
    """Checks that a Pyro program keeps the zoo's conventions.

    One plate ``"data"`` at dim −1 with every site inside it; batch shape ``(N,)``; the observation at site ``"x"``; draws from
    the prior with ``size=n``; images that do not see one another; any dimensions to the left (chains, draws); float64; nothing
    in Pyro's parameter store. A model with ``descend`` must also tell its latents and decode them. A module is checked in
    evaluation mode. The global random generator and the parameter store are left as they were found.

    Arguments:
        model: ``model(x)``, with ``model(None, size=n)`` for draws from the prior.
        x: At least two different images ``(N, *event_shape)`` that the model could be given.
        seed: Seed of the latents it is checked at.

    Raises:
        AssertionError: with one sentence about the first convention that is broken.
        ValueError: for fewer than two images.
    """
    if len(x) < 2:
        raise ValueError(f"give at least 2 images, not {len(x)}: a check is that images do not see one another")
    if isinstance(model, nn.Module):
        model = copy.deepcopy(model).eval()  # dropout and the like are for training
    with torch.random.fork_rng(), pyro.get_param_store().scope() as outside, pyro.validation_enabled(False):
        outside["params"].clear()
        torch.manual_seed(seed)
        try:
            sites = _sites(model, x)
        except (RuntimeError, ValueError) as error:
            raise AssertionError(f"the program does not run on images {tuple(x.shape)}: {error}") from error
        _check_sites(sites, x)
        _check_prior_draws(model, sites, x)
        latents = {name: site["value"] for name, site in sites.items() if name != "x"}
        _check_images_alone(model, latents, x)
        _check_left(model, sites, x)
        _check_double(model, latents, x)
        if hasattr(model, "descend"):
            _check_walk(model, sites, x)
        stored = list(pyro.get_param_store().keys())
    expect(not stored, f"the model puts {', '.join(stored)} into Pyro's global parameter store; make it an nn.Module with "
                       "parameters of its own")


def _sites(model: Callable, *arguments: object, **options: object) -> dict[str, dict]:
    trace = poutine.trace(model).get_trace(*arguments, **options)
    return {name: site for name, site in trace.nodes.items()
            if site["type"] == "sample" and not poutine.util.site_is_subsample(site)}


def _check_sites(sites: dict[str, dict], x: Tensor) -> None:
    for name, site in sites.items():
        plates = {frame.name: frame for frame in site["cond_indep_stack"] if frame.vectorized}
        expect("data" in plates, f'the site "{name}" lies outside the plate "data"')
        expect(plates["data"].dim == -1 and plates["data"].size == len(x),
               f'the plate "data" must be at dim -1 with size {len(x)}, the number of images, not at dim {plates["data"].dim} with '
               f'size {plates["data"].size}')
        expect(tuple(site["fn"].batch_shape) == (len(x),),
               f'the site "{name}" must have batch shape ({len(x)},), not {tuple(site["fn"].batch_shape)}: what belongs to one '
               "image goes into the event shape (to_event)")
    expect("x" in sites and sites["x"]["is_observed"], 'the program must observe the images at the site "x"')
    observed = sites["x"]
    expect(tuple(observed["fn"].event_shape) == tuple(x.shape[1:]),
           f'the site "x" has event shape {tuple(observed["fn"].event_shape)}, but images are {tuple(x.shape[1:])}')
    expect(torch.equal(observed["value"], x), 'the value observed at the site "x" must be the images as they are')
    others = [name for name, site in sites.items() if site["is_observed"] and name != "x"]
    expect(not others, f'only "x" may be observed, but so is {", ".join(others)}')


def _check_prior_draws(model: Callable, sites: dict[str, dict], x: Tensor) -> None:
    size = len(x) + 1
    try:
        drawn = _sites(model, None, size=size)
    except (RuntimeError, TypeError, ValueError) as error:
        raise AssertionError(f"model(None, size={size}) must draw images from the prior, but fails: {error}") from error
    expect(list(drawn) == list(sites), f"model(None, size=n) has the sites {', '.join(drawn)}, but model(x) {', '.join(sites)}")
    for name, site in drawn.items():
        shape, given = (size, *sites[name]["fn"].event_shape), tuple(site["value"].shape)
        expect(not site["is_observed"], f'model(None, size={size}) must draw the site "{name}", not observe it')
        expect(given == shape, f'model(None, size={size}) must draw the site "{name}" with shape {shape}, not {given}')


def _check_images_alone(model: Callable, latents: dict[str, Tensor], x: Tensor) -> None:
    whole = _density(model, latents, x)
    expect(tuple(whole.shape) == (len(x),) and whole.isfinite().all(),
           "the log density must be finite with one value for each image")
    alone = _density(model, {name: value[:1] for name, value in latents.items()}, x[:1])
    order = torch.arange(len(x) - 1, -1, -1)
    turned = _density(model, {name: value[order] for name, value in latents.items()}, x[order])
    expect(near(turned, whole[order]) and near(alone, whole[:1]),
           "an image's log density depends on the other images of the batch or on its place among them")


def _check_left(model: Callable, sites: dict[str, dict], x: Tensor) -> None:
    """Latents with chains and draws on their left score as they do one by one."""
    pieces = [{name: site["value"] for name, site in _sites(model, x).items() if name in sites and name != "x"} for _ in range(6)]
    stacked = {name: torch.stack([piece[name] for piece in pieces]).unflatten(0, (2, 3)) for name in pieces[0]}
    try:
        together = _density(model, stacked, x)
    except (RuntimeError, ValueError) as error:
        raise AssertionError("latents with dimensions to the left, (chains, draws, N, …), do not pass through the program: "
                             f"{error}") from error
    one_by_one = torch.stack([_density(model, piece, x) for piece in pieces]).unflatten(0, (2, 3))
    expect(together.shape == one_by_one.shape and near(together, one_by_one),
           "latents with dimensions to the left, (chains, draws, N, …), do not have the log densities that they have one by one")


def _check_double(model: Callable, latents: dict[str, Tensor], x: Tensor) -> None:
    if not isinstance(model, nn.Module):
        return
    single = _density(model, latents, x).double()
    wide = copy.deepcopy(model).double()
    try:
        double = _density(wide, {name: value.double() for name, value in latents.items()}, x.double())
    except RuntimeError as error:
        raise AssertionError(f"the model does not run in float64: {error}") from error
    expect(double.dtype == torch.float64,
           f"in float64 the log density is {double.dtype}: some tensor does not follow the model's dtype")
    expect(near(double, single), f"log densities in float64 and {x.dtype} differ by {worst(double, single):.3g} nats")


def _check_walk(model: nn.Module, sites: dict[str, dict], x: Tensor) -> None:
    names = [name for name in sites if name != "x"]
    expect(list(model.latents) == names, f"latents tells of {', '.join(model.latents)}, but the program draws {', '.join(names)}")
    expect(tuple(model.event_shape) == tuple(x.shape[1:]),
           f"event_shape is {tuple(model.event_shape)}, images are {tuple(x.shape[1:])}")
    asked: list[str] = []

    def draw(name: str, family: object, prior: Tensor, above: Tensor | None = None) -> Tensor:
        asked.append(name)
        told, units = model.latents[name]
        expect(told is family and prior.shape[-2:] == (len(family.parameters), units),
               f'descend asks for "{name}" with parameters {tuple(prior.shape)}, but latents tells of {units} units')
        law = sites[name]["fn"]
        expect(near(family.distribution(prior).log_prob(sites[name]["value"]), law.log_prob(sites[name]["value"])),
               f'the prior that descend gives for "{name}" is not the one that the program draws from')
        return sites[name]["value"]

    values = model.descend(draw, x)
    expect(asked == names and list(values) == names, f"descend must draw {', '.join(names)} in this order, not {', '.join(asked)}")
    mean = model.decode(values)
    expect(near(model.observation(mean).mean, sites["x"]["fn"].mean),
           'observation(decode(latents)) is not the distribution of the site "x"')


def _density(model: Callable, latents: dict[str, Tensor], x: Tensor) -> Tensor:
    """log p(x, z), ``(…, N)``."""
    trace = poutine.trace(poutine.condition(model, data=latents)).get_trace(x)
    trace.compute_log_prob()
    return sum(site["log_prob"] for site in trace.nodes.values()
               if site["type"] == "sample" and not poutine.util.site_is_subsample(site))
