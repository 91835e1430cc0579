"""Seeds made into numbers: mean and spread of an arm, and its difference to another one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Curve = Sequence[tuple[float, float]]


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

    What a seed does to both, by its order, crops and first weights, is not in this spread.
    """
    differences = [values[seed] - reference[seed] for seed in values if seed in reference]
    return Spread.of(differences) if differences else None


def verdict(difference: Spread, better: str) -> str:
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


def value_at(curve: Curve, x: float) -> float:
    """y at x, linear between points (x ascending), constant before the first and after the last."""
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 <= x < x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return curve[0][1] if x < curve[0][0] else curve[-1][1]


def mean_curve(curves: Sequence[Curve]) -> list[tuple[float, float]]:
    """The mean of the first points, of the second ones, and so on, as far as all curves go."""
    return [
        tuple(map(statistics.fmean, zip(*points, strict=True)))
        for points in zip(*curves, strict=False)
    ]
