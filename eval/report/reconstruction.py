"""report.html of the reconstruction command: what its template shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval.metrics.columns import COLUMN
from eval.protocol.comparison import Comparison, Sample
from eval.report import tables
from eval.report.grid import caption
from eval.report.latents import SCALE, latent_values
from eval.report.page import Cell, Picture

FIDELITY_KEYS = (
    "psnr", "psnr_pooled", "ssim", "lpips_alex", "lpips_vgg", "lpips_squeeze", "rfid",
)  # fmt: skip


def reconstruction_values(result: Comparison) -> dict[str, Any]:
    """Table, differences, pictures, worst images, latents, and the stamp."""
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
        "notes": tables.notes(evaluations, result.images.label),
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
