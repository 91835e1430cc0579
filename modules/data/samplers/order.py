"""In which order the pictures of an epoch come."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from modules.seeding import seed_for


class EpochOrder(Protocol):
    """Which pictures make an epoch, and their order: a function of the epoch's number alone."""

    size: int  # samples of an epoch, the same for all epochs
    repeats: bool  # an epoch may hold a picture twice, or not at all

    def indices(self, epoch: int) -> Tensor:
        """int64 [size], indices into the source; read-only, and cheap for the last two epochs."""
        ...


@dataclass(frozen=True)
class Permutations:
    """Every epoch holds each of `size` pictures once, in an order drawn from (seed, epoch)."""

    size: int
    seed: int
    repeats: ClassVar[bool] = False

    def indices(self, epoch: int) -> Tensor:
        return _permutation(self.size, seed_for(self.seed, "order", epoch))


@lru_cache(maxsize=2)  # a batch may lie in two epochs
def _permutation(size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))
