"""report.html of the reconstruction command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from eval.metrics.columns import COLUMN
from eval.metrics.image import PSNR_CAP
from eval.protocol.selected import Sample
from eval.report.charts import Series, line_chart_svg
from eval.report.grid import caption
from eval.report.latents import latent_section
from eval.report.page import (
    Cell,
    Picture,
    bullet_list,
    charts,
    image_grid,
    metrics_table,
    note,
    page,
)
from eval.report.tables import best_models, notes, shown_keys, signed_interval

if TYPE_CHECKING:
    from eval.protocol.comparison import Result

FIDELITY_KEYS = (
    "psnr", "psnr_pooled", "ssim", "lpips_alex", "lpips_vgg", "lpips_squeeze", "rfid",
)  # fmt: skip
DIFFERENCE_KEYS = ("psnr", "ssim", "lpips_alex", "lpips_vgg")


def reconstruction_page(result: Result) -> str:
    """The whole report: table, differences, pictures, worst images, latents, and the stamp."""
    evaluations = result.evaluations
    latents = {label: found.latents for label, found in evaluations.items() if found.latents}
    versions = result.protocol.stamp()["versions"]
    run = result.run
    return page(
        "Reconstruction",
        [
            ("Metrics", _metrics(result)),
            ("Differences", _differences(result)),
            ("Pictures", _pictures(result, result.samples)),
            ("Worst images by PSNR", _pictures(result, result.worst)),
            ("PSNR of every image", _distribution(result)),
            ("Latents", latent_section(latents)),
        ],
        lead=f"{', '.join(evaluations)} on {result.images.describe()}",
        stamp=[
            *result.stamp,
            f"Run: {run['seconds']:.1f} s, {run['images_per_second']:.2f} images/s on "
            f"{run['processes']} process(es), {run['device']}, batch size {run['batch_size']}",
            "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
        ],
    )


def _metrics(result: Result) -> str:
    """Two tables, so that neither is too wide for a screen; then what a reader must know."""
    keys = shown_keys(result.evaluations)
    fidelity = [key for key in keys if key in FIDELITY_KEYS]
    others = [key for key in keys if key not in FIDELITY_KEYS]
    meanings: dict[str, list[str]] = {}
    for key in keys:
        meanings.setdefault(COLUMN[key].meaning, []).append(COLUMN[key].title)
    explained = "; ".join(f"{', '.join(titles)}: {text}" for text, titles in meanings.items())
    return (
        "".join(_metrics_part(result, part) for part in (fidelity, others) if part)
        + bullet_list(notes(result.evaluations, result.images.label))
        + note(f"Small print: 95 % bootstrap interval of the mean over images. {explained}.")
    )


def _metrics_part(result: Result, keys: Sequence[str]) -> str:
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
    return metrics_table(
        ["model", *(f"{COLUMN[key].title} {COLUMN[key].arrow}".strip() for key in keys)], rows
    )


def _differences(result: Result) -> str:
    shown = [d for d in result.differences if d.metric in DIFFERENCE_KEYS]
    keys = [key for key in DIFFERENCE_KEYS if any(d.metric == key for d in shown)]
    rows: dict[str, list[Cell]] = {}
    for difference in shown:
        cell = Cell(signed_interval(difference), f"{difference.better or 'undecided'}")
        rows.setdefault(f"{difference.first} − {difference.second}", []).append(cell)
    if not rows:
        return ""
    header = ["models", *(COLUMN[key].title for key in keys)]
    return metrics_table(header, rows) + note(
        "Paired over the same images, with the 95 % bootstrap interval; under it the model that is "
        "better, where the interval does not contain zero."
    )


def _pictures(result: Result, samples: Sequence[Sample]) -> str:
    rows = []
    for sample in samples:
        pictures = [Picture(sample.original, "original")]
        for label, image in sample.reconstructions.items():
            if label != "identity":
                text = caption(result.evaluations[label], sample.position)
                pictures.append(Picture(image, label, text, sample.original))
        rows.append((_short_name(result, sample.position), pictures))
    explain = note("Under each reconstruction: absolute error times 8. Pictures are lossless.")
    return explain + image_grid(rows) if rows else ""


def _distribution(result: Result) -> str:
    lines = []
    for label, found in result.evaluations.items():
        values = found.per_image.get("psnr", np.empty(0))
        values = np.sort(values[~np.isnan(values)])
        if len(values) and values.min() < PSNR_CAP:
            share = (np.arange(len(values)) + 0.5) / len(values) * 100
            lines.append(Series(label, share.tolist(), values.tolist()))
    if not lines:
        return ""
    figure = line_chart_svg(lines, title="PSNR, images sorted", x_label="% of images", y_label="dB")
    return charts([figure])


def _short_name(result: Result, position: int) -> str:
    """An image's path below the folder that --data names, which stands at the top of the page."""
    return result.images.label(position).removeprefix(result.images.source.name).lstrip("/")
