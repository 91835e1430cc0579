"""Whether models can be decoded in half precision: fp32 against bf16 and fp16.

The largest activation in the decoder (fp16 ends at 65504), NaN, and the PSNR lost; says what
force_upcast should be, and --write puts it into the model's config.json.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

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
    add = parser.add_argument
    add("--write", action="store_true", help="write force_upcast into config.json")
    add_data_arguments(parser, num_images=NUM_IMAGES)
    add_run_arguments(parser)
    add("--json", metavar="FILE", help="everything measured")


def run(args: argparse.Namespace) -> int:
    """Measures each model, prints and writes what was found."""
    from eval.protocol.codecs import common_mode, open_vaes
    from eval.protocol.precision import measure_precision, should_force_upcast
    from eval.report.outputs import write_json
    from eval.report.terminal import print_table
    from modules.distributed.reduce import process_index_and_count
    from modules.weights.config_file import config_path, update_config

    vaes = open_vaes(args.model, args.pretrained_weights)
    protocol = open_protocol(args, common_mode(vaes))
    images = open_images(args, protocol)
    files = [config_path(name) for name in args.model] if args.write else [None] * len(args.model)
    data = {}
    with device_and_processes(args) as device:
        if process_index_and_count()[1] > 1:
            raise ValueError("precision runs on one process; start it without torchrun")
        for (label, vae), file in zip(vaes.items(), files, strict=True):
            results = measure_precision(
                vae,
                images,
                batch_size=1 if args.crop == "full" else args.batch_size,
                device=device,
                progress=not args.no_progress,
            )
            upcast, reason = should_force_upcast(results)
            print(f"{label}: {len(images)} images on {device}")
            header = [
                "precision",
                "largest activation",
                "NaN",
                "PSNR, dB",
                "lost, dB",
                "to fp32, dB",
            ]
            print_table([
                header,
                *([name, f"{p.largest:.1f}", f"{p.bad_images}", f"{p.psnr:.3f}",
                   f"{p.psnr_lost:.4f}", f"{p.psnr_to_fp32:.2f}"] for name, p in results.items()),
            ])  # fmt: skip
            print(f"force_upcast should be {str(upcast).lower()}: {reason}")
            if file:
                update_config(file, {"force_upcast": upcast})
                print(f"Wrote {file}")
            data[label] = {
                "precisions": {key: asdict(found) for key, found in results.items()},
                "force_upcast": upcast,
                "reason": reason,
            }
    write_json(args.json, {"models": data, "protocol": protocol.stamp(), "data": images.describe()})
    return 0
