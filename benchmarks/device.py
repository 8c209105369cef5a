"""Where benchmarks run: the check behind their option ``--device``."""

from __future__ import annotations

import argparse

import torch

__all__ = ["check_device"]


def check_device(parser: argparse.ArgumentParser, device: str) -> None:
    """Ends the program with one line if a GPU was asked for and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device here; use --device cpu")
