"""Training samples from an endless sequence of rows, in an order no worker can change.

There is one order, that of a single reader. Every worker of every process reads all of it and
decodes only its own share. So the samples do not depend on the number of workers or processes, and
a run resumes exactly, at the price of reading: each worker passes over all rows, undecoded, and
keeps a shuffle buffer; resuming passes over the current epoch up to where the run was, after one
whole epoch to learn its length unless the run was still in the first. (Giving each worker shards of
its own would save that, but shards are of different lengths, and then the order, and how often a
picture comes, would depend on the workers.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import chain, count
from typing import Any

import fsspec.asyn
from torch.utils.data import IterableDataset, get_worker_info

from modules.data.images.samples import Candidate, Sample, SampleMaker
from modules.data.streaming.rows import Row, RowStream


class StreamedImages:
    """What `--streaming` trains on.

    options: as of SampleMaker. The augmentation belongs to (seed, epoch, place in the epoch). A
    picture that is no use is replaced by the next good one in the stream, which then occurs twice,
    and is named in `rejected`.
    """

    def __init__(self, stream: RowStream, resolution: int, **options: Any) -> None:
        self.stream, self.maker = stream, SampleMaker(resolution, **options)

    def reader(
        self, batch_size: int, rank: int, world_size: int, start_position: int
    ) -> StreamReader:
        """The samples of one process, for a DataLoader with this batch_size."""
        return StreamReader(self, batch_size, rank, world_size, start_position)

    def sample(self, position: int, row: Row, following: Iterator[Row], resolution: int) -> Sample:
        """The sample at `position`, from `row` or else from the first usable one of `following`."""
        target = self.maker.target(resolution)
        candidates = (
            Candidate(partial(candidate.open, target), candidate.label)
            for candidate in chain([row], following)
        )
        return self.maker.make(candidates, position, row.draw, (resolution, resolution))


class StreamReader(IterableDataset[Sample]):
    """One process's samples; in a worker, those of the batches that a DataLoader asks it for.

    Batch m of all processes is positions start_position + m x world_size x batch_size and on; it is
    read by worker `m % num_workers`, which is the order in which a DataLoader asks its workers.
    """

    def __init__(
        self,
        images: StreamedImages,
        batch_size: int,
        rank: int,
        world_size: int,
        start_position: int,
    ) -> None:
        self.images, self.batch_size, self.rank = images, batch_size, rank
        self.world_size, self.start_position = world_size, start_position

    def __iter__(self) -> Iterator[Sample]:
        worker, num_workers = 0, 1
        if (info := get_worker_info()) is not None:
            worker, num_workers = info.id, info.num_workers
            fsspec.asyn.reset_lock()  # a fork may have copied it locked
        upcoming = _Lookahead(self.images.stream.rows(self.start_position))
        for number in count():
            row = upcoming.pop()
            batch, place = divmod(number, self.world_size * self.batch_size)
            if batch % num_workers == worker and place // self.batch_size == self.rank:
                position = self.start_position + number
                resolution = self.images.maker.resolution_at(position - place)
                yield self.images.sample(position, row, upcoming.following(), resolution)


class _Lookahead:
    """An endless iterator that can be looked into without moving it."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self.rows = rows
        self.ahead: deque[Row] = deque()

    def pop(self) -> Row:
        return self.ahead.popleft() if self.ahead else next(self.rows)

    def following(self) -> Iterator[Row]:
        for place in count():
            if place == len(self.ahead):
                self.ahead.append(next(self.rows))
            yield self.ahead[place]
