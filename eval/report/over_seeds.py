"""Numbers over seeds: mean and spread, and what the difference of two of them is worth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
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


def paired(values: Mapping[int, float], reference: Mapping[int, float]) -> OverSeeds | None:
    """`values` minus `reference`, seed by seed; None where they have no seed in common.

    What a seed does to both, by its order, crops and first weights, is not in this spread.
    """
    differences = [values[seed] - reference[seed] for seed in values if seed in reference]
    return OverSeeds.of(differences) if differences else None


def verdict(difference: OverSeeds, better: str) -> str:
    """In a word; better: "higher" or "lower", or else a difference is only "different".

    "no difference" where the mean is within one standard deviation of the differences of seeds,
    and "one seed" where that is not known.
    """
    if difference.mean == 0 or abs(difference.mean) <= difference.std:
        return "no difference"
    if difference.seeds == 1:
        return "one seed"
    if better not in ("higher", "lower"):
        return "different"
    return "better" if (difference.mean > 0) == (better == "higher") else "worse"
