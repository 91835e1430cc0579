"""A polite end: SIGTERM and SIGUSR1 ask the run to stop after the present optimizer step."""

from __future__ import annotations

import os
import signal
from types import FrameType

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Remembers that a signal came; a second one ends the process at once.

    Processes of one run may be signalled at different moments, or only one of them. `agreed` lets
    them all stop after the same step. It talks over the CPU, so a GPU's queue is never drained for
    it.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        several = dist.is_initialized() and dist.get_world_size() > 1
        self.group = dist.new_group(backend="gloo") if several else None
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is not None:
            os._exit(128 + number)
        self.received = number

    def agreed(self) -> bool:
        """Whether any process was asked to stop. Collective: every process must call it."""
        if self.group is None:
            return self.received is not None
        stop = torch.tensor([self.received is not None], dtype=torch.int32)
        dist.all_reduce(stop, dist.ReduceOp.MAX, group=self.group)
        return bool(stop)
