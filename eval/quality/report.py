"""The comparison as tables in a terminal, as data for JSON, and as one HTML page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.protocol.results import Evaluation
from eval.quality.measure import COLUMNS, Measured, numbers_of
from eval.report.charts import Chart, line_chart
from eval.report.grid import comparison_grid
from eval.report.outputs import write_json
from eval.report.over_seeds import OverSeeds, paired, verdict
from eval.report.page import Cell, write_page
from eval.report.terminal import print_table

Seeds = Mapping[int, Measured]
Arms = Mapping[str, Seeds]  # by name; the first is the reference


def write_quality(
    output: Path, arms: Arms, baselines: Mapping[str, Evaluation], facts: Mapping[str, Any]
) -> None:
    """Prints the tables; writes quality.json, quality.html and a picture of each arm.

    facts: what else is known, for the JSON and the page: "commands" by arm, reasons by "failed"
    training, the lines of the "stamp".
    """
    first, reference = next(iter(arms.items()))
    present = {key for seeds in arms.values() for found in seeds.values() for key in found.numbers}
    keys, data, rows = [key for key in COLUMNS if key in present], {}, {}
    for name, seeds in arms.items():
        data[name], rows[name] = _compared(seeds, reference, keys)
    beside = {name: numbers_of(evaluation) for name, evaluation in baselines.items()}
    write_json(str(output / "quality.json"), {"arms": data, "baselines": beside, **facts})

    rows |= {name: [Cell(COLUMNS[key].format(numbers.get(key))) for key in keys]
             for name, numbers in beside.items()}  # fmt: skip
    header = ["arm", *(COLUMNS[key].heading for key in keys)]
    print_table([header, *([name, *(c.text for c in cells)] for name, cells in rows.items())])
    others = [[name, *(c.detail for c in rows[name])] for name in [*arms][1:]]
    if others:
        print()
        print_table([[f"minus {first}", *header[1:]], *others])
    explained = (
        "Mean and standard deviation over seeds. Differences are taken seed by seed; within one "
        "standard deviation of these they are called none. " + "; ".join(
            f"{COLUMNS[key].title}: {COLUMNS[key].meaning}" for key in keys)
    )  # fmt: skip
    print("", explained, *facts["stamp"], sep="\n", flush=True)

    grids = {name: comparison_grid({name: found[min(found)].evaluation})
             for name, found in arms.items()}  # fmt: skip
    for name, grid in grids.items():
        grid.save(output / f"{name}.png")
    write_page(
        output / "quality.html", "quality.html", title="Training arms side by side",
        lead=f"{len(arms)} arms; small print: difference to {first}", header=header, rows=rows,
        explained=explained, charts=_charts(arms), grids=grids, **facts,
    )  # fmt: skip


def _compared(
    seeds: Seeds, reference: Seeds, keys: Sequence[str]
) -> tuple[dict[str, Any], list[Cell]]:
    """An arm's part of the JSON, and its row: mean and deviation; the difference as the detail."""
    measures, differences, cells = {}, {}, []
    for key in keys:
        column, text, detail = COLUMNS[key], "–", "–"
        values, others = (
            {seed: found.numbers[key] for seed, found in arm.items() if key in found.numbers}
            for arm in (seeds, reference)
        )
        if values:
            measure = OverSeeds.of([*values.values()])
            measures[key], text = asdict(measure), measure.text(column.digits)
        if difference := paired(values, others):
            word = verdict(difference, column.better)
            differences[key] = {**asdict(difference), "verdict": word}
            detail = f"{difference.text(column.digits, '+')} {word}"
        cells.append(Cell(text, detail))
    runs = {seed: {"numbers": found.numbers, "curve": found.curve} for seed, found in seeds.items()}
    return {"measures": measures, "differences": differences, "runs": runs}, cells


def _charts(arms: Arms) -> list[Chart]:
    """PSNR over images and over time, means of the seeds; and over sharpness, a point an arm."""
    curves = {name: [found.curve for found in seeds.values()] for name, seeds in arms.items()}
    charts = [
        line_chart("Validation PSNR, dB", title, {
            name: mean_curve([[(point[axis], point[2]) for point in curve] for curve in each])
            for name, each in curves.items()
        })
        for axis, title in enumerate(("images", "seconds of training"))
    ]  # fmt: skip
    points = {
        name: mean_curve([[(found.numbers["high_frequency"], found.numbers["psnr"])]
                          for found in seeds.values() if "high_frequency" in found.numbers])
        for name, seeds in arms.items()
    }  # fmt: skip
    return [*charts, line_chart("PSNR, dB", "high-frequency ratio; 1 is as sharp", points)]


def mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The mean of the first points, of the second ones, and so on, as far as all curves go."""
    return [
        tuple(map(statistics.fmean, zip(*points, strict=True)))
        for points in zip(*curves, strict=False)
    ]
