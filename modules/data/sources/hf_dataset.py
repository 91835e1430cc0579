"""Hugging Face datasets, in memory or streamed, reduced to one column of encoded images."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from datasets import (
    Dataset,
    DatasetBuilder,
    DatasetDict,
    Features,
    IterableDataset,
    Value,
    load_dataset_builder,
    load_from_disk,
)
from datasets import Image as ImageFeature
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from datasets.utils.file_utils import is_local_path

from modules.data.images.left_out import left_out
from modules.data.sources.files import READ_ERRORS, check_files, fingerprint
from modules.data.sources.folder_walk import RunFolders, files_below
from modules.data.sources.picture_tars import COLUMN as IMAGE
from modules.data.sources.picture_tars import PictureTars
from modules.data.sources.shard_files import Cell, Place, parquet_rows
from modules.errors import ArgumentError, blaming

logger = logging.getLogger(__name__)

FIX = (
    "pass a Hub id, or a whole folder of parquet, webdataset shards or images; files alone are "
    "--dataset_name parquet (or webdataset) --data_files FILE"
)
NUM_SAVED_SHARDS = 64  # what `save_to_disk` wrote is streamed as this many
Direct = Callable[[str, Place], Iterator[tuple[Cell, int]]]


class LoadedRows(NamedTuple):
    """One column IMAGE of {"bytes", "path"}, not decoded, of a dataset of that name.

    files: what `load_dataset` reads the rows from. fingerprint: of all. direct: without `datasets`,
    the rows of such a file from a place on, and the byte after each; None where that cannot be.
    """

    rows: Dataset | IterableDataset
    name: str
    token: str | None = None
    files: Sequence[str] = ()
    fingerprint: str = ""
    direct: Direct | None = None


@dataclass(frozen=True)
class NamedDataset:
    """A dataset as the flags name it.

    name: a Hub id, a local folder that `load_dataset` understands, or one that `save_to_disk`
    wrote. split: its name; where neither streamed nor saved so, also "train[:10%]" or "train+test".
    split_flag: the flag that chose it. image_column: of webdataset shards, as in `PictureTars`.
    """

    name: str
    config_name: str | None = None
    data_files: Sequence[str] | None = None
    data_dir: str | None = None
    split: str = "train"
    image_column: str = "image"
    cache_dir: str | None = None
    token: str | None = None
    split_flag: str = "--train_split"


def load_rows(dataset: NamedDataset, streaming: bool = False) -> LoadedRows:
    """A dataset's encoded images, in the one column IMAGE; an IterableDataset where `streaming`.

    Warns of pictures in the files that `load_dataset` leaves out. Raises ArgumentError naming the
    flag for a dataset, split, file or column that is not there.
    """
    name, split, image_column = dataset.name, dataset.split, dataset.image_column
    where, chosen = f"--dataset_name={name}", f"{dataset.split_flag}={split}"
    with blaming(where, FIX, *READ_ERRORS):
        if (saved := _load_saved(name, split, f"{chosen} with {where}")) is not None:
            version = fingerprint([file["filename"] for file in saved.cache_files])
            shards = max(1, min(len(saved), NUM_SAVED_SHARDS))
            rows = saved.to_iterable_dataset(num_shards=shards) if streaming else saved
            rows = _one_column(rows, image_column, where)
            return LoadedRows(rows, name, dataset.token, fingerprint=version)
        try:
            builder = load_dataset_builder(
                name,
                dataset.config_name,
                data_files=list(dataset.data_files) if dataset.data_files else None,
                data_dir=dataset.data_dir,
                cache_dir=dataset.cache_dir,
                token=dataset.token,
            )
        except FileNotFoundError as error:
            if not (missed := left_out(_paths(name)) if Path(name).is_dir() else ""):
                raise
            raise ArgumentError(f"{where}: it holds {missed}; {FIX}") from error
        if isinstance(builder, WebDataset):
            builder, image_column = _pictures_of(builder, dataset), IMAGE
        files, version = _files(builder, split, streaming, f"{chosen} with {where}")
        check_files(files, where)
        if Path(name).is_dir() and not dataset.data_files:
            # Of a folder, `load_dataset` takes the files of one builder, silent about the rest.
            read = builder.EXTENSIONS if isinstance(builder, FolderBasedBuilder) else ()
            if missed := left_out(_paths(Path(name, dataset.data_dir or "")), read):
                logger.warning("%s: these are left out: %s", where, missed)
        _check_that_no_run_wrote(files, where)
        if not streaming:
            builder.download_and_prepare()
        rows = (builder.as_streaming_dataset if streaming else builder.as_dataset)(split=split)
        rows = _one_column(rows, image_column, where)
        packed = any(file.endswith((".gz", ".bz2", ".xz", ".zst")) for file in files)
        direct = None if packed else _direct_reader(builder, image_column)
        return LoadedRows(rows, name, dataset.token, files, version, direct)


def _pictures_of(builder: WebDataset, dataset: NamedDataset) -> PictureTars:
    """The same shards, read for their pictures alone."""
    return PictureTars(
        cache_dir=dataset.cache_dir,
        dataset_name=builder.dataset_name,
        hash=builder.hash,
        base_path=builder.base_path,
        repo_id=builder.repo_id,
        token=builder.token,
        data_files=builder.config.data_files,
        image_column=dataset.image_column,
    )


def _direct_reader(builder: DatasetBuilder, column: str) -> Direct | None:
    if isinstance(builder, PictureTars):
        return builder.rows
    return partial(parquet_rows, column, builder.token) if isinstance(builder, Parquet) else None


def _files(
    builder: DatasetBuilder, split: str, streaming: bool, where: str
) -> tuple[Sequence[str], str]:
    """The files of a split and their fingerprint; none for a split of another kind of dataset.

    Raises ArgumentError, beginning with `where`, for a split that is known not to exist.
    """
    by_split = builder.config.data_files or {}
    names = split_names(split)
    known = [str(name) for name in by_split or builder.info.splits or ()]
    _require_splits(names, known or names, where)
    if streaming and names != [split]:
        raise ArgumentError(f"{where}: a part of a split cannot be read with --streaming; drop one")
    parts = [by_split[name] for name in names if name in by_split]
    files = [file for part in parts for file in part]
    origins = [origin for part in parts for origin in part.origin_metadata]
    remote = any(not is_local_path(file) for file in files)
    return files, fingerprint(files, origins if remote else ())


def split_names(split: str) -> list[str]:
    """The splits that a choice such as "train[:10%]+test" takes from."""
    return [part.partition("[")[0].strip() for part in split.split("+")]


def _require_splits(names: Iterable[str], known: Iterable[str], where: str) -> None:
    if not set(names) <= set(known):
        raise ArgumentError(f"{where}: there is no such split; name one of: {', '.join(known)}")


def _paths(folder: str | Path) -> Iterator[str]:
    return (file.path for file in files_below(folder))


def _check_that_no_run_wrote(files: Sequence[str], where: str) -> None:
    """Raises ArgumentError for files of a run of this trainer, which `load_dataset` cannot skip."""
    runs, real = RunFolders(), cache(os.path.realpath)
    places = ((file, *os.path.split(file)) for file in files if is_local_path(file))
    own = [file for file, folder, name in places if runs.wrote(os.path.join(real(folder), name))]
    if own:
        raise ArgumentError(
            f"{where}: {own[0]}{f' and {len(own) - 1} more' if len(own) > 1 else ''} is what a run "
            "of this trainer wrote, not data: move that run elsewhere, or use --train_data_dir, "
            "which leaves it out"
        )


def _load_saved(name: str, split: str, where: str) -> Dataset | None:
    """What `save_to_disk` wrote to the folder `name`, or None where it did not."""
    if not any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json")):
        return None
    saved = load_from_disk(name)
    splits = saved if isinstance(saved, DatasetDict) else {str(saved.split or "train"): saved}
    _require_splits([split], splits, where)
    return splits[split]


def _one_column(
    rows: Dataset | IterableDataset, column: str, where: str
) -> Dataset | IterableDataset:
    features = rows.features or Features()
    if column not in features or not _holds_images(features[column]):
        images = [name for name, feature in features.items() if _holds_images(feature)]
        problem = "holds no images" if column in features else "is not a column"
        raise ArgumentError(
            f"--image_column={column} {problem} of {where}, which has "
            f"{', '.join(features) or 'no declared columns'}; "
            f"images are in: {', '.join(images) or 'none of them'}"
        )
    rows = rows.select_columns([column]).cast_column(column, ImageFeature(decode=False))
    return rows if column == IMAGE else rows.rename_column(column, IMAGE)


def _holds_images(feature: Any) -> bool:
    if isinstance(feature, dict):  # what an Image column becomes when its type is lost
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, ImageFeature) or feature in (Value("binary"), Value("large_binary"))
