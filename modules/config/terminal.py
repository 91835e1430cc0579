"""The terminal the script was started from: what was typed there, and that it may go away."""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType


class _Lasting(io.FileIO):
    """A descriptor that takes everything: its reader may be gone, its disk full, its host away."""

    def write(self, data: bytes) -> int:
        """Writes what can be written; says that all of it was, or buffers would try for ever."""
        with suppress(OSError):
            return super().write(data) or len(data)
        return len(data)


def outlive_the_terminal() -> None:
    """From here on nothing that is printed, by whatever library, can fail; call it first.

    Not when a pipe's reader has ended, the disk under a log is full, the terminal hung up or was
    closed before the start, and not for a character that the encoding does not have. Without a
    terminal the bars of libraries are off: a log file would hold them as one endless line.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # the next file to be opened, a checkpoint's say, would get this number
            os.open(os.devnull, os.O_RDWR)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        before = getattr(sys, name)
        lasting = io.TextIOWrapper(
            io.BufferedWriter(_Lasting(descriptor, "w", closefd=False)),
            encoding=before.encoding if before else "utf-8",
            errors="backslashreplace",
            line_buffering=True,
        )
        setattr(sys, name, lasting)
    if not sys.stderr.isatty():
        for library in ("HF_HUB", "HF_DATASETS"):
            os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")


def leave_when_interrupted(last_words: str) -> None:
    """Ctrl-C ends the script with one line and code 130, while there is nothing to save.

    In training `StopRequest` takes over. Processes that load data leave without a word.
    """
    main = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(number, signal.SIG_DFL)  # at once, the next time
        if os.getpid() == main:
            with suppress(OSError):  # not by print: what is interrupted may be another one
                os.write(2, f"\n{last_words}\n".encode())
        raise SystemExit(128 + number)

    signal.signal(signal.SIGINT, leave)


def typed_command(argv: Sequence[str]) -> tuple[str, ...]:
    """The command that started this program, from the launcher on where one did.

    argv: the script's arguments. "..." stands for a launcher that the system does not show.
    """
    ours = [sys.argv[0], *argv]
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode().split("\0")[:-1]
    except (OSError, UnicodeDecodeError):
        words = []
    if words[-len(ours) :] == ours and Path(words[0]).name.startswith("python"):
        module = words[1] == "-m"  # python -m torch.distributed.run
        return ("python", *words[1:]) if module else (Path(words[1]).name, *words[2:])
    return ("..." if "WORLD_SIZE" in os.environ else "python", *ours)


def continuing(command: Sequence[str]) -> str:
    """The shell's line by which what `command` began goes on; a secret in it is not repeated."""
    kept, words = [], iter(command)
    for word in words:
        name, equals, _ = word.partition("=")
        if name in ("--resume_from_checkpoint", "--hub_token") and not equals:
            next(words, None)
        if name == "--hub_token":
            kept += [name, "..."]
        elif name not in ("--resume_from_checkpoint", "--overwrite_output_dir"):
            kept.append(word)
    return shlex.join([*kept, "--resume_from_checkpoint", "latest"])
