"""The table of a comparison, as text, as data, and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.diffusability.gap import HALF
from eval.diffusability.measure import Diffusability
from eval.report.latents import latent_values
from eval.report.over_seeds import OverSeeds
from eval.report.page import Cell, Picture, write_page

SCALED = "Of --reference; the denoiser sees each channel scaled to unit deviation."
EXPLAINED = (
    "Gap: how much more PSNR a changed picture has when it is encoded itself than when the latents "
    "of the unchanged one are changed and decoded. High frequencies: share of the latents' power "
    "above half of Nyquist's frequency; more is harder to learn. Denoiser's loss: of a small flow "
    "matching model on images that it has not seen, latents scaled to unit deviation; 2 is "
    "ignorance. iFID: Fréchet distance of pictures decoded half way between neighbours' latents. "
    "FID of samples: of that small model. Distances compare only at equal N and on equal images. "
    "± is the standard deviation over seeds."
)


def rows(models: Mapping[str, Diffusability]) -> list[list[str]]:
    """A header, and one row for each model."""
    gaps = list(next(iter(models.values())).gaps)
    header = ["model", "PSNR ↑", *(f"{name}: gap, dB ↓" for name in gaps), "high frequencies ↓",
              "denoiser's loss ↓", "iFID ↓", "FID of samples ↓"]  # fmt: skip
    return [header, *([label, *_numbers(found)] for label, found in models.items())]


def _numbers(found: Diffusability) -> list[str]:
    over_seeds = ((found.loss, 4), (found.ifid, 3), (found.sample_fid, 3))
    return [
        f"{found.psnr:.2f}",
        *(f"{gap.decibels:.2f}" for gap in found.gaps.values()),
        f"{100 * found.latents.high_frequency:.1f} %",
        *(OverSeeds.of(values).text(digits) if values else "–" for values, digits in over_seeds),
    ]


def notes(models: Mapping[str, Diffusability], missing: str) -> list[str]:
    """What must be known beside the numbers. missing: why there are no Fréchet distances, or ""."""
    first = next(iter(models.values()))
    lines = [
        f"{label}: decoded half-size latents have {found.gaps[HALF].changed:.2f} dB, half-size "
        f"pictures of their own {found.gaps[HALF].native:.2f} dB"
        for label, found in models.items()
    ]
    lines.append(f"N = {first.num_images}, {first.num_reference} reference images")
    if first.num_shared:
        lines.append(
            f"{first.num_shared} images of --data are in --reference too: the denoiser has seen "
            "them, and its loss says less"
        )
    if missing:
        lines.append(f"iFID and the FID of samples are missing: {missing}")
    return lines


def as_data(models: Mapping[str, Diffusability]) -> dict[str, Any]:
    """For JSON: everything but the pictures."""
    return {
        label: {
            **{name: value for name, value in vars(found).items() if name != "samples"},
            "gaps": {name: asdict(gap) for name, gap in found.gaps.items()},
            "latents": found.latents.to_dict(),
        }
        for label, found in models.items()
    }


def write_diffusability_page(
    file: Path,
    models: Mapping[str, Diffusability],
    lines: Sequence[str],
    stamp: Sequence[str],
) -> None:
    """One page: the table, samples, and the latents. lines: `notes`."""
    header, *body = rows(models)
    write_page(
        file,
        "diffusability.html",
        title="Diffusability",
        lead=", ".join(models),
        header=header,
        rows={label: [Cell(text) for text in texts] for label, *texts in body},
        notes=lines,
        explained=EXPLAINED,
        samples=[
            (label, [Picture(image, f"sample {n + 1}") for n, image in enumerate(found.samples)])
            for label, found in models.items()
        ],
        latents=latent_values({n: m.latents for n, m in models.items()}, SCALED, {}),
        stamp=stamp,
    )
