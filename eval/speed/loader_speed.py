"""How fast training images are decoded and cropped, against plain PIL."""

from __future__ import annotations

import random
import time
from collections import deque
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from modules.data.images.synthetic import SyntheticImages
from modules.data.loader import TrainingImages, training_loader
from modules.data.shared_memory import end_rather_than_drop
from modules.data.sources.open import open_folder

WIDTH, HEIGHT, QUALITY = 1024, 768, 90  # of the JPEGs made on the spot
DISTINCT = 32
LATENT_SHAPE = (4, 32, 32)
OURS, FAST, PLAIN = "ours", "--fast_jpeg_decoding", "plain PIL"


class PlainImages(Dataset[Tensor]):
    """What most training scripts do: open, convert, resize whole, crop, to a tensor in [-1, 1]."""

    def __init__(self, paths: list[Path], resolution: int) -> None:
        self.paths, self.resolution = paths, resolution

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """float32 [3, R, R] in [-1, 1]."""
        image, side = Image.open(self.paths[index]).convert("RGB"), self.resolution
        scale = side / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
        left, top = random.randint(0, size[0] - side), random.randint(0, size[1] - side)
        image = image.crop((left, top, left + side, top + side))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.float() / 127.5 - 1


def write_photos(folder: Path) -> None:
    """DISTINCT JPEGs of WIDTH x HEIGHT from the synthetic set."""
    source = SyntheticImages(DISTINCT, WIDTH)
    for index in range(DISTINCT):
        picture = source.open(index).crop((0, 0, WIDTH, HEIGHT))
        picture.save(folder / f"{index}.jpg", quality=QUALITY)


def loader_speeds(
    folder: Path, resolution: int, workers: int, rounds: int, images: int, batch_size: int
) -> dict[str, list[float]]:
    """Images per second and core of OURS, FAST and PLAIN over the pictures of `folder`.

    One value for each round of `images`; start-up is not timed. They take turns, and only one
    exists at a time: what workers fetch ahead must not be fetched on another's time.
    """
    source, paths = open_folder(folder, flag="--data"), sorted(folder.rglob("*.jpg"))

    def ours(fast: bool) -> DataLoader:
        options = {"latent_shape": LATENT_SHAPE, "seed": 0, "fast_jpeg_decoding": fast}
        training = TrainingImages(source, resolution, **options)
        return training_loader(training, batch_size=batch_size, num_workers=workers)

    def plain() -> DataLoader:
        data = PlainImages(paths, resolution)
        return DataLoader(
            data,
            batch_size=batch_size,
            sampler=RandomSampler(data, replacement=True, num_samples=10**6),
            num_workers=workers,
            worker_init_fn=end_rather_than_drop,
        )

    loaders = {OURS: partial(ours, fast=False), FAST: partial(ours, fast=True), PLAIN: plain}
    batches, cores = max(1, images // batch_size), max(1, workers)
    found: dict[str, list[float]] = {name: [] for name in loaders}
    order = deque(loaders)
    for _ in range(rounds):
        for name in order:
            stream = iter(loaders[name]())
            list(islice(stream, 1 + workers))
            started = time.perf_counter()
            for _ in islice(stream, batches):
                pass
            found[name].append(batches * batch_size / (time.perf_counter() - started) / cores)
            del stream  # ends its workers
        order.rotate(-1)
    return found
