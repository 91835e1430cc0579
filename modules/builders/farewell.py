"""What came out of a run, and what to do next, as it can be pasted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from modules.config.arguments import Arguments
from modules.tracking.metrics_log import Row, best_psnr, whole_validations

ROOT = Path(__file__).parents[2]  # where `python -m eval` is found


def farewell(args: Arguments, scaling_factor: float, rows: Sequence[Row], verdict: str = "") -> str:
    """The last lines of a complete run. rows: those of metrics.jsonl. verdict: what is wrong."""
    output_dir = Path(args.checkpoints.output_dir)
    report, best = output_dir / "report.html", output_dir / "best"
    lines = [f"Wrote {output_dir}/, scaling_factor {scaling_factor:.5g}."]
    if validations := whole_validations(rows):
        first, last, top = validations[0], validations[-1], best_psnr(validations)
        lines.append(
            f"PSNR {first['val/psnr']:.2f} dB at step {first['step']}, "
            f"{last['val/psnr']:.2f} dB at step {last['step']}; "
            f"the best was {top['val/psnr']:.2f} dB at step {top['step']}."
        )
    if verdict:
        lines.append(f"The last validation is {verdict}.")
    models = [quote(str(output_dir))]
    if report.exists():
        lines.append(f"Report: {report}")
    if best.exists():
        lines.append(f"Best weights: {best}")
        models.append(quote(str(best)))
    found = Path("eval", "__main__.py").exists()  # the working directory itself may be gone
    here = "" if found else f"PYTHONPATH={quote(str(ROOT))} "
    return "\n".join([
        *lines,
        "", "Measure it, on pictures that it was not trained on:",
        f"{here}python -m eval reconstruction --model {' '.join(models)} downsample:8 jpeg:10 \\",
        f"    --resolution {args.data.resolution} {_unseen(args)}",
        "", "Use it, in Python:",
        "from diffusers import AutoencoderKL",
        f"vae = AutoencoderKL.from_pretrained({json.dumps(str(output_dir), ensure_ascii=False)})",
    ])  # fmt: skip


def _unseen(args: Arguments) -> str:
    """Flags of the evaluation: which pictures, and what can be measured without a download."""
    folder, names = args.validation.validation_data_dir, args.data.dataset_name
    if folder is None and names == ("synthetic",):
        data = "--data synthetic --num_images 64"
    else:
        data = f"--data {quote(folder or 'path/to/unseen')}"
    return data if args.losses.perceptual_scale else f"{data} --metrics psnr ssim frequency"
