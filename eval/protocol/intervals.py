"""How sure a mean over few images is: bootstrap intervals, also of differences between models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from eval.metrics.columns import COLUMN
from eval.protocol.results import Evaluation

RESAMPLES = 2000
LEVEL = 0.95
CHUNK_ELEMENTS = 2**22  # counts drawn at a time: memory does not grow with images x resamples


@dataclass(frozen=True)
class Interval:
    """A mean over images, their standard deviation, and the mean's bootstrap interval."""

    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """`first` minus `second` on the same images, per-image and therefore paired."""

    metric: str
    first: str
    second: str
    interval: Interval

    @property
    def better(self) -> str | None:
        """The model that is better; None where the interval contains zero or no way is better.

        For metrics that are best at a value ("zero", "one") no winner is named: their sign is not
        an order.
        """
        direction = COLUMN[self.metric].better
        larger, smaller = self.interval.low > 0, self.interval.high < 0
        if direction not in ("higher", "lower") or not (larger or smaller):
            return None
        return self.first if larger == (direction == "higher") else self.second


def bootstrap(values: np.ndarray, seed: int = 0) -> list[Interval]:
    """The mean of each column with its percentile bootstrap interval (Efron 1979).

    values: [N, K] float64; NaN entries are not part of their column. All columns share the
    resampled images, so no result depends on which others are asked for. A column without any
    number gives NaN.
    """
    valid = ~np.isnan(values)
    filled = np.where(valid, values, 0.0)
    count = len(values)
    generator = np.random.default_rng(seed)
    means = []
    chunk = max(1, CHUNK_ELEMENTS // count)
    for start in range(0, RESAMPLES, chunk):
        size = min(chunk, RESAMPLES - start)
        times_drawn = generator.multinomial(count, np.full(count, 1 / count), size).astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            means.append(times_drawn @ filled / (times_drawn @ valid))
    columns = zip(values.T, valid.T, np.concatenate(means).T, strict=True)
    return [_interval(column[present], resampled) for column, present, resampled in columns]


def intervals(evaluation: Evaluation, seed: int = 0) -> dict[str, Interval]:
    """The interval of every per-image metric of a model."""
    found = {key: values for key, values in evaluation.per_image.items() if key in COLUMN}
    return _by_key(found, seed)


def paired_differences(evaluations: Mapping[str, Evaluation], seed: int = 0) -> list[Difference]:
    """Every two models compared on every metric both have, over the images both reconstructed."""
    differences = []
    for first, second in combinations(evaluations, 2):
        a, b = evaluations[first].per_image, evaluations[second].per_image
        gaps = {
            key: a[key] - b[key] for key in a if key in b and key in COLUMN and COLUMN[key].better
        }
        differences += [
            Difference(key, first, second, interval)
            for key, interval in _by_key(gaps, seed).items()
        ]
    return differences


def _by_key(columns: Mapping[str, np.ndarray], seed: int) -> dict[str, Interval]:
    if not columns:
        return {}
    found = bootstrap(np.stack(list(columns.values()), axis=1), seed)
    return dict(zip(columns, found, strict=True))


def _interval(values: np.ndarray, resampled: np.ndarray) -> Interval:
    if not len(values):
        return Interval(*[float("nan")] * 4)
    low, high = np.nanquantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    std = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    return Interval(float(values.mean()), std, float(low), float(high))
