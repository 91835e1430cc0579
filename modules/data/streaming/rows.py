"""Streams of pictures that are at hand, and of several streams in fixed shares, in lanes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any

import numpy as np

from modules.data.samplers.order import Permutations, Shares
from modules.data.sources.parts import Concatenation, ImageSource, hold_back
from modules.data.streaming.lanes import MAX_LANES, Lane, ReadRows, Row, RowStream
from modules.errors import ArgumentError

RUN = 1024  # samples of a mixture whose order is drawn together


class SourceRows(RowStream):
    """A source that is at hand, as a stream: permutation after permutation, dealt to the lanes."""

    num_shards = MAX_LANES

    def __init__(self, source: ImageSource, seed: int) -> None:
        self.source, self.name, self.seed = source, source.name, seed

    def lane(self, lane: Lane, start: int = 0, cursor: Any = None) -> Iterator[Row]:
        if len(self.source) == 0:
            raise ArgumentError(f"--dataset_name={self.name} has no images to train on")
        order = Permutations(len(self.source), self.seed)
        for place in count(start * lane.count + lane.number, lane.count):
            epoch, offset = divmod(place, order.size)
            yield Row((epoch, offset), self.source, int(order.indices(epoch)[offset]))

    def hold_back(self, num_images: int) -> tuple[ImageSource, RowStream]:
        rest, held = hold_back(self.source, num_images, self.seed)
        return held, SourceRows(rest, self.seed)

    def fingerprint(self) -> str:
        return self.source.fingerprint()


class MixedRows(RowStream):
    """Several streams in fixed shares, which hold in every lane, each in its own endless order.

    weights: of the streams, positive, of any sum.
    """

    def __init__(self, parts: Sequence[RowStream], weights: Sequence[float], seed: int) -> None:
        self.parts, self.shares = tuple(parts), Shares(tuple(weights), seed)
        self.name = ", ".join(part.name for part in parts)
        self.num_shards = max(part.num_shards for part in parts)

    def lane(self, lane: Lane, start: int = 0, cursor: Any = None) -> Iterator[Row]:
        """A cursor of the lane holds one of each stream."""
        shares, (first, skipped) = self.shares.of_lane(*lane), divmod(start, RUN)
        before = shares.draws(first, RUN)[0][:skipped]
        starts = shares.counts(first * RUN) + np.bincount(before, minlength=len(self.parts))
        one_for_all = cursor is None or isinstance(cursor[0], int)
        cursors = (cursor,) * len(self.parts) if one_for_all else tuple(cursor)
        readers = [
            part.lane(lane, number, at)
            for part, number, at in zip(self.parts, starts.tolist(), cursors, strict=True)
        ]
        for run in count(first):
            for part in shares.draws(run, RUN)[0][skipped:].tolist():
                row = next(readers[part])
                cursors = (*cursors[:part], row.cursor, *cursors[part + 1 :])
                # The same place in two streams must not mean the same crop.
                draw = row.draw[0], row.draw[1] + (part << 40)
                yield row._replace(draw=draw, cursor=cursors)
            skipped = 0

    def hold_back(self, num_images: int) -> tuple[ImageSource, RowStream]:
        """From each stream its share."""
        counts = self.shares.counts(num_images).tolist()
        held, rest = [], []
        for part, share in zip(self.parts, counts, strict=True):
            if share:
                pictures, part = part.hold_back(share)
                held.append(pictures)
            rest.append(part)
        return Concatenation(held), MixedRows(rest, self.shares.weights, self.shares.seed)

    def first(self, num_images: int) -> ImageSource:
        """As many, in their shares: of a stream that ends before, the pictures come again."""
        return ReadRows(islice(self.lane(Lane()), num_images), self.name)

    def fingerprint(self) -> str:
        return " ".join(part.fingerprint() for part in self.parts)
