"""From arguments to images: what to train on, what to validate on, and the endless loader."""

from __future__ import annotations

from dataclasses import dataclass

from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader

from modules.arguments import Arguments
from modules.data import TrainingImages, training_loader
from modules.open_dataset import load_rows
from modules.sources import (
    ImageSource,
    RowSource,
    hold_back,
    open_files,
    open_folder,
    open_source,
)
from modules.streaming import StreamedImages

NUM_SYNTHETIC_IMAGES = 10_000
NUM_HELD_BACK = 64


@dataclass(frozen=True)
class TrainingData:
    """Training images, as a source or as a stream, and validation images that are none of them."""

    name: str
    images: ImageSource | IterableDataset
    validation: ImageSource | None

    @property
    def size(self) -> int | None:
        """Number of training images; None for a stream, which does not say."""
        return None if isinstance(self.images, IterableDataset) else len(self.images)

    def finite(self, num_images: int) -> ImageSource:
        """A source to measure on: the training images, or the first `num_images` of a stream."""
        if isinstance(self.images, IterableDataset):
            return _first_rows(self.images, num_images, self.name)
        return self.images

    def describe(self, args: Arguments) -> str:
        """Such as "1,288 images of photos, random 256 x 256 crops, mirrored at random"."""
        data = args.data
        count = "a stream" if self.size is None else f"{self.size:,} images"
        flip = ", mirrored at random" if data.random_flip else ""
        side = f"{data.resolution} x {data.resolution}"
        return f"{count} of {self.name}, {data.crop} {side} crops{flip}"


def open_data(args: Arguments) -> TrainingData:
    """Opens what the flags name.

    Validation images are those of --validation_image, --validation_data_dir or --validation_split,
    or else held back from the training images. Raises ArgumentError naming flag, value and fix.
    """
    data, validation = args.data, args.validation
    name = data.dataset_name or data.train_data_dir or "synthetic"
    images = _open_stream(args) if data.streaming else _open_images(args, name)
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
    if isinstance(images, IterableDataset):
        return TrainingData(name, images.skip(count), _first_rows(images, count, name))
    return TrainingData(name, *hold_back(images, count, args.optimization.seed))


def _open_images(args: Arguments, name: str) -> ImageSource:
    data = args.data
    return open_source(
        dataset_name=name if name == "synthetic" else data.dataset_name,
        dataset_config_name=data.dataset_config_name,
        data_files=data.data_files,
        data_dir=data.train_data_dir,
        image_column=data.image_column,
        cache_dir=args.model.cache_dir,
        max_samples=data.max_train_samples,
        seed=args.optimization.seed,
        token=args.logging.hub_token,
        num_images=NUM_SYNTHETIC_IMAGES,
        resolution=data.resolution,
    )


def _open_stream(args: Arguments) -> IterableDataset:
    data = args.data
    return load_rows(
        data.dataset_name,
        config_name=data.dataset_config_name,
        data_files=data.data_files,
        data_dir=data.train_data_dir,
        image_column=data.image_column,
        cache_dir=args.model.cache_dir,
        token=args.logging.hub_token,
        streaming=True,
    )


def _open_validation_split(args: Arguments) -> ImageSource:
    data = args.data
    return open_source(
        dataset_name=data.dataset_name,
        dataset_config_name=data.dataset_config_name,
        data_dir=data.train_data_dir,
        split=args.validation.validation_split,
        image_column=data.image_column,
        cache_dir=args.model.cache_dir,
        token=args.logging.hub_token,
        split_flag="--validation_split",
    )


def _first_rows(stream: IterableDataset, count: int, name: str) -> ImageSource:
    return RowSource(Dataset.from_list(list(stream.take(count)), features=stream.features), name)


def make_loader(
    args: Arguments,
    data: TrainingData,
    latent_shape: tuple[int, int, int],
    accelerator: Accelerator,
    start_position: int,
) -> DataLoader:
    """The endless stream of this process's training batches, from sample `start_position` on."""
    options = {
        "latent_shape": latent_shape,
        "seed": args.optimization.seed,
        "crop": args.data.crop,
        "random_flip": args.data.random_flip,
        "interpolation": args.data.interpolation,
        "min_image_size": args.data.min_image_size,
    }
    resolution = args.data.resolution
    if isinstance(data.images, IterableDataset):
        dataset = StreamedImages(
            data.images,
            resolution,
            name=data.name,
            buffer_size=args.data.shuffle_buffer_size,
            token=args.logging.hub_token,
            **options,
        )
    else:
        dataset = TrainingImages(data.images, resolution, **options)
    return training_loader(
        dataset,
        batch_size=args.optimization.train_batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        start_position=start_position,
        num_workers=args.data.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )
