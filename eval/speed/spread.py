"""A measured quantity: its median and how far it spreads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Median, and the 10th and 90th percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        p10, median, p90 = np.percentile(values, [10, 50, 90])
        return cls(float(median), float(p10), float(p90))

    def text(self, digits: int) -> str:
        """Such as "5.30 (5.21 to 5.64)"."""
        return f"{self.median:.{digits}f} ({self.p10:.{digits}f} to {self.p90:.{digits}f})"

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """How often `ours` goes into `theirs`, of values measured in pairs, one after the other."""
    return Spread.of([b / a for a, b in zip(ours, theirs, strict=True)])
