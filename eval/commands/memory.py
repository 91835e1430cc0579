"""How much GPU memory a training configuration takes, predicted without a GPU.

Takes every flag of train_vae.py, --recipe included. States (weights, gradients, moments, averages)
are exact. The peak comes from the script's own step over tensors that have shapes and no data, by
the rules of autocast on CUDA. What PyTorch does not allocate as tensors is an assumption, printed
below the table.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

from eval.commands.checks import integer

HELP = "predicts the peak GPU memory by resolution, batch and recomputation"
CARDS = (8, 12, 16, 24)  # GB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags; all others are the training script's."""
    parser.add_argument(
        "--resolutions", type=integer(8, 16384), nargs="+", help="sides of the crops, pixels"
    )
    parser.add_argument(
        "--batches", type=integer(1, 65536), nargs="+", help="images per micro-batch"
    )
    parser.add_argument(
        "--recomputes",
        nargs="+",
        choices=("none", "norm", "full"),
        help="what the backward pass computes again",
    )
    parser.add_argument(
        "--slices",
        type=integer(0, 65536),
        nargs="+",
        help="images that LPIPS looks at together; 0 is all",
    )
    parser.add_argument(
        "--compare",
        choices=("textbook",),
        help="also the step that papers write: eager, NCHW, losses taken backward twice",
    )
    parser.add_argument("--json", metavar="FILE", help="everything predicted, in bytes")
    parser.set_defaults(training_flags=[])


def run(args: argparse.Namespace) -> int:
    """Predicts, prints, and writes the JSON. By default the configuration that the flags give."""
    from eval.memory_plan import plan, plan_textbook
    from eval.memory_report import memory_text
    from eval.random_lpips import with_random_lpips
    from eval.script import measured_arguments

    training = measured_arguments(args.training_flags)
    precision, peaks = training.precision, []
    resolutions = args.resolutions or [training.data.resolution]
    for resolution in resolutions:  # refused where the networks could not look at it
        replace(training, data=replace(training.data, resolution=resolution))
    batches = args.batches or [training.optimization.train_batch_size]
    slices = [size or None for size in args.slices or [precision.perceptual_slice_size]]
    with with_random_lpips(training) as training:
        for recompute in args.recomputes or [precision.recomputed]:
            for size in slices:
                options = {"recompute": recompute, "gradient_checkpointing": False,
                           "perceptual_slice_size": size}  # fmt: skip
                changed = replace(training, precision=replace(precision, **options))
                states, found = plan(changed, resolutions, batches)
                peaks += found
        if args.compare:
            peaks += plan_textbook(training, resolutions, batches)
    print(memory_text(training, states, peaks, CARDS))
    if args.json:
        data = {
            "states": states,
            "peaks": [asdict(peak) | {"on_card": peak.on_card} for peak in peaks],
        }
        Path(args.json).write_text(json.dumps(data, indent=1) + "\n")
    return 0
