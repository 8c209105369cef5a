"""Handwritten digits with labels: MNIST (LeCun & Cortes) and the small digits that ship with scikit-learn. Values in [0, 1]."""

from __future__ import annotations

import gzip

import numpy as np
import torch

from zoo.data.base import Data, Dataset
from zoo.data.fetch import fetch
from zoo.data.sources import MNIST

__all__ = ["digits", "mnist"]


def mnist(n_train: int = 60_000, n_test: int = 10_000) -> Dataset:
    """MNIST, ``(n, 1, 28, 28)``, grey values not binarized; the first ``n_train`` and ``n_test`` of its own two parts."""
    if not (1 <= n_train <= 60_000 and 1 <= n_test <= 10_000):
        raise ValueError(f"MNIST has 60,000 training and 10,000 test images; asked for {n_train} and {n_test}")

    def part(name: str, count: int) -> Data:
        images = np.frombuffer(gzip.decompress(fetch(MNIST[f"{name}-images"])), np.uint8, offset=16).reshape(-1, 1, 28, 28)
        labels = np.frombuffer(gzip.decompress(fetch(MNIST[f"{name}-labels"])), np.uint8, offset=8)
        return Data(torch.from_numpy(images[:count].astype(np.float32) / 255.0), torch.from_numpy(labels[:count].astype(np.int64)))

    return Dataset("mnist", part("train", n_train), part("t10k", n_test),
                   "grey values in [0, 1]; MNIST's own training and test parts")


def digits(n_test: int = 360, seed: int = 0) -> Dataset:
    """The 1,797 small digits, ``(n, 1, 8, 8)``, of which ``n_test`` at random are held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    if not 1 <= n_test < len(bunch.images):
        raise ValueError(f"n_test must be 1 to {len(bunch.images) - 1}, not {n_test}")
    x = torch.from_numpy(bunch.images[:, None].astype(np.float32) / 16.0)
    everything = Data(x, torch.from_numpy(bunch.target.astype(np.int64)))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    return Dataset("digits", everything[order[n_test:]], everything[order[:n_test]],
                   "grey values in [0, 1]; a random part held out")
