"""This process's share of the images, in batches of one size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from modules.data.images.images import UnreadableImage
from modules.data.shared_memory import end_rather_than_drop
from modules.distributed.reduce import gather_from_processes, process_index_and_count

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Images [batch size, K, H, W] uint8, the last one repeated where fewer are left.

    `positions` and `digests` name the `count` real ones, `filled_positions` all; `images` is empty
    when none could be read.
    """

    images: Tensor
    positions: list[int]
    digests: list[int]
    filled_positions: list[int]
    unreadable: list[tuple[int, str]]

    @property
    def count(self) -> int:
        """How many images are real."""
        return len(self.positions)


class Interrupted(Exception):
    """A pass over the images was asked to stop before it had seen all of them."""


def own_batches(
    images: Dataset[Tensor],
    batch_size: int,
    num_workers: int,
    progress: bool,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Batch]:
    """Every P-th image of the data, starting at this process's rank.

    No image is seen twice, whatever the number of processes. stop: asked between batches, by all
    processes together; where it says so, all raise Interrupted.
    """
    rank, world_size = process_index_and_count()
    total = len(images)
    size = max(1, min(batch_size, total))
    common = -(-(total // world_size) // size)  # batches every process has
    own = range(rank, total, world_size)
    loader = DataLoader(
        _Readable(images),
        sampler=own,
        batch_size=size,
        num_workers=num_workers,
        collate_fn=partial(_collate, size),
        worker_init_fn=end_rather_than_drop,
        generator=torch.Generator(),  # otherwise a seed is drawn from the global state
    )
    batches = iter(loader)  # before the bar, whose thread must not be forked with its locks
    console = Console(stderr=True)
    columns = ("images", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not (progress and rank == 0 and console.is_terminal)
    with Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task("", total=len(own))
        for number, batch in enumerate(batches):
            if number < common and stop():
                raise Interrupted
            yield batch
            bar.advance(task, batch.count + len(batch.unreadable))


class _Readable(Dataset):
    """(position, image, "") or (position, None, reason): a damaged image must not end the pass."""

    def __init__(self, images: Dataset[Tensor]) -> None:
        self.images = images

    def __getitem__(self, position: int) -> tuple[int, Tensor | None, str]:
        try:
            return position, self.images[position], ""
        except UnreadableImage as error:
            return position, None, str(error)


def _collate(size: int, items: list[tuple[int, Tensor | None, str]]) -> Batch:
    readable = [(position, image) for position, image, _ in items if image is not None]
    positions = [position for position, _ in readable]
    images = [image for _, image in readable]
    fill = size - len(readable)
    return Batch(
        images=torch.stack(images + images[-1:] * fill) if images else torch.empty(0),
        positions=positions,
        digests=[image_digest(image) for image in images],
        filled_positions=positions + positions[-1:] * fill,
        unreadable=[(position, reason) for position, image, reason in items if image is None],
    )


def from_all_processes(own: dict[int, T]) -> dict[int, T]:
    """What is known by position, of the images of all processes, in their order."""
    return dict(sorted(gather_from_processes(list(own.items()))))


def image_digest(image: Tensor) -> int:
    """A 63-bit hash of one image's pixels and shape. image: [K, H, W] uint8."""
    digest = hashlib.blake2b(repr(tuple(image.shape)).encode(), digest_size=8)
    digest.update(image.contiguous().numpy())
    return int.from_bytes(digest.digest(), "little") >> 1
