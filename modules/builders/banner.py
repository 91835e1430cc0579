"""What is about to happen, in a dozen lines, before it does."""

from __future__ import annotations

import shutil
import time
from collections.abc import Container
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator
from diffusers import AutoencoderKL

from modules.config.arguments import GROUPS, Arguments
from modules.config.objective import DiscriminatorArguments
from modules.distributed.device import device_name
from modules.models.autoencoder import describe, latent_shape
from modules.tracking.journal import Journal
from modules.training.run import Run


def banner(
    args: Arguments,
    vae: AutoencoderKL,
    training: str = "not opened in a dry run",
    run: Run | None = None,
) -> str:
    """Model, data, batch, schedule and output of the run, as an aligned block of text.

    training: the images. run: None in a dry run, which does not look for devices.
    """
    max_train_steps = run.max_train_steps if run else args.optimization.max_train_steps
    steps = "?" if max_train_steps is None else f"{max_train_steps:,}"
    opt, losses = args.optimization, args.losses
    shape = " x ".join(map(str, latent_shape(vae, args.data.resolution)))
    perceptual = f" + {losses.perceptual_scale:g} LPIPS-{losses.lpips_backbone}"
    lines = {
        "Model": describe(vae) + (", decoder only" if args.model.decoder_only else ""),
        "Latents": f"{shape} for {args.data.resolution} x {args.data.resolution} pixels",
        "Training": training,
        "Steps": f"{steps} of {opt.train_batch_size} images x "
        f"{opt.gradient_accumulation_steps} accumulated on each device",
        "Objective": losses.rec_loss + (perceptual if losses.perceptual_scale else "")
        + f" + {losses.kl_scale:g} KL",
        "GAN": _gan(args.discriminator, max_train_steps) if args.discriminator.enabled else "off",
        "Device": _situation(run.accelerator) if run else "not looked for in a dry run",
        "Output": _output(args, vae),
    }  # fmt: skip
    width = max(map(len, lines))
    return "\n".join(f"{name:>{width}}  {text}" for name, text in lines.items())


def _situation(accelerator: Accelerator) -> str:
    device = device_name(accelerator.device)
    return f"{accelerator.num_processes} x {device}, precision {accelerator.mixed_precision}"


def _gan(disc: DiscriminatorArguments, max_train_steps: int | None) -> str:
    if max_train_steps is not None and disc.disc_start >= max_train_steps:
        return f"never starts: --disc_start={disc.disc_start} lies after the last step"
    felt = disc.disc_start + disc.disc_warmup_steps
    return (
        f"discriminator trains from step {disc.disc_start}, is felt from {felt}, "
        f"in full from {felt + disc.disc_ramp_steps}"
    )


def _output(args: Arguments, vae: AutoencoderKL) -> str:
    output_dir = Path(args.checkpoints.output_dir)
    weights = 4 * sum(parameter.numel() for parameter in vae.parameters())
    copies = 4 if args.optimization.use_ema else 3  # weights, two moments, average
    existing = next(path for path in (output_dir, *output_dir.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return (
        f"{output_dir}/ (about {_size(weights * copies)} for each checkpoint, every "
        f"{args.checkpoints.checkpointing_steps} steps; {_size(free)} free)"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def changed_flags(args: Arguments, among: Container[str] | None = None) -> list[str]:
    """Flags that differ from the defaults, as one types them: what the world may know of them.

    Secrets are no part of `as_dict`, and what may be a path of this machine is left out. among: of
    these names only.
    """
    known = {f.name: f for group in GROUPS.values() for f in fields(group)}
    return [
        _typed(name, value)
        for name, value in args.as_dict().items()
        if value != known[name].default
        and not known[name].metadata["limits"].path
        and (among is None or name in among)
    ]


def facts(run: Run, journal: Journal) -> dict[str, str]:
    """What the report and the card say of the run beside its numbers and flags."""
    accelerator, took = run.accelerator, timedelta(seconds=round(time.monotonic() - journal.began))
    since = f" since step {journal.first_step:,}" if journal.first_step else ""
    return {
        "Hardware": f"{accelerator.num_processes} x {device_name(accelerator.device)}",
        "Precision": accelerator.mixed_precision.replace("no", "fp32"),
        "Time": f"{took}{since}, for {run.step:,} of {run.max_train_steps:,} steps",
    }


def _typed(name: str, value: object) -> str:
    """A flag as one types it."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no_{name}"
    return f"--{name} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
