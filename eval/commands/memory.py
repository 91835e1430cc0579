"""How much GPU memory a training configuration takes, predicted without a GPU.

Takes every flag of train_vae.py, --recipe included. States (weights, gradients, moments, averages)
are exact. The peaks come from the script's own step, and from a batch of its validation and of its
last measurement, over tensors that have shapes and no data, by the rules of autocast on CUDA. What
PyTorch does not allocate as tensors is an assumption, printed below the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain, product
from typing import TYPE_CHECKING

from eval.commands.checks import integer, measured_arguments

if TYPE_CHECKING:
    from eval.memory.plan import Peaks
    from modules.config.arguments import Arguments

HELP = "predicts the GPU memory of every part of a run, by resolution, batch and recomputation"
CARDS = (8, 12, 16, 24)  # GB
ALL = 65536  # images: as many as a batch may have


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
    variants = [measured_arguments([*args.training_flags, *flags]) for flags in _variants(args)]

    from eval.report.outputs import write_json
    from eval.speed.predicted import plan, plan_textbook

    states, peaks = {}, []
    for training in variants:
        states, found = plan(training)
        peaks.append(found)
    if args.compare:
        keep = {"recompute": "none", "gradient_checkpointing": False}  # as it always does
        textbooks = [replace(one, precision=replace(one.precision, **keep)) for one in variants]
        peaks += [plan_textbook(one) for n, one in enumerate(textbooks) if one not in textbooks[:n]]
    _print_plan(variants[-1], states, peaks)
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


def _print_plan(args: Arguments, states: Mapping[str, int], peaks: Sequence[Peaks]) -> None:
    """The states, one line for each configuration with the cards it fits, and what was assumed."""
    from eval.memory.plan import CONTEXT, OVERHEAD
    from eval.rehearsal import levers
    from eval.report.terminal import print_table

    sizes = states | {"together": sum(states.values())}
    print_table([["states, exact", ""], *([name, f"{n:,d} bytes"] for name, n in sizes.items())])
    parts = list(dict.fromkeys(name for peak in peaks for name in peak.parts))
    table = [["resolution", "batch", "recompute", "LPIPS slice", *parts, "on the card",
              *(f"{card} GB" for card in CARDS)]]  # fmt: skip
    for peak in sorted(peaks, key=lambda p: (p.resolution, p.batch_size)):
        first = peak.resolution, peak.batch_size, peak.recompute, peak.lpips_slice or "all"
        allocated = [f"{peak.parts[n] / 1e9:.2f}" if n in peak.parts else "" for n in parts]
        fits = ["fits" if peak.on_card <= 1e9 * card else "-" for card in CARDS]
        table.append([*map(str, first), *allocated, f"{peak.on_card / 1e9:.2f}", *fits])
    print("\nPeaks, predicted, in GB; allocated in each part of the run, and on the card:")
    print_table(table)
    largest = max(peaks, key=lambda peak: peak.allocated).largest
    accumulation = args.optimization.gradient_accumulation_steps > 1
    print(f"""
What needs most is {largest}; flags that lower it, in the order to try them: \
{", ".join(levers(args, largest))}.

Precision {args.precision.mixed_precision}, one GPU, every loss at work, \
{"with" if accumulation else "without"} accumulation. GB are 10^9 bytes.
allocated: all tensors at their worst moment, in the allocator's blocks; what
torch.cuda.max_memory_allocated() would say, without the convolutions' workspaces.
on the card: {100 * OVERHEAD:.0f} % more for those workspaces and for fragmentation, and \
{CONTEXT / 1e9:.1f} GB for CUDA's
context and libraries: assumptions. A desktop on the same card takes 0.3 to 1 GB more.
Not in it: a GPU without Triton, on which training keeps up to twice as much;
torch.compile, which chooses itself what to keep; several GPUs, which add DDP's
buckets, as large as the gradients.""")
