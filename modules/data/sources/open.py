"""Where pictures come from: files or rows of a dataset, each seen as one sequence."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import DownloadConfig
from datasets.utils.file_utils import is_local_path, xopen

from modules.data.images.image_kinds import PACKED_SUFFIXES, remedy, suffixes
from modules.data.images.images import UnreadableImage
from modules.data.images.left_out import left_out
from modules.data.sources.files import NETWORK_ERRORS, fingerprint, wait_to_retry
from modules.data.sources.folder_walk import FoundFile, files_below
from modules.data.sources.hf_dataset import IMAGE, LoadedRows, NamedDataset, load_rows
from modules.data.sources.parts import EncodedImages
from modules.data.sources.shard_files import Cell
from modules.errors import ArgumentError, one_line

logger = logging.getLogger(__name__)

FOUND = pa.schema({"path": pa.large_binary(), "inode": pa.uint64()})


class FileSource(EncodedImages):
    """Image files, in the order given; nothing is checked before a file is opened.

    inodes: the numbers by which the file system knows them, where they were come by at no cost.
    """

    def __init__(
        self,
        paths: Iterable[str | Path] | pa.Array,
        name: str = "files",
        inodes: np.ndarray | None = None,
    ) -> None:
        # One buffer for all paths: a list would be copied into every worker, object by object, as
        # its reference counts are written. Bytes, because a path need not be valid Unicode.
        if not isinstance(paths, pa.Array):
            paths = pa.array([os.fsencode(path) for path in paths], pa.large_binary())
        self.paths, self.name, self.inodes = paths, name, inodes

    def __len__(self) -> int:
        return len(self.paths)

    def label(self, index: int) -> str:
        """The path."""
        return os.fsdecode(self.paths[index].as_py())

    encoded = label

    def fingerprint(self) -> str:
        return fingerprint(self.paths)


class RowSource(EncodedImages):
    """The rows of a dataset that is not streamed."""

    def __init__(self, loaded: LoadedRows) -> None:
        self.loaded, self.name, self.rows = loaded, loaded.name, loaded.rows

    def __len__(self) -> int:
        return len(self.rows)

    def encoded(self, index: int) -> bytes | str:
        return encoded_image(self._cell(index), self.loaded.token)

    def label(self, index: int) -> str:
        """The path of a picture in a file of its own, otherwise the row's number and path."""
        try:
            cell = self._cell(index) or {}
        except UnreadableImage:
            cell = {}
        path = cell.get("path")
        if path and cell.get("bytes") is None:
            return path
        return f"{self.name}[{index}]" + (f" ({path})" if path else "")

    def fingerprint(self) -> str:
        return self.loaded.fingerprint

    def _cell(self, index: int) -> Cell:
        try:
            return self.rows[index][IMAGE]
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UnreadableImage(f"row {index} cannot be read: {one_line(error)}") from error


def encoded_image(cell: Cell, token: str | None = None) -> bytes | str:
    """What `decode` takes. A remote path is fetched.

    Raises UnreadableImage for an empty cell or a path that is not there, and RunStopped for a
    connection that does not come back.
    """
    content, path = (cell or {}).get("bytes"), (cell or {}).get("path")
    if content is not None:
        return content
    if not path:
        raise UnreadableImage("the row holds no image")
    if is_local_path(path):
        return path
    return _fetch(path, token)


def _fetch(path: str, token: str | None, failures: int = 0) -> bytes:
    try:
        with xopen(path, "rb", download_config=DownloadConfig(token=token)) as file:
            return file.read()
    except FileNotFoundError as error:
        raise UnreadableImage(f"cannot be read: {error}") from error
    except NETWORK_ERRORS as error:
        reason = f"{path} cannot be read: {type(error).__name__}: {error}".splitlines()[0]
        wait_to_retry(reason, failures, error)
    return _fetch(path, token, failures + 1)


def open_files(paths: Sequence[str | Path], flag: str = "--validation_image") -> FileSource:
    """The image files that a flag names one by one. Raises ArgumentError for one of no use."""
    for path in paths:
        if not Path(path).is_file():
            raise ArgumentError(f"{flag}: {path} is not a file; check the path")
        if (fix := remedy(Path(path).suffix.lower())) is not None:
            raise ArgumentError(f"{flag}: {path} is of a kind that is not read; {fix}")
    return FileSource(paths)


def open_folder(folder: str | Path, flag: str = "--train_data_dir") -> FileSource:
    """Every image file below a folder, sorted by path, as `folder_walk` finds them.

    Warns of pictures of a kind that is not read and of folders that cannot be. Raises
    ArgumentError, naming `flag`, where there is no such folder or no image in it.
    """
    if not Path(folder).is_dir():
        raise ArgumentError(f"{flag}={folder} is not a folder; check the path")
    refused: list[OSError] = []
    kept: list[pa.RecordBatch] = []
    missed = left_out(_keep_images(files_below(folder, refused), kept))
    if refused:
        closed = f"{len(refused)} folders that cannot be read, such as {refused[0].filename!r}"
        missed = ", ".join(filter(None, [missed, f"{closed} ({refused[0].strerror})"]))
    if images := pa.Table.from_batches(kept, FOUND).sort_by("path"):
        if missed:
            logger.warning("%s=%s: these are left out: %s", flag, folder, missed)
        paths, inodes = images["path"].combine_chunks(), images["inode"].to_numpy()
        return FileSource(paths, str(folder), inodes)
    packed = {os.path.splitext(file.path)[1] for file in files_below(folder)} & PACKED_SUFFIXES
    fix = f"files must end in {' '.join(sorted(suffixes()))}, and what a run wrote is left out"
    if packed:
        fix = f"it holds {', '.join(sorted(packed))} files: pass it as --dataset_name"
    found = f" that is read, but {missed}" if missed else ""
    raise ArgumentError(f"{flag}={folder} holds no images{found}; {fix}")


def _keep_images(files: Iterator[FoundFile], kept: list[pa.RecordBatch]) -> Iterator[str]:
    """Adds the images to `kept`, and hands on the paths of all other files.

    In buffers: Python's objects are too large where there are ten million of them.
    """
    known = suffixes()
    while some := list(islice(files, 100_000)):
        paths, inodes = [], []
        for path, inode in some:
            if os.path.splitext(path)[1].lower() in known:
                paths.append(os.fsencode(path))
                inodes.append(inode)
            else:
                yield path
        kept.append(pa.record_batch([paths, inodes], FOUND))


def open_rows(dataset: NamedDataset) -> RowSource:
    """The pictures of a dataset that is not streamed. Raises ArgumentError as `load_rows` does."""
    return RowSource(load_rows(dataset))
