"""Training samples from a dataset that is read as a stream, in an order no worker can change.

There is one order, that of a single reader: shuffled epoch after shuffled epoch. Every worker of
every process reads all of it and decodes only its own share. So the samples do not depend on the
number of workers or processes, and a run resumes exactly (with the same version of `datasets`,
which orders the shards), at the price of reading: each worker passes over all rows, undecoded, and
keeps a shuffle buffer; resuming passes over the current epoch up to where the run was, after one
whole epoch to learn its length unless the run was still in the first.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, count
from typing import Any, NamedTuple, TypeVar

import fsspec.asyn
from datasets import IterableDataset as Stream
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from modules.errors import ArgumentError
from modules.images import decode_rgb
from modules.open_dataset import IMAGE
from modules.samples import Candidate, Sample, SampleMaker
from modules.seeding import seed_for
from modules.sources import encoded_image

# Pictures. `datasets` shuffles the shards and reads several at a time, but its buffer is one Arrow
# array, and fails at 2 GB: it is kept small, and the real one is a list.
SHARD_MIXING_BUFFER = 32

T = TypeVar("T")


class Row(NamedTuple):
    """One encoded picture and its place in the stream."""

    epoch: int
    offset: int
    cell: dict[str, Any] | None


class StreamedImages:
    """What `--streaming` trains on.

    stream: encoded pictures, unshuffled, as `load_rows` returns them. name: of the dataset.
    buffer_size: encoded pictures that the shuffle draws from, held by each worker. options: as of
    SampleMaker. The augmentation belongs to (seed, epoch, place in the epoch). A picture that is
    no use is replaced by the next good one in the stream, which then occurs twice, and is named in
    `rejected`.
    """

    def __init__(
        self,
        stream: Stream,
        resolution: int,
        *,
        name: str,
        buffer_size: int,
        token: str | None = None,
        **options: Any,
    ) -> None:
        self.stream, self.name, self.buffer_size, self.token = stream, name, buffer_size, token
        self.maker = SampleMaker(resolution, **options)

    def reader(
        self, batch_size: int, rank: int, world_size: int, start_position: int
    ) -> StreamReader:
        """The samples of one process, for a DataLoader with this batch_size."""
        return StreamReader(self, batch_size, rank, world_size, start_position)

    def rows(self, position: int) -> Iterator[Row]:
        """The rows from `position` on, without end. Raises ArgumentError for an empty stream."""
        size = None  # of an epoch; known once one has been read
        for epoch in count():
            if size is not None and position >= size:
                position -= size
                continue
            offset = -1
            for offset, cell in enumerate(self._cells(epoch)):
                if offset >= position:
                    yield Row(epoch, offset, cell)
            if offset < 0:
                raise ArgumentError(f"--dataset_name={self.name} has no images to train on")
            size = offset + 1
            position = max(0, position - size)

    def _cells(self, epoch: int) -> Iterator[dict[str, Any] | None]:
        # A shuffle of its own per epoch: `set_epoch` writes to memory that all workers share. And
        # `iter`, because plain iteration hands each worker only some of the shards.
        seed = seed_for(self.maker.seed, "order", epoch)
        mixed = self.stream.shuffle(seed=seed, buffer_size=SHARD_MIXING_BUFFER)
        cells = (batch[IMAGE][0] for batch in mixed.iter(batch_size=1))
        return _shuffled(cells, self.buffer_size, random.Random(seed))

    def sample(self, position: int, row: Row, following: Iterator[Row]) -> Sample:
        """The sample at `position`, from `row` or else from the first usable one of `following`."""
        candidates = (
            Candidate(partial(self._open, cell), partial(self._label, cell))
            for _, _, cell in chain([row], following)
        )
        return self.maker.make(candidates, position, row.epoch, row.offset)

    def _open(self, cell: dict[str, Any] | None) -> Image.Image:
        return decode_rgb(encoded_image(cell, self.token), self.maker.target)

    def _label(self, cell: dict[str, Any] | None) -> str:
        """The path, and for embedded pictures a hash: paths repeat, and rows have no number."""
        content, path = (cell or {}).get("bytes"), (cell or {}).get("path")
        if content is None:
            return path or f"{self.name}: a row without an image"
        digest = hashlib.blake2b(content, digest_size=8).hexdigest()
        return f"{self.name}: {path or 'a row'} (blake2b-64 {digest})"


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
        upcoming = _Lookahead(self.images.rows(self.start_position))
        for number in count():
            row = upcoming.pop()
            batch, place = divmod(number, self.world_size * self.batch_size)
            if batch % num_workers == worker and place // self.batch_size == self.rank:
                position = self.start_position + number
                yield self.images.sample(position, row, upcoming.following())


def _shuffled(cells: Iterable[T], buffer_size: int, draw: random.Random) -> Iterator[T]:
    buffer: list[T] = []
    for cell in cells:
        if len(buffer) < buffer_size:
            buffer.append(cell)
            continue
        place = draw.randrange(buffer_size)
        yield buffer[place]
        buffer[place] = cell
    draw.shuffle(buffer)
    yield from buffer


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
