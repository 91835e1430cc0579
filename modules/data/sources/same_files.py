"""Which pictures of two sources are the same files, under whatever names and through any links."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modules.data.sources.hf_dataset import IMAGE
from modules.data.sources.open import FileSource, RowSource
from modules.data.sources.parts import Concatenation, ImageSource, Subset


def files_in_both(images: ImageSource, others: ImageSource) -> np.ndarray:
    """The indices of those `images`, ascending, that are files which `others` has as well.

    Pictures that are no files of their own, as in parquet or drawn by the trainer, are in neither.
    Only what may be the same is looked at on disk: in a folder, by the numbers that its listing
    gave; in a dataset of files, by their names.
    """
    labels = (others.label(index) for index in np.flatnonzero(_per_picture(_are_files, others)))
    wanted = {found: os.path.basename(label) for label in labels if (found := _identity(label))}

    def may_be_wanted(source: ImageSource) -> np.ndarray:
        if isinstance(source, FileSource) and source.inodes is not None:
            return np.isin(source.inodes, np.array([inode for _, inode in wanted], np.uint64))
        if isinstance(source, RowSource):
            names = pc.replace_substring_regex(_cells(source, "path"), r".*/", "")
            return np.array(pc.is_in(names, pa.array([*wanted.values()], pa.string())))
        return _are_files(source)

    possible = np.flatnonzero(_per_picture(may_be_wanted, images))
    return np.array([i for i in possible if _identity(images.label(int(i))) in wanted], np.int64)


def _per_picture(function: Callable[[ImageSource], np.ndarray], source: ImageSource) -> np.ndarray:
    """What `function` says of every picture, asked of the sources that this one is made of."""
    if isinstance(source, Subset):
        return _per_picture(function, source.source)[source.indices]
    if isinstance(source, Concatenation):
        return np.concatenate([_per_picture(function, part) for part in source.sources])
    return function(source)


def _are_files(source: ImageSource) -> np.ndarray:
    if isinstance(source, RowSource):
        return np.array(pc.is_null(_cells(source, "bytes")))
    return np.full(len(source), isinstance(source, FileSource))


def _cells(source: RowSource, part: str) -> pa.ChunkedArray:
    return pc.struct_field(source.rows.data.column(IMAGE), part)


def _identity(path: str) -> tuple[int, int] | None:
    """Device and inode; None for what is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino)
