"""Folders of shards: pictures whose red channel is their number, in parquet or in tar files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from modules.data.streaming.lanes import Row

SIDE = 24


def png(number: int) -> bytes:
    """A picture whose red channel is `number` everywhere."""
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, 2 * SIDE, 3), dtype=np.uint8)
    pixels[..., 0] = number
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_parquet(path: Path, numbers: Iterable[int], column: str = "png") -> None:
    """One shard; no numbers make an empty one."""
    cells = [{"bytes": png(number), "path": f"{number}.png"} for number in numbers]
    features = datasets.Features({column: datasets.Image()})
    datasets.Dataset.from_dict({column: cells}, features).to_parquet(path)


def write_tar(path: Path, numbers: Iterable[int], column: str = "png") -> None:
    """One shard in webdataset's layout; no numbers make an empty one."""
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            for name, content in ((f"{number:03d}.{column}", png(number)),
                                  (f"{number:03d}.txt", b"words")):  # fmt: skip
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


WRITERS = {"parquet": write_parquet, "tar": write_tar}


def write_shards(folder: Path, kind: str, sizes: Sequence[int], start: int = 0) -> list[Path]:
    """Shards of these sizes, numbered on from `start`; their paths in order."""
    folder.mkdir(parents=True)
    paths = []
    for shard, size in enumerate(sizes):
        paths.append(folder / f"shard-{shard:02d}.{kind}")
        WRITERS[kind](paths[-1], range(start, start + size))
        start += size
    return paths


def number_of(picture: Image.Image) -> int:
    """The number of a picture, whatever crop of it this is."""
    return picture.getpixel((0, 0))[0]


def row_number(row: Row) -> int:
    """The number of the picture of a row of a stream."""
    return number_of(row.source.open(row.index))
