"""Whether models can be decoded in half precision: fp32 against bf16 and fp16.

The largest activation in the decoder (fp16 ends at 65504), NaN, and the PSNR lost; says what
force_upcast should be, and --write puts it into the model's config.json.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from eval.commands import common

HELP = "fp32 against bf16 and fp16 decoding; what force_upcast should be"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    common.add_model_arguments(parser)
    add = parser.add_argument
    add("--write", action="store_true", help="write force_upcast into config.json")
    common.add_data_arguments(parser, num_images=16)
    common.add_run_arguments(parser)
    add("--json", metavar="FILE", help="everything measured")


def run(args: argparse.Namespace) -> int:
    """Measures each model, prints and writes what was found."""
    from eval.protocol.precision import measure_precision, should_force_upcast
    from eval.report.outputs import write_json
    from eval.report.terminal import print_table
    from modules.weights.config_file import config_path, update_config

    common.require_one_process("precision")
    codecs, images = common.open_inputs(args)
    files = [config_path(name) for name in args.model] if args.write else []
    data = {}
    with common.device_and_processes(args) as device:
        for number, (label, codec) in enumerate(codecs.items()):
            results = measure_precision(codec.vae, images, device=device, **common.loading(args))
            upcast, reason = should_force_upcast(results)
            print(f"{label}: {len(images)} images on {device}")
            print_table([
                ["precision", "largest activation", "NaN", "PSNR, dB", "lost, dB", "to fp32, dB"],
                *([name, f"{p.largest:.1f}", f"{p.bad_images}", f"{p.psnr:.3f}",
                   f"{p.psnr_lost:.4f}", f"{p.psnr_to_fp32:.2f}"] for name, p in results.items()),
            ])  # fmt: skip
            print(f"force_upcast should be {str(upcast).lower()}: {reason}")
            if files:
                update_config(files[number], {"force_upcast": upcast})
                print(f"Wrote {files[number]}")
            precisions = {name: asdict(found) for name, found in results.items()}
            data[label] = {"precisions": precisions, "force_upcast": upcast, "reason": reason}
    write_json(args.json, {"models": data, **images.stamp()})
    return 0
