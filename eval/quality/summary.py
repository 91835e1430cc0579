"""Seeds made into numbers: an arm's difference to another one, and their mean curve."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from eval.report.over_seeds import OverSeeds


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


def mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The mean of the first points, of the second ones, and so on, as far as all curves go."""
    return [
        tuple(map(statistics.fmean, zip(*points, strict=True)))
        for points in zip(*curves, strict=False)
    ]
