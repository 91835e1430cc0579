"""Whether models can be decoded in half precision: fp32 against bf16 and fp16.

The largest activation in the decoder (fp16 ends at 65504), NaN, and the PSNR lost; says what
force_upcast should be, and --write puts it into the model's config.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from eval.commands.common import (
    add_data_arguments,
    add_model_arguments,
    add_run_arguments,
    device_and_processes,
    open_images,
    open_protocol,
)

HELP = "fp32 against bf16 and fp16 decoding; what force_upcast should be"
NUM_IMAGES = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    add_model_arguments(parser)
    parser.add_argument("--write", action="store_true", help="write force_upcast into config.json")
    add_data_arguments(parser, num_images=NUM_IMAGES)
    add_run_arguments(parser)
    parser.add_argument("--json", metavar="FILE", help="everything measured")


def run(args: argparse.Namespace) -> int:
    """Measures each model, prints and writes what was found."""
    from eval.codecs import distinct_labels, open_vae
    from eval.config_file import config_path, update_config
    from eval.precision import measure_precision, should_force_upcast
    from eval.tables import without_nan
    from modules.reduce import process_index_and_count

    protocol = open_protocol(args)
    images = open_images(args, protocol)
    files = [config_path(name) for name in args.model] if args.write else [None] * len(args.model)
    data = {}
    with device_and_processes(args) as device:
        if process_index_and_count()[1] > 1:
            raise ValueError("precision runs on one process; start it without torchrun")
        labels = distinct_labels(args.model)
        for label, name, file in zip(labels, args.model, files, strict=True):
            results = measure_precision(
                open_vae(name, args.pretrained_weights),
                images,
                batch_size=1 if args.crop == "full" else args.batch_size,
                device=device,
                progress=not args.no_progress,
            )
            upcast, reason = should_force_upcast(results)
            print(f"{label}: {len(images)} images on {device}")
            print("precision  largest activation   NaN      PSNR      lost   to fp32  (dB)")
            for found in results.values():
                print(
                    f"{found.precision:9s}  {found.largest:18.1f}{found.bad_images:6d}"
                    f"{found.psnr:10.3f}{found.psnr_lost:10.4f}{found.psnr_to_fp32:10.2f}"
                )
            print(f"force_upcast should be {str(upcast).lower()}: {reason}")
            if file:
                update_config(file, {"force_upcast": upcast})
                print(f"Wrote {file}")
            data[label] = {
                "precisions": {key: asdict(found) for key, found in results.items()},
                "force_upcast": upcast,
                "reason": reason,
            }
    if args.json:
        stamped = {"models": data, "protocol": protocol.stamp(), "data": images.describe()}
        Path(args.json).write_text(json.dumps(without_nan(stamped), indent=1) + "\n")
    return 0
