"""Endless sequences of encoded pictures that are read from a place on, and never jumped about in.

What `--streaming` draws from: the shards of one dataset, a source that is at hand, or several of
these in fixed shares. Each is one order, that of a single reader: shuffled epoch after shuffled
epoch, which depends on nothing but the seed and the data.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count, islice, takewhile
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from modules.data.images.images import decode_rgb
from modules.data.samplers.mixture import Shares
from modules.data.samplers.order import Permutations
from modules.data.sources.open import encoded_image, reduced
from modules.data.sources.parts import Concatenation, ImageSource, hold_back
from modules.data.streaming.shards import Cell, Shards
from modules.errors import ArgumentError
from modules.seeding import seed_for

RUN = 1024  # samples of a mixture whose order is drawn together
T = TypeVar("T")


class Row(NamedTuple):
    """A picture and its place: `draw` is (epoch, what is unique in it).

    open: takes the shorter side in pixels that decoding must not fall short of, or None. label:
    what a person finds the picture by.
    """

    draw: tuple[int, int]
    open: Callable[[int | None], Image.Image]
    label: Callable[[], str]


class RowStream(ABC):
    """An endless sequence of pictures."""

    name: str

    @abstractmethod
    def rows(self, position: int) -> Iterator[Row]:
        """The rows from `position` on. Raises ArgumentError where there are none at all."""

    @abstractmethod
    def hold_back(self, num_images: int) -> tuple[ImageSource, RowStream]:
        """(`num_images` pictures or what there is, the stream that has them no more)."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes with the files that are read."""

    def first(self, num_images: int) -> ImageSource:
        """The first pictures in training's own order, no more than one epoch's."""
        rows = takewhile(lambda row: row.draw[0] == 0, self.rows(0))
        return ReadRows(self.name, list(islice(rows, num_images)))


class ShardRows(RowStream):
    """The shards in a random order, a few at a time, through a shuffle buffer.

    buffer_size: encoded pictures that the shuffle draws from, held by each reader.
    """

    def __init__(
        self,
        shards: Shards,
        *,
        seed: int,
        buffer_size: int,
        token: str | None = None,
        version: str = "",
    ) -> None:
        self.shards, self.name, self.seed = shards, shards.name, seed
        self.buffer_size, self.token, self.version = buffer_size, token, version

    def rows(self, position: int) -> Iterator[Row]:
        """The rows from `position` on. Raises ArgumentError for an empty stream."""
        size = None  # of an epoch; known once one has been read
        for epoch in count():
            if size is not None and position >= size:
                position -= size
                continue
            offset = -1
            for offset, cell in enumerate(self._cells(epoch)):
                if offset >= position:
                    yield self._row(epoch, offset, cell)
            if offset < 0:
                raise ArgumentError(f"--dataset_name={self.name} has no images to train on")
            size = offset + 1
            position = max(0, position - size)

    def hold_back(self, num_images: int) -> tuple[ImageSource, RowStream]:
        """The first rows of a few shards."""
        cells, rest = self.shards.hold_back(num_images)
        rows = [self._row(0, offset, cell) for offset, cell in enumerate(cells)]
        options = {"seed": self.seed, "buffer_size": self.buffer_size, "token": self.token}
        return ReadRows(self.name, rows), ShardRows(rest, version=self.version, **options)

    def fingerprint(self) -> str:
        """That of the files."""
        return self.version

    def _cells(self, epoch: int) -> Iterator[Cell]:
        draw = random.Random(seed_for(self.seed, "order", epoch))
        order = draw.sample(range(len(self.shards)), len(self.shards))
        return _shuffled(self.shards.cells(order), self.buffer_size, draw)

    def _row(self, epoch: int, offset: int, cell: Cell) -> Row:
        # Not bound methods: a row may be sent to a process of its own, the stream should not be.
        opened, labelled = partial(_open, cell, self.token), partial(_label, cell, self.name)
        return Row((epoch, offset), opened, labelled)


class SourceRows(RowStream):
    """A source that is at hand, as a stream: permutation after permutation."""

    def __init__(self, source: ImageSource, seed: int) -> None:
        self.source, self.name, self.seed = source, source.name, seed

    def rows(self, position: int) -> Iterator[Row]:
        """The rows from `position` on. Raises ArgumentError for an empty source."""
        if len(self.source) == 0:
            raise ArgumentError(f"--dataset_name={self.name} has no images to train on")
        order = Permutations(len(self.source), self.seed)
        for place in count(position):
            epoch, offset = divmod(place, order.size)
            index = int(order.indices(epoch)[offset])
            opened = partial(_open_reduced, self.source, index)
            yield Row((epoch, offset), opened, partial(self.source.label, index))

    def hold_back(self, num_images: int) -> tuple[ImageSource, RowStream]:
        """Random ones."""
        training, validation = hold_back(self.source, num_images, self.seed)
        return validation, SourceRows(training, self.seed)

    def fingerprint(self) -> str:
        """That of the source."""
        return self.source.fingerprint()


class MixedRows(RowStream):
    """Several streams in fixed shares, each in its own endless order.

    weights: of the streams, positive, of any sum.
    """

    def __init__(self, parts: Sequence[RowStream], weights: Sequence[float], seed: int) -> None:
        self.parts, self.shares = tuple(parts), Shares(tuple(weights), seed)
        self.name = ", ".join(part.name for part in parts)

    def rows(self, position: int) -> Iterator[Row]:
        """The rows from `position` on. Raises ArgumentError where one of the streams is empty."""
        first, skipped = divmod(position, RUN)
        before = self.shares.draws(first, RUN).parts[:skipped]
        starts = self.shares.counts(first * RUN) + np.bincount(before, minlength=len(self.parts))
        readers = [
            part.rows(start) for part, start in zip(self.parts, starts.tolist(), strict=True)
        ]
        for run in count(first):
            for part in self.shares.draws(run, RUN).parts[skipped:].tolist():
                row = next(readers[part])
                # The same place in two streams must not mean the same crop.
                yield row._replace(draw=(row.draw[0], row.draw[1] + (part << 40)))
            skipped = 0

    def hold_back(self, num_images: int) -> tuple[ImageSource, RowStream]:
        """From each stream its share."""
        counts = self.shares.counts(num_images).tolist()
        pairs = [
            part.hold_back(count) if count else (None, part)
            for part, count in zip(self.parts, counts, strict=True)
        ]
        held = Concatenation([source for source, _ in pairs if source is not None])
        rest = MixedRows([part for _, part in pairs], self.shares.weights, self.shares.seed)
        return held, rest

    def first(self, num_images: int) -> ImageSource:
        """As many, in their shares: of a stream that ends before, the pictures come again."""
        return ReadRows(self.name, list(islice(self.rows(0), num_images)))

    def fingerprint(self) -> str:
        """Those of the streams."""
        return " ".join(part.fingerprint() for part in self.parts)


class ReadRows:
    """Rows that are kept in memory, encoded, as an ImageSource."""

    def __init__(self, name: str, rows: Sequence[Row]) -> None:
        self.name, self.rows = name, rows

    def __len__(self) -> int:
        return len(self.rows)

    def open(self, index: int) -> Image.Image:
        """The picture in mode RGB, upright. Raises UnreadableImage."""
        return self.rows[index].open(None)

    def label(self, index: int) -> str:
        """The row's label."""
        return self.rows[index].label()

    def shape(self, index: int) -> tuple[int, int]:
        """(height, width) of the picture, upright. Raises UnreadableImage."""
        width, height = self.open(index).size
        return height, width

    def fingerprint(self) -> str:
        """None: rows do not say where they are from."""
        return ""


def _open(cell: Cell, token: str | None, target: int | None) -> Image.Image:
    return decode_rgb(encoded_image(cell, token), target)


def _open_reduced(source: ImageSource, index: int, target: int | None) -> Image.Image:
    return (source if target is None else reduced(source, target)).open(index)


def _label(cell: Cell, name: str) -> str:
    """The path, and for embedded pictures a hash: paths repeat, and rows have no number."""
    content, path = (cell or {}).get("bytes"), (cell or {}).get("path")
    if content is None:
        return path or f"{name}: a row without an image"
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    return f"{name}: {path or 'a row'} (blake2b-64 {digest})"


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
