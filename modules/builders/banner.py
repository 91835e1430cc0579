"""What is about to happen, in a dozen lines, before it does."""

from __future__ import annotations

import shutil
import time
from datetime import timedelta
from pathlib import Path

from diffusers import AutoencoderKL

from modules.builders.outline import aligned, plan_lines, recipe_line
from modules.builders.state_sizes import checkpoint_bytes
from modules.config.arguments import Arguments
from modules.config.inputs import ModelArguments
from modules.config.terminal import continuing
from modules.distributed.device import device_name
from modules.models.autoencoder import describe, latent_shape
from modules.models.resampler_init import carried
from modules.tracking.journal import Journal
from modules.training.run import Run


def banner(run: Run, training: str) -> str:
    """Model, images (`training`), batch, schedule and output of the run, below each other."""
    args, accelerator = run.args, run.accelerator
    processes, steps = accelerator.num_processes, run.max_train_steps
    device = f"{processes} x {device_name(accelerator.device)}"
    return aligned(
        recipe_line(args)
        | networks(args, run.raw_vae.vae)
        | plan_lines(args, training, steps, processes, run.schedule.lengths)
        | {"Device": f"{device}, precision {accelerator.mixed_precision}", "Output": output(run)}
    )


def networks(args: Arguments, vae: AutoencoderKL) -> dict[str, str]:
    """What is trained, and towards what, by line."""
    losses = args.losses
    shape = " x ".join(map(str, latent_shape(vae, args.data.resolution)))
    perceptual = f" + {losses.perceptual_scale:g} LPIPS-{losses.lpips_backbone}"
    return {
        "Model": describe(vae) + (", decoder only" if args.model.decoder_only else ""),
        "Start": _start(args.model, vae),
        "Latents": f"{shape} for {args.data.resolution} x {args.data.resolution} pixels",
        "Objective": losses.rec_loss + (perceptual if losses.perceptual_scale else "")
        + f" + {losses.kl_scale:g} KL"
        + (f", of changed latents with probability {losses.eq_prob:g}" if losses.eq_prob else ""),
    }  # fmt: skip


def _start(model: ModelArguments, vae: AutoencoderKL) -> str:
    if not model.from_scratch:
        return f"the weights of {model.pretrained_model_name_or_path}"
    if model.vae_init == "random":
        return "random weights, as --vae_init says"
    if not carried(vae):
        return "random weights: the GroupNorm groups are too small for a resampler"
    return "a linear down- and upsampler of the image (--vae_init resampler)"


def output(run: Run) -> str:
    """Where everything is written, and how much of it there is and may be."""
    args = run.args.checkpoints
    output_dir, keep = Path(args.output_dir), args.checkpoints_total_limit
    existing = next(path for path in (output_dir, *output_dir.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return (
        f"{output_dir}/ (a checkpoint of {_size(checkpoint_bytes(run))} every "
        f"{args.checkpointing_steps} steps, {f'{keep} kept' if keep else 'all kept'}; "
        f"{_size(free)} free)"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def facts(run: Run, journal: Journal) -> dict[str, str]:
    """What the report and the card say of the run beside its numbers and flags."""
    accelerator, took = run.accelerator, timedelta(seconds=round(time.monotonic() - journal.began))
    since = f" since step {journal.first_step:,}" if journal.first_step else ""
    return {
        "Hardware": f"{accelerator.num_processes} x {device_name(accelerator.device)}",
        "Precision": accelerator.mixed_precision.replace("no", "fp32"),
        "Time": f"{took}{since}, for {run.step:,} of {run.max_train_steps:,} steps",
    }


def interrupted(run: Run) -> str:
    """Where a signal has stopped the run, and last the command by which it goes on."""
    where = f"Stopped at step {run.step:,} of {run.max_train_steps:,} by a signal. To go on:"
    return f"{where}\n{continuing(run.args.launch.command)}"
