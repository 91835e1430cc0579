"""In which order the pictures of an epoch come: permuted, or of several data sets in fixed shares.

Draw j of data set d is due at time (j + 1/2) / share_d; the draws of all sets in the order of their
times are Webster's (Sainte-Lague's) sequence, in which every set is within a draw or two of its
share from the start, however small that is. Short blocks of it are shuffled, so that no batch sees
a fixed pattern. All of it is a function of the position, so resuming needs nothing else.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from modules.seeding import seed_for

BLOCK = 64  # samples of several data sets that are shuffled among themselves


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


@dataclass(frozen=True)
class Shares:
    """weights: of the data sets, positive, of any sum. phases: when the first draw of each is due,
    from 0 to 1 of the time between two of them; by default 1/2."""

    weights: tuple[float, ...]
    seed: int
    phases: tuple[float, ...] = ()

    def of_lane(self, number: int, count: int) -> Shares:
        """Those of one of `count` lanes: the phases differ, so that lanes that go on in step draw
        a data set with a small share one after the other, not all at once."""
        if count == 1:
            return self
        orders = [
            random.Random(seed_for(self.seed, "phase", part)).sample(range(count), count)
            for part in range(len(self.weights))
        ]
        phases = tuple((order[number] + 0.5) / count for order in orders)
        return Shares(self.weights, seed_for(self.seed, "lane", number), phases)

    def counts(self, num_samples: int) -> np.ndarray:
        """How many of the first `num_samples` come from each data set, int64 [D]."""
        shares = np.asarray(self.weights) / sum(self.weights)
        # No set is further than D + 1 draws from its share, so these draws cannot be missing and
        # only the next few can come after them.
        margin = len(shares) + 1
        sure = np.maximum(np.floor(num_samples * shares).astype(np.int64) - margin, 0)
        following = sure[:, None] + np.arange(2 * margin + 2)
        due = (following + self._phases[:, None]) / shares[:, None]
        order = np.argsort(due, axis=None, kind="stable")
        taken = order[: num_samples - sure.sum()] // following.shape[1]
        return sure + np.bincount(taken, minlength=len(shares))

    def draws(self, run: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Of samples run x length and on, `length` of them: the data set of each, int64 [length],
        and the how-manieth draw of that data set it is, from 0 on, int64 [length]."""
        shares = np.asarray(self.weights) / sum(self.weights)
        first, last = self.counts(run * length), self.counts((run + 1) * length)
        spans = zip(first, last, self._phases, shares, strict=True)
        due = [(np.arange(a, b) + phase) / share for a, b, phase, share in spans]
        parts = np.repeat(np.arange(len(shares)), last - first)
        parts = parts[np.argsort(np.concatenate(due), kind="stable")]
        generator = torch.Generator().manual_seed(seed_for(self.seed, "mixture", run))
        jitter = torch.rand(length, generator=generator, dtype=torch.float64).numpy()
        parts = parts[np.argsort(np.arange(length) // BLOCK + jitter, kind="stable")]
        numbers = np.empty(length, np.int64)
        for part, start in enumerate(first):
            mine = parts == part
            numbers[mine] = start + np.arange(mine.sum())
        return parts, numbers

    @property
    def _phases(self) -> np.ndarray:
        return np.asarray(self.phases or [0.5] * len(self.weights))


@dataclass(frozen=True)
class Mixture:
    """An EpochOrder over data sets that lie one after the other in one source.

    sizes: pictures of each. An epoch has as many samples as all of them have pictures; each set
    goes through permutations of its own, and on with them from one epoch to the next, so a picture
    of a set with a small share comes once in several epochs, and one of a set with a large share
    several times in one.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int
    repeats: ClassVar[bool] = True

    @property
    def size(self) -> int:
        """Samples of an epoch."""
        return sum(self.sizes)

    def indices(self, epoch: int) -> Tensor:
        return _indices(self, epoch)


@lru_cache(maxsize=2)  # a batch may lie in two epochs
def _indices(mixture: Mixture, epoch: int) -> Tensor:
    parts, numbers = Shares(mixture.weights, mixture.seed).draws(epoch, mixture.size)
    indices, start = np.empty(mixture.size, np.int64), 0
    for part, size in enumerate(mixture.sizes):
        order = Permutations(size, seed_for(mixture.seed, "part", part))
        mine = np.flatnonzero(parts == part)
        passes, offsets = np.divmod(numbers[mine], size)
        bounds = np.flatnonzero(np.diff(passes)) + 1
        for run in np.split(np.arange(len(mine)), bounds):
            if len(run):
                permutation = order.indices(int(passes[run[0]])).numpy()
                indices[mine[run]] = start + permutation[offsets[run]]
        start += size
    return torch.from_numpy(indices)
