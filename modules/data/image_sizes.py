"""The sizes of all pictures of a source, from their headers: nothing is decoded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor
from tqdm.auto import tqdm

from modules.data.images.images import UnreadableImage
from modules.data.sources.open import ImageSource
from modules.distributed.reduce import process_index_and_count, sum_over_processes

logger = logging.getLogger(__name__)

THREADS = 16  # they wait for the disk; PIL's own work is one thread's at a time
RUN = 256  # pictures of one call
UNKNOWN = (0, 0)


def read_sizes(source: ImageSource) -> Tensor:
    """int32 [n, 2], height and width of every picture as it is trained on; zeros if unreadable.

    Collective: every process reads the headers of its share. The first one shows how far it is.
    """
    rank, world_size = process_index_and_count()
    share = range(rank, len(source), world_size)
    runs = [share[start : start + RUN] for start in range(0, len(share), RUN)]
    logger.info("reading the sizes of %d images", len(source))
    progress = tqdm(
        total=len(share),
        desc="Image sizes",
        disable=None if rank == 0 else True,  # None: where there is no terminal
    )
    sizes = torch.zeros(len(source), 2, dtype=torch.int32)
    with progress, ThreadPoolExecutor(THREADS) as pool:
        for run, found in zip(runs, pool.map(partial(_sizes, source), runs), strict=True):
            sizes[run.start : run.stop : run.step] = torch.tensor(found, dtype=torch.int32)
            progress.update(len(run))
    return sum_over_processes(sizes)


def _sizes(source: ImageSource, indices: Sequence[int]) -> list[tuple[int, int]]:
    return [_size(source, index) for index in indices]


def _size(source: ImageSource, index: int) -> tuple[int, int]:
    try:
        return source.shape(index)
    except UnreadableImage:
        return UNKNOWN  # it is named when its turn comes in training
