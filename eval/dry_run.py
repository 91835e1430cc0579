"""What a run will need, of a GPU's memory and of the disk, before there is a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from eval.export import planned_push
from eval.memory.fake_run import fake_run
from eval.memory.plan import AllocationMeter, Peaks, peaks_of
from modules.builders.banner import networks, output
from modules.builders.outline import aligned
from modules.builders.output_dir import resume_path
from modules.config.arguments import Arguments
from modules.distributed.launch_environment import chosen_precision
from modules.training.resume import reached_by
from modules.training.run import Run


def needs(args: Arguments, train: Callable[[Run], object]) -> str:
    """The networks, the predicted memory of every part of the run, and the size of checkpoints.

    train: the script's loop. Raises ArgumentError as the run would, also for a checkpoint that the
    flags do not fit.
    """
    precision = chosen_precision(args.precision.mixed_precision, os.environ)
    args = replace(args, precision=replace(args.precision, mixed_precision=precision))
    meter = AllocationMeter()
    with fake_run(args, meter) as (run, judges):
        reached_by(resume_path(args.checkpoints), args, run.raw_vae.vae)
        memory = {"Memory": _memory(peaks_of(run, judges, meter, train), precision)}
        lines = networks(args, run.raw_vae.vae) | memory | {"Output": output(run)}
    return "\n".join(filter(None, [aligned(lines), planned_push(args)]))


def _memory(peaks: Peaks, precision: str) -> str:
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in peaks.parts.items())
    return (
        f"about {peaks.on_card / 1e9:.1f} GB of one GPU, precision {precision}; tensors in GB: "
        f"{parts} (see `python -m eval memory`)"
    )
