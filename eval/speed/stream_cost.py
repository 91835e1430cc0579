"""What --streaming reads from the disk, in an epoch and when a run is resumed."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import datasets

from modules.data.loader import training_loader
from modules.data.sources.hf_dataset import NamedDataset, load_rows
from modules.data.streaming.lanes import ShardRows
from modules.data.streaming.reader import StreamedImages, StreamPosition
from modules.data.streaming.shards import Shards

COLUMN = "jpg"
RESOLUTION, LATENT_SHAPE = 32, (4, 4, 4)
SETTLING_S = 0.5  # until the workers have fetched as far ahead as they may


@dataclass
class Cost:
    """What was read of files, by this process and its workers, and how long it took."""

    bytes: int = 0
    seconds: float = 0.0


def write_shards(folder: Path, kind: str, photos: Sequence[Path], shards: int, images: int) -> int:
    """`images` photographs, over and over, in shards of one length; their size in bytes.

    kind: "parquet" or "tar".
    """
    folder.mkdir()
    for shard in range(shards):
        numbers = range(images * shard // shards, images * (shard + 1) // shards)
        contents = {f"{n:08d}": photos[n % len(photos)].read_bytes() for n in numbers}
        path = folder / f"{shard:05d}.{kind}"
        if kind == "parquet":
            cells = [{"bytes": content, "path": name} for name, content in contents.items()]
            features = datasets.Features({COLUMN: datasets.Image()})
            datasets.Dataset.from_dict({COLUMN: cells}, features).to_parquet(path, batch_size=100)
            continue
        with tarfile.open(path, "w") as tar:
            for name, content in contents.items():
                entry = tarfile.TarInfo(f"{name}.{COLUMN}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return sum(path.stat().st_size for path in folder.iterdir())


@dataclass(frozen=True)
class StreamCost:
    """Measures one folder of shards. buffer_size, batch_size: of all processes together."""

    folder: Path
    images: int
    buffer_size: int
    batch_size: int

    def epoch(self, processes: int, workers: int) -> Cost:
        """One epoch in the middle of a run, by all processes, one after the other."""
        cost, count = Cost(), self.images // self.batch_size
        for rank in range(processes):
            batches = self._loader(StreamPosition(), processes, rank=rank, num_workers=workers)
            _read(batches, count // 4)
            with _measured(cost):
                _read(batches, count)
            del batches  # ends its workers
        return cost

    def resumed(self, positions: Sequence[int]) -> Iterator[tuple[Cost, Cost]]:
        """What it costs to begin at each of the positions, as a new process does: up to the first
        batch, and on until each lane has been entered."""
        position, samples = StreamPosition(), 0
        images = self._images(position)
        position.lanes = images.lanes
        batches = iter(training_loader(images, batch_size=self.batch_size))
        for wanted in positions:
            while samples < wanted:
                position.advance(next(batches))
                samples += self.batch_size
            state = json.loads(json.dumps(position.state_dict()))
            first, every = Cost(), Cost()
            with _measured(every):
                with _measured(first):
                    restored = StreamPosition.restored(state, anew=False)
                    resumed = self._loader(restored, start_position=samples)
                    _read(resumed, 1)
                _read(resumed, -(-images.lanes // self.batch_size) - 1)
            yield first, every

    def _images(self, position: StreamPosition) -> StreamedImages:
        dataset = NamedDataset(str(self.folder), image_column=COLUMN)
        shards = Shards(load_rows(dataset, streaming=True))
        rows = ShardRows(shards, seed=0, buffer_size=self.buffer_size)
        options = {"latent_shape": LATENT_SHAPE, "seed": 0}
        return StreamedImages(rows, RESOLUTION, position.lanes, position.cursors, **options)

    def _loader(
        self, position: StreamPosition, processes: int = 1, **options: int
    ) -> Iterator[object]:
        images, size = self._images(position), self.batch_size // processes
        return iter(training_loader(images, batch_size=size, world_size=processes, **options))


def _read(batches: Iterator[object], count: int) -> None:
    for _ in islice(batches, count):
        pass


@contextmanager
def _measured(cost: Cost) -> Iterator[None]:
    settled = SETTLING_S * bool(multiprocessing.active_children())
    time.sleep(settled)
    before, started = _bytes_read(), time.perf_counter()
    yield
    cost.seconds += time.perf_counter() - started
    time.sleep(settled)
    cost.bytes += _bytes_read() - before


def _bytes_read() -> int:
    """What this process and its children have asked the operating system for."""
    total = 0
    for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        counters = Path(f"/proc/{pid}/io").read_text().split()
        total += int(counters[counters.index("rchar:") + 1])
    return total
