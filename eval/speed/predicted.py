"""The memory of the script's own step, and of a plain one on the same networks."""

from __future__ import annotations

import warnings
from functools import partial

import train_vae
from eval.memory.fake_run import fake_run
from eval.memory.plan import AllocationMeter, Peaks, peaks_of
from eval.rehearsal import TRAINING, largest_batch
from eval.speed.textbook_step import TextbookTrainer
from modules.builders.state_sizes import state_bytes
from modules.config.arguments import Arguments

TEXTBOOK = "textbook"


def plan(args: Arguments) -> tuple[dict[str, int], Peaks]:
    """The states of a run by `args`, and what each of its parts needs at its worst moment."""
    meter = AllocationMeter()
    with fake_run(args, meter) as (run, judges):
        lpips = next(iter(judges.lpips.values()), None)
        frozen = {"LPIPS": lpips, "Inception": judges.inception}
        networks = {name: network for name, network in frozen.items() if network is not None}
        found = peaks_of(run, judges, meter, partial(train_vae.train, watch=None))
        return state_bytes(run, networks), found


def plan_textbook(args: Arguments) -> Peaks:
    """The peak of a plain step on the same networks."""
    meter = AllocationMeter()
    with fake_run(args, meter) as (run, _):
        ours = meter.now
        with warnings.catch_warnings():  # its networks are copied, which looks at their memory
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            trainer = TextbookTrainer(run)
        batch = largest_batch(run)
        trainer.step([batch])  # makes the optimizers' moments
        # More micro-batches than two need no more memory.
        count = min(2, args.optimization.gradient_accumulation_steps)
        peak = meter.peak_of(partial(trainer.step, [batch] * count))
        return Peaks.of(args, TEXTBOOK, {TRAINING: peak - ours})
