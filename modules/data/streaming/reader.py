"""Training samples from lanes of rows: the same for every number of workers and processes.

Sample p of the run is the next one of lane p % L, whoever makes it. Process r of P makes the
samples with p % P == r, and its workers take turns at them, a few at a time: wherever P x workers
divides L, every lane is read by one worker of one process, and every byte once. With each batch
travel the cursors of its lanes; a run is resumed from those of the batches that it trained on, by
any number of processes and workers, and each lane reads one block of its shuffle again.
"""

from __future__ import annotations

import logging
import math
from collections import ChainMap, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import fsspec.asyn
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from modules.data.images.samples import Sample, SampleMaker, collate
from modules.data.streaming.lanes import Lane, Row, RowStream
from modules.distributed.reduce import gather_from_processes

logger = logging.getLogger(__name__)

Cursors = dict[int, tuple[int, Any]]  # by lane: the row after the last one used, and its cursor


class StreamPosition:
    """Where a run is in its stream.

    lanes: how many there are; None before the first loader is made, and without --streaming.
    """

    def __init__(self, lanes: int | None = None, cursors: Cursors | None = None) -> None:
        self.lanes, self.cursors = lanes, cursors or {}

    @classmethod
    def restored(cls, state: dict[str, Any] | None, anew: bool) -> StreamPosition:
        """From a checkpoint's `state_dict`, None where it holds none.

        anew: the shards are others, so every lane begins its epoch again.
        """
        if state is None:
            return cls()
        if anew:
            logger.warning("--streaming begins its epoch again, so that it leaves no image out")
        cursors = {
            lane: (row, _epoch_anew(cursor) if anew else cursor)
            for lane, (row, cursor) in enumerate(state["cursors"])
        }
        return cls(state["lanes"], cursors)

    def advance(self, batch: dict[str, Any]) -> None:
        """Moves behind a batch that is trained on."""
        self.cursors |= batch.get("cursors", {})

    def state_dict(self) -> dict[str, Any] | None:
        """The number of lanes and where each is in all processes together. Collective."""
        found = gather_from_processes(list(self.cursors.items()))
        if self.lanes is None:
            return None
        furthest = [(0, None)] * self.lanes
        for lane, cursor in found:
            furthest[lane] = max(furthest[lane], cursor, key=lambda at: at[0])
        return {"lanes": self.lanes, "cursors": furthest}


def _epoch_anew(cursor: Any) -> Any:
    """The start of a lane's epoch, or of the latest of a mixture's, for whatever streams follow."""
    parts = [cursor] if cursor is None or isinstance(cursor[0], int) else cursor
    return -1, max((part[1] for part in parts if part), default=0)


class StreamedImages:
    """What `--streaming` trains on.

    options: as of SampleMaker. The augmentation belongs to (seed, epoch, place in the epoch). A
    picture that is no use is replaced by the next good one of its lane, which then occurs twice,
    and is named in `rejected`.
    """

    def __init__(
        self,
        stream: RowStream,
        resolution: int,
        lanes: int | None = None,
        cursors: Cursors | None = None,
        **options: Any,
    ) -> None:
        self.stream, self.maker = stream, SampleMaker(resolution, **options)
        self.lanes, self.cursors = lanes or stream.num_lanes, cursors or {}

    def lane(self, number: int, start: int) -> LaneReader:
        """The rows of a lane from where it was, or else from its row `start` on."""
        row, cursor = self.cursors.get(number, (start, None))
        return LaneReader(self.stream.lane(Lane(number, self.lanes), row, cursor), row)


class LaneReader:
    """An endless iterator over a lane that can be looked into without moving it."""

    def __init__(self, rows: Iterator[Row], index: int) -> None:
        self.rows, self.index = rows, index
        self.ahead: deque[Row] = deque()

    def rows_from(self, index: int) -> Iterator[Row]:
        """Row `index` of the lane, never before the one of the last call, and those after it."""
        for _ in range(self.index, index):
            self.ahead.popleft() if self.ahead else next(self.rows)
        self.index = index
        for place in count():
            if place == len(self.ahead):
                self.ahead.append(next(self.rows))
            yield self.ahead[place]


@dataclass(frozen=True)
class StreamReader(IterableDataset[tuple[Sample, Cursors]]):
    """One process's samples, `at_once` of them from each of `num_workers` in turn.

    Process `rank` makes the samples at start_position and after that are `rank` modulo world_size.
    """

    images: StreamedImages
    batch_size: int
    rank: int
    world_size: int
    start_position: int
    num_workers: int

    @property
    def at_once(self) -> int:
        """A batch, or where each lane can then be one worker's, a part of it."""
        readers = self.world_size * max(1, self.num_workers)
        if self.num_workers > 1 and self.images.lanes % readers == 0:
            return math.gcd(self.batch_size, self.images.lanes // readers)
        return self.batch_size

    def __iter__(self) -> Iterator[tuple[Sample, Cursors]]:
        worker, num_workers = 0, 1
        if (info := get_worker_info()) is not None:
            worker, num_workers = info.id, info.num_workers
            fsspec.asyn.reset_lock()  # a fork may have copied it locked
        first = self.start_position + (self.rank - self.start_position) % self.world_size
        lanes: dict[int, LaneReader] = {}
        for turn in count(worker, num_workers):
            for number in range(turn * self.at_once, (turn + 1) * self.at_once):
                position = first + number * self.world_size
                index, lane = divmod(position, self.images.lanes)
                if lane not in lanes:
                    lanes[lane] = self.images.lane(lane, index)
                place = (position - self.start_position) % (self.batch_size * self.world_size)
                resolution = self.images.maker.resolution_at(position - place)
                rows = lanes[lane].rows_from(index)
                row = next(rows)
                candidates = ((each.source, each.index) for each in chain([row], rows))
                sample = self.images.maker.make(candidates, position, row.draw, resolution)
                yield sample, {lane: (index + 1, row.cursor)}


class StreamLoader:
    """The batches of a StreamReader: those of a DataLoader of `at_once` samples, put together."""

    def __init__(self, reader: StreamReader, batch_size: int, pin_memory: bool, **options: Any):
        self.parts = batch_size // reader.at_once
        self.pin_memory = pin_memory and self.parts > 1
        self.loader = DataLoader(
            reader,
            reader.at_once,
            collate_fn=_collate,
            pin_memory=pin_memory and self.parts == 1,
            **options,
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        parts = iter(self.loader)
        if self.parts == 1:
            return parts
        return map(self._joined, zip(*[parts] * self.parts, strict=True))

    def _joined(self, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        images, noise = (torch.cat([part[key] for part in parts]) for key in ("images", "noise"))
        return {
            "images": images.pin_memory() if self.pin_memory else images,
            "noise": noise.pin_memory() if self.pin_memory else noise,
            "upscaled": sum(part["upscaled"] for part in parts),
            "rejected": [rejection for part in parts for rejection in part["rejected"]],
            "cursors": dict(ChainMap(*(part["cursors"] for part in reversed(parts)))),
        }


def _collate(samples: list[tuple[Sample, Cursors]]) -> dict[str, Any]:
    """As `collate` does, and cursors: those of the batch's lanes."""
    cursors = {lane: at for _, cursors in samples for lane, at in cursors.items()}
    return collate([sample for sample, _ in samples]) | {"cursors": cursors}
