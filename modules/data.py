"""The endless stream of training samples: shuffled epochs, one after the other, without a seam.

Position p in the stream is sample `p % n` of epoch `p // n`. Batches are runs of positions, so none
is short, none crosses an epoch badly, and a run is resumed from one number, whatever the number of
workers or processes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from modules.errors import ArgumentError
from modules.samples import Candidate, Sample, SampleMaker, collate
from modules.seeding import seed_for
from modules.sources import ImageSource, reduced
from modules.streaming import StreamedImages

PREFETCHED_SAMPLES = 16  # each worker works at least this far ahead


class TrainingImages(Dataset[Sample]):
    """Samples by position in the stream; every epoch is a permutation of the source.

    options: as of SampleMaker. A picture that cannot be used is replaced by another one, chosen by
    (seed, epoch, index, attempt), and named in `rejected`. Raises ArgumentError where
    the source is empty.
    """

    def __init__(self, source: ImageSource, resolution: int, **options: Any) -> None:
        if len(source) == 0:
            raise ArgumentError(f"{source.name} has no images to train on")
        self.maker = SampleMaker(resolution, **options)
        self.source = reduced(source, self.maker.target)

    def __getitem__(self, position: int) -> Sample:
        epoch, offset = divmod(position, len(self.source))
        order = _permutation(len(self.source), self.maker.seed, epoch)
        index = int(order[offset])
        return self.maker.make(self._candidates(epoch, index), position, epoch, index)

    def _candidates(self, epoch: int, index: int) -> Iterator[Candidate]:
        candidate = index
        for attempt in count():
            yield Candidate(
                partial(self.source.open, candidate), partial(self.source.label, candidate)
            )
            draw = seed_for(self.maker.seed, "replacement", epoch, index, attempt)
            candidate = draw % len(self.source)


@lru_cache(maxsize=2)  # a batch may lie in two epochs
def _permutation(size: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_for(seed, "order", epoch))
    return torch.randperm(size, generator=generator)


class PositionSampler(Sampler[list[int]]):
    """The positions of one process's batches, without end.

    Of each run of world_size x batch_size positions from start_position on, process `rank` gets the
    rank-th batch_size: together the processes see what one with the whole batch sees, in order.
    """

    def __init__(self, batch_size: int, rank: int, world_size: int, start_position: int) -> None:
        self.batch_size = batch_size
        self.first = start_position + rank * batch_size
        self.stride = world_size * batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for first in count(self.first, self.stride):
            yield list(range(first, first + self.batch_size))


def training_loader(
    dataset: TrainingImages | StreamedImages,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    start_position: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """The endless batches of one process, as `collate` makes them, from `start_position` on.

    batch_size: of one process. start_position: samples that all processes together have used. The
    batches do not depend on num_workers, and the global random state is left alone.
    """
    if isinstance(dataset, StreamedImages):
        reader = dataset.reader(batch_size, rank, world_size, start_position)
        order: dict[str, Any] = {"dataset": reader, "batch_size": batch_size}
    else:
        sampler = PositionSampler(batch_size, rank, world_size, start_position)
        order = {"dataset": dataset, "batch_sampler": sampler}
    return DataLoader(
        **order,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=max(2, -(-PREFETCHED_SAMPLES // batch_size)) if num_workers else None,
        worker_init_fn=_leave_signals_to_parent,
        generator=torch.Generator(),  # otherwise it draws its workers' seed from the global state
    )


def _leave_signals_to_parent(worker: int) -> None:
    """A signal to the whole job must not kill the workers under a process that wants to save.

    Ctrl-C, SIGUSR1 and SIGTERM are ignored, but for a SIGTERM sent by the parent itself, which is
    how multiprocessing ends a worker. A worker whose parent has died ends by itself. Systems that
    do not tell who sent a signal (all but Linux) are left as they are.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = multiprocessing.parent_process().pid
    threading.Thread(target=_end_when_parent_says, args=(parent,), daemon=True).start()


def _end_when_parent_says(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
