"""A polite end: SIGTERM and SIGUSR1 ask the run to stop after the present optimizer step."""

from __future__ import annotations

import os
import signal
import socket
import threading
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Remembers that a signal came; a second one ends the process at once.

    Processes of one run may be signalled at different moments, or only one of them. `agreed` lets
    them all stop after the same step. It talks over the CPU, so a GPU's queue is never drained for
    it, and waits at most `timeout` seconds for a process that is gone.
    """

    def __init__(self, timeout: float = 1800) -> None:
        self.received: int | None = None
        several = dist.is_initialized() and dist.get_world_size() > 1
        limit = timedelta(seconds=timeout)
        self.group = dist.new_group(backend="gloo", timeout=limit) if several else None
        for number in SIGNALS:
            signal.signal(number, self._receive)
        _exit_at_the_second()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = number

    def agreed(self) -> bool:
        """Whether any process was asked to stop. Collective: every process must call it."""
        if self.group is None:
            return self.received is not None
        stop = torch.tensor([self.received is not None], dtype=torch.int32)
        dist.all_reduce(stop, dist.ReduceOp.MAX, group=self.group)
        return bool(stop)


def _exit_at_the_second() -> None:
    """Counts signals in a thread: Python's handlers wait while a library waits for a process."""
    receiving, sending = socket.socketpair()
    sending.setblocking(False)
    signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # workers have their own
    threading.Thread(target=_count, args=(receiving, sending), daemon=True).start()


def _count(receiving: socket.socket, sending: socket.socket) -> None:
    del sending  # referred to, so that it stays open
    first = True
    while number := receiving.recv(1):
        if number[0] not in SIGNALS:
            continue
        if not first:
            os._exit(128 + number[0])
        first = False
