"""Charts as inline SVG: no script, no font, no other file; colours follow the page's theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 14, 44  # margins around the plot, in the same units
COLOURS = 8  # the page defines --series-0 to --series-7
MAX_POINTS = 600  # a line: more than one a pixel is not seen


@dataclass(frozen=True)
class Series:
    """One line: `y` over `x`; None, NaN and infinite values leave a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]


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
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def line_chart_svg(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    log_y: bool = False,
) -> str:
    """A figure with lines, axes with round ticks, and a legend when there is more than one line.

    `log_y` leaves out values that are not positive. A single point is drawn as a dot.
    """
    points = [[p for p in _valid(line, log_y)] for line in series]
    present = [point for line in points for point in line if point is not None]
    if not present:
        return _figure(title, _legend([]), _empty())
    x_scale = _scale([x for x, _ in present], LEFT, WIDTH - RIGHT, False, pad=0.0)
    y_scale = _scale([y for _, y in present], HEIGHT - BOTTOM, TOP, log_y, pad=0.06)
    marks = [_axes(x_scale, y_scale, x_label, y_label)]
    for index, line in enumerate(points):
        marks.append(_line(_thinned(line), x_scale, y_scale, index % COLOURS))
    legend = _legend([line.name for line in series] if len(series) > 1 else [])
    return _figure(title, legend, "".join(marks))


def bar_chart_svg(
    names: Sequence[str],
    values: Sequence[float],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    log_y: bool = False,
) -> str:
    """A figure with one bar for each name, from zero, or from the bottom of a logarithmic axis."""
    finite = [v for v in values if math.isfinite(v) and (v > 0 or not log_y)]
    if not finite:
        return _figure(title, "", _empty())
    anchored = finite if log_y else [0.0, *finite]
    y_scale = _scale(anchored, HEIGHT - BOTTOM, TOP, log_y, pad=0.06)
    base = y_scale.low if log_y else 0.0
    step = (WIDTH - LEFT - RIGHT) / len(values)
    marks = [_axes(None, y_scale, x_label, y_label)]
    every = math.ceil(len(names) * 26 / (WIDTH - LEFT - RIGHT))  # names must not overlap
    for index, (name, value) in enumerate(zip(names, values, strict=True)):
        left = LEFT + index * step
        if value in finite:
            top, bottom = sorted((y_scale(value), y_scale(base)))
            marks.append(
                f'<rect class="s0" x="{left + step * 0.15:.1f}" y="{top:.1f}" '
                f'width="{step * 0.7:.1f}" height="{max(bottom - top, 0.5):.1f}">'
                f"<title>{escape(name)}: {value:.5g}</title></rect>"
            )
        if index % every == 0:
            marks.append(_text(left + step / 2, HEIGHT - BOTTOM + 16, name, "middle"))
    return _figure(title, "", "".join(marks))


def heatmap_svg(matrix: Sequence[Sequence[float]], *, title: str) -> str:
    """A figure of a square matrix with values in [-1, 1]: blue below zero, red above."""
    size = len(matrix)
    side = min(HEIGHT - 2 * TOP - 12, WIDTH)
    cell = side / size
    left, top = (WIDTH - side) / 2, TOP
    marks = []
    for row, values in enumerate(matrix):
        for column, value in enumerate(values):
            x, y = left + column * cell, top + row * cell
            sign = "neg" if value < 0 else "pos"
            strength = min(1.0, abs(value)) if math.isfinite(value) else 0.0
            marks.append(
                f'<rect class="{sign}" fill-opacity="{strength:.3f}" x="{x:.1f}" y="{y:.1f}" '
                f'width="{cell:.2f}" height="{cell:.2f}">'
                f"<title>{row}, {column}: {value:.3f}</title></rect>"
            )
            if size <= 5:  # where a number still fits
                rounded = f"{round(value, 2) + 0.0:.2f}"
                text = _text(x + cell / 2, y + cell / 2 + 4, rounded, "middle")
                marks.append(text.replace("<text", '<text class="ink"'))
    marks.append(
        f'<rect class="frame" x="{left:.1f}" y="{top}" width="{side:.1f}" height="{side:.1f}"/>'
    )
    return _figure(title, "", "".join(marks))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) in [low, high], low < high."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _valid(line: Series, log: bool) -> list[tuple[float, float] | None]:
    def usable(value: float | None) -> bool:
        return value is not None and math.isfinite(value) and (value > 0 or not log)

    return [
        (float(x), float(y)) if usable(y) else None for x, y in zip(line.x, line.y, strict=True)
    ]


def _thinned(
    points: Sequence[tuple[float, float] | None],
) -> Sequence[tuple[float, float] | None]:
    """Every k-th point and the last, so that a long run does not make a heavy page."""
    every = math.ceil(len(points) / MAX_POINTS)
    kept = points[::every]
    return [*kept, points[-1]] if every > 1 else kept


def _scale(values: Sequence[float], start: float, end: float, log: bool, pad: float) -> _Scale:
    low, high = min(values), max(values)
    if log:
        low, high = (low / 1.5, high * 1.5) if low == high else (low, high)
        grow = (high / low) ** pad
        return _Scale(low / grow, high * grow, start, end, log=True)
    if low == high:
        spread = abs(low) * 0.1 or 1.0
        return _Scale(low - spread, high + spread, start, end)
    # A bar chart's zero, and the bottom of what is never negative, stay where they are.
    grow = (high - low) * pad
    return _Scale(low if low == 0 else low - grow, high if high == 0 else high + grow, start, end)


def _axis_ticks(scale: _Scale, count: int) -> list[float]:
    if not scale.log:
        return ticks(scale.low, scale.high, count)
    powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    decades = [factor * 10.0**power for power in powers for factor in factors]
    inside = [value for value in decades if scale.low <= value <= scale.high]
    return inside if len(inside) > 1 else ticks(scale.low, scale.high, count)


def _axes(x_scale: _Scale | None, y_scale: _Scale, x_label: str, y_label: str) -> str:
    marks = []
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value in _axis_ticks(y_scale, 5):
        y = y_scale(value)
        marks.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        marks.append(_text(LEFT - 7, y + 4, tick_text(value), "end"))
    for value in _axis_ticks(x_scale, 5) if x_scale else []:
        marks.append(_text(x_scale(value), bottom + 16, tick_text(value), "middle"))
    marks.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
    marks.append(_text((LEFT + right) / 2, HEIGHT - 8, x_label, "middle"))
    middle = (TOP + bottom) / 2
    rotated = _text(13, middle, y_label, "middle")
    marks.append(rotated.replace("<text", f'<text transform="rotate(-90 13 {middle:.0f})"'))
    return "".join(marks)


def tick_text(value: float) -> str:
    """A short number: 20k, 1.5M, 0.05, 1e-6."""
    size = abs(value)
    if value == 0:
        return "0"
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e6 if unit == 'M' else 1e3):.4g}{unit}"
    if size >= 1e-3:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _line(
    points: Sequence[tuple[float, float] | None], x_scale: _Scale, y_scale: _Scale, colour: int
) -> str:
    commands, drawing, dots = [], False, []
    for index, point in enumerate(points):
        if point is None:
            drawing = False
            continue
        x, y = x_scale(point[0]), y_scale(point[1])
        commands.append(f"{'L' if drawing else 'M'}{x:.1f} {y:.1f}")
        alone = not drawing and (index + 1 == len(points) or points[index + 1] is None)
        if alone:
            dots.append(f'<circle class="s{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        drawing = True
    return f'<path class="line l{colour}" d="{"".join(commands)}"/>' + "".join(dots)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _empty() -> str:
    return _text(WIDTH / 2, HEIGHT / 2, "no values", "middle")


def _legend(names: Sequence[str]) -> str:
    entries = "".join(
        f'<span><i class="b{index % COLOURS}"></i>{escape(name)}</span>'
        for index, name in enumerate(names)
    )
    return f'<div class="legend">{entries}</div>' if names else ""


def _figure(title: str, legend: str, marks: str) -> str:
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{legend}'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{marks}</svg>'
        "</figure>"
    )
