"""What a number of lanes means for the bytes that are read and for how often each image comes."""

from __future__ import annotations

import logging
import os

import numpy as np
from datasets.utils.file_utils import is_local_path

from modules.data.streaming.lanes import RowStream, ShardRows
from modules.data.streaming.rows import MixedRows

logger = logging.getLogger(__name__)

UNEVEN = 1.5  # times the mean length of a lane


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
