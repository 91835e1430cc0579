"""How fast a training configuration is on this machine, where its time goes, what memory it takes.

Takes every flag of train_vae.py, --recipe included, and trains on random images with the script's
own loop, at the point of the run where every loss counts. --compare runs other steps beside it, in
turns: textbook, the step that papers write (one forward, losses taken backward twice, eager, NCHW);
latent-diffusion, the same with its second forward for the discriminator; and the trainer itself
without one of its levers. --compare_flags runs the trainer by other flags, such as "--compile". The
tables over --batches, --resolutions and --accumulations are measured one configuration after the
other.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from eval.commands.checks import integer, measured_arguments

if TYPE_CHECKING:
    from eval.speed.benchmark import Result
    from modules.config.arguments import Arguments

HELP = "images/s, time of each part, memory, and the ratio to a textbook step"
RIVALS = (
    "textbook", "latent-diffusion", "no-fused-norms", "other-layout", "no-lean-blocks",
    "no-lean-upsampling", "no-fused-adamw",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags; all others are the training script's."""
    add = parser.add_argument
    add("--steps", type=integer(1), default=10, help="optimizer steps that are timed")
    add("--warmup", type=integer(2), default=3, help="steps before that; at least 2")
    add("--phase_steps", type=integer(1), default=3, help="steps timed in parts")
    add("--compare", nargs="+", choices=RIVALS, default=[], help="steps to run beside, in turns")
    add(
        "--compare_flags",
        nargs="+",
        default=[],
        metavar="FLAGS",
        help='flags to add for a run beside, in quotes: --compare_flags="--recompute norm"; '
        "several, each in quotes with a space in front",
    )
    add(
        "--random_lpips",
        action="store_true",
        help="random weights for LPIPS, as fast as the real ones and not downloaded",
    )
    add("--batches", type=integer(1, 65536), nargs="+", help="a table over these batch sizes")
    add("--resolutions", type=integer(8, 16384), nargs="+", help="and these resolutions")
    add("--accumulations", type=integer(1, 10**6), nargs="+", help="and micro-batches per step")
    add("--json", metavar="FILE", help="everything measured")
    parser.set_defaults(training_flags=[])


def run(args: argparse.Namespace) -> int:
    """Measures, prints, and writes the JSON."""
    training = measured_arguments(args.training_flags)
    others = {flags.strip(): _others(args, training, flags) for flags in args.compare_flags}

    from eval.memory.random_lpips import random_lpips
    from eval.report.outputs import write_json
    from eval.report.terminal import print_table
    from eval.speed.benchmark import Bench
    from eval.speed.benchmark_report import benchmark_data, benchmark_text, scaling_rows

    with random_lpips() if args.random_lpips else nullcontext():
        bench = Bench(training, args.warmup, args.compare, others)
        result = bench.measure(args.steps, args.phase_steps)
        del bench
        print(benchmark_text(training, result))
        rows = [(sized, _measured(sized, args)) for sized in _scaling(args, training)]
    data = benchmark_data(training, result)
    if rows:
        print_table(scaling_rows(rows))
        data["scaling"] = [found and benchmark_data(sized, found) for sized, found in rows]
    write_json(args.json, data)
    return 0


def _others(args: argparse.Namespace, training: Arguments, flags: str) -> Arguments:
    """The arguments with `flags` added, which must leave what accelerate keeps for all of them."""
    from modules.errors import ArgumentError

    others = measured_arguments([*args.training_flags, *flags.split()])
    ours, theirs = training.as_dict(), others.as_dict()
    for name in ("mixed_precision", "train_batch_size", "gradient_accumulation_steps"):
        if theirs[name] != ours[name]:
            raise ArgumentError(
                f"--compare_flags={flags!r} must not change --{name}: a step would be of other "
                "images; measure it in a run of its own"
            )
    return others


def _scaling(args: argparse.Namespace, training: Arguments) -> Iterator[Arguments]:
    """The arguments of each combination of the three lists; none where no list was given."""
    if not (args.batches or args.resolutions or args.accumulations):
        return
    opt = training.optimization
    for resolution, batch, accumulation in product(
        args.resolutions or [training.data.resolution],
        args.batches or [opt.train_batch_size],
        args.accumulations or [opt.gradient_accumulation_steps],
    ):
        size = {"train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        data = replace(training.data, resolution=resolution)
        yield replace(training, data=data, optimization=replace(opt, **size))


def _measured(training: Arguments, args: argparse.Namespace) -> Result | None:
    """One row of the table; None where it does not fit in the memory."""
    import torch

    from eval.speed.benchmark import Bench

    try:
        return Bench(training, args.warmup).measure(args.steps, phase_steps=0)
    except torch.OutOfMemoryError:
        return None
