"""What is about to happen, in a dozen lines, before it does."""

from __future__ import annotations

import shutil
import time
from dataclasses import fields
from datetime import timedelta
from itertools import accumulate
from pathlib import Path

from accelerate import Accelerator
from diffusers import AutoencoderKL

from modules.config.arguments import GROUPS, Arguments
from modules.config.inputs import ModelArguments
from modules.config.objective import GAN_LENGTHS, DiscriminatorArguments
from modules.distributed.device import device_name
from modules.models.autoencoder import describe, latent_shape
from modules.models.resampler_init import carried
from modules.tracking.journal import Journal
from modules.tracking.metrics_log import best_psnr, whole_validations
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
        "Start": _start(args.model, vae),
        "Latents": f"{shape} for {args.data.resolution} x {args.data.resolution} pixels",
        "Training": training,
        "Steps": f"{steps} of {opt.train_batch_size} images x "
        f"{opt.gradient_accumulation_steps} accumulated on each device",
        "Objective": losses.rec_loss + (perceptual if losses.perceptual_scale else "")
        + f" + {losses.kl_scale:g} KL",
        "Optimizer": _optimizer(args, run),
        "GAN": _gan(args.discriminator, max_train_steps, run),
        "Device": _situation(run.accelerator) if run else "not looked for in a dry run",
        "Output": _output(args, vae),
    }  # fmt: skip
    width = max(map(len, lines))
    return "\n".join(f"{name:>{width}}  {text}" for name, text in lines.items())


def _situation(accelerator: Accelerator) -> str:
    device = device_name(accelerator.device)
    return f"{accelerator.num_processes} x {device}, precision {accelerator.mixed_precision}"


def _start(model: ModelArguments, vae: AutoencoderKL) -> str:
    if not model.from_scratch:
        return f"the weights of {model.pretrained_model_name_or_path}"
    if model.vae_init == "random":
        return "random weights, as --vae_init says"
    if not carried(vae):
        return "random weights: the GroupNorm groups are too small for a resampler"
    return "a linear down- and upsampler of the image (--vae_init resampler)"


def _optimizer(args: Arguments, run: Run | None) -> str:
    opt = args.optimization
    rate = run.scheduler_vae.scheduler.base_lrs[0] if run else args.peak_rates[0]
    average = f", averaged with a half-life of {opt.ema_half_life:.0%} of the updates"
    return f"AdamW at {rate:g}, {opt.lr_scheduler}" + (average if opt.use_ema else "")


def _gan(disc: DiscriminatorArguments, max_train_steps: int | None, run: Run | None) -> str:
    if not disc.enabled:
        return "off"
    if max_train_steps is None:  # and what is a share of it
        return " ".join(f"--{name} {getattr(disc, name)}" for name in GAN_LENGTHS)
    lengths = run.schedule.lengths if run else disc.lengths(max_train_steps).values()
    start, felt, full = accumulate(lengths)
    if start >= max_train_steps:
        return f"never starts: --disc_start={disc.disc_start} lies after the last step"
    return f"discriminator trains from step {start}, is felt from {felt}, in full from {full}"


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


def facts(run: Run, journal: Journal) -> dict[str, str]:
    """What a report says of the run beside its numbers; secrets are no part of `as_dict`.

    Nor are paths part of it: the report goes to the Hub with the run.
    """
    known = {f.name: f for group in GROUPS.values() for f in fields(group)}
    changed = [
        _typed(name, value)
        for name, value in run.args.as_dict().items()
        if value != known[name].default and not known[name].metadata["limits"].path
    ]
    accelerator, took = run.accelerator, timedelta(seconds=round(time.monotonic() - journal.began))
    since = f" since step {journal.first_step:,}" if journal.first_step else ""
    return {
        "Hardware": f"{accelerator.num_processes} x {device_name(accelerator.device)}",
        "Precision": accelerator.mixed_precision.replace("no", "fp32"),
        "Time": f"{took}{since}, for {run.step:,} of {run.max_train_steps:,} steps",
        "Flags that differ from the defaults": "  ".join(changed),
    }


def _typed(name: str, value: object) -> str:
    """A flag as one types it."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no_{name}"
    return f"--{name} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"


def summary(vae: AutoencoderKL, output_dir: Path, rows: list[dict[str, float]]) -> str:
    """What came out, in a few lines. rows: those of metrics.jsonl."""
    validations = whole_validations(rows)
    lines = [f"Wrote {output_dir}/, scaling_factor {vae.config.scaling_factor:.5g}."]
    if validations:
        first, last = validations[0], validations[-1]
        best = best_psnr(validations)
        lines.append(
            f"PSNR {first['val/psnr']:.2f} dB at step {first['step']}, "
            f"{last['val/psnr']:.2f} dB at step {last['step']}; "
            f"the best was {best['val/psnr']:.2f} dB at step {best['step']}."
        )
    lines.append(f'Load it with AutoencoderKL.from_pretrained("{output_dir}").')
    return "\n".join(lines)
