"""Everything that is said and written of a comparison: table, JSON, Markdown, page, picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.metrics.columns import COLUMN
from eval.protocol.comparison import Comparison, Sample, worst_positions
from eval.protocol.results import Evaluation
from eval.report import tables
from eval.report.grid import caption, comparison_grid
from eval.report.latents import SCALE, latent_values
from eval.report.page import Cell, Picture, write_page
from eval.report.terminal import print_table

NUM_WORST = 8  # images that are named in the JSON
FIDELITY_KEYS = (
    "psnr", "psnr_pooled", "ssim", "lpips_alex", "lpips_vgg", "lpips_squeeze", "rfid",
)  # fmt: skip


def write_comparison(
    result: Comparison,
    json: str | None = None,
    markdown: str | None = None,
    report: str | None = None,
    grid: str | None = None,
) -> None:
    """Prints the table with its notes, and writes the files that are wanted."""
    evaluations = result.evaluations
    messages = tables.notes(evaluations, result.images.label)
    print_table(tables.rows(evaluations))
    print("", *messages, *result.stamp, result.run_line, sep="\n")
    pairs = tables.compared(result.differences)
    if pairs:
        print("\nPaired differences, 95 % bootstrap interval:")
    for (first, second), differences in pairs.items():
        texts = []
        for found in differences:
            verdict = f"{found.better} better" if found.better else "undecided"
            texts.append(
                f"{COLUMN[found.metric].title} {tables.signed_interval(found)} ({verdict})"
            )
        print(f"{first} - {second}: {', '.join(texts)}")
    write_json(json, comparison_data(result))
    if markdown:
        text = "\n\n".join([tables.markdown_table(evaluations), *messages, *result.stamp]) + "\n"
        Path(markdown).write_text(text, encoding="utf-8", errors="backslashreplace")
    if report:
        write_page(Path(report), "reconstruction.html", **_page(result, messages))
    if grid:
        comparison_grid(evaluations).save(grid)


def write_json(file: str | None, data: Any) -> None:
    """Writes `data`, with null for NaN and infinity, which JSON does not have; nothing for None."""
    if file:
        Path(file).write_text(json.dumps(without_nan(data), indent=1, allow_nan=False) + "\n")


def without_nan(value: Any) -> Any:
    """The same data with None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def comparison_data(result: Comparison) -> dict[str, Any]:
    """The JSON file: models, differences, protocol, data, run."""
    first, images = next(iter(result.evaluations.values())), result.images
    return {
        "models": {label: _model(result, label, e) for label, e in result.evaluations.items()},
        "differences": [
            {"metric": d.metric, "first": d.first, "second": d.second, "better": d.better,
             **vars(d.interval)}
            for d in result.differences
        ],
        "protocol": images.protocol.stamp(),
        "data": {
            "source": images.source.name,
            "num_images": len(images),
            "of": len(images.source),
            "unreadable": {images.label(p): why for p, why in first.unreadable.items()},
            "content": first.content,
        },
        "run": result.run,
    }  # fmt: skip


def _model(result: Comparison, label: str, evaluation: Evaluation) -> dict[str, Any]:
    """One model's part, with the names and exact squared errors of its worst images."""
    return {
        "model": result.names[label],
        "summary": evaluation.summary(),
        "intervals": {key: asdict(found) for key, found in result.intervals[label].items()},
        "nan_images": evaluation.nan_images,
        "missing": evaluation.missing,
        "worst": [
            {"position": position, "image": result.images.label(position),
             "mse": float(evaluation.per_image["mse"][position])}
            for position in worst_positions(evaluation, NUM_WORST)
        ],
        "latents": evaluation.latents.to_dict() if evaluation.latents else None,
        "seconds": evaluation.seconds,
    }  # fmt: skip


def _page(result: Comparison, notes: Sequence[str]) -> dict[str, Any]:
    """What reconstruction.html shows. notes: what stands under the table."""
    evaluations = result.evaluations
    keys = tables.shown_keys(evaluations)
    fidelity = [key for key in keys if key in FIDELITY_KEYS]
    others = [key for key in keys if key not in FIDELITY_KEYS]
    latents = {label: found.latents for label, found in evaluations.items() if found.latents}
    factors = {label: result.models[label].vae.config.scaling_factor for label in latents}
    shown = {difference.metric for difference in result.differences}
    titles = [COLUMN[key].title for key in tables.COMPARED if key in shown]
    versions = result.images.protocol.stamp()["versions"]
    return {
        "title": "Reconstruction",
        "lead": f"{', '.join(evaluations)} on {result.images.describe()}",
        "metrics": [
            (tables.heading(part), tables.metric_cells(evaluations, part, result.intervals))
            for part in (fidelity, others)
            if part
        ],
        "notes": notes,
        "explained": tables.meanings(keys),
        "difference_header": ["models", *titles],
        "differences": {
            f"{first} − {second}": [
                Cell(tables.signed_interval(d), d.better or "undecided") for d in found
            ]
            for (first, second), found in tables.compared(result.differences).items()
        },
        "pictures": {
            "Pictures": _pictures(result, result.samples),
            "Worst images by PSNR": _pictures(result, result.worst),
        },
        "latents": latent_values(latents, SCALE, factors),
        "stamp": [
            *result.stamp,
            result.run_line,
            "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
        ],
    }


def _pictures(result: Comparison, samples: Sequence[Sample]) -> list[tuple[str, list[Picture]]]:
    """Rows under the images' paths below the folder that stands at the top of the page."""
    rows = []
    for sample in samples:
        pictures = [
            Picture(image, label, caption(result.evaluations[label], sample.position),
                    sample.original)
            for label, image in sample.reconstructions.items()
            if label != "identity"
        ]  # fmt: skip
        name = result.images.label(sample.position).removeprefix(result.images.source.name)
        rows.append((name.lstrip("/"), [Picture(sample.original, "original"), *pictures]))
    return rows
