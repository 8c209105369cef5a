"""Handwritten characters of five alphabets (Lake, Salakhutdinov & Tenenbaum 2015, "background small 1"). In [0, 1], ink is 1."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import torch

from zoo.data.base import Data, Dataset
from zoo.data.fetch import fetch
from zoo.data.sources import OMNIGLOT

__all__ = ["omniglot"]


def omniglot(held_out: int = 1) -> Dataset:
    """Characters ``(n, 1, 28, 28)``, taken from 105 × 105 by nearest neighbours; labels number the characters of all alphabets.

    Arguments:
        held_out: How many alphabets, the last in alphabetical order, are the test part.

    Raises:
        ValueError: if no alphabet would be left on one side.
    """
    from skimage.io import imread

    with zipfile.ZipFile(io.BytesIO(fetch(OMNIGLOT))) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png") and "__MACOSX" not in name)
        images = np.stack([np.asarray(imread(io.BytesIO(archive.read(name)))) > 0 for name in names])
    characters = [name.rsplit("/", 1)[0] for name in names]
    alphabets = np.array([name.split("/")[1] for name in names])
    known = sorted(set(alphabets))
    if not 1 <= held_out < len(known):
        raise ValueError(f"held_out must be 1 to {len(known) - 1} of the {len(known)} alphabets, not {held_out}")
    nearest = ((np.arange(28) + 0.5) * images.shape[1] / 28).astype(int)
    ink = ~images[:, nearest][:, :, nearest]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(characters))}
    labels = torch.tensor([numbers[name] for name in characters])
    everything = Data(torch.from_numpy(ink[:, None].astype(np.float32)), labels)
    test = torch.from_numpy(np.isin(alphabets, known[-held_out:]))
    return Dataset("omniglot", everything[~test], everything[test],
                   f"ink is 1; held-out alphabets {', '.join(known[-held_out:])}, "
                   f"training alphabets {', '.join(known[:-held_out])}")
