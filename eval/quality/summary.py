"""Seeds made into numbers: mean and spread of an arm, and its difference to another one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Spread:
    """Of one number over the seeds; std is the sample's (n - 1), NaN where there is one seed."""

    mean: float
    std: float
    low: float
    high: float
    seeds: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """values: one a seed, at least one."""
        std = statistics.stdev(values) if len(values) > 1 else math.nan
        return Spread(statistics.fmean(values), std, min(values), max(values), len(values))


def paired(values: Mapping[int, float], reference: Mapping[int, float]) -> Spread | None:
    """`values` minus `reference`, seed by seed; None where they have no seed in common.

    What a seed does to both (its order, crops, initial weights) is not in the spread.
    """
    differences = [values[seed] - reference[seed] for seed in values if seed in reference]
    return Spread.of(differences) if differences else None


def verdict(difference: Spread, better: str) -> str:
    """ "better", "worse", or "different" where `better` is neither "higher" nor "lower".

    "no difference" where the mean is within one standard deviation of the differences of seeds;
    "one seed" says that this is not known.
    """
    if difference.mean == 0 or abs(difference.mean) <= difference.std:
        return "no difference"
    if difference.seeds == 1:
        return "one seed"
    if better not in ("higher", "lower"):
        return "different"
    return "better" if (difference.mean > 0) == (better == "higher") else "worse"


def value_at(points: Sequence[tuple[float, float]], x: float) -> float:
    """The curve at x, linear between its points (x ascending); its last value after the last."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= x < x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1] if x >= points[-1][0] else points[0][1]


def mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Several curves as one: the mean of x and y of their first, second, ... points."""
    return [
        (statistics.fmean(x for x, _ in points), statistics.fmean(y for _, y in points))
        for points in zip(*curves, strict=False)
    ]
