"""NumPyro's NUTS and BlackJAX's HMC for all images at once: the same log density, written by hand in JAX, under ``vmap``.

    pip install numpyro blackjax
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from mcmc_run import Run
from numpyro.infer import NUTS
from torch import Tensor, nn

__all__ = ["blackjax_hmc", "log_density", "numpyro_nuts"]

Density = Callable[[jax.Array, jax.Array], jax.Array]  # state (K,) and pixels (D,) to log density ()


def log_density(model: nn.Module) -> Density:
    """log p(x, z) of one image under a one-layer model with Normal or Laplace latents and a linear or an mlp decoder."""
    loc, log_scale = _array(model.prior)
    noise, size, laplace = float(model.scale), len(_array(model.prior)[0]), model.built_with["name"] == "laplace"
    decode = _linear(model) if model.linear else _mlp(model)

    def log_prior(z: jax.Array) -> jax.Array:
        away = (z - loc) * jnp.exp(-log_scale)
        if laplace:
            return -jnp.abs(away).sum() - log_scale.sum() - size * jnp.log(2.0)
        return -0.5 * (away * away).sum() - log_scale.sum() - 0.5 * size * jnp.log(2.0 * jnp.pi)

    def density(z: jax.Array, x: jax.Array) -> jax.Array:
        error = (x - decode(z)) / noise
        return log_prior(z) - 0.5 * (error * error).sum() - len(x) * jnp.log(noise * jnp.sqrt(2.0 * jnp.pi))

    return density


def _linear(model: nn.Module) -> Callable[[jax.Array], jax.Array]:
    weight = _array(model.decoder.weight)
    return lambda z: weight @ z


def _mlp(model: nn.Module) -> Callable[[jax.Array], jax.Array]:
    first, _, residual, _, last, _ = model.decoder.body
    wide, _, _, narrow = residual.branch
    layers = [(_array(layer.weight), 0.0 if layer.bias is None else _array(layer.bias)) for layer in (first, wide, narrow, last)]
    gain, shift, epsilon = _array(residual.norm.weight), _array(residual.norm.bias), residual.norm.eps

    def affine(i: int, v: jax.Array) -> jax.Array:
        return layers[i][0] @ v + layers[i][1]

    def decode(z: jax.Array) -> jax.Array:
        v = jax.nn.silu(affine(0, z))
        v = v + affine(2, jax.nn.relu(affine(1, v)))
        v = (v - v.mean()) / jnp.sqrt(v.var() + epsilon) * gain + shift
        return affine(3, jax.nn.silu(v))

    return decode


def _array(value: Tensor) -> jax.Array:
    return jnp.asarray(value.detach().cpu().numpy())


def numpyro_nuts(model: nn.Module, x: Tensor, start: Tensor, draws: int, warmup: int, seed: int, accept: float = 0.8) -> Callable[[], Run]:
    """NUTS with a step size and a diagonal metric of each chain's own (NumPyro's defaults), compiled; call what is returned to run it.

    Arguments:
        x: Images ``(N, *event_shape)``.
        start: First states ``(C, N, K)``.
    """
    density = log_density(model)

    def kernel_of(pixels: jax.Array) -> NUTS:
        return NUTS(potential_fn=lambda z: -density(z, pixels), target_accept_prob=accept)

    def warm(key: jax.Array, z: jax.Array, pixels: jax.Array) -> tuple[Any, jax.Array]:
        kernel = kernel_of(pixels)
        state = kernel.init(key, warmup, z, (), {})

        def move(state: Any, _: None) -> tuple[Any, jax.Array]:
            state = kernel.sample(state, (), {})
            return state, state.num_steps

        state, steps = lax.scan(move, state, None, length=warmup)
        return state, steps.sum()

    def sample(state: Any, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel = kernel_of(pixels)
        kernel.init(jax.random.PRNGKey(0), warmup, state.z, (), {})  # sets the kernel up; the state is the one that was handed in

        def move(state: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            state = kernel.sample(state, (), {})
            return state, (state.z, state.num_steps)

        _, (z, steps) = lax.scan(move, state, None, length=draws)
        return z, steps.sum()

    return _compiled(warm, sample, x, start, seed)


def blackjax_hmc(model: nn.Module, x: Tensor, start: Tensor, draws: int, warmup: int, seed: int, steps: int,
                 accept: float = 0.8) -> Callable[[], Run]:
    """HMC of ``steps`` leapfrog steps with window adaptation for each chain, compiled; call what is returned to run it.

    Arguments: as of :func:`numpyro_nuts`.
    """
    density = log_density(model)

    def warm(key: jax.Array, z: jax.Array, pixels: jax.Array) -> tuple[Any, jax.Array]:
        adaptation = blackjax.window_adaptation(blackjax.hmc, partial(_of_image, density, pixels), target_acceptance_rate=accept,
                                                adaptation_info_fn=lambda *_: None, num_integration_steps=steps)
        key, after = jax.random.split(key)
        (state, tuned), _ = adaptation.run(key, z, num_steps=warmup)
        tuned = {name: tuned[name] for name in ("step_size", "inverse_mass_matrix")}
        return (state, tuned, after), jnp.asarray(warmup * steps)

    def sample(warmed: Any, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        state, tuned, key = warmed
        kernel = blackjax.hmc(partial(_of_image, density, pixels), **tuned, num_integration_steps=steps)

        def move(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            state, _ = kernel.step(key, state)
            return state, state.position

        _, z = lax.scan(move, state, jax.random.split(key, draws))
        return z, jnp.asarray(draws * steps)

    return _compiled(warm, sample, x, start, seed)


def _of_image(density: Density, pixels: jax.Array, z: jax.Array) -> jax.Array:
    return density(z, pixels)


def _compiled(warm: Callable, sample: Callable, x: Tensor, start: Tensor, seed: int) -> Callable[[], Run]:
    """Both phases under ``vmap`` over chains and images, compiled ahead of time; the run made of them."""
    chains, images = start.shape[:2]
    pixels, first = _array(x.flatten(1)), _array(start)
    keys = jax.random.split(jax.random.PRNGKey(seed), (chains, images))
    over = partial(jax.vmap, in_axes=(0, 0))  # images, then chains, which share the pixels
    began = time.perf_counter()
    warm_all = jax.jit(jax.vmap(jax.vmap(warm), in_axes=(0, 0, None))).lower(keys, first, pixels).compile()
    warmed_shape = jax.eval_shape(jax.vmap(jax.vmap(warm), in_axes=(0, 0, None)), keys, first, pixels)[0]
    sample_all = jax.jit(jax.vmap(over(sample), in_axes=(0, None))).lower(warmed_shape, pixels).compile()
    compiling = time.perf_counter() - began

    def run() -> Run:
        began = time.perf_counter()
        warmed, warm_gradients = jax.block_until_ready(warm_all(keys, first, pixels))
        middle = time.perf_counter()
        z, gradients = jax.block_until_ready(sample_all(warmed, pixels))
        end = time.perf_counter()
        return Run(torch.from_numpy(np.array(z)).movedim(2, 1), middle - began, end - middle, float(warm_gradients.mean()),
                   float(gradients.mean()), compiling)

    return run
