"""How fast training images are decoded and cropped, against plain PIL."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from eval.spread import Spread, ratio
from modules.data import TrainingImages, training_loader
from modules.shared_memory import end_rather_than_drop
from modules.sources import ImageSource, open_folder
from modules.synthetic import SyntheticImages

WIDTH, HEIGHT, QUALITY = 1024, 768, 90  # of the JPEGs made on the spot
DISTINCT = 32
LATENT_SHAPE = (4, 32, 32)


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


@dataclass(frozen=True)
class LoaderSpeed:
    """Images per second and core, one value for each round, the two loaders in turns."""

    workers: int
    ours: list[float]
    plain: list[float]

    @property
    def speedup(self) -> Spread:
        """Ours over plain, round by round."""
        return ratio(self.plain, self.ours)


def write_photos(folder: Path) -> list[Path]:
    """DISTINCT JPEGs of WIDTH x HEIGHT from the synthetic set."""
    source, paths = SyntheticImages(DISTINCT, WIDTH), []
    for index in range(DISTINCT):
        paths.append(folder / f"{index}.jpg")
        source.open(index).crop((0, 0, WIDTH, HEIGHT)).save(paths[-1], quality=QUALITY)
    return paths


def loader_speeds(
    folder: Path, resolution: int, workers: int, rounds: int, images: int, batch_size: int
) -> LoaderSpeed:
    """Both loaders over the pictures of `folder`, `images` each round; start-up is not timed.

    Only one exists at a time: what workers fetch ahead must not be fetched on the other's time.
    """
    source, paths = open_folder(folder, flag="--data"), sorted(folder.rglob("*.jpg"))
    loaders: tuple[Callable[[], Iterator[object]], ...] = (
        partial(_our_batches, source, resolution, workers, batch_size),
        partial(_plain_batches, paths, resolution, workers, batch_size),
    )
    batches, cores = max(1, images // batch_size), max(1, workers)
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for speeds, make in zip(found, loaders, strict=True):
            stream = make()
            list(islice(stream, 1 + workers))
            started = time.perf_counter()
            for _ in islice(stream, batches):
                pass
            speeds.append(batches * batch_size / (time.perf_counter() - started) / cores)
            del stream  # ends its workers
    return LoaderSpeed(workers, *found)


def _our_batches(
    source: ImageSource, resolution: int, workers: int, batch_size: int
) -> Iterator[object]:
    images = TrainingImages(source, resolution, latent_shape=LATENT_SHAPE, seed=0)
    return iter(training_loader(images, batch_size=batch_size, num_workers=workers))


def _plain_batches(
    paths: list[Path], resolution: int, workers: int, batch_size: int
) -> Iterator[Tensor]:
    images = PlainImages(paths, resolution)
    order = RandomSampler(images, replacement=True, num_samples=10**6)
    return iter(
        DataLoader(
            images,
            batch_size=batch_size,
            sampler=order,
            num_workers=workers,
            worker_init_fn=end_rather_than_drop,
        )
    )
