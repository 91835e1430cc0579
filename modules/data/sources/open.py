"""Where pictures come from: files or rows of a dataset, each seen as one sequence."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DownloadConfig
from datasets.utils.file_utils import is_local_path, xopen
from PIL import Image

from modules.data.images.image_kinds import PACKED_SUFFIXES, remedy, suffixes
from modules.data.images.images import UnreadableImage, decode, upright_shape
from modules.data.images.left_out import left_out
from modules.data.sources.files import NETWORK_ERRORS, fingerprint, wait_to_retry
from modules.data.sources.folder_walk import FoundFile, files_below
from modules.data.sources.hf_dataset import IMAGE, NamedDataset, load_rows
from modules.errors import ArgumentError, one_line

logger = logging.getLogger(__name__)

BYTES = pa.large_binary()


class FileSource:
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
            paths = pa.array([os.fsencode(path) for path in paths], BYTES)
        self.paths, self.name, self.inodes = paths, name, inodes

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int, target: int | None = None) -> Image.Image:
        """The picture in mode RGB or RGBA, upright. Raises UnreadableImage."""
        return decode(self.label(index), target)

    def label(self, index: int) -> str:
        """The path."""
        return os.fsdecode(self.paths[index].as_py())

    def shape(self, index: int) -> tuple[int, int]:
        """(height, width) of the picture, upright, from its header. Raises UnreadableImage."""
        return upright_shape(self.label(index))

    def fingerprint(self) -> str:
        """Of the paths and sizes, as far as `modules.data.sources.files` looks at them."""
        return fingerprint(self.paths)


class RowSource:
    """The rows of a dataset whose column IMAGE holds encoded pictures, as `load_rows` returns.

    version: the fingerprint of the dataset's files.
    """

    def __init__(
        self, rows: Dataset, name: str, token: str | None = None, version: str = ""
    ) -> None:
        self.rows, self.name, self.token, self.version = rows, name, token, version

    def __len__(self) -> int:
        return len(self.rows)

    def open(self, index: int, target: int | None = None) -> Image.Image:
        """The picture in mode RGB or RGBA, upright. Raises UnreadableImage."""
        return decode(encoded_image(self._cell(index), self.token), target)

    def _cell(self, index: int) -> Mapping[str, Any] | None:
        try:
            return self.rows[index][IMAGE]
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UnreadableImage(f"row {index} cannot be read: {one_line(error)}") from error

    def label(self, index: int) -> str:
        """The path of a picture in a file of its own, otherwise the row's number and path."""
        try:
            value = self._cell(index) or {}
        except UnreadableImage:
            value = {}
        path = value.get("path")
        if path and value.get("bytes") is None:
            return path
        return f"{self.name}[{index}]" + (f" ({path})" if path else "")

    def shape(self, index: int) -> tuple[int, int]:
        """(height, width) of the picture, upright, from its header. Raises UnreadableImage."""
        return upright_shape(encoded_image(self._cell(index), self.token))

    def fingerprint(self) -> str:
        """That of the dataset's files."""
        return self.version


def encoded_image(value: Mapping[str, Any] | None, token: str | None = None) -> bytes | str:
    """What `decode` takes, from the cell of an image column.

    value: {"bytes", "path"}, one of which may be None. A remote path is fetched. Raises
    UnreadableImage for an empty cell or a path that is not there, and RunStopped for a connection
    that does not come back.
    """
    content, path = (value or {}).get("bytes"), (value or {}).get("path")
    if content is not None:
        return content
    if not path:
        raise UnreadableImage("the row holds no image")
    if is_local_path(path):
        return path
    return _fetch(path, token)


def _fetch(path: str, token: str | None) -> bytes:
    failures = 0
    while True:
        try:
            with xopen(path, "rb", download_config=DownloadConfig(token=token)) as file:
                return file.read()
        except FileNotFoundError as error:
            raise UnreadableImage(f"cannot be read: {error}") from error
        except NETWORK_ERRORS as error:
            reason = f"{path} cannot be read: {type(error).__name__}: {error}".splitlines()[0]
            wait_to_retry(reason, failures, error)
        failures += 1


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
    found = _Found()
    missed = left_out(found.kept(files_below(folder, refused)))
    if refused:
        closed = f"{len(refused)} folders that cannot be read, such as {refused[0].filename!r}"
        missed = ", ".join(filter(None, [missed, f"{closed} ({refused[0].strerror})"]))
    source = found.source(str(folder))
    if len(source):
        if missed:
            logger.warning("%s=%s: these are left out: %s", flag, folder, missed)
        return source
    packed = sorted(found.other_suffixes & PACKED_SUFFIXES)
    fix = f"it holds {', '.join(packed)} files: pass it as --dataset_name" if packed else (
        f"files must end in {' '.join(sorted(suffixes()))}, and what a run wrote is left out"
    )  # fmt: skip
    found = f" that is read, but {missed}" if missed else ""
    raise ArgumentError(f"{flag}={folder} holds no images{found}; {fix}")


class _Found:
    """Images among the files of a folder, as numbers and buffers: Python's objects are too large
    where there are ten million of them."""

    def __init__(self) -> None:
        self.paths, self.inodes = [pa.array([], BYTES)], [np.empty(0, np.uint64)]
        self.other_suffixes: set[str] = set()

    def kept(self, files: Iterator[FoundFile]) -> Iterator[str]:
        """Keeps images, and hands on the paths of all other files."""
        known = suffixes()
        while some := list(islice(files, 100_000)):
            images = []
            for file in some:
                suffix = os.path.splitext(file.path)[1]
                if suffix.lower() in known:
                    images.append(file)
                else:
                    self.other_suffixes.add(suffix)
                    yield file.path
            self.paths.append(pa.array([os.fsencode(file.path) for file in images], BYTES))
            self.inodes.append(np.array([file.inode for file in images], np.uint64))

    def source(self, name: str) -> FileSource:
        """The images, sorted by path."""
        paths, inodes = pa.concat_arrays(self.paths), np.concatenate(self.inodes)
        self.paths.clear()
        order = pc.array_sort_indices(paths)
        return FileSource(paths.take(order), name, inodes[order.to_numpy()])


def open_rows(dataset: NamedDataset) -> RowSource:
    """The pictures of a dataset that is not streamed. Raises ArgumentError as `load_rows` does."""
    loaded = load_rows(dataset)
    return RowSource(loaded.rows, dataset.name, dataset.token, loaded.fingerprint)
