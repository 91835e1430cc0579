"""Hugging Face datasets, in memory or streamed, reduced to one column of encoded images."""

from __future__ import annotations

from collections.abc import Sequence
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
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from datasets.utils.file_utils import is_local_path

from modules.data_files import READ_ERRORS, check_files, fingerprint
from modules.errors import ArgumentError

IMAGE = "image"  # the only column of what is returned here: {"bytes", "path"}, not decoded
NUM_SAVED_SHARDS = 64  # what `save_to_disk` wrote is streamed as this many


class LoadedRows(NamedTuple):
    """rows: one column IMAGE. files: what `load_dataset` reads them from. fingerprint: of all.

    column: the images' column in the files, if these are plain parquet or tar files.
    """

    rows: Dataset | IterableDataset
    files: Sequence[str]
    fingerprint: str
    column: str | None = None


def load_rows(
    name: str,
    *,
    config_name: str | None = None,
    data_files: Sequence[str] | None = None,
    data_dir: str | None = None,
    split: str = "train",
    image_column: str = "image",
    cache_dir: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    streaming: bool = False,
    split_flag: str | None = None,
) -> LoadedRows:
    """A dataset's encoded images, in the one column IMAGE; an IterableDataset where `streaming`.

    name: a Hub id, a local folder that `load_dataset` understands, or one that `save_to_disk`
    wrote. split_flag: the flag that chose the split, if one did.
    Raises ArgumentError naming the flag for a dataset, split, file or column that is not there.
    """
    where = f"--dataset_name={name}"
    if split_flag is not None:
        where = f"{split_flag}={split} with {where}"
    if (saved := _load_saved(name, split, where)) is not None:
        version = fingerprint([file["filename"] for file in saved.cache_files])
        shards = max(1, min(len(saved), NUM_SAVED_SHARDS))
        rows = saved.to_iterable_dataset(num_shards=shards) if streaming else saved
        return LoadedRows(_one_column(rows, image_column, where), (), version)
    try:
        builder = load_dataset_builder(
            name,
            config_name,
            data_files=list(data_files) if data_files else None,
            data_dir=data_dir,
            cache_dir=cache_dir,
            revision=revision,
            token=token,
        )
        files, version = _files(builder, split)
        check_files(files, where)
        if not streaming:
            builder.download_and_prepare()
        rows = (builder.as_streaming_dataset if streaming else builder.as_dataset)(split=split)
    except FileNotFoundError as error:
        raise ArgumentError(
            f"{where}: {error}; pass a Hub id, or a folder of parquet, webdataset shards or images"
        ) from error
    except ArgumentError:
        raise
    except ImportError as error:  # such as aiohttp for http://, s3fs for s3://
        raise ArgumentError(f"{where}: {error}; install that with pip") from error
    except READ_ERRORS as error:
        cause = f" ({error.__cause__})" if isinstance(error, DatasetGenerationError) else ""
        raise ArgumentError(f"{where}: {error}{cause}") from error
    plain = isinstance(builder, Parquet | WebDataset) and not any(
        file.endswith((".gz", ".bz2", ".xz", ".zst")) for file in files
    )
    column = image_column if plain else None
    return LoadedRows(_one_column(rows, image_column, where), files, version, column)


def _files(builder: DatasetBuilder, split: str) -> tuple[Sequence[str], str]:
    """The files of a split and their fingerprint; none for a split of another kind of dataset."""
    files = (builder.config.data_files or {}).get(split, [])
    remote = any(not is_local_path(file) for file in files)
    return files, fingerprint(files, files.origin_metadata if remote else ())


def _load_saved(name: str, split: str, where: str) -> Dataset | None:
    """What `save_to_disk` wrote to the folder `name`, or None where it did not."""
    if not any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json")):
        return None
    saved = load_from_disk(name)
    splits = saved if isinstance(saved, DatasetDict) else {str(saved.split or "train"): saved}
    if split not in splits:
        raise ArgumentError(f"{where}: there is no split {split!r}; it has {', '.join(splits)}")
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
