"""What is in a tar or parquet file from a place on, without reading what lies before it.

Both wherever they lie: `fsspec` fetches ranges of bytes. A tar begins at any of its headers, a
parquet file at the row group that holds the row.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from datasets import DownloadConfig, Image
from datasets.utils.file_utils import is_local_path, xopen

PARQUET_ROWS = 16  # in memory at once; a whole row group would be hundreds of megabytes
PARQUET_BUFFER = 1 << 20  # bytes

Cell = dict[str, Any] | None  # {"bytes", "path"}, one of which may be None


class Place(NamedTuple):
    """Before which row a shard is to be opened: its number, and in a tar its first byte."""

    row: int = 0
    byte: int = 0


def tar_members(file: str, byte: int, token: str | None) -> Iterator[tuple[str, BinaryIO, int]]:
    """(name, content, the byte after it) of every file in a tar that is not hidden."""
    # From far away one long request is faster than many, and a whole file needs no ranges.
    mode, first = ("r:", 0) if is_local_path(file) else ("r|", byte)
    options = {} if byte or mode == "r:" else {"block_size": 0}
    with _opened(file, token, **options) as stream:
        stream.seek(byte)
        with tarfile.open(fileobj=stream, mode=mode) as tar:
            for member in tar:
                tar.members.clear()  # it keeps all headers, for lookups by name
                hidden = member.name.rpartition("/")[2].startswith((".", "__"))
                if member.isreg() and not hidden:
                    yield member.name, tar.extractfile(member), first + tar.offset


def parquet_rows(
    column: str, token: str | None, file: str, place: Place
) -> Iterator[tuple[Cell, int]]:
    """The cells of a column, each with 0. Raises ValueError where the file has no such column."""
    with _opened(file, token) as stream:
        parquet = pq.ParquetFile(stream, buffer_size=PARQUET_BUFFER, pre_buffer=False)
        if column not in parquet.schema_arrow.names:
            raise ValueError(f"it has no column {column!r}")
        groups = range(parquet.num_row_groups)
        ends = np.cumsum([parquet.metadata.row_group(group).num_rows for group in groups])
        first = int(np.searchsorted(ends, place.row, side="right"))
        skipped = place.row - int(ends[first - 1] if first else 0)
        for batch in parquet.iter_batches(
            PARQUET_ROWS, row_groups=groups[first:], columns=[column], use_threads=False
        ):
            cells = Image(decode=False).cast_storage(batch.column(0)[skipped:])
            skipped = max(0, skipped - len(batch))
            yield from ((cell, 0) for cell in cells.to_pylist())


def _opened(file: str, token: str | None, **options: int) -> Any:
    if is_local_path(file):
        return open(file, "rb")
    return xopen(file, "rb", download_config=DownloadConfig(token=token), **options)
