"""Which pictures every batch holds, at every process, from any place on: decided without state.

Batches are numbered through all epochs and processes, so that a run is resumed from one number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from torch import Tensor
from torch.utils.data import Sampler

from modules.data.samplers.buckets import Buckets, grouped, num_batches
from modules.data.samplers.order import EpochOrder


class Place(NamedTuple):
    """One sample that is to be made."""

    position: int  # in the endless stream of samples of all processes
    index: int  # of its picture in the source
    draw: tuple[int, int]  # (epoch, what is unique in it): crop, mirroring and replacement
    resolution: int


@dataclass(frozen=True)
class ShuffledBatches(Sampler[list[Place]]):
    """One process's batches, without end: runs of positions, so none is short.

    Position p is sample `p % n` of epoch `p // n`. Of each run of world_size x batch_size positions
    from start_position on, process `rank` gets the rank-th batch_size: together the processes see
    what one with the whole batch sees, in order. resolution_at: of the batch of all processes that
    begins at a position.
    """

    order: EpochOrder
    resolution_at: Callable[[int], int]
    batch_size: int
    rank: int
    world_size: int
    start_position: int

    def __iter__(self) -> Iterator[list[Place]]:
        for start in count(self.start_position, self.world_size * self.batch_size):
            resolution, first = self.resolution_at(start), start + self.rank * self.batch_size
            positions = range(first, first + self.batch_size)
            yield [self._place(position, resolution) for position in positions]

    def _place(self, position: int, resolution: int) -> Place:
        epoch, offset = divmod(position, self.order.size)
        index = int(self.order.indices(epoch)[offset])
        # Each time that a picture comes by in an epoch, it is to be cropped in another way.
        unique = offset if self.order.repeats else index
        return Place(position, index, (epoch, unique), resolution)


@dataclass(frozen=True)
class BucketedBatches(ShuffledBatches):
    """One process's batches, without end, each of pictures of one bucket.

    Batch m of process `rank` is batch m x world_size + rank of them all: the processes see together
    what one sees that accumulates as many micro-batches. An epoch ends with a whole batch, and need
    not have as many batches as the next. start_position: of a run that had another batch size, it
    is rounded to the nearest batch.
    """

    buckets: Buckets
    seed: int

    def __iter__(self) -> Iterator[list[Place]]:
        size = self.batch_size
        first_of_all = (self.start_position + size // 2) // size
        epoch, begin = self._epoch_of(first_of_all)
        batches = self._batches(epoch)
        for first in count(first_of_all, self.world_size):
            number, resolution = first + self.rank, self.resolution_at(first * size)
            while number - begin >= len(batches):
                epoch, begin = epoch + 1, begin + len(batches)
                batches = self._batches(epoch)
            yield [
                Place(number * size + i, index, (epoch, (number - begin) * size + i), resolution)
                for i, index in enumerate(batches[number - begin].tolist())
            ]

    def _epoch_of(self, number: int) -> tuple[int, int]:
        """The epoch of a batch, and the number of the epoch's first batch."""
        if not self.order.repeats:  # all epochs have the same pictures, so as many batches
            size = self._num_batches(0)
            return number // size, number // size * size
        epoch, begin = 0, 0
        while (end := begin + self._num_batches(epoch)) <= number:
            epoch, begin = epoch + 1, end
        return epoch, begin

    def _num_batches(self, epoch: int) -> int:
        return num_batches(self.order.indices(epoch), self.buckets.of, self.batch_size)

    def _batches(self, epoch: int) -> Tensor:
        indices = self.order.indices(epoch)
        return grouped(indices, self.buckets.of, self.batch_size, self.seed, epoch)
