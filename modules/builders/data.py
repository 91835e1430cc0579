"""From arguments to images: what to train on, what to validate on, and the endless loader."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from modules.builders.outline import NUM_HELD_BACK, NUM_SYNTHETIC_IMAGES
from modules.builders.overlap import searched_by_datasets, would_match
from modules.config.arguments import Arguments
from modules.config.inputs import DataArguments
from modules.data.images.synthetic import SyntheticImages
from modules.data.samplers.order import EpochOrder, Mixture, Permutations
from modules.data.sources.hf_dataset import NamedDataset, load_rows, split_names
from modules.data.sources.open import FileSource, open_files, open_folder, open_rows
from modules.data.sources.parts import (
    Concatenation,
    ImageSource,
    Subset,
    hold_back,
    part_sizes,
    random_subset,
)
from modules.data.sources.same_files import files_in_both
from modules.data.streaming.lanes import Cells, RowStream, ShardRows
from modules.data.streaming.rows import MixedRows, SourceRows
from modules.data.streaming.shards import Shards
from modules.errors import ArgumentError

logger = logging.getLogger(__name__)


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

    @cached_property
    def validation_fingerprint(self) -> str | None:
        """Changes with the files that are validated on, and with which of them; None for none."""
        images = self.validation
        if images is None:
            return None
        held_back = isinstance(images, Subset | Cells)
        files = self.fingerprint if held_back else images.fingerprint()
        which = images.indices if isinstance(images, Subset) else np.arange(len(images))
        return f"{files} {hashlib.sha256(which.tobytes()).hexdigest()}"

    def identity(self) -> dict[str, Any]:
        """What checkpoints say of the images, to notice others on resume."""
        return {
            "num_train_images": self.size,
            "data_fingerprint": self.fingerprint,
            "validation_fingerprint": self.validation_fingerprint,
        }

    def finite(self, args: Arguments, num_images: int) -> ImageSource:
        """A source to measure on, in training's shares.

        The training images; of a stream, or of data sets mixed by weight, the first `num_images`.
        """
        if isinstance(self.images, RowStream):
            return self.images.first(num_images)
        if args.data.dataset_weights is None:
            return self.images
        order = make_order(args, self.images)
        return Subset(self.images, order.indices(0)[:num_images].numpy())

    def describe(self, args: Arguments) -> str:
        """Such as "1,288 images of photos, random 256 x 256 crops, mirrored at random"."""
        data, name = args.data, self.name
        count = "a stream" if self.size is None else f"{self.size:,} images"
        flip = ", mirrored at random" if data.random_flip else ""
        sides = " or ".join(f"{side} x {side}" for side in sorted(set(data.training_resolutions)))
        crops = f"{sides} crops"
        if data.aspect_ratio_bucketing:
            crops = f"crops in about each image's shape, of the area of {sides}"
        if weights := data.dataset_weights:
            pairs = zip(weights, data.dataset_name, strict=True)
            name = " + ".join(f"{weight / sum(weights):.3g} {part}" for weight, part in pairs)
        return f"{count} of {name}, {data.crop} {crops}{flip}"


def open_data(args: Arguments, image_mode: str = "RGB") -> TrainingData:
    """Opens what the flags name.

    Validation images are those of --validation_image, --validation_data_dir or --validation_split,
    or else held back from the training images. image_mode: what they will be used as, for pictures
    that the trainer draws. Raises ArgumentError naming flag, value and fix.
    """
    data, validation = args.data, args.validation
    name = ", ".join(data.dataset_name or (str(data.train_data_dir),))
    images = (_open_streams if data.streaming else _open_images)(args, image_mode)
    if validation.num_validation_images == 0:
        return TrainingData(name, images, None)
    count = validation.num_validation_images or NUM_HELD_BACK
    if validation.validation_image:
        held = open_files(validation.validation_image)
    elif validation.validation_data_dir:
        held = open_folder(validation.validation_data_dir, "--validation_data_dir")
    elif validation.validation_split:
        held = _open_validation_split(args)
    elif isinstance(images, RowStream):
        held, images = images.hold_back(count)
    else:
        images, held = hold_back(images, count, args.optimization.seed)
    if isinstance(images, RowStream):
        _check_streamed(data, held)
    else:
        images = _without(images, held)
        _require_some_of_each(data, images)
    return TrainingData(name, images, held)


def _without(images: ImageSource, validation: ImageSource) -> ImageSource:
    """`images` but those that are the same files as validation images; says how many are not."""
    same = files_in_both(images, validation)
    if same.size == len(images):
        raise ArgumentError(
            f"every training image of {images.name} is a validation image as well: validate on "
            "others, with --validation_data_dir or --num_validation_images"
        )
    if same.size:
        logger.warning(
            "%s of the training images are validation images as well, such as %s: they are left "
            "out of training", f"{same.size:,}", images.label(int(same[0])),
        )  # fmt: skip
        return Subset(images, np.delete(np.arange(len(images)), same))
    return images


def _check_streamed(data: DataArguments, validation: ImageSource) -> None:
    """Raises ArgumentError for validation images that a stream of local files will hold too."""
    labels = map(validation.label, range(len(validation)))
    # One of a kind stands for the others: there may be many.
    examples = {os.path.split(label)[0] + Path(label).suffix: label for label in labels}
    for flag, pattern in searched_by_datasets(data) if isinstance(validation, FileSource) else ():
        for label in examples.values():
            if would_match(label, pattern):
                raise ArgumentError(
                    f"the validation image {label} lies where --{flag} looks for images "
                    f"({pattern}), and a stream cannot leave it out: move it elsewhere, or drop "
                    "--streaming"
                )


def _require_some_of_each(data: DataArguments, images: ImageSource) -> None:
    for name, size in zip(data.dataset_name or (), part_sizes(images), strict=False):
        if size == 0 and data.dataset_weights is not None:
            raise ArgumentError(
                f"--dataset_name={name} has no images left to train on; raise --max_train_samples, "
                "lower --num_validation_images, or leave it out"
            )


def _open_images(args: Arguments, image_mode: str) -> ImageSource:
    """The datasets, one after the other, or --train_data_dir."""
    data, seed = args.data, args.optimization.seed
    sources = [
        _synthetic(args, image_mode) if name == "synthetic" else open_rows(_dataset(args, name))
        for name in data.dataset_name or ()
    ] or [open_folder(data.train_data_dir)]
    source = sources[0] if len(sources) == 1 else Concatenation(sources)
    if data.max_train_samples is not None:
        source = random_subset(source, data.max_train_samples, seed)
    _require_some_of_each(data, source)
    return source


def _open_streams(args: Arguments, image_mode: str) -> RowStream:
    """The datasets as one stream, which keep --shuffle_buffer_size pictures in their shares."""
    data, seed = args.data, args.optimization.seed
    weights = data.dataset_weights or (1,)
    parts = []
    for name, weight in zip(data.dataset_name, weights, strict=True):
        if name == "synthetic":
            parts.append(SourceRows(_synthetic(args, image_mode), seed))
            continue
        shards = Shards(load_rows(_dataset(args, name), streaming=True))
        buffer_size = round(data.shuffle_buffer_size * weight / sum(weights))
        parts.append(ShardRows(shards, seed=seed, buffer_size=buffer_size))
    return parts[0] if len(parts) == 1 else MixedRows(parts, weights, seed)


def _synthetic(args: Arguments, image_mode: str) -> ImageSource:
    side = max(args.data.resolution, *args.data.training_resolutions)
    alpha = image_mode == "RGBA"
    return SyntheticImages(NUM_SYNTHETIC_IMAGES, side, args.optimization.seed, alpha=alpha)


def _dataset(args: Arguments, name: str) -> NamedDataset:
    """The training images of that name."""
    data = args.data
    return NamedDataset(
        name,
        config_name=data.dataset_config_name,
        data_files=data.data_files,
        data_dir=data.train_data_dir,
        split=data.train_split,
        image_column=data.image_column,
        cache_dir=args.model.cache_dir,
        token=args.logging.hub_token,
    )


def _open_validation_split(args: Arguments) -> ImageSource:
    data, split = args.data, args.validation.validation_split
    shared = set(split_names(split)) & set(split_names(data.train_split))
    if shared and not ("[" in split and "[" in data.train_split):
        raise ArgumentError(
            f"--validation_split={split} has images of --train_split={data.train_split}, which are "
            "trained on; name another one, or drop it to hold images back"
        )
    trained_on = _dataset(args, data.dataset_name[0])
    return open_rows(
        replace(trained_on, split=split, split_flag="--validation_split", data_files=None)
    )


def make_order(args: Arguments, images: ImageSource) -> EpochOrder:
    """Epoch by epoch, a permutation of the images, or data sets in the shares of their weights."""
    seed, weights = args.optimization.seed, args.data.dataset_weights
    sizes = part_sizes(images)
    if weights is None or len(sizes) == 1:
        return Permutations(len(images), seed)
    return Mixture(sizes, weights, seed)
