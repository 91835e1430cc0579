"""report.html of the reconstruction command: what its template shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.metrics.columns import COLUMN
from eval.protocol.comparison import Result, Sample
from eval.report.grid import caption
from eval.report.latents import SCALE, latent_values
from eval.report.page import Cell, Picture
from eval.report.tables import best_models, meanings, notes, shown_keys, signed_interval

FIDELITY_KEYS = (
    "psnr", "psnr_pooled", "ssim", "lpips_alex", "lpips_vgg", "lpips_squeeze", "rfid",
)  # fmt: skip
DIFFERENCE_KEYS = ("psnr", "ssim", "lpips_alex", "lpips_vgg")

Table = tuple[list[str], dict[str, list[Cell]]]  # header and rows


def reconstruction_values(result: Result) -> dict[str, Any]:
    """Table, differences, pictures, worst images, latents, and the stamp."""
    evaluations = result.evaluations
    keys = shown_keys(evaluations)
    fidelity = [key for key in keys if key in FIDELITY_KEYS]
    others = [key for key in keys if key not in FIDELITY_KEYS]
    latents = {label: found.latents for label, found in evaluations.items() if found.latents}
    header, differences = _differences(result)
    versions = result.images.protocol.stamp()["versions"]
    return {
        "title": "Reconstruction",
        "lead": f"{', '.join(evaluations)} on {result.images.describe()}",
        "metrics": [_metrics(result, part) for part in (fidelity, others) if part],
        "notes": notes(evaluations, result.images.label),
        "explained": meanings(keys),
        "difference_header": header,
        "differences": differences,
        "pictures": {
            "Pictures": _pictures(result, result.samples),
            "Worst images by PSNR": _pictures(result, result.worst),
        },
        "latents": latent_values(
            latents, SCALE, {label: result.scaling_factors[label] for label in latents}
        ),
        "stamp": [
            *result.stamp,
            result.run_line,
            "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
        ],
    }


def _metrics(result: Result, keys: Sequence[str]) -> Table:
    best = {key: best_models(result.evaluations, key) for key in keys}
    rows = {}
    for label, found in result.evaluations.items():
        summary, cells = found.summary(), []
        for key in keys:
            column, interval = COLUMN[key], result.intervals[label].get(key)
            known = interval is not None and not np.isnan(interval.mean)
            bounds = (interval.low, interval.high) if known else ()
            detail = " … ".join(column.format(bound) for bound in bounds)
            cells.append(Cell(column.format(summary.get(key)), detail, label in best[key]))
        rows[label] = cells
    return ["model", *(COLUMN[key].heading for key in keys)], rows


def _differences(result: Result) -> Table:
    shown = [d for d in result.differences if d.metric in DIFFERENCE_KEYS]
    rows: dict[str, list[Cell]] = {}
    for difference in shown:
        cell = Cell(signed_interval(difference), difference.better or "undecided")
        rows.setdefault(f"{difference.first} − {difference.second}", []).append(cell)
    titles = [COLUMN[key].title for key in DIFFERENCE_KEYS if any(d.metric == key for d in shown)]
    return ["models", *titles], rows


def _pictures(result: Result, samples: Sequence[Sample]) -> list[tuple[str, list[Picture]]]:
    """Rows under the images' paths below the folder that stands at the top of the page."""
    rows = []
    for sample in samples:
        pictures = [Picture(sample.original, "original")]
        for label, image in sample.reconstructions.items():
            if label != "identity":
                text = caption(result.evaluations[label], sample.position)
                pictures.append(Picture(image, label, text, sample.original))
        name = result.images.label(sample.position).removeprefix(result.images.source.name)
        rows.append((name.lstrip("/"), pictures))
    return rows
