"""Trains a configuration for a few steps on random images, by the script's own loop, and measures.

Speed is taken without looking inside a step; a second pass, with marks between its parts, says
where the time goes. Rivals take turns step by step, so that a busy machine slows both alike.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from eval.memory.fake_run import DTYPES, run_at_full_gan
from eval.rehearsal import random_batch
from eval.speed.device_speed import peak_flops_per_s, useful_flops
from eval.speed.levers import UNDO
from eval.speed.phases import PHASES, PhaseClock, watched
from eval.speed.script import train_on
from eval.speed.stopwatch import Spread, Stopwatch
from eval.speed.textbook_step import TextbookTrainer
from modules.builders.networks import make_vae
from modules.config.arguments import Arguments
from modules.distributed.device import device_name
from modules.training.run import Run

OURS = "ours"
TEXTBOOKS = {"textbook": False, "latent-diffusion": True}  # whether the VAE goes forward again
MIN_WARMUP = 2  # steps: the optimizers make their moments in the first, which is not typical


@dataclass
class Contestant:
    """What was measured of something that takes optimizer steps."""

    peak_memory: int | None = None  # bytes allocated on a GPU
    milliseconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """What one configuration reached; times in milliseconds for one optimizer step."""

    device: str
    images_per_step: int
    contestants: Mapping[str, Contestant]
    phases: Mapping[str, list[float]]
    flops: int
    peak_flops_per_s: float

    @property
    def ours(self) -> Contestant:
        """The trainer."""
        return self.contestants[OURS]

    @property
    def rivals(self) -> dict[str, Contestant]:
        """All others."""
        return {name: c for name, c in self.contestants.items() if name != OURS}

    @property
    def images_per_s(self) -> Spread:
        """Images per second of ours."""
        return Spread.of([1e3 * self.images_per_step / ms for ms in self.ours.milliseconds])

    @property
    def teraflops(self) -> Spread:
        """Useful TFLOP/s of ours."""
        return Spread.of([self.flops / ms / 1e9 for ms in self.ours.milliseconds])

    @property
    def mfu(self) -> float:
        """The share of the device's measured matmul speed that useful work reaches."""
        return 1e12 * self.teraflops.median / self.peak_flops_per_s

    def speedup(self, name: str) -> Spread:
        """How many of our steps fit in one of theirs, step by step."""
        return Spread.ratio(self.ours.milliseconds, self.contestants[name].milliseconds)


class Bench:
    """One configuration, built and warmed up on the present device.

    rivals: names in TEXTBOOKS or UNDO. others: the trainer itself by other arguments, by name.
    """

    def __init__(
        self,
        args: Arguments,
        warmup: int,
        rivals: Sequence[str] = (),
        others: Mapping[str, Arguments] = MappingProxyType({}),
    ) -> None:
        self.args, self.warmup = args, max(MIN_WARMUP, warmup)
        self.steps: dict[str, Callable[[], object]] = {}
        self.contestants: dict[str, Contestant] = {}
        self.run = self._enter(OURS, partial(ours, args))
        for name in rivals:
            if name in UNDO:
                self._enter(name, partial(ours, args, UNDO[name]))
            else:
                self._enter(name, partial(_textbook, self.run, TEXTBOOKS[name]))
        for name, arguments in others.items():
            self._enter(name, partial(ours, arguments))

    def measure(self, steps: int, phase_steps: int) -> Result:
        """`steps` of each contestant in turns, then `phase_steps` of ours with marks inside.

        Each round begins with another one: whoever comes first may find other caches and clocks.
        """
        device, order = self.run.accelerator.device, deque(self.steps)
        stopwatch, marks = Stopwatch(device), {name: [] for name in order}
        for _ in range(steps):
            for name in order:
                start = stopwatch.mark()
                self.steps[name]()
                marks[name].append((start, stopwatch.mark()))
            order.rotate(-1)
        for name, contestant in self.contestants.items():
            contestant.milliseconds = [stopwatch.milliseconds(pair)[0] for pair in marks[name]]
        return Result(
            device=device_name(device),
            images_per_step=self.args.optimization.images_per_step(1),
            contestants=self.contestants,
            phases=self._phases(PhaseClock(stopwatch), phase_steps),
            flops=useful_flops(self.args),
            peak_flops_per_s=peak_flops_per_s(device, DTYPES[self.args.precision.mixed_precision]),
        )

    def _enter(self, name: str, build: Callable[[], tuple[Run, Callable[[], object]]]) -> Run:
        """Builds a contestant, warms it up, and takes its peak memory without what was there."""
        gc.collect()
        before = torch.cuda.memory_allocated()
        run, step = build()
        self.steps[name], contestant = step, Contestant()
        self.contestants[name] = contestant
        for _ in range(self.warmup):
            step()
        if run.accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            step()
            contestant.peak_memory = torch.cuda.max_memory_allocated() - before
        return run

    def _phases(self, clock: PhaseClock, steps: int) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {phase: [] for phase in PHASES}
        with watched(self.run, clock):
            for _ in range(steps):
                clock.begin(PHASES[0])
                self.steps[OURS]()
                for phase, milliseconds in clock.milliseconds().items():
                    times[phase].append(milliseconds)
        return times


def ours(
    args: Arguments, change: Callable[[Run], None] | None = None
) -> tuple[Run, Callable[[], object]]:
    """The trainer, at full GAN, after `change`: its run, and what takes one step of it."""
    run = run_at_full_gan(args, make_vae(args))
    if change is not None:
        change(run)
    return run, partial(train_on, run, micro_batches(run))


def _textbook(run: Run, repeat_forward: bool) -> tuple[Run, Callable[[], object]]:
    trainer = TextbookTrainer(run, repeat_forward)
    return run, partial(trainer.step, micro_batches(run))


def micro_batches(run: Run) -> list[dict[str, Any]]:
    """Random ones for one optimizer step, in pinned memory as the loader's where there is a GPU."""
    opt = run.args.optimization
    batch = random_batch(run, opt.train_batch_size, run.args.data.resolution)
    if run.accelerator.device.type == "cuda":
        batch = {k: v.pin_memory() if torch.is_tensor(v) else v for k, v in batch.items()}
    return [batch] * opt.gradient_accumulation_steps
