"""report.html of a training run: curves, the latest pictures, metrics and latents, in one file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from eval.charts import Series, line_chart_svg
from eval.columns import COLUMN
from eval.grid import caption
from eval.latent_report import latent_section
from eval.protocol import Protocol
from eval.report import (
    Cell,
    Picture,
    charts,
    image_grid,
    metrics_table,
    note,
    page,
    wide_picture,
)
from eval.results import Evaluation
from modules.metrics_log import best_psnr, whole_validations

Rows = Sequence[Mapping[str, float]]

# Figures of (title, unit, keys of metrics.jsonl by legend); a figure without any value is left out.
FIGURES = (
    ("PSNR", "dB", {"validation": "val/psnr", "training batches": "train/psnr"}),
    ("SSIM", "", {"validation": "val/ssim"}),
    ("LPIPS", "", {
        "vgg": "val/lpips_vgg", "alex": "val/lpips_alex", "squeeze": "val/lpips_squeeze",
    }),
    ("Reconstruction loss", "", {"pixels": "train/rec_loss", "LPIPS": "train/p_loss"}),
    ("KL", "nats per image", {"validation": "val/kl"}),
    ("Adversary: losses", "", {
        "discriminator": "train/d_loss", "generator": "train/g_loss",
    }),
    ("Adversary: logits", "", {"real": "train/logits_real", "fake": "train/logits_fake"}),
    ("Adaptive weight", "", {"d_weight": "train/d_weight"}),
    ("Gradient norms before clipping", "", {
        "VAE": "train/grad_norm_vae", "discriminator": "train/grad_norm_disc",
    }),
    ("Learning rates", "", {"VAE": "train/lr", "discriminator": "train/disc_lr"}),
    ("Standard deviation of the latents", "", {"posterior": "val/latent_std"}),
    ("Speed", "images/s", {"training": "train/images_per_s"}),
)  # fmt: skip
LOGARITHMIC = ("KL", "Adaptive weight", "Gradient norms before clipping")


def write_training_report(
    file: Path,
    title: str,
    rows: Rows,
    evaluation: Evaluation,
    protocol: Protocol,
    latent_grid: Image.Image | None = None,
) -> None:
    """Writes the page in place of an older one. rows: those of metrics.jsonl."""
    step = rows[-1]["step"] if rows else 0
    latents = {} if evaluation.latents is None else {"posterior": evaluation.latents}
    html = page(
        title,
        [
            ("Validation", _validation(rows)),
            ("Curves", charts(_curves(rows))),
            ("Pictures", _pictures(evaluation)),
            ("Latents", latent_section(latents) + _latent_grid(latent_grid)),
        ],
        lead=f"Step {step:,.0f}, {evaluation.num_images} validation images",
        stamp=[protocol.describe()],
    )
    partial = file.with_suffix(".partial")
    partial.write_text(html, encoding="utf-8", errors="backslashreplace")  # of the folder's name
    os.replace(partial, file)


def _latent_grid(picture: Image.Image | None) -> str:
    if picture is None:
        return ""
    explained = (
        "The latents of the pictures above (posterior mean): their first three principal "
        "components as colours, then each channel around its median, all in one scale."
    )
    return note(explained) + wide_picture(picture, "latents")


def _validation(rows: Rows) -> str:
    """The first, the best and the last validation."""
    found = whole_validations(rows)
    if not found:
        return ""
    best = best_psnr(found)
    columns = [column for key, column in COLUMN.items() if f"val/{key}" in found[-1]]
    shown = {"start": found[0], "best PSNR": best, "latest": found[-1]}
    table = {
        f"{name} (step {row['step']:.0f})": [
            Cell(column.format(row.get(f"val/{column.key}"))) for column in columns
        ]
        for name, row in shown.items()
    }
    header = ["weights", *(f"{column.title} {column.arrow}".strip() for column in columns)]
    explained = "; ".join(f"{column.title}: {column.meaning}" for column in columns)
    return metrics_table(header, table) + note(explained)


def _curves(rows: Rows) -> list[str]:
    figures = []
    for title, unit, keys in FIGURES:
        lines = [
            Series(name, [row["step"] for row in rows if key in row],
                   [row[key] for row in rows if key in row])
            for name, key in keys.items()
            if any(key in row for row in rows)
        ]  # fmt: skip
        if lines:
            log = title in LOGARITHMIC
            figures.append(
                line_chart_svg(lines, title=title, x_label="step", y_label=unit, log_y=log)
            )
    return figures


def _pictures(evaluation: Evaluation) -> str:
    return image_grid([
        (f"Image {position}", [
            Picture(original, "original"),
            Picture(output, "reconstruction", caption(evaluation, position), original),
        ])
        for position, original, output in evaluation.samples
    ])  # fmt: skip
