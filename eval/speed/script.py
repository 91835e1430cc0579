"""The training script's own loop, to be measured: its arguments, and steps of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from diffusers import AutoencoderKL

import train_vae
from modules.builders.run import make_run
from modules.config.arguments import Arguments
from modules.config.command_line import resolve_arguments
from modules.models.autoencoder import TrainableVAE
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


def run_at_full_gan(args: Arguments, vae: AutoencoderKL) -> Run:
    """A run by the script's builder at its most expensive step: every term counts, with no end."""
    run = make_run(
        args, TrainableVAE(vae, args.model.decoder_only), args.optimization.images_per_step(1)
    )
    run.step = sum(run.schedule.lengths)
    run.step += run.step % 2  # the VAE's turn, if they take turns
    run.max_train_steps = 10**12
    return run
