"""Line charts as positions for the SVG in parts.html: no script, no font, no other file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

MAX_POINTS = 600  # a line: more than one a pixel is not seen

Points = Sequence[tuple[float, float | None]]  # None, NaN and infinite values leave a gap


class Line(NamedTuple):
    """An SVG path, and the points that stand alone, which a path does not show."""

    name: str
    path: str
    dots: list[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """What parts.html draws. Ticks are (position, text). Without values there are no ticks."""

    title: str
    x_label: str
    lines: list[Line] = field(default_factory=list)
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    width: ClassVar[int] = 480
    height: ClassVar[int] = 270
    left: ClassVar[int] = 68  # the plot in its frame, the tick texts around it
    right: ClassVar[int] = 466
    top: ClassVar[int] = 12
    bottom: ClassVar[int] = 224


@dataclass(frozen=True)
class _Scale:
    """A mapping from values to positions along an axis, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values on the axis, with their positions."""
        values = ticks(self.low, self.high)
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            factors = (1, 2, 5) if len(powers) <= 3 else (1,)
            decades = [factor * 10.0**power for power in powers for factor in factors]
            inside = [value for value in decades if self.low <= value <= self.high]
            values = inside if len(inside) > 1 else values
        return [(self(value), tick_text(value)) for value in values]


def line_chart(
    title: str, x_label: str, series: Mapping[str, Points], log_y: bool = False
) -> Chart:
    """Lines by name, with round ticks. `log_y` leaves out values that are not positive."""
    lines = {name: _usable(points, log_y) for name, points in series.items()}
    present = [point for points in lines.values() for point in points if point is not None]
    if not present:
        return Chart(title, x_label)
    x_scale = _scale([x for x, _ in present], Chart.left, Chart.right, False, pad=0.0)
    y_scale = _scale([y for _, y in present], Chart.bottom, Chart.top, log_y, pad=0.06)
    drawn = [_line(name, points, x_scale, y_scale) for name, points in lines.items()]
    return Chart(title, x_label, drawn, x_scale.ticks(), y_scale.ticks())


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) in [low, high], low < high."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A short number: 20k, 1.5M, 0.05, 1e-6."""
    size = abs(value)
    if value == 0:
        return "0"
    for limit, unit, name in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= limit:
            return f"{value / unit:.4g}{name}"
    if size >= 1e-3:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _usable(points: Points, log: bool) -> list[tuple[float, float] | None]:
    """Every k-th point and the last, so that a long run does not make a heavy page."""
    every = math.ceil(len(points) / MAX_POINTS) or 1
    kept = [*points[::every], *points[-1:]] if every > 1 else points
    return [
        (x, y) if y is not None and math.isfinite(y) and (y > 0 or not log) else None
        for x, y in kept
    ]


def _scale(values: Sequence[float], start: float, end: float, log: bool, pad: float) -> _Scale:
    low, high = min(values), max(values)
    if log:
        low, high = (low / 1.5, high * 1.5) if low == high else (low, high)
        grow = (high / low) ** pad
        return _Scale(low / grow, high * grow, start, end, log=True)
    if low == high:
        spread = abs(low) * 0.1 or 1.0
        return _Scale(low - spread, high + spread, start, end)
    grow = (high - low) * pad  # the bottom of what is never negative stays where it is
    return _Scale(low if low == 0 else low - grow, high if high == 0 else high + grow, start, end)


def _line(
    name: str, points: Sequence[tuple[float, float] | None], x_scale: _Scale, y_scale: _Scale
) -> Line:
    commands, dots = [], []
    for before, point, after in zip([None, *points], points, [*points[1:], None], strict=False):
        if point is None:
            continue
        x, y = x_scale(point[0]), y_scale(point[1])
        commands.append(f"{'L' if before else 'M'}{x} {y}")
        if not (before or after):
            dots.append((x, y))
    return Line(name, "".join(commands), dots)
