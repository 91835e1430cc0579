"""The endless stream of training samples: shuffled epochs, one after the other, without a seam.

No batch is short, and a run is resumed from one number, whatever the number of workers.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from modules.data.images.samples import Sample, SampleMaker, collate
from modules.data.samplers.batches import BucketedBatches, Place, ShuffledBatches
from modules.data.samplers.buckets import Buckets
from modules.data.samplers.order import EpochOrder, Permutations
from modules.data.shared_memory import end_rather_than_drop
from modules.data.sources.parts import ImageSource
from modules.data.streaming.reader import StreamedImages, StreamLoader, StreamReader
from modules.distributed.signals import SIGNALS
from modules.errors import ArgumentError
from modules.seeding import seed_for

PREFETCHED_SAMPLES = 16  # each worker works at least this far ahead
PEER_ATTEMPTS = 10  # then a picture of any bucket will do, which loses more to the crop


class TrainingImages(Dataset[Sample]):
    """Samples of a source, by place in the stream.

    order: of the pictures of an epoch; by default every epoch is a permutation of the source.
    buckets: for batches of one shape each; without them all crops are square. options: as of
    SampleMaker. A picture that cannot be used is replaced by another one, of its bucket if there is
    one, chosen by (seed, draw, attempt), and named in `rejected`. Raises ArgumentError where the
    source is empty.
    """

    def __init__(
        self,
        source: ImageSource,
        resolution: int,
        order: EpochOrder | None = None,
        buckets: Buckets | None = None,
        **options: Any,
    ) -> None:
        if len(source) == 0:
            raise ArgumentError(f"{source.name} has no images to train on")
        self.source, self.maker = source, SampleMaker(resolution, **options)
        self.order, self.buckets = order or Permutations(len(source), self.maker.seed), buckets

    def batches(
        self, batch_size: int, rank: int, world_size: int, start_position: int
    ) -> Sampler[list[Place]]:
        """The places of one process's batches, for a DataLoader."""
        division = self.maker.resolution_at, batch_size, rank, world_size, start_position
        if self.buckets is None:
            return ShuffledBatches(self.order, *division)
        return BucketedBatches(self.order, *division, self.buckets, self.maker.seed)

    def __getitem__(self, place: Place) -> Sample:
        position, index, draw, resolution = place
        shape = self.buckets.shape(index, resolution) if self.buckets else None
        return self.maker.make(self._candidates(place), position, draw, resolution, shape)

    def _candidates(self, place: Place) -> Iterator[tuple[ImageSource, int]]:
        index, everyone = place.index, range(len(self.source))
        peers = self.buckets.peers(index) if self.buckets else everyone
        for attempt in count():
            yield self.source, index
            draw = seed_for(self.maker.seed, "replacement", *place.draw, attempt)
            choice = peers if attempt < PEER_ATTEMPTS else everyone
            index = int(choice[draw % len(choice)])


def training_loader(
    dataset: TrainingImages | StreamedImages,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    start_position: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader | StreamLoader:
    """The endless batches of one process, as `collate` makes them, from `start_position` on.

    batch_size: of one process. start_position: samples that all processes together have used. The
    batches do not depend on num_workers, and the global random state is left alone.
    """
    division = batch_size, rank, world_size, start_position
    if isinstance(dataset, StreamedImages):
        reader = StreamReader(dataset, *division, num_workers)
        size, make = reader.at_once, partial(StreamLoader, reader, batch_size)
    else:
        size, sampler = batch_size, dataset.batches(*division)
        make = partial(DataLoader, dataset, batch_sampler=sampler, collate_fn=collate)
    return make(
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetched_batches(size) if num_workers else None,
        worker_init_fn=_prepare_worker,
        generator=torch.Generator(),  # otherwise it draws its workers' seed from the global state
    )


def prefetched_batches(batch_size: int) -> int:
    """How many batches each worker works ahead."""
    return max(2, -(-PREFETCHED_SAMPLES // batch_size))


def _prepare_worker(worker: int) -> None:
    """A signal to the whole job must not kill the workers under a process that wants to save.

    What asks a run to stop is ignored, but for a SIGTERM sent by the parent itself, which is how
    multiprocessing ends a worker. A worker whose parent has died ends by itself. Systems that do
    not tell who sent a signal (all but Linux) are left as they are.
    """
    end_rather_than_drop(worker)
    if not hasattr(signal, "sigwaitinfo"):
        return
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = multiprocessing.parent_process().pid
    threading.Thread(target=_end_when_parent_says, args=(parent,), daemon=True).start()


def _end_when_parent_says(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
