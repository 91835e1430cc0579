"""How much GPU memory a training configuration takes, predicted without a GPU.

Takes every flag of train_vae.py, --recipe included. States (weights, gradients, moments, averages)
are exact. The peaks come from the script's own step, and from a batch of its validation and of its
last measurement, over tensors that have shapes and no data, by the rules of autocast on CUDA. What
PyTorch does not allocate as tensors is an assumption, printed below the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, product

from eval.commands.checks import integer

HELP = "predicts the GPU memory of every part of a run, by resolution, batch and recomputation"
CARDS = (8, 12, 16, 24)  # GB
ALL = 10**6  # images: more than a batch has


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags; all others are the training script's."""
    add = parser.add_argument
    add("--resolutions", type=integer(8, 16384), nargs="+", help="sides of the crops, pixels")
    add("--batches", type=integer(1, 65536), nargs="+", help="images per micro-batch")
    add(
        "--recomputes",
        nargs="+",
        choices=("none", "norm", "full"),
        help="what the backward pass computes again",
    )
    add(
        "--slices",
        type=integer(0, 65536),
        nargs="+",
        help="images that LPIPS looks at together; 0 is all",
    )
    add(
        "--compare",
        choices=("textbook",),
        help="also the step that papers write: eager, NCHW, losses taken backward twice",
    )
    add("--json", metavar="FILE", help="everything predicted, in bytes")
    parser.set_defaults(training_flags=[])


def run(args: argparse.Namespace) -> int:
    """Predicts, prints, and writes the JSON. By default the configuration that the flags give."""
    from eval.report.outputs import write_json
    from eval.speed.memory_plan import plan, plan_textbook
    from eval.speed.memory_report import memory_text
    from eval.speed.script import measured_arguments

    variants = [measured_arguments([*args.training_flags, *flags]) for flags in _variants(args)]
    states, peaks = {}, []
    for training in variants:
        states, found = plan(training)
        peaks.append(found)
    if args.compare:
        peaks += map(plan_textbook, variants)
    print(memory_text(variants[-1], states, peaks, CARDS))
    predicted = [asdict(peak) | {"on_card": peak.on_card} for peak in peaks]
    write_json(args.json, {"states": states, "peaks": predicted})
    return 0


def _variants(args: argparse.Namespace) -> Iterator[list[str]]:
    """The flags of each combination of what was listed; of nothing, where nothing was."""
    slices = [size or ALL for size in args.slices or ()]
    axes = [
        [["--resolution", f"{side}", "--train_resolutions", f"{side}"]
         for side in args.resolutions or ()],
        [["--train_batch_size", f"{size}"] for size in args.batches or ()],
        [["--no_gradient_checkpointing", "--recompute", how] for how in args.recomputes or ()],
        [["--perceptual_slice_size", f"{size}"] for size in slices],
    ]  # fmt: skip
    for combination in product(*[axis or [[]] for axis in axes]):
        yield list(chain(*combination))
