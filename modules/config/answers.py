"""What ends the program with one line instead of a traceback: everything that a user can mend."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from safetensors import SafetensorError

from modules.errors import ArgumentError, RunStopped, one_line

CONTINUE = "continue with --resume_from_checkpoint latest"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
NO_COMPILER = ("No working C++ compiler found", "Failed to find C compiler",
               "Cannot find a working triton installation")  # fmt: skip
# A DataLoader has lost one of its processes, or the way to talk to them.
LOST_LOADER = ("DataLoader worker (pid", "Communication with the workers is no longer possible",
               "received 0 items of ancdata")  # fmt: skip


class Answer(NamedTuple):
    """Exit code 2 for a mistake in the arguments, 1 for a run that had to stop; and the line."""

    code: int
    message: str


@contextmanager
def exit_on_mistakes(program: str = "train_vae.py", then: str = CONTINUE) -> Iterator[None]:
    """What the user can mend ends the program with one message; a bug keeps its traceback.

    then: how to go on once the cause is mended.
    """
    try:
        yield
    except Exception as error:
        answer = answer_to(error, then)
        if answer is None:
            raise
        if _says(error, LOST_LOADER):  # others end as well, which PyTorch would raise anywhere
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        print(f"{program}: error: {answer.message}", file=sys.stderr)
        raise SystemExit(answer.code) from None


def answer_to(error: Exception, then: str = CONTINUE) -> Answer | None:
    """The one line that an error deserves; None for a bug, whose traceback is wanted."""
    if isinstance(error, ArgumentError | RunStopped):
        # A process that loads images hands over its traceback as well; the message comes last.
        message = str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip()
        return Answer(2 if isinstance(error, ArgumentError) else 1, " ".join(message.split()))
    if _is_about_space(error):
        return Answer(
            1, f"{error}. Files that were complete before are intact: make room, then {then}"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return Answer(1, f"{one_line(error)}. Mend that, then {then}")
    if is_about_memory(error):
        return Answer(
            1,
            f"out of memory ({one_line(error, 120)}). Lower --train_batch_size (and raise "
            "--gradient_accumulation_steps), --validation_batch_size, --resolution, or an "
            "evaluation's --batch_size, or train with --recompute norm or full; `python -m eval "
            f"memory` predicts a run's peak. Then {then}",
        )
    if _says(error, NO_COMPILER):
        return Answer(
            2,
            f"--compile finds no compiler on this machine ({one_line(error, 120)}); install one "
            "(for a CPU g++, for a GPU gcc and triton; CC and CXX name others), or drop --compile",
        )
    if _says(error, LOST_LOADER):
        return Answer(
            1,
            f"a process that loads images has ended ({one_line(error, 90)}). If its own output "
            "does not say why: it ran out of shared memory (/dev/shm; in a container: docker run "
            "--shm-size=1g, or --ipc=host), memory or open files (`ulimit -n`); fewer "
            f"--dataloader_num_workers (--num_workers) need less. Then {then}",
        )
    # torch.distributed has lost another process.
    if isinstance(error, RuntimeError) and (
        type(error).__name__.startswith("Dist") or "/gloo/" in str(error)
    ):
        first = str(error).splitlines()[0]
        return Answer(
            1,
            "another process of the run has ended, or has not answered within --ddp_timeout; its "
            f"own output says why ({first}). Then {then}",
        )
    return None


def _is_about_space(error: Exception) -> bool:
    """Whether a file could not be written for want of space, quota or permission to write."""
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    return isinstance(error, SafetensorError) and any(
        f"(os error {number})" in str(error) for number in NO_SPACE
    )


def is_about_memory(error: Exception) -> bool:
    """Whether the GPU or the machine has no more, also where only a library's message tells."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or _says(error, OUT_OF_MEMORY)


def _says(error: Exception, signs: Iterable[str]) -> bool:
    """Whether PyTorch has raised this for one of these reasons, of which it makes no types."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
