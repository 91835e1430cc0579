"""A polite end: Ctrl-C and other signals ask the run to stop after the present optimizer step."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

from modules.errors import RunStopped

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)
# `timeout` and some launchers signal a process and then its whole group: in this many seconds the
# same signal is the same wish.
ECHO = 0.2
PATIENCE = 10.0  # seconds in which processes that can reach each other are connected


class StopRequest:
    """Remembers that a signal came; a second one ends the process at once.

    Processes of one run may be signalled at different moments, or only one of them. `agreed` lets
    them all stop after the same step. It talks over the CPU, so a GPU's queue is never drained for
    it, and waits at most `timeout` seconds for a process that is gone. A signal that was ignored
    when the script began, as SIGHUP is under nohup, stays ignored; but for SIGINT, which shells
    ignore on behalf of whatever runs in the background.
    """

    def __init__(self, timeout: float = 1800) -> None:
        self.received: int | None = None
        several = dist.is_initialized() and dist.get_world_size() > 1
        self.group = _connect(timeout) if several else None
        heeded = [
            number
            for number in SIGNALS
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN
        ]
        _exit_at_the_second(heeded)
        for number in heeded:
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received = number

    def agreed(self) -> bool:
        """Whether any process was asked to stop. Collective: every process must call it."""
        if self.group is None:
            return self.received is not None
        stop = torch.tensor([self.received is not None], dtype=torch.int32)
        dist.all_reduce(stop, dist.ReduceOp.MAX, group=self.group)
        return bool(stop)


def _connect(timeout: float) -> dist.ProcessGroup:
    """The processes' group over the CPU. Says what is the matter where that takes long or fails."""
    advice = (
        f"if the name of a host ({socket.gethostname()} here) resolves to 127.0.1.1, as on Debian "
        "and Ubuntu, other hosts cannot reach it: set GLOO_SOCKET_IFNAME to the network interface "
        "between the hosts, such as eth0"
    )
    waiting = threading.Timer(
        PATIENCE,
        logger.warning,
        [f"the processes, which agree over gloo when to stop, are not connected after {PATIENCE:g} "
         f"seconds; they wait for each other until --ddp_timeout={timeout:g} is over. Perhaps "
         f"{advice}"],
    )  # fmt: skip
    waiting.daemon = True
    waiting.start()
    try:
        return dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RunStopped(
            f"the processes cannot be connected over gloo ({reason}); {advice}"
        ) from error
    finally:
        waiting.cancel()


def _exit_at_the_second(heeded: list[int]) -> None:
    """Counts signals in a thread: Python's handlers wait while a library waits for a process."""
    receiving, sending = os.pipe()
    os.set_blocking(sending, False)
    signal.set_wakeup_fd(sending, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # workers have their own
    threading.Thread(target=_count, args=(heeded, receiving), daemon=True).start()


def _count(heeded: list[int], receiving: int) -> None:
    first, began = 0, 0.0
    while received := os.read(receiving, 1):
        number, now = received[0], time.monotonic()
        if number not in heeded or (number == first and now - began < ECHO):
            continue
        if first:
            os._exit(128 + number)
        first, began = number, now
