"""From arguments to images: what to train on, what to validate on, and the endless loader."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from accelerate import Accelerator
from datasets.config import HF_DATASETS_CACHE
from torch.utils.data import DataLoader

from modules.arguments import Arguments, DataArguments
from modules.buckets import Buckets, num_batches
from modules.data import TrainingImages, training_loader
from modules.errors import ArgumentError
from modules.image_sizes import read_sizes
from modules.lane_balance import warn_of_lanes
from modules.lanes import RowStream, ShardRows
from modules.mixture import Mixture
from modules.open_dataset import load_rows
from modules.order import EpochOrder, Permutations
from modules.parts import Concatenation, ImageSource, hold_back, part_sizes, random_subset
from modules.rows import MixedRows, SourceRows
from modules.shards import Shards
from modules.sources import open_files, open_folder, open_source
from modules.streaming import StreamedImages, StreamLoader, StreamPosition

logger = logging.getLogger(__name__)

NUM_SYNTHETIC_IMAGES = 10_000
NUM_HELD_BACK = 64


@dataclass(frozen=True)
class TrainingData:
    """Training images, as a source or as a stream, and validation images that are none of them."""

    name: str
    images: ImageSource | RowStream
    validation: ImageSource | None

    @property
    def size(self) -> int | None:
        """Number of training images; None for a stream, which does not say."""
        return None if isinstance(self.images, RowStream) else len(self.images)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the files that are trained on."""
        return self.images.fingerprint()

    def finite(self, num_images: int) -> ImageSource:
        """A source to measure on: the training images, or the first `num_images` of a stream."""
        return self.images.first(num_images) if isinstance(self.images, RowStream) else self.images

    def describe(self, args: Arguments) -> str:
        """Such as "1,288 images of photos, random 256 x 256 crops, mirrored at random"."""
        data = args.data
        count = "a stream" if self.size is None else f"{self.size:,} images"
        flip = ", mirrored at random" if data.random_flip else ""
        sides = " or ".join(f"{side} x {side}" for side in sorted(set(data.training_resolutions)))
        crops = f"{sides} crops"
        if data.aspect_ratio_bucketing:
            crops = f"crops in about each image's shape, of the area of {sides}"
        name = self.name
        if data.dataset_weights is not None:
            shares = [
                f"{weight / sum(data.dataset_weights):.3g}" for weight in data.dataset_weights
            ]
            name = " + ".join(map(" ".join, zip(shares, data.dataset_name, strict=True)))
        return f"{count} of {name}, {data.crop} {crops}{flip}"


def open_data(args: Arguments) -> TrainingData:
    """Opens what the flags name.

    Validation images are those of --validation_image, --validation_data_dir or --validation_split,
    or else held back from the training images. Raises ArgumentError naming flag, value and fix.
    """
    data, validation = args.data, args.validation
    names = data.dataset_name or (None if data.train_data_dir else "synthetic",)
    name = ", ".join(data.dataset_name or (data.train_data_dir or "synthetic",))
    images = _open_streams(args) if data.streaming else _open_images(args, names)
    if validation.num_validation_images == 0:
        return TrainingData(name, images, None)
    if validation.validation_image:
        return TrainingData(name, images, open_files(validation.validation_image))
    if validation.validation_data_dir:
        folder = open_folder(validation.validation_data_dir, "--validation_data_dir")
        return TrainingData(name, images, folder)
    if validation.validation_split:
        return TrainingData(name, images, _open_validation_split(args))
    count = validation.num_validation_images or NUM_HELD_BACK
    if isinstance(images, RowStream):
        held, rest = images.hold_back(count)
        return TrainingData(name, rest, held)
    training, validation = hold_back(images, count, args.optimization.seed)
    _require_some_of_each(data, training)
    return TrainingData(name, training, validation)


def _require_some_of_each(data: DataArguments, images: ImageSource) -> None:
    for name, size in zip(data.dataset_name or (), part_sizes(images), strict=False):
        if size == 0 and data.dataset_weights is not None:
            raise ArgumentError(
                f"--dataset_name={name} has no images left to train on; raise --max_train_samples, "
                "lower --num_validation_images, or leave it out"
            )


def _open_images(args: Arguments, names: Sequence[str | None]) -> ImageSource:
    """The datasets `names`, one after the other; None is --train_data_dir."""
    sources = [_open_source(args, name) for name in names]
    source = sources[0] if len(sources) == 1 else Concatenation(sources)
    if (limit := args.data.max_train_samples) is not None:
        source = random_subset(source, limit, args.optimization.seed)
    _require_some_of_each(args.data, source)
    return source


def _open_source(args: Arguments, name: str | None) -> ImageSource:
    data = args.data
    return open_source(
        dataset_name=name,
        dataset_config_name=data.dataset_config_name,
        data_files=data.data_files,
        data_dir=data.train_data_dir,
        image_column=data.image_column,
        cache_dir=args.model.cache_dir,
        seed=args.optimization.seed,
        token=args.logging.hub_token,
        num_images=NUM_SYNTHETIC_IMAGES,
        resolution=max(data.resolution, *data.training_resolutions),
    )


def _open_streams(args: Arguments) -> RowStream:
    names, weights = args.data.dataset_name, args.data.dataset_weights
    if len(names) == 1:
        return _open_stream(args, names[0], args.data.shuffle_buffer_size)
    buffers = [round(args.data.shuffle_buffer_size * w / sum(weights)) for w in weights]
    parts = [_open_stream(args, *part) for part in zip(names, buffers, strict=True)]
    return MixedRows(parts, weights, args.optimization.seed)


def _open_stream(args: Arguments, name: str, buffer_size: int) -> RowStream:
    data, token = args.data, args.logging.hub_token
    if name == "synthetic":
        return SourceRows(_open_source(args, name), args.optimization.seed)
    loaded = load_rows(
        name,
        config_name=data.dataset_config_name,
        data_files=data.data_files,
        data_dir=data.train_data_dir,
        image_column=data.image_column,
        cache_dir=args.model.cache_dir,
        token=token,
        streaming=True,
    )
    return ShardRows(
        Shards(loaded.rows, name, loaded.files, loaded.column, token),
        seed=args.optimization.seed,
        buffer_size=buffer_size,
        version=loaded.fingerprint,
    )


def _open_validation_split(args: Arguments) -> ImageSource:
    data = args.data
    return open_source(
        dataset_name=data.dataset_name[0],
        dataset_config_name=data.dataset_config_name,
        data_dir=data.train_data_dir,
        split=args.validation.validation_split,
        image_column=data.image_column,
        cache_dir=args.model.cache_dir,
        token=args.logging.hub_token,
        split_flag="--validation_split",
    )


def _make_order(args: Arguments, images: ImageSource) -> EpochOrder:
    seed, weights = args.optimization.seed, args.data.dataset_weights
    sizes = part_sizes(images)
    if weights is None or len(sizes) == 1:
        return Permutations(len(images), seed)
    return Mixture(sizes, weights, seed)


def make_loader(
    args: Arguments,
    data: TrainingData,
    latent_shape: tuple[int, int, int],
    accelerator: Accelerator,
    start_position: int,
    stream: StreamPosition,
) -> DataLoader | StreamLoader:
    """The endless stream of this process's training batches, from sample `start_position` on.

    stream: where the run is with --streaming; it learns how many lanes there are.
    """
    options = {
        "latent_shape": latent_shape,
        "seed": args.optimization.seed,
        "crop": args.data.crop,
        "random_flip": args.data.random_flip,
        "interpolation": args.data.interpolation,
        "min_image_size": args.data.min_image_size,
        "train_resolutions": args.data.train_resolutions,
    }
    resolution = args.data.resolution
    if isinstance(data.images, RowStream):
        stream.lanes = stream.lanes or args.data.stream_lanes or data.images.num_lanes
        if start_position and not stream.cursors:
            logger.warning(
                "this run was begun by a version without lanes: its images come in another order "
                "now, and all are read up to where it was"
            )
        if accelerator.process_index == 0:
            processes, workers = accelerator.num_processes, args.data.dataloader_num_workers
            warn_of_lanes(data.images, stream.lanes, processes, workers)
        dataset = StreamedImages(data.images, resolution, stream.lanes, stream.cursors, **options)
    else:
        order, buckets = _make_order(args, data.images), None
        if args.data.aspect_ratio_bucketing:
            buckets = _make_buckets(args, data.images, order, resolution // latent_shape[1])
        dataset = TrainingImages(data.images, resolution, order, buckets, **options)
    return training_loader(
        dataset,
        batch_size=args.optimization.train_batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        start_position=start_position,
        num_workers=args.data.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )


def _make_buckets(args: Arguments, images: ImageSource, order: EpochOrder, factor: int) -> Buckets:
    """The buckets of --aspect_ratio_bucketing; says how the images fall into them. Collective."""
    resolutions, batch_size = args.data.training_resolutions, args.optimization.train_batch_size
    folder = Path(args.model.cache_dir or HF_DATASETS_CACHE) / "image_sizes"
    buckets = Buckets(read_sizes(images, folder), resolutions, factor)
    batches = num_batches(order.indices(0), buckets.of, batch_size)
    shapes = [f"{n:,} of {width} x {height}" for (height, width), n in buckets.occupied().items()]
    logger.info(
        "images by shape, width x height at resolution %d: %s; the first epoch takes %s batches, "
        "filled up with %s of its images again", max(resolutions), ", ".join(shapes),
        f"{batches:,}", f"{batches * batch_size - order.size:,}",
    )  # fmt: skip
    return buckets
