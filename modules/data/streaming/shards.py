"""The rows of a dataset that is read as a stream, shard by shard, from any place on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

from datasets.utils.file_utils import is_local_path

from modules.data.sources.files import NETWORK_ERRORS, READ_ERRORS, wait_to_retry
from modules.data.sources.hf_dataset import IMAGE, LoadedRows
from modules.data.sources.shard_files import Cell, Place
from modules.errors import ArgumentError, RunStopped

SHARDS_AT_ONCE = 4  # read in turns by all lanes together, or more where there are more lanes


@dataclass(frozen=True)
class Shards:
    """The shards of a streamed dataset, each of which can be read by itself.

    held_back: how many rows at the start of a shard are left out, by the number of the shard.
    """

    loaded: LoadedRows
    held_back: Mapping[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.loaded.rows.num_shards

    @property
    def files(self) -> Sequence[str]:
        """The file of each shard, where every shard is a file."""
        files = self.loaded.files
        return files if len(files) == len(self) else ()

    def label(self, shard: int) -> str:
        """The shard's file, or else "shard 3 of 8 of photos"."""
        if self.files:
            return self.files[shard]
        return f"shard {shard + 1} of {len(self)} of {self.loaded.name}"

    def in_turns(
        self,
        order: Sequence[int],
        at_once: int,
        opened: int = 0,
        reading: Sequence[Sequence[int]] = (),
    ) -> Iterator[tuple[Cell, int, list[tuple[int, ...]]]]:
        """The rows of the shards in `order`, of `at_once` of them in turns.

        With each row comes where the next one is: how many shards have been `opened`, and the
        (shard, *place) of those that are being read. Handed in again, they continue there. Raises
        RunStopped naming a shard that cannot be read.
        """
        readers = deque(
            (shard, place, self.read(shard, Place(*place))) for shard, *place in reading
        )
        while readers or opened < len(order):
            if len(readers) < at_once and opened < len(order):
                readers.appendleft((order[opened], Place(), self.read(order[opened])))
                opened += 1
            shard, _, rows = readers.popleft()
            for cell, place in islice(rows, 1):
                readers.append((shard, place, rows))
                yield cell, opened, [(number, *at) for number, at, _ in readers]

    def read(self, shard: int, place: Place = Place()) -> Iterator[tuple[Cell, Place]]:  # noqa: B008
        """The rows of one shard from `place` on that are not held back, and the place after each.

        What failed on its way is opened again, after WAITS, and read on from the row it failed at.
        Raises RunStopped naming the shard.
        """
        failures = 0  # since the last row
        while True:
            try:
                for cell, byte in self._open(shard, place):
                    place, failures = Place(place.row + 1, byte), 0
                    if place.row > self.held_back.get(shard, 0):
                        yield cell, place
                return
            except READ_ERRORS as error:
                reason = f"{self.label(shard)} cannot be read after row {place.row}: "
                reason += f"{type(error).__name__}: {error}".splitlines()[0]
                if not self._may_recover(shard, error):
                    raise RunStopped(
                        f"{reason}. Restore this shard, or remove it (the order of the data then "
                        "changes), and continue with --resume_from_checkpoint latest"
                    ) from error
                wait_to_retry(reason, failures, error)
            failures += 1

    def _open(self, shard: int, place: Place) -> Iterator[tuple[Cell, int]]:
        if self.files and self.loaded.direct is not None:
            return self.loaded.direct(self.files[shard], place)
        left = self.loaded.rows.shard(len(self), shard).skip(place.row)
        return ((batch[IMAGE][0], 0) for batch in left.iter(batch_size=1))

    def _may_recover(self, shard: int, error: Exception) -> bool:
        if isinstance(error, NETWORK_ERRORS):
            return True
        remote = bool(self.files) and not is_local_path(self.files[shard])
        return remote and not isinstance(error, FileNotFoundError)

    def hold_back(self, count: int) -> tuple[list[Cell], Shards]:
        """(`count` rows, the shards without them): the first rows of a few shards far apart.

        They are fewer where there are no more. Raises ArgumentError for a shard of no use.
        """
        size, cells, held_back = len(self), [], dict(self.held_back)
        rest = Shards(self.loaded, held_back)
        spread = min(size, SHARDS_AT_ONCE)
        order = list(dict.fromkeys(chain((i * size // spread for i in range(spread)), range(size))))
        try:
            for most in (-(-count // max(1, spread)), count):  # the second time if many are small
                for shard in order:
                    taken = list(islice(rest.read(shard), min(most, count - len(cells))))
                    held_back[shard] = held_back.get(shard, 0) + len(taken)
                    cells += [cell for cell, _ in taken]
        except RunStopped as error:
            raise ArgumentError(f"--dataset_name={self.loaded.name}: {error}") from error
        return cells, rest
