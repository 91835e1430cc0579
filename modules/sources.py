"""Where pictures come from: files, rows of a dataset, or a generator, each seen as one sequence."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DownloadConfig
from datasets.utils.file_utils import is_local_path, xopen
from PIL import Image

from modules.data_files import NETWORK_ERRORS, fingerprint, wait_to_retry
from modules.errors import ArgumentError
from modules.images import UnreadableImage, decode_rgb, upright_shape
from modules.open_dataset import IMAGE, load_rows
from modules.parts import Concatenation, ImageSource, Subset, random_subset
from modules.synthetic import SyntheticImages

SUFFIXES = {
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pgm", ".png",
    ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
}  # fmt: skip
PACKED_SUFFIXES = {".arrow", ".parquet", ".tar", ".zip"}
BYTES = pa.large_binary()


class FileSource:
    """Image files, in the order given; nothing is checked before a file is opened."""

    def __init__(self, paths: Iterable[str | Path | bytes], name: str = "files") -> None:
        # One buffer for all paths: a list would be copied into every worker, object by object, as
        # its reference counts are written. Bytes, because a path need not be valid Unicode.
        runs = iter(partial(_some, iter(paths)), [])
        chunks = pa.chunked_array([pa.array(run, BYTES) for run in runs], BYTES)
        self.paths = chunks.combine_chunks()
        self.name = name
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
        """Of the paths and sizes, as far as `modules.data_files` looks at them."""
        return fingerprint(self.paths)


def _some(paths: Iterator[str | Path | bytes]) -> list[bytes]:
    return [os.fsencode(path) for path in islice(paths, 100_000)]


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
        return decode_rgb(encoded_image(self.rows[index][IMAGE], self.token), self.target)

    def label(self, index: int) -> str:
        """The path of a picture in a file of its own, otherwise the row's number and path."""
        value = self.rows[index][IMAGE] or {}
        path = value.get("path")
        if path and value.get("bytes") is None:
            return path
        return f"{self.name}[{index}]" + (f" ({path})" if path else "")

    def shape(self, index: int) -> tuple[int, int]:
        """(height, width) of the picture, upright, from its header. Raises UnreadableImage."""
        return upright_shape(encoded_image(self.rows[index][IMAGE], self.token))

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


def reduced(source: ImageSource, target: int) -> ImageSource:
    """The same pictures, large JPEGs among them decoded no larger than a crop of `target` needs."""
    if not isinstance(source, FileSource | RowSource | Subset | Concatenation):
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
    """The image files that a flag names one by one. Raises ArgumentError for one not there."""
    for path in paths:
        if not Path(path).is_file():
            raise ArgumentError(f"{flag}: {path} is not a file; check the path")
    return FileSource(paths)


def open_folder(folder: str | Path, flag: str = "--train_data_dir") -> FileSource:
    """Every image file below a folder, sorted by path; hidden files are left out, links followed.

    Raises ArgumentError, naming `flag`, where there is no such folder or no image in it.
    """
    if not Path(folder).is_dir():
        raise ArgumentError(f"{flag}={folder} is not a folder; check the path")
    others: set[str] = set()
    source = FileSource(_images_below(folder, others), name=str(folder))
    if len(source):
        source.paths = source.paths.take(pc.array_sort_indices(source.paths))
        return source
    packed = sorted(others & PACKED_SUFFIXES)
    fix = f"it holds {', '.join(packed)} files: pass it as --dataset_name" if packed else (
        f"files must end in {' '.join(sorted(SUFFIXES))}"
    )  # fmt: skip
    raise ArgumentError(f"{flag}={folder} holds no images; {fix}")


def _images_below(folder: str | Path, others: set[str]) -> Iterator[bytes]:
    """The paths of images, in no order; `others` takes the suffixes of what else is there."""
    visited = set()  # a link to a folder above would lead round in circles
    for parent, folders, names in os.walk(os.fsencode(folder), followlinks=True):
        if (real := os.path.realpath(parent)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = (name for name in folders if not name.startswith(b"."))
        for name in names:
            suffix = os.fsdecode(os.path.splitext(name)[1])
            if suffix.lower() not in SUFFIXES:
                others.add(suffix)
            elif not name.startswith(b"."):
                yield os.path.join(parent, name)


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
    split_flag: str | None = None,
) -> ImageSource:
    """The pictures that the flags name.

    dataset_name: "synthetic" (`num_images` of `resolution`, by seed), a Hub id, or a folder of
    parquet, webdataset shards, images, or what `save_to_disk` wrote. Without it, `data_dir` is a
    folder of images. max_samples: a random subset of this size, by seed. data_dir_flag and
    split_flag: what error messages call the two. Raises ArgumentError naming the flag and the fix.
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
