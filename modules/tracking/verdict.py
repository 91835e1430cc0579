"""A validation in one plain line, and whether training has been worth it so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modules.tracking.metrics_log import Row, best_psnr

SHOWN = {"ssim": "SSIM", "lpips_vgg": "LPIPS", "lpips_alex": "LPIPS", "lpips_squeeze": "LPIPS",
         "rfid": "rFID"}  # fmt: skip
SYMPTOMS = "the table of symptoms in the trainer's README.md"


def validation_line(validations: Sequence[Row]) -> str:
    """The last of them, such as "PSNR 24.21 dB (+3.30), SSIM 0.6817, best so far".

    The change is against the validation before it; the best is by PSNR. There must be one.
    """
    last, best = validations[-1], best_psnr(validations)
    change, standing = "", []
    if len(validations) > 1:
        change = f" ({last['val/psnr'] - validations[-2]['val/psnr']:+.2f})"
        where = f"best {best['val/psnr']:.2f} dB at step {best['step']}"
        standing = ["best so far" if best is last else where]
    measured = [f"{title} {last[f'val/{name}']:.4f}" for name, title in SHOWN.items()
                if f"val/{name}" in last]  # fmt: skip
    return ", ".join([f"PSNR {last['val/psnr']:.2f} dB{change}", *measured, *standing])


def verdict(
    validations: Sequence[Row], worse_than_start: bool, baselines: Mapping[str, Row]
) -> str:
    """What is wrong with the last validation, and where to read on; empty where nothing is.

    worse_than_start: by the metric that chooses best/. baselines: metrics of what needs no
    training, by name; the first is bicubic, and the one to beat.
    """
    if len(validations) < 2:
        return ""
    if worse_than_start:
        return f"worse than at step {validations[0]['step']}: see best/ and {SYMPTOMS}"
    for bicubic, found in list(baselines.items())[:1]:
        if not validations[-1]["val/psnr"] >= found["psnr"]:
            told = f"{bicubic}: {found['psnr']:.2f} dB"
            return f"worse than bicubic ({told}): too early, or see {SYMPTOMS}"
    return ""
