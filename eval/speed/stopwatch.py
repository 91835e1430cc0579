"""Time and memory of a device, without making it wait for the host."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # written to clear_refs: see proc(5)


class Stopwatch:
    """Marks moments in a device's work: CUDA events on a GPU, the clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"

    def mark(self) -> Any:
        """This moment."""
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, marks: Sequence[Any]) -> list[float]:
        """Time from each mark to the next; waits for the device."""
        pairs = list(pairwise(marks))
        if not self.on_gpu:
            return [1e3 * (end - start) for start, end in pairs]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]


class MemoryGauge:
    """Bytes in use: the CUDA allocator's, or this process's resident set (0 where it is unknown).

    On a CPU that is the whole process, Python and its libraries included.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"

    def now(self) -> int:
        """Bytes in use."""
        return torch.cuda.memory_allocated() if self.on_gpu else _resident("VmRSS")

    def reset(self) -> None:
        """Forgets the peak."""
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        elif CLEAR_REFS.exists():
            CLEAR_REFS.write_text(RESET_PEAK)

    def peak(self) -> int:
        """The most bytes in use since the last reset."""
        return torch.cuda.max_memory_allocated() if self.on_gpu else _resident("VmHWM")


def _resident(name: str) -> int:
    if not STATUS.exists():
        return 0
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return 1024 * int(lines[name].split()[0])
