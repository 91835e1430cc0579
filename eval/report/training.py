"""report.html of a training run: curves, the latest pictures, metrics and latents, in one file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from eval.metrics.columns import COLUMN
from eval.protocol.protocol import Protocol
from eval.protocol.results import Evaluation
from eval.report.charts import Chart, line_chart
from eval.report.grid import caption
from eval.report.latents import latent_values
from eval.report.page import Cell, Picture, write_page
from eval.report.tables import meanings
from modules.tracking.metrics_log import best_psnr, whole_validations

Rows = Sequence[Mapping[str, float]]

# Figures of (title with unit, keys of metrics.jsonl by legend); one without any value is left out.
FIGURES = (
    ("PSNR, dB", {"validation": "val/psnr", "training batches": "train/psnr"}),
    ("SSIM", {"validation": "val/ssim"}),
    ("LPIPS", {
        "vgg": "val/lpips_vgg", "alex": "val/lpips_alex", "squeeze": "val/lpips_squeeze",
    }),
    ("rFID", {"validation": "val/rfid"}),
    ("Reconstruction loss", {"pixels": "train/rec_loss", "LPIPS": "train/p_loss"}),
    ("KL, nats per image", {"validation": "val/kl"}),
    ("Adversary: losses", {"discriminator": "train/d_loss", "generator": "train/g_loss"}),
    ("Adversary: logits", {"real": "train/logits_real", "fake": "train/logits_fake"}),
    ("Adversary: patches it tells right", {
        "real": "train/disc_acc_real", "fake": "train/disc_acc_fake",
    }),
    ("Adversary: what the VAE feels", {
        "factor by skill": "train/gan_felt", "share of the gradient": "train/gan_share",
        "weights at the clamp": "train/d_weight_clamped",
    }),
    ("Adaptive weight", {"d_weight": "train/d_weight"}),
    ("Gradient norms before clipping", {
        "VAE": "train/grad_norm_vae", "discriminator": "train/grad_norm_disc",
    }),
    ("Learning rates", {"VAE": "train/lr", "discriminator": "train/disc_lr"}),
    ("Standard deviation of the latents", {
        "validation": "val/latent_std", "training batches": "train/latent_std",
        "of it the posterior's noise": "train/posterior_std",
    }),
    ("Speed, images/s", {"training": "train/images_per_s"}),
)  # fmt: skip
LOGARITHMIC = ("KL, nats per image", "Adaptive weight", "Gradient norms before clipping")
BASELINES = (
    "The last rows need no training: downsample:8 is the picture made 8 times smaller and larger "
    "again, bicubically; jpeg:10 is a JPEG of quality 10."
)
SCALE = (
    "Of the validation images. The scaling_factor of config.json is measured when the run ends: "
    "1 / std over training images, which are more, or kept where the encoder was frozen."
)


def write_training_report(
    file: Path,
    title: str,
    rows: Rows,
    evaluation: Evaluation,
    protocol: Protocol,
    *,
    baselines: Mapping[str, Mapping[str, float]],
    facts: Mapping[str, str],
    latent_grid: Image.Image | None = None,
    scaling_factor: float | None = None,
) -> None:
    """Writes the page in place of an older one.

    rows: those of metrics.jsonl. baselines: the same metrics of what needs no training, by name.
    facts: what else is known of the run, by name. scaling_factor: the exported one, at the end.
    """
    validations = whole_validations(rows)
    keys = [key for key in COLUMN if validations and f"val/{key}" in validations[-1]]
    partial = file.with_suffix(".partial")
    write_page(
        partial,
        "training.html",
        title=title,
        lead=f"Step {rows[-1]['step'] if rows else 0:,.0f}, "
        f"{evaluation.num_images} validation images",
        validation_header=["step or baseline", *(COLUMN[key].heading for key in keys)],
        validation=_validation(validations, keys, baselines),
        explained=f"{meanings(keys)} {BASELINES}" if baselines else meanings(keys),
        charts=_curves(rows, baselines),
        pictures=_pictures(evaluation),
        latents=latent_values({"posterior": evaluation.latents} if evaluation.latents else {},
                              SCALE, {"posterior": scaling_factor} if scaling_factor else {}),
        latent_grid=latent_grid,
        facts=facts,
        stamp=[f"Protocol: {protocol.describe()}"],
    )  # fmt: skip
    os.replace(partial, file)


def _validation(
    rows: Rows, keys: Sequence[str], baselines: Mapping[str, Mapping[str, float]]
) -> dict[str, list[Cell]]:
    """The first, the best and the last validation, then the baselines; a column a metric."""
    if not rows:
        return {}
    names: dict[float, list[str]] = {}  # what is to be said of a step
    for name, row in (("start", rows[0]), ("best PSNR", best_psnr(rows)), ("latest", rows[-1])):
        names.setdefault(row["step"], []).append(name)
    shown = {
        f"{', '.join(names[row['step']])}, step {row['step']:,.0f}": {
            key: row.get(f"val/{key}") for key in keys
        }
        for row in rows
        if row["step"] in names
    }
    return {
        name: [Cell(COLUMN[key].format(found.get(key))) for key in keys]
        for name, found in {**shown, **baselines}.items()
    }


def _curves(rows: Rows, baselines: Mapping[str, Mapping[str, float]]) -> list[Chart]:
    """A discriminator that has not been trained yet has learning rates, and nothing to show."""
    adversarial = any("train/d_loss" in row for row in rows)
    charts = []
    for title, keys in FIGURES:
        lines = {
            name: [(row["step"], row[key]) for row in rows if key in row]
            for name, key in keys.items()
            if adversarial or name != "discriminator"
        }
        if title == FIGURES[0][0]:
            lines |= {name: [(row["step"], found["psnr"]) for row in (*rows[:1], *rows[-1:])]
                      for name, found in list(baselines.items())[:1]}  # fmt: skip
        lines = {name: points for name, points in lines.items() if points}
        if lines:
            charts.append(line_chart(title, "step", lines, log_y=title in LOGARITHMIC))
    return charts


def _pictures(evaluation: Evaluation) -> list[tuple[str, list[Picture]]]:
    return [
        (f"Image {kept.position}", [
            Picture(kept.original, "original"),
            Picture(kept.reconstruction, "reconstruction", caption(evaluation, kept.position),
                    kept.original),
        ])
        for kept in evaluation.samples
    ]  # fmt: skip
