"""The comparison as tables in a terminal, as data for JSON, and as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.protocol.results import Evaluation
from eval.quality.measure import COLUMNS, Measured, summary_of
from eval.quality.summary import Spread, mean_curve, paired, verdict
from eval.report.charts import line_chart
from eval.report.grid import comparison_grid
from eval.report.outputs import write_json
from eval.report.page import Cell, write_page
from eval.report.terminal import print_table

EXPLAINED = (
    "A difference is taken seed by seed; within one standard deviation of these it is called none."
)


@dataclass(frozen=True)
class Comparison:
    """What was measured, by arm; the first arm is what the others are compared with.

    commands: what trained each. failed: why a training did not end well, by "arm, seed".
    """

    arms: Mapping[str, Mapping[int, Measured]]
    baselines: Mapping[str, Evaluation]
    commands: Mapping[str, str]
    failed: Mapping[str, str]
    stamp: Sequence[str]

    @property
    def keys(self) -> list[str]:
        """Numbers that any arm has, in table order."""
        present = {key for seeds in self.arms.values() for m in seeds.values() for key in m.numbers}
        return [key for key in COLUMNS if key in present]

    @property
    def explained(self) -> str:
        """How to read the tables."""
        seeds = sorted({len(each) for each in self.arms.values()})
        return f"Mean and standard deviation over {' or '.join(map(str, seeds))} seeds. {EXPLAINED}"

    def values(self, arm: str, key: str) -> dict[int, float]:
        """By seed."""
        found = {seed: m.numbers.get(key) for seed, m in self.arms[arm].items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def spread(self, arm: str, key: str) -> Spread | None:
        """Over the seeds; None where the arm does not have this number."""
        values = self.values(arm, key)
        return Spread.of([*values.values()]) if values else None

    def difference(self, arm: str, key: str) -> Spread | None:
        """To the first arm, paired by seed."""
        return paired(self.values(arm, key), self.values(next(iter(self.arms)), key))


def write_quality(found: Comparison, output: Path) -> None:
    """Prints both tables; writes quality.json, quality.html and a grid of pictures for each arm."""
    names = [name for name in found.arms if found.arms[name]]
    tables = _tables(found, names)
    for header, rows in tables:
        print_table([[header[0], *header[1:]]] + [
            [name, *(f"{cell.text} {cell.detail}".strip() for cell in cells)]
            for name, cells in rows.items()
        ])  # fmt: skip
        print(flush=True)
    print(found.explained, meanings_of(found.keys), *found.stamp, sep="\n")
    write_json(str(output / "quality.json"), quality_data(found, names))
    grids = {}
    for name in names:
        first = min(found.arms[name])
        label = f"{name}, seed {first}"
        grids[label] = comparison_grid({label: found.arms[name][first].evaluation})
        grids[label].save(output / f"{name}.png")
    write_page(
        output / "quality.html", "quality.html", title="Training arms side by side",
        lead=f"{len(names)} arms, differences to {names[0]}", tables=tables,
        explained=found.explained,
        meanings=meanings_of(found.keys), charts=_charts(found, names), grids=grids,
        commands=found.commands, failed=found.failed, stamp=found.stamp,
    )  # fmt: skip


def quality_data(found: Comparison, names: Sequence[str]) -> dict[str, Any]:
    """Everything measured: by arm its spreads, its differences with verdicts, and its runs."""
    return {
        "arms": {
            name: {
                "command": found.commands[name],
                "measures": {key: asdict(spread) for key in found.keys
                             if (spread := found.spread(name, key))},
                "differences": {key: {**asdict(difference), "verdict": _verdict(difference, key)}
                                for key in found.keys
                                if (difference := found.difference(name, key))},
                "runs": {seed: {"numbers": measured.numbers, "curve": measured.curve}
                         for seed, measured in found.arms[name].items()},
            }
            for name in names
        },
        "baselines": {name: summary_of(found) for name, found in found.baselines.items()},
        "failed": found.failed,
        "stamp": found.stamp,
    }  # fmt: skip


def meanings_of(keys: Sequence[str]) -> str:
    """What the columns are, in one paragraph."""
    return "; ".join(f"{COLUMNS[key].title}: {COLUMNS[key].meaning}" for key in keys) + "."


def _tables(
    found: Comparison, names: Sequence[str]
) -> list[tuple[list[str], dict[str, list[Cell]]]]:
    """Means with spread, baselines under them; then differences to the first arm."""
    heads = [COLUMNS[key].heading for key in found.keys]
    means = {name: [_cell(found.spread(name, key), key) for key in found.keys] for name in names}
    for name, evaluation in found.baselines.items():
        numbers = summary_of(evaluation)
        means[name] = [Cell(COLUMNS[key].format(numbers.get(key))) for key in found.keys]
    differences = {
        name: [_cell(found.difference(name, key), key, sign="+") for key in found.keys]
        for name in names[1:]
    }
    tables = [(["arm", *heads], means)]
    return [*tables, ([f"minus {names[0]}", *heads], differences)] if differences else tables


def _cell(spread: Spread | None, key: str, sign: str = "") -> Cell:
    if spread is None:
        return Cell("–")
    digits = COLUMNS[key].digits
    spreads = f" ± {spread.std:.{digits}f}" if spread.seeds > 1 else ""
    text = f"{spread.mean:{sign}.{digits}f}{spreads}"
    return Cell(text, _verdict(spread, key) if sign else "")


def _verdict(difference: Spread, key: str) -> str:
    return verdict(difference, COLUMNS[key].better)


def _charts(found: Comparison, names: Sequence[str]) -> list[Any]:
    """PSNR over images and over time, means of seeds; and against sharpness, one point an arm."""
    curves = {name: [m.curve for m in found.arms[name].values()] for name in names}
    by_images = {name: mean_curve([[(i, psnr) for i, _, psnr in c] for c in each])
                 for name, each in curves.items()}  # fmt: skip
    by_time = {name: mean_curve([[(s, psnr) for _, s, psnr in c] for c in each])
               for name, each in curves.items()}  # fmt: skip
    trade = {
        name: [(sharp.mean, psnr.mean)]
        for name in names
        if (sharp := found.spread(name, "high_frequency")) and (psnr := found.spread(name, "psnr"))
    }
    return [
        line_chart("Validation PSNR, dB", "images", by_images),
        line_chart("Validation PSNR, dB", "seconds of training", by_time),
        line_chart("PSNR, dB, against sharpness", "high-frequency ratio", trade),
    ]
