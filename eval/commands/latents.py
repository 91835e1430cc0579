"""What the latents of models look like, and how a diffusion model should normalise them.

Mean, standard deviation, KL and covariance of each channel, the power spectrum, dead channels, and
the scaling_factor (or shift_factor, latents_mean, latents_std) that bring the latents to unit
scale; --write puts them into the model's config.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from eval.commands.common import (
    add_data_arguments,
    add_model_arguments,
    add_run_arguments,
    device_and_processes,
    open_images,
    open_protocol,
)

HELP = "moments, KL, dead channels, spectrum; the right scaling_factor"
KINDS = ("scale", "scale_shift", "per_channel")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    add_model_arguments(parser)
    parser.add_argument(
        "--normalization",
        choices=KINDS,
        default="scale",
        help="scale: scaling_factor = 1 / std of all latents; scale_shift: shift_factor as well; "
        "per_channel: latents_mean and latents_std",
    )
    parser.add_argument(
        "--write", action="store_true", help="write the normalization into config.json"
    )
    add_data_arguments(parser, num_images=1000)
    add_run_arguments(parser)
    output = parser.add_argument_group("Output")
    output.add_argument("--json", metavar="FILE", help="everything measured")
    output.add_argument("--report", metavar="FILE", help="one self-contained HTML page")


def run(args: argparse.Namespace) -> int:
    """Measures each model, prints and writes what was found."""
    from eval.codecs import distinct_labels, open_vae
    from eval.config_file import config_path, update_config
    from eval.latent_pass import measure_latents
    from eval.latent_report import latent_page, latent_text
    from eval.tables import without_nan
    from modules.reduce import process_index_and_count

    protocol = open_protocol(args)
    images = open_images(args, protocol)
    # Before the work, so that nothing is measured in vain.
    files = [config_path(name) for name in args.model] if args.write else []
    with device_and_processes(args) as device:
        found = {
            label: measure_latents(
                open_vae(name, args.pretrained_weights),
                images,
                batch_size=1 if args.crop == "full" else args.batch_size,
                device=device,
                num_workers=args.num_workers,
                progress=not args.no_progress,
            )
            for label, name in zip(distinct_labels(args.model), args.model, strict=True)
        }
        if process_index_and_count()[0] != 0:
            return 0
    print(latent_text(found, args.normalization), "", f"Data: {images.describe()}", sep="\n")
    for file, statistics in zip(files, found.values(), strict=bool(files)):
        changed = update_config(file, statistics.normalization(args.normalization))
        print(f"Wrote {file}: " + (_changes(changed) or "nothing had to change"))
    if args.json:
        models = {
            label: {
                **statistics.to_dict(),
                "normalization": statistics.normalization(args.normalization),
            }
            for label, statistics in found.items()
        }
        data = {"models": models, "protocol": protocol.stamp(), "data": images.describe()}
        Path(args.json).write_text(json.dumps(without_nan(data), indent=1) + "\n")
    if args.report:
        page = latent_page(found, [f"Data: {images.describe()}", protocol.describe()])
        Path(args.report).write_text(page, encoding="utf-8")
    return 0


def _changes(changed: dict[str, tuple[object, object]]) -> str:
    return ", ".join(f"{name} {before} -> {after}" for name, (before, after) in changed.items())
