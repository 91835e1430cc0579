"""The rows of a dataset that is read as a stream, shard by shard, in the order of the shards."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from datasets import IterableDataset
from datasets.utils.file_utils import is_local_path

from modules.data.sources.files import NETWORK_ERRORS, READ_ERRORS, wait_to_retry
from modules.data.sources.hf_dataset import IMAGE
from modules.errors import ArgumentError, RunStopped

SHARDS_AT_ONCE = 4  # read in turns; each parquet shard among them keeps a row group in memory

Cell = dict[str, Any] | None  # of the column IMAGE


class Shards:
    """The shards of a streamed dataset, each of which can be read by itself.

    stream: encoded pictures, unshuffled, in the one column IMAGE. name: of the dataset. files: the
    file of each shard, where every shard is a file. held_back: how many rows at the start of a
    shard are left out, by the number of the shard.
    """

    def __init__(
        self,
        stream: IterableDataset,
        name: str,
        files: Sequence[str] = (),
        held_back: Mapping[int, int] | None = None,
    ) -> None:
        self.stream, self.name = stream, name
        self.files = tuple(files) if len(files) == stream.num_shards else ()
        self.held_back = dict(held_back or {})

    def __len__(self) -> int:
        return self.stream.num_shards

    def label(self, shard: int) -> str:
        """The shard's file, or else "shard 3 of 8 of photos"."""
        if self.files:
            return self.files[shard]
        return f"shard {shard + 1} of {len(self)} of {self.name}"

    def cells(self, order: Iterable[int]) -> Iterator[Cell]:
        """The rows of the shards in `order`, of SHARDS_AT_ONCE of them in turns.

        Raises RunStopped naming a shard that cannot be read.
        """
        waiting = iter(order)
        readers = deque(self.read(shard) for shard in islice(waiting, SHARDS_AT_ONCE))
        while readers:
            reader = readers.popleft()
            for cell in reader:
                yield cell
                readers.append(reader)
                break
            else:
                readers.extendleft(self.read(shard) for shard in islice(waiting, 1))

    def read(self, shard: int) -> Iterator[Cell]:
        """The rows of one shard that are not held back. Raises RunStopped naming the shard.

        What failed on its way is opened again, after WAITS, and read on from the row it failed at.
        """
        rows, done = self.stream.shard(len(self), shard), self.held_back.get(shard, 0)
        failures = 0  # since the last row
        while True:
            try:
                for batch in islice(rows.iter(batch_size=1), done, None):
                    done, failures = done + 1, 0
                    yield batch[IMAGE][0]
                return
            except READ_ERRORS as error:
                reason = f"{self.label(shard)} cannot be read after row {done}: "
                reason += f"{type(error).__name__}: {error}".splitlines()[0]
                if not self._may_recover(shard, error):
                    raise RunStopped(
                        f"{reason}. Restore this shard, or remove it (the order of the data then "
                        "changes), and continue with --resume_from_checkpoint latest"
                    ) from error
                wait_to_retry(reason, failures, error)
            failures += 1

    def _may_recover(self, shard: int, error: Exception) -> bool:
        if isinstance(error, NETWORK_ERRORS):
            return True
        remote = bool(self.files) and not is_local_path(self.files[shard])
        return remote and not isinstance(error, FileNotFoundError)

    def hold_back(self, count: int) -> tuple[list[Cell], Shards]:
        """(`count` rows, the shards without them): the first rows of a few shards far apart.

        They are fewer where there are no more. Raises ArgumentError for a shard of no use.
        """
        size, cells, rest = len(self), [], Shards(self.stream, self.name, self.files)
        rest.held_back = dict(self.held_back)
        spread = min(size, SHARDS_AT_ONCE)
        order = list(dict.fromkeys(chain((i * size // spread for i in range(spread)), range(size))))
        try:
            for most in (-(-count // max(1, spread)), count):  # the second time if many are small
                for shard in order:
                    taken = list(islice(rest.read(shard), min(most, count - len(cells))))
                    rest.held_back[shard] = rest.held_back.get(shard, 0) + len(taken)
                    cells += taken
                    if len(cells) >= count:
                        return cells, rest
        except RunStopped as error:
            raise ArgumentError(f"--dataset_name={self.name}: {error}") from error
        return cells, rest
