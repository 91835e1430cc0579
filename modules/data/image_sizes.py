"""The sizes of all pictures of a source, from their headers: nothing is decoded.

They are read once for each data set, and kept in a folder of caches by the data's fingerprint.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from modules.data.images.images import UnreadableImage
from modules.data.sources.parts import ImageSource, Subset
from modules.distributed.reduce import process_index_and_count, sum_over_processes

logger = logging.getLogger(__name__)

THREADS = 16  # they wait for the disk; PIL's own work is one thread's at a time
RUN = 256  # pictures of one call


def read_sizes(source: ImageSource, cache: Path | None = None) -> Tensor:
    """int32 [n, 2], height and width of every picture as it is trained on; zeros if unreadable.

    cache: the folder that keeps them. Collective: every process reads the headers of its share,
    unless the first one finds all of them in the cache. The first one shows how far it is.
    """
    rank, world_size = process_index_and_count()
    file = cache and cache / f"{_identity(source)}.npy"
    known = _load(file, len(source)) if file and rank == 0 else None
    sizes = torch.zeros(len(source), 2, dtype=torch.int32) if known is None else known
    if sum_over_processes(torch.tensor(int(known is not None))):
        return sum_over_processes(sizes)
    logger.info("reading the sizes of %d images", len(source))
    share = range(rank, len(source), world_size)
    runs = [share[start : start + RUN] for start in range(0, len(share), RUN)]
    hidden = None if rank == 0 else True  # None: where there is no terminal
    bar = tqdm(total=len(share), desc="Image sizes", disable=hidden)
    with bar, ThreadPoolExecutor(THREADS) as pool:
        for run, found in zip(runs, pool.map(partial(_sizes, source), runs), strict=True):
            sizes[run.start : run.stop : run.step] = torch.tensor(found, dtype=torch.int32)
            bar.update(len(run))
    sizes = sum_over_processes(sizes)
    if file and rank == 0:
        _save(file, sizes)
    return sizes


def _identity(source: ImageSource) -> str:
    digest = hashlib.blake2b(f"{source.fingerprint()} {source.name}".encode(), digest_size=16)
    while isinstance(source, Subset):
        digest.update(source.indices.tobytes())
        source = source.source
    return digest.hexdigest()


def _load(file: Path, count: int) -> Tensor | None:
    try:
        sizes = torch.from_numpy(np.load(file, allow_pickle=False))
    except (OSError, ValueError, EOFError):  # none there, or half of one
        return None
    return sizes if sizes.shape == (count, 2) and sizes.dtype == torch.int32 else None


def _save(file: Path, sizes: Tensor) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial_file = file.with_name(f".{os.getpid()}.npy")
        np.save(partial_file, sizes.numpy())
        os.replace(partial_file, file)
    except OSError as error:
        logger.warning("the sizes of the images are not kept for the next start: %s", error)


def _sizes(source: ImageSource, indices: Sequence[int]) -> list[tuple[int, int]]:
    found = []
    for index in indices:
        try:
            found.append(source.shape(index))
        except UnreadableImage:  # it is named when its turn comes in training
            found.append((0, 0))
    return found
