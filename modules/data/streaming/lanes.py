"""Endless sequences of encoded pictures, in lanes that are read one apart from the other.

What `--streaming` draws from: the shards of one dataset, a source that is at hand, or several of
these in fixed shares. Sample p of a run is the next one of lane p % L. A lane is shuffled epoch
after shuffled epoch, which depends on nothing but the seed, the data and L; it can be entered at
any block of its shuffle by the block's Cursor, a handful of numbers.
"""

from __future__ import annotations

import hashlib
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, takewhile
from typing import Any, NamedTuple

from modules.data.sources.open import encoded_image
from modules.data.sources.parts import EncodedImages, ImageSource, View
from modules.data.sources.shard_files import Cell
from modules.data.streaming.shards import SHARDS_AT_ONCE, Shards
from modules.errors import ArgumentError
from modules.seeding import seed_for

logger = logging.getLogger(__name__)

MAX_LANES = 64  # by default


class Row(NamedTuple):
    """Picture `index` of a source, and its place in a lane: `draw` is (epoch, what is unique in
    it), `cursor` is where the lane is entered again, as plain JSON."""

    draw: tuple[int, int]
    source: ImageSource
    index: int
    cursor: Any = None


class Lane(NamedTuple):
    """One of `count` lanes."""

    number: int = 0
    count: int = 1


class Cursor(NamedTuple):
    """Where a block of a lane over shards begins.

    index: of its first row in the endless lane; -1 for wherever the run is. drawn, opened: rows and
    shards of the epoch before it. reading: (shard, *Place) of those in the middle. whole: the lane
    has no rows of its own and reads all shards.
    """

    index: int = 0
    epoch: int = 0
    drawn: int = 0
    opened: int = 0
    reading: Sequence[Sequence[int]] = ()
    whole: bool = False


ANEW = (-1, 0)  # a cursor of any stream


class RowStream(ABC):
    """Endless sequences of pictures."""

    name: str
    num_shards: int  # more lanes than these would read the same bytes

    @abstractmethod
    def lane(self, lane: Lane, start: int = 0, cursor: Any = None) -> Iterator[Row]:
        """The rows of a lane from its row `start` on; without the cursor of a row before, all are
        read up to there. Raises ArgumentError where there are none at all."""

    @abstractmethod
    def hold_back(self, num_images: int) -> tuple[ImageSource, RowStream]:
        """(`num_images` pictures or what there is, the stream that has them no more)."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes with the files that are read."""

    @property
    def num_lanes(self) -> int:
        """How many there are unless --stream_lanes says."""
        return max(1, min(MAX_LANES, self.num_shards))

    def first(self, num_images: int) -> ImageSource:
        """Pictures as a single lane begins, no more than one epoch's."""
        rows = takewhile(lambda row: row.draw[0] == 0, self.lane(Lane()))
        return ReadRows(islice(rows, num_images), self.name)


class ShardRows(RowStream):
    """The shards dealt to the lanes; each lane shuffles its own, and their rows in blocks.

    buffer_size: encoded pictures in the blocks of all lanes together. Where there are fewer shards
    than lanes, the lanes that share one take its rows in turns.
    """

    def __init__(self, shards: Shards, *, seed: int, buffer_size: int) -> None:
        self.shards, self.name, self.num_shards = shards, shards.loaded.name, len(shards)
        self.seed, self.buffer_size = seed, buffer_size

    def lane(self, lane: Lane, start: int = 0, cursor: Any = None) -> Iterator[Row]:
        entry, most = Cursor(*(cursor or ())), max(1, self.buffer_size // lane.count)
        if cursor and not 0 <= entry.index <= start <= entry.index + most:  # other flags than then
            entry = entry._replace(index=start)
        for at, cells in self._blocks(lane, entry, most):
            for number, cell in enumerate(cells):
                if at.index + number >= start:
                    draw = at.epoch, (at.drawn + number) * lane.count + lane.number
                    yield Row(draw, self._pictures([cell]), 0, tuple(at))

    def hold_back(self, num_images: int) -> tuple[ImageSource, RowStream]:
        cells, rest = self.shards.hold_back(num_images)
        return self._pictures(cells), ShardRows(rest, seed=self.seed, buffer_size=self.buffer_size)

    def fingerprint(self) -> str:
        return self.shards.loaded.fingerprint

    def _blocks(self, lane: Lane, at: Cursor, most: int) -> Iterator[tuple[Cursor, list[Cell]]]:
        """Where each block of at most `most` rows begins, and its rows as they come."""
        while True:
            rows = self._unshuffled(lane, at)
            # The first blocks differ in length, so that the lanes do not all read at once.
            size = most if at.drawn else max(1, most * (lane.number + 1) // lane.count)
            while block := list(islice(rows, size)):
                cells = [cell for cell, _, _ in block]
                seed = seed_for(self.seed, "block", lane.number, at.epoch, at.drawn)
                random.Random(seed).shuffle(cells)
                yield at, cells
                index, drawn = at.index + len(cells), at.drawn + len(cells)
                at = Cursor(index, at.epoch, drawn, *block[-1][1:], at.whole)
                size = most
            if at.drawn:
                at = Cursor(at.index, at.epoch + 1, whole=at.whole)
            elif at.whole or lane.count == 1:
                raise ArgumentError(f"--dataset_name={self.name} has no images to train on")
            else:
                logger.warning(
                    "%s has no images for lane %d of %d, which therefore reads all shards: leave "
                    "out empty shards, or lower --stream_lanes", self.name, *lane,
                )  # fmt: skip
                at = at._replace(whole=True)

    def _unshuffled(self, lane: Lane, at: Cursor) -> Iterator[tuple[Cell, int, list]]:
        """What is left of an epoch of a lane, as the shards have it."""
        size = self.num_shards
        own, turn, sharers = range(size), 0, 1
        if not at.whole:
            own = range(lane.number % size, size, lane.count)
            turn, sharers = lane.number // size, len(range(own.start, lane.count, size))
        seed = seed_for(self.seed, "order", own.start, at.epoch)
        order = random.Random(seed).sample(own, len(own))
        at_once = max(1, SHARDS_AT_ONCE // lane.count)
        rows = self.shards.in_turns(order, at_once, at.opened, at.reading)
        return islice(rows, sharers - 1 if at.drawn else turn, None, sharers)

    def _pictures(self, cells: Sequence[Cell]) -> Cells:
        return Cells(cells, self.name, self.shards.loaded.token)


class Cells(EncodedImages):
    """Pictures that are kept in memory, encoded."""

    def __init__(self, cells: Sequence[Cell], name: str, token: str | None) -> None:
        self.cells, self.name, self.token = cells, name, token

    def __len__(self) -> int:
        return len(self.cells)

    def encoded(self, index: int) -> bytes | str:
        return encoded_image(self.cells[index], self.token)

    def label(self, index: int) -> str:
        """The path, and for embedded pictures a hash: paths repeat, and rows have no number."""
        cell = self.cells[index] or {}
        content, path = cell.get("bytes"), cell.get("path")
        if content is None:
            return path or f"{self.name}: a row without an image"
        digest = hashlib.blake2b(content, digest_size=8).hexdigest()
        return f"{self.name}: {path or 'a row'} (blake2b-64 {digest})"

    def fingerprint(self) -> str:
        return ""  # they do not say where they are from


class ReadRows(View):
    """Rows that have been read, as a source."""

    def __init__(self, rows: Iterable[Row], name: str) -> None:
        self.rows, self.name = list(rows), name

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, index: int) -> tuple[ImageSource, int]:
        return self.rows[index].source, self.rows[index].index

    def fingerprint(self) -> str:
        return ""
