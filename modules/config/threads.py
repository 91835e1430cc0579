"""Threads for a CPU. PyTorch reads their number when it is imported, so this comes before."""

from __future__ import annotations

from collections.abc import MutableMapping

THREADS = "OMP_NUM_THREADS"


def undo_launchers_limit(environment: MutableMapping[str, str]) -> None:
    """Lets PyTorch use all cores where `accelerate launch` has limited one process to one thread.

    Its default is one thread for each process even when that is the only one, which leaves all
    cores but one idle. `OMP_NUM_THREADS` of the user is obeyed with `python train_vae.py`, and with
    the launcher wherever it is not 1: the launcher passes both on under the same name.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in environment
    alone = environment.get("WORLD_SIZE", "1") == "1"
    if launched and alone and environment.get(THREADS) == "1":
        del environment[THREADS]
