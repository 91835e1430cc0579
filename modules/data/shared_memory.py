"""The memory through which loader processes hand over batches: enough of it, or no hanging."""

from __future__ import annotations

import errno
import math
import multiprocessing.queues
import os
import resource
import sys
from pathlib import Path
from types import TracebackType

from modules.errors import ArgumentError, one_line

SHARED = Path("/dev/shm")  # where Linux keeps it; Docker gives 64 MB
ENOUGH_FILES = 65536  # many systems allow 1024 unless a program asks
IN_USE = 2  # batches that the training process still holds


def require_shared_memory(flag: str, num_workers: int, waiting: int, batch_bytes: int) -> None:
    """Raises ArgumentError where the batches of all workers do not fit into free shared memory.

    flag: the one that sets num_workers. waiting: batches that each worker has ready at most. The
    other processes of a run on this machine need as much. Each batch that waits is an open file as
    well: their number is raised to what the system allows.
    """
    if num_workers == 0:
        return
    _raise_limit_of_open_files()
    if not SHARED.is_dir():
        return
    batch_of_all = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * batch_bytes
    needed = (num_workers * waiting + IN_USE) * batch_of_all
    found = os.statvfs(SHARED)
    free = found.f_bavail * found.f_frsize
    if needed <= free:
        return
    fewer = max(0, (free - IN_USE * batch_of_all) // (waiting * batch_of_all))
    raise ArgumentError(
        f"{flag}={num_workers}: the batches that wait for their turn need {needed / 1e6:.0f} MB of "
        f"shared memory, and {SHARED} has {free / 1e6:.0f} MB free; give more (in a container: "
        f"docker run --shm-size={math.ceil(2 * needed / 2**30)}g, or --ipc=host), or {flag} {fewer}"
    )


def _raise_limit_of_open_files() -> None:
    limit, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH_FILES if allowed == resource.RLIM_INFINITY else min(allowed, ENOUGH_FILES)
    if limit != resource.RLIM_INFINITY and limit < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, allowed))


def end_rather_than_drop(worker: int = 0) -> None:
    """Makes a loader process (`worker_init_fn`) end where it cannot hand over a batch.

    Batches leave a worker in a thread of their queue, which prints what goes wrong there (no shared
    memory, no more open files) and drops the batch: the training process would wait for ever.
    When the worker ends instead, PyTorch raises an error there. So it does where it cannot be asked
    for a batch: multiprocessing would print a traceback over and over.
    """
    del worker
    sys.excepthook = _end_without_files
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end)


def _end(error: BaseException, batch: object) -> None:
    del batch
    print(f"a loaded batch cannot be handed over: {one_line(error)}", file=sys.stderr, flush=True)
    os._exit(1)


def _end_without_files(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        _end(error, None)
    sys.__excepthook__(kind, error, trace)
