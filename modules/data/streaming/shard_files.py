"""The rows of a tar or parquet shard from a place on, without reading what lies before it.

Both wherever they lie: `fsspec` fetches ranges of bytes. A tar begins at any of its headers, a
parquet file at the row group that holds the row.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from datasets import DownloadConfig, Image
from datasets.packaged_modules.webdataset.webdataset import base_plus_ext
from datasets.utils.file_utils import is_local_path, xopen

PARQUET_ROWS = 16  # in memory at once; a whole row group would be hundreds of megabytes
PARQUET_BUFFER = 1 << 20  # bytes

Cell = dict[str, Any] | None  # {"bytes", "path"}


class Place(NamedTuple):
    """Before which row a shard is to be opened: its number, and in a tar its first byte."""

    row: int = 0
    byte: int = 0


def tar_samples(
    file: str, byte: int, wanted: Callable[[str], bool], token: str | None
) -> Iterator[tuple[str, dict[str, bytes], int]]:
    """(key, members by field, the byte after it) of every sample; only `wanted` fields are read."""
    # From far away one long request is faster than many, and a whole file needs no ranges.
    mode, first = ("r:", 0) if is_local_path(file) else ("r|", byte)
    options = {} if byte or mode == "r:" else {"block_size": 0}
    with _opened(file, token, **options) as stream:
        stream.seek(byte)
        with tarfile.open(fileobj=stream, mode=mode) as tar:
            key, fields = None, {}
            for member in tar:
                tar.members.clear()  # it keeps all headers, for lookups by name
                own, field = base_plus_ext(member.name)
                hidden = member.name.rpartition("/")[2].startswith((".", "__"))
                if not member.isreg() or own is None or hidden:
                    continue
                if fields and (own != key or field in fields):
                    yield key, fields, first + member.offset
                    fields = {}
                content = tar.extractfile(member).read() if wanted(field) else b""
                key, fields[field] = own, content
            if fields:
                yield key, fields, first + tar.offset


def parquet_rows(file: str, row: int, column: str, token: str | None) -> Iterator[Cell]:
    """The cells from a row on. Raises ValueError where the file has no such column."""
    with _opened(file, token) as stream:
        parquet = pq.ParquetFile(stream, buffer_size=PARQUET_BUFFER, pre_buffer=False)
        if column not in parquet.schema_arrow.names:
            raise ValueError(f"it has no column {column!r}")
        groups = range(parquet.num_row_groups)
        ends = np.cumsum([parquet.metadata.row_group(group).num_rows for group in groups])
        first = int(np.searchsorted(ends, row, side="right"))
        skipped = row - int(ends[first - 1] if first else 0)
        for batch in parquet.iter_batches(
            PARQUET_ROWS, row_groups=groups[first:], columns=[column], use_threads=False
        ):
            cells = batch.column(0)[skipped:]
            skipped = max(0, skipped - len(batch))
            yield from Image(decode=False).cast_storage(cells).to_pylist()


def _opened(file: str, token: str | None, **options: int) -> Any:
    if is_local_path(file):
        return open(file, "rb")
    return xopen(file, "rb", download_config=DownloadConfig(token=token), **options)
