"""The training script's own loop, to be measured: its arguments, and steps of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import train_vae
from modules.config.arguments import Arguments
from modules.config.command_line import resolve_arguments
from modules.training.run import Run


def measured_arguments(training_flags: Sequence[str]) -> Arguments:
    """The script's arguments, without trackers and validation images.

    Precision is bfloat16 unless a flag or the recipe says otherwise, as in accelerate_config.yaml.
    Raises ArgumentError naming flag, value and fix.
    """
    alone = ["--report_to", "none", "--num_validation_images", "0", "--early_stopping", "0"]
    args = resolve_arguments([*training_flags, *alone])
    if args.precision.mixed_precision is None:
        args = replace(args, precision=replace(args.precision, mixed_precision="bf16"))
    return args


def train_on(run: Run, batches: Sequence[dict[str, Any]]) -> Run:
    """The script's loop over `batches`, with nothing between its steps."""
    run.loader = batches
    with patch.object(train_vae, "after_step", lambda run, watch: True):
        train_vae.train(run, watch=None)
    return run
