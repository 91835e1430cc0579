"""From flags and images to the endless loader of training batches."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from datasets.config import HF_DATASETS_CACHE
from datasets.utils.file_utils import is_local_path
from diffusers import AutoencoderKL
from torch.utils.data import DataLoader

from modules.builders.data import TrainingData, make_order
from modules.config.arguments import Arguments
from modules.data.image_sizes import read_sizes
from modules.data.loader import TrainingImages, prefetched_batches, training_loader
from modules.data.samplers.buckets import Buckets, num_batches
from modules.data.samplers.order import EpochOrder
from modules.data.shared_memory import require_shared_memory
from modules.data.sources.parts import ImageSource
from modules.data.streaming.lanes import ANEW, RowStream, ShardRows
from modules.data.streaming.reader import StreamedImages, StreamLoader, StreamPosition
from modules.data.streaming.rows import MixedRows
from modules.image_modes import mode_of
from modules.models.autoencoder import downsample_factor, latent_shape

logger = logging.getLogger(__name__)

UNEVEN = 1.5  # times the mean length of a lane: then its images come clearly less often


def check_shared_memory(args: Arguments, vae: AutoencoderKL) -> None:
    """Raises ArgumentError where the loader's batches of pixels and noise do not fit."""
    side, batch_size = max(args.data.training_resolutions), args.optimization.train_batch_size
    channels, height, _ = latent_shape(vae, args.data.resolution)
    noise = 4 * channels * (height * side // args.data.resolution) ** 2
    require_shared_memory(
        "--dataloader_num_workers",
        args.data.dataloader_num_workers,
        prefetched_batches(batch_size),
        batch_size * (vae.config.in_channels * side**2 + noise),
    )


def make_loader(
    args: Arguments,
    data: TrainingData,
    vae: AutoencoderKL,
    accelerator: Accelerator,
    start_position: int,
    stream: StreamPosition,
) -> DataLoader | StreamLoader:
    """The endless stream of this process's batches for `vae`, from sample `start_position` on.

    stream: where the run is with --streaming; it learns how many lanes there are.
    """
    resolution = args.data.resolution
    options = {
        "latent_shape": latent_shape(vae, resolution),
        "image_mode": mode_of(vae),
        "seed": args.optimization.seed,
        "crop": args.data.crop,
        "random_flip": args.data.random_flip,
        "interpolation": args.data.interpolation,
        "min_image_size": args.data.min_image_size,
        "train_resolutions": args.data.train_resolutions,
        "fast_jpeg_decoding": args.data.fast_jpeg_decoding,
    }
    if isinstance(data.images, RowStream):
        stream.lanes = stream.lanes or args.data.stream_lanes or data.images.num_lanes
        if start_position and not stream.cursors:
            logger.warning("this run has not streamed in lanes so far: its stream begins anew")
            used = (range(lane, start_position, stream.lanes) for lane in range(stream.lanes))
            stream.cursors = {lane: (len(rows), ANEW) for lane, rows in enumerate(used)}
        if accelerator.process_index == 0:
            processes, workers = accelerator.num_processes, args.data.dataloader_num_workers
            warn_of_lanes(data.images, stream.lanes, processes, workers)
        dataset = StreamedImages(data.images, resolution, stream.lanes, stream.cursors, **options)
    else:
        order, buckets = make_order(args, data.images), None
        if args.data.aspect_ratio_bucketing:
            buckets = _make_buckets(args, data.images, order, downsample_factor(vae))
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


def warn_of_lanes(stream: RowStream, lanes: int, processes: int, workers: int) -> None:
    """Says once what is read more than once, and which images come less often than others."""
    readers = processes * max(1, workers)
    if lanes % readers:
        divisors = [str(number) for number in range(1, lanes + 1) if lanes % number == 0]
        logger.warning(
            "%d lanes cannot be divided among %d processes x %d workers, so that some shards are "
            "read by several of them; the samples are the same, but every byte is read once only "
            "where processes x workers is %s", lanes, processes, max(1, workers),
            " or ".join(", ".join(divisors).rsplit(", ", 1)),
        )  # fmt: skip
    for part in stream.parts if isinstance(stream, MixedRows) else (stream,):
        if part.num_shards < lanes:
            logger.warning(
                "%s has %d shards for %d lanes, each of them read by %d: write it as more shards, "
                "or give --stream_lanes %d", part.name, part.num_shards, lanes,
                -(-lanes // part.num_shards), part.num_shards,
            )  # fmt: skip
        elif isinstance(part, ShardRows):
            _warn_of_long_lanes(part, lanes)


def _warn_of_long_lanes(stream: ShardRows, lanes: int) -> None:
    files = stream.shards.files
    if not files or not all(is_local_path(file) for file in files):
        return
    sizes = np.array([os.path.getsize(file) for file in files])
    lengths = np.array([sizes[lane::lanes].sum() for lane in range(lanes)])
    longest, of_all = int(lengths.argmax()), int(sizes.sum())
    if lengths[longest] <= UNEVEN * lengths.mean():
        return
    largest = longest + lanes * int(sizes[longest::lanes].argmax())
    logger.warning(
        "the shards of %s are of different lengths: the lane of %s has %.3g %% of the bytes and, "
        "as every lane, gives %.3g %% of the samples, so its images come less often than others; "
        "write shards of about one length, or give a lower --stream_lanes", stream.name,
        files[largest], 100 * lengths[longest] / of_all, 100 / lanes,
    )  # fmt: skip
