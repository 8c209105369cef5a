"""The latents of a program in blocks, each with a sampler that suits its support, moved in turn given the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from inference.mcmc.chains import check_moved
from inference.mcmc.hmc import Hamiltonian
from inference.mcmc.target import Target

__all__ = ["Block", "Blocks", "RealBlock"]


class Block(Protocol):
    """Some of the latents and what moves them."""

    names: tuple[str, ...]

    def values(self) -> dict[str, Tensor]:
        """Where the chains are, ``{site: (C, N, *event)}``."""

    def log_joint(self) -> Tensor:
        """Log joint density of all latents there, ``(C, N)``."""

    def condition(self, given: dict[str, Tensor]) -> None:
        """Takes new values of the other latents."""

    def move(self) -> Tensor:
        """One transition; returns acceptance probabilities ``(N,)``."""

    def stats(self, moves: int) -> dict[str, Tensor]:
        """What is known of the last ``moves`` transitions, those after the warm-up, ``{name: (N,)}``."""


class RealBlock:
    """Real-valued latents, moved by Hamiltonian transitions (options: :class:`inference.mcmc.hmc.Hamiltonian`)."""

    def __init__(self, target: Target, values: dict[str, Tensor], warmup: int, **options: Any) -> None:
        self.target, self.names = target, tuple(target.shapes)
        self.kernel = Hamiltonian(target.value_and_grad, target.unconstrain(values), warmup, **options)

    def values(self) -> dict[str, Tensor]:
        return self.target.constrain(self.kernel.state.u)

    def log_joint(self) -> Tensor:
        return self.kernel.state.value - self.target.log_volume(self.kernel.state.u)

    def condition(self, given: dict[str, Tensor]) -> None:
        self.target.given = given
        self.kernel.renew()

    def move(self) -> Tensor:
        return self.kernel.move()

    def stats(self, moves: int) -> dict[str, Tensor]:
        check_moved(self.kernel.taken, moves, self.names)
        made = max(self.kernel.made - self.kernel.warmup, 1)
        return {"accepted": self.kernel.accepted / made, "divergences": self.kernel.divergences, "step_size": self.kernel.step}


class Blocks:
    """Several blocks in turn, each given the values of the others."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks, self.names = tuple(blocks), tuple(name for block in blocks for name in block.names)

    def values(self) -> dict[str, Tensor]:
        return {name: value for block in self.blocks for name, value in block.values().items()}

    def log_joint(self) -> Tensor:
        return self.blocks[-1].log_joint()

    def condition(self, given: dict[str, Tensor]) -> None:
        raise ValueError("the blocks have all latents between them")

    def move(self) -> Tensor:
        chances = []
        for block in self.blocks:
            block.condition({name: value for other in self.blocks if other is not block for name, value in other.values().items()})
            chances.append(block.move())
        return torch.stack(chances).amin(0)

    def stats(self, moves: int) -> dict[str, Tensor]:
        """Those of the blocks; ``accepted`` is the least of theirs."""
        every = [block.stats(moves) for block in self.blocks]
        merged = {name: value for stats in every for name, value in stats.items()}
        return merged | {"accepted": torch.stack([stats["accepted"] for stats in every]).amin(0)}
