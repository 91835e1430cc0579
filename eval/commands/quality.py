"""Trains arms side by side, several seeds each, and compares what comes out.

An arm is the trainer with flags of its own; a peer is any other program that leaves a diffusers
AutoencoderKL in {output}, and in {output}/step-N if it is to have a curve. All see the same images
in the same order: these belong to the seed. The preset and every other flag of train_vae.py given
here hold for all arms. What has finished is not trained again when the command is repeated.

python -m eval quality --train_data_dir photos --validation_data_dir unseen --output_dir runs/lr \\
    --arm "6e-4:" --arm "3e-4: --learning_rate 3e-4" --seeds 0 1 2 --jobs 2
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from eval.commands.checks import integer
from eval.metrics.columns import METRICS
from eval.quality.arms import PRESETS, check_arms, read_arm

HELP = "trains arms of flags and other programs side by side; quality with its spread over seeds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags; all others are the training script's."""
    add = parser.add_argument
    # They go to one list, so that the first of either is the reference.
    add("--arm", dest="arms", action="append", type=lambda text: (text, False), default=[],
        metavar='"NAME: FLAGS"', help="the trainer with FLAGS; repeat it")  # fmt: skip
    add("--peer", dest="arms", action="append", type=lambda text: (text, True), default=[],
        metavar='"NAME: COMMAND"', help="another program; in COMMAND "
        "stand {data} {validation} {steps} {seed} {output} {batch_size} {resolution}")  # fmt: skip
    add("--preset", choices=tuple(PRESETS), default="cpu", help="flags that all arms share")
    add("--seeds", type=integer(0, 2**63 - 2), nargs="+", default=[0, 1, 2], help="each trains")
    add("--jobs", type=integer(1, 64), default=1, help="trainings at a time, sharing the cores")
    add("--metrics", nargs="+", choices=tuple(METRICS), default=["psnr", "ssim", "frequency", "kl"],
        help="of the models; lpips_squeeze and its like take --lpips_weights")  # fmt: skip
    add("--output_dir", required=True, metavar="FOLDER", help="a folder for each arm and seed, "
        "quality.json, quality.html, and a picture for each arm")  # fmt: skip
    parser.set_defaults(training_flags=[])


def run(args: argparse.Namespace) -> int:
    """Trains, measures, prints the tables, writes the files; 1 if a training failed."""
    output = Path(args.output_dir)
    arms = [read_arm(text, peer) for text, peer in args.arms]
    common = [*shlex.split(PRESETS[args.preset]), *args.training_flags, "--report_to", "none"]
    shared = check_arms(arms, common)

    from eval.quality.judge import Judge
    from eval.quality.measure import measure_all
    from eval.quality.report import write_quality
    from eval.quality.training import plan, train_all
    from modules.errors import RunStopped

    judge, trainings = Judge(shared, args.metrics), plan(arms, common, args.seeds, output)
    failed = train_all(trainings, args.jobs)
    if len(failed) == len(trainings):
        raise RunStopped("no training ended well; there is nothing to compare")
    found = measure_all([t for t in trainings if t not in failed], judge.measure)
    facts = {
        "commands": {arm.name: shlex.join(arm.words) for arm in arms},
        "failed": {str(training): reason for training, reason in failed.items()},
        "stamp": judge.stamp,
    }
    write_quality(output, found, judge.baselines(), facts)
    return 1 if failed else 0
