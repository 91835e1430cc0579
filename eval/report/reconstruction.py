"""report.html of the reconstruction command: what its template shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval.metrics.columns import COLUMN
from eval.protocol.comparison import Comparison, Sample
from eval.report.grid import caption
from eval.report.latents import SCALE, latent_values
from eval.report.page import Cell, Picture
from eval.report.tables import (
    COMPARED,
    compared,
    heading,
    meanings,
    metric_cells,
    notes,
    shown_keys,
    signed_interval,
)

FIDELITY_KEYS = (
    "psnr", "psnr_pooled", "ssim", "lpips_alex", "lpips_vgg", "lpips_squeeze", "rfid",
)  # fmt: skip


def reconstruction_values(found: Comparison) -> dict[str, Any]:
    """Table, differences, pictures, worst images, latents, and the stamp."""
    evaluations = found.evaluations
    keys = shown_keys(evaluations)
    fidelity = [key for key in keys if key in FIDELITY_KEYS]
    others = [key for key in keys if key not in FIDELITY_KEYS]
    latents = {label: found.latents for label, found in evaluations.items() if found.latents}
    factors = {label: found.models[label].vae.config.scaling_factor for label in latents}
    shown = {difference.metric for difference in found.differences}
    versions = found.images.protocol.stamp()["versions"]
    return {
        "title": "Reconstruction",
        "lead": f"{', '.join(evaluations)} on {found.images.describe()}",
        "metrics": [
            (heading(part), metric_cells(evaluations, part, found.intervals))
            for part in (fidelity, others)
            if part
        ],
        "notes": notes(evaluations, found.images.label),
        "explained": meanings(keys),
        "difference_header": ["models", *(COLUMN[key].title for key in COMPARED if key in shown)],
        "differences": {
            f"{first} − {second}": [
                Cell(signed_interval(d), d.better or "undecided") for d in found
            ]
            for (first, second), found in compared(found.differences).items()
        },
        "pictures": {
            "Pictures": _pictures(found, found.samples),
            "Worst images by PSNR": _pictures(found, found.worst),
        },
        "latents": latent_values(latents, SCALE, factors),
        "stamp": [
            *found.stamp,
            found.run_line,
            "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
        ],
    }


def _pictures(found: Comparison, samples: Sequence[Sample]) -> list[tuple[str, list[Picture]]]:
    """Rows under the images' paths below the folder that stands at the top of the page."""
    rows = []
    for sample in samples:
        pictures = [
            Picture(image, label, caption(found.evaluations[label], sample.position),
                    sample.original)
            for label, image in sample.reconstructions.items()
            if label != "identity"
        ]  # fmt: skip
        name = found.images.label(sample.position).removeprefix(found.images.source.name)
        rows.append((name.lstrip("/"), [Picture(sample.original, "original"), *pictures]))
    return rows
