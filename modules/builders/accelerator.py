"""The accelerator: devices and processes, precision, accumulation, trackers."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)

from modules.config.arguments import Arguments
from modules.distributed.device import expected_device, make_deterministic, multiplies_bfloat16
from modules.distributed.launch_environment import chosen_precision
from modules.distributed.reduce import gather_from_processes
from modules.errors import ArgumentError
from modules.output.folder_lock import FolderLock
from modules.training.checkpoint import leave_out_discriminator

logger = logging.getLogger(__name__)


def settle_precision(args: Arguments) -> Arguments:
    """The arguments with the precision that the run will have, whoever has decided it.

    A default of bfloat16, a recipe's or the launcher's, is float32 where there are no units for it;
    that is said. Raises ArgumentError for a precision or a device that there is not.
    """
    device, given = expected_device(os.environ), "mixed_precision" in args.launch.given
    precision = chosen_precision(args.precision.mixed_precision, os.environ)
    if precision == "bf16" and not multiplies_bfloat16(device):
        kind, better = ("processor", "no") if device.type == "cpu" else ("GPU", "fp16")
        if given:
            logger.warning("this %s computes bfloat16 in software, several times slower than what "
                           "it has units for: add --mixed_precision %s", kind, better)  # fmt: skip
        else:
            logger.warning("this %s computes bfloat16 in software: the precision is float32 "
                           "instead; --mixed_precision bf16 insists", kind)  # fmt: skip
            precision = "no"
    return replace(args, precision=replace(args.precision, mixed_precision=precision))


def make_accelerator(args: Arguments) -> Accelerator:
    """Raises ArgumentError where a launcher's processes do not know of each other, the device does
    not suit the precision, or a tracker's package is missing.
    """
    output_dir = Path(args.checkpoints.output_dir)
    if args.precision.deterministic:
        make_deterministic()
    else:
        # A run has few shapes and meets each of them often: cuDNN tries its kernels once for each.
        torch.backends.cudnn.benchmark = True
    precision, trackers = args.precision.mixed_precision, _trackers(args.logging.report_to)
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            # As plugins, because accelerate puts variables of the environment before plain numbers.
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=args.optimization.gradient_accumulation_steps
            ),
            dynamo_backend="no",  # --compile compiles the networks' blocks
            # Stepped once for each update by hand; accelerate would step them once a process.
            step_scheduler_with_optimizer=False,
            log_with=trackers or None,
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=timedelta(seconds=args.precision.ddp_timeout))
            ],
            project_config=ProjectConfiguration(
                project_dir=str(output_dir), logging_dir=str(output_dir / args.logging.logging_dir)
            ),
        )
    except ValueError as error:
        raise ArgumentError(
            f"--mixed_precision={precision} cannot be used here: {error}"
        ) from error
    if accelerator.distributed_type == DistributedType.XLA:
        raise ArgumentError("distributed_type XLA (TPU) is not supported; use GPUs or a CPU")
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        raise ArgumentError(
            f"the launcher started {expected} processes but accelerate sees "
            f"{accelerator.num_processes}: they would train independent models over each other. "
            "Without GPUs set ACCELERATE_USE_CPU=true and launch with torchrun"
        )
    _limit_memory(args.precision.memory_limit_gb, accelerator)
    # By the old names, which PyTorch's compiler and exporter ask for; they refuse an answer where
    # one operation has been set by its new name (torch.backends.cudnn.conv.fp32_precision).
    torch.backends.cuda.matmul.allow_tf32 = args.precision.allow_tf32
    torch.backends.cudnn.allow_tf32 = args.precision.allow_tf32
    if not args.discriminator.enabled:
        leave_out_discriminator(accelerator)
    return accelerator


def refuse_together(lock: FolderLock) -> None:
    """Raises ArgumentError on every process if the main one was refused the folder. Collective."""
    refusals = [text for text in gather_from_processes([lock.refusal]) if text is not None]
    if refusals:
        raise ArgumentError(refusals[0])


def _limit_memory(limit_gb: float | None, accelerator: Accelerator) -> None:
    if limit_gb is None:
        return
    if accelerator.device.type != "cuda":
        raise ArgumentError(
            f"--memory_limit_gb={limit_gb} needs a CUDA device; here it is {accelerator.device}"
        )
    device = torch.cuda.current_device()  # accelerate's own has no index on a single GPU
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit_gb * 1e9 / total), device)


def _trackers(report_to: str) -> list[str]:
    installed = [str(getattr(name, "value", name)) for name in get_available_trackers()]
    if report_to == "all":
        return installed
    if report_to == "none":
        return []
    known = sorted(map(str, LOGGER_TYPE_TO_CLASS))
    if report_to not in known:
        raise ArgumentError(f"--report_to={report_to} must be all, none or one of {known}")
    if report_to not in installed:
        raise ArgumentError(
            f"--report_to={report_to} needs its package: `pip install {report_to}`, or use "
            "--report_to none; metrics.jsonl is written in any case"
        )
    return [report_to]
