"""Times of a device's work, without making it wait for the host, and how far they spread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch


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
        if not self.on_gpu:
            return [1e3 * (end - start) for start, end in pairwise(marks)]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairwise(marks)]


@dataclass(frozen=True)
class Spread:
    """A measured quantity: its median, and the 10th and 90th percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        p10, median, p90 = np.percentile(values, [10, 50, 90])
        return cls(float(median), float(p10), float(p90))

    @classmethod
    def ratio(cls, ours: Sequence[float], theirs: Sequence[float]) -> Spread:
        """How often `ours` goes into `theirs`, of values measured in pairs, one after the other."""
        return cls.of([b / a for a, b in zip(ours, theirs, strict=True)])

    def text(self, digits: int) -> str:
        """Such as "5.30 (5.21 to 5.64)"."""
        return f"{self.median:.{digits}f} ({self.p10:.{digits}f} to {self.p90:.{digits}f})"
