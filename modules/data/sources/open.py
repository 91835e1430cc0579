"""Where pictures come from: files, rows of a dataset, or a generator, each seen as one sequence."""

from __future__ import annotations

import copy
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
from modules.data.images.images import UnreadableImage, decode_rgb, upright_shape
from modules.data.images.left_out import left_out
from modules.data.images.synthetic import SyntheticImages
from modules.data.sources.files import NETWORK_ERRORS, fingerprint, wait_to_retry
from modules.data.sources.folder_walk import FoundFile, files_below
from modules.data.sources.hf_dataset import IMAGE, load_rows
from modules.data.sources.parts import Concatenation, ImageSource, Subset, random_subset
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
        self.target: int | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> Image.Image:
        """The picture in mode RGB, upright. Raises UnreadableImage."""
        return decode_rgb(self.label(index), self.target)

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
        self.target: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def open(self, index: int) -> Image.Image:
        """The picture in mode RGB, upright. Raises UnreadableImage."""
        return decode_rgb(encoded_image(self._cell(index), self.token), self.target)

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
    """What `decode_rgb` takes, from the cell of an image column.

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


def reduced(source: ImageSource, target: int | None) -> ImageSource:
    """The same pictures, large JPEGs among them decoded no larger than a crop of `target` needs.

    target: in pixels; None decodes them whole.
    """
    if target is None or not isinstance(source, FileSource | RowSource | Subset | Concatenation):
        return source
    smaller = copy.copy(source)
    if isinstance(smaller, Subset):
        smaller.source = reduced(smaller.source, target)
    elif isinstance(smaller, Concatenation):
        smaller.sources = tuple(reduced(part, target) for part in smaller.sources)
    else:
        smaller.target = target
    return smaller


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


def open_source(
    *,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    data_files: Sequence[str] | None = None,
    data_dir: str | None = None,
    split: str = "train",
    image_column: str = "image",
    cache_dir: str | None = None,
    revision: str | None = None,
    max_samples: int | None = None,
    seed: int = 0,
    token: str | None = None,
    num_images: int = 10_000,
    resolution: int = 256,
    data_dir_flag: str = "--train_data_dir",
    split_flag: str = "--train_split",
) -> ImageSource:
    """The pictures that the flags name.

    dataset_name: "synthetic" (`num_images` of `resolution`, by seed), a Hub id, or a folder of
    parquet, webdataset shards, images, or what `save_to_disk` wrote. Without it, `data_dir` is a
    folder of images. max_samples: a random subset of this size, by seed. data_dir_flag and
    split_flag: what error messages call the two. split: as in `load_rows`.
    Raises ArgumentError naming the flag and the fix.
    """
    if dataset_name == "synthetic":
        source: ImageSource = SyntheticImages(num_images, resolution, seed)
    elif dataset_name is None and data_dir is None:
        raise ArgumentError(f"no images: pass --dataset_name or {data_dir_flag}")
    elif dataset_name is None:
        source = open_folder(data_dir, data_dir_flag)
    else:
        loaded = load_rows(
            dataset_name,
            config_name=dataset_config_name,
            data_files=data_files,
            data_dir=data_dir,
            split=split,
            image_column=image_column,
            cache_dir=cache_dir,
            revision=revision,
            token=token,
            split_flag=split_flag,
        )
        source = RowSource(loaded.rows, dataset_name, token, loaded.fingerprint)
    return source if max_samples is None else random_subset(source, max_samples, seed)
