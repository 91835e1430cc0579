"""One number of several seeds, wherever what a seed draws is repeated."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class OverSeeds:
    """std is the sample's (n - 1), NaN where there is one seed."""

    mean: float
    std: float
    low: float
    high: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> OverSeeds:
        """values: one a seed, at least one."""
        std = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), std, min(values), max(values), len(values))

    def text(self, digits: int, sign: str = "") -> str:
        """Such as "2.00 ± 1.41"; the number alone where there is one seed. sign: "+" to have it."""
        deviation = f" ± {self.std:.{digits}f}" if self.seeds > 1 else ""
        return f"{self.mean:{sign}.{digits}f}{deviation}"
