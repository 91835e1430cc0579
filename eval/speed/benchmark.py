"""Trains a configuration for a few steps on random images, by the script's own loop, and measures.

Speed is taken without looking inside a step; a second pass, with marks between its parts, says
where the time goes. Rivals take turns step by step, so that a busy machine slows both alike.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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

Step = Callable[[], object]


@dataclass(frozen=True)
class Result:
    """What one configuration and its rivals, by name, reached; all times are of optimizer steps.

    peak_memory: bytes allocated on a GPU. phases: milliseconds of ours, by part of the step.
    """

    device: str
    images_per_step: int
    milliseconds: Mapping[str, list[float]]
    peak_memory: Mapping[str, int | None]
    phases: Mapping[str, list[float]]
    flops: int
    peak_flops_per_s: float

    @property
    def rivals(self) -> list[str]:
        """The names of all but ours."""
        return [name for name in self.milliseconds if name != OURS]

    @property
    def images_per_s(self) -> Spread:
        """Images per second of ours."""
        return Spread.of([1e3 * self.images_per_step / ms for ms in self.milliseconds[OURS]])

    @property
    def teraflops(self) -> Spread:
        """Useful TFLOP/s of ours."""
        return Spread.of([self.flops / ms / 1e9 for ms in self.milliseconds[OURS]])

    @property
    def mfu(self) -> float:
        """The share of the device's measured matmul speed that useful work reaches."""
        return 1e12 * self.teraflops.median / self.peak_flops_per_s

    def spread(self, name: str) -> Spread:
        """Milliseconds of a step."""
        return Spread.of(self.milliseconds[name])

    def speedup(self, name: str) -> Spread:
        """How many of our steps fit in one of theirs, step by step."""
        return Spread.ratio(self.milliseconds[OURS], self.milliseconds[name])


class Bench:
    """One configuration and its rivals, built and warmed up on the present device.

    warmup: steps; at least 2, because the optimizers make their moments in the first. rivals: names
    in TEXTBOOKS or UNDO. others: the trainer itself by other arguments, by name.
    """

    def __init__(
        self,
        args: Arguments,
        warmup: int,
        rivals: Sequence[str] = (),
        others: Mapping[str, Arguments] | None = None,
    ) -> None:
        self.args, self.warmup = args, warmup
        self.steps: dict[str, Step] = {}
        self.peak_memory: dict[str, int | None] = {}
        self.run = self._enter(OURS, partial(ours, args))
        for name in rivals:
            if name in UNDO:
                self._enter(name, partial(ours, args, UNDO[name]))
            else:
                self._enter(name, partial(_textbook, self.run, TEXTBOOKS[name]))
        for name, arguments in (others or {}).items():
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
        return Result(
            device=device_name(device),
            images_per_step=self.args.optimization.images_per_step(1),
            milliseconds={name: [stopwatch.milliseconds(pair)[0] for pair in marks[name]]
                          for name in self.steps},
            peak_memory=self.peak_memory,
            phases=self._phases(PhaseClock(stopwatch), phase_steps),
            flops=useful_flops(self.args),
            peak_flops_per_s=peak_flops_per_s(device, DTYPES[self.args.precision.mixed_precision]),
        )  # fmt: skip

    def _enter(self, name: str, build: Callable[[], tuple[Run, Step]]) -> Run:
        """Builds a contestant, warms it up, and takes its peak memory without what was there."""
        gc.collect()
        before = torch.cuda.memory_allocated()
        run, self.steps[name] = build()
        for _ in range(self.warmup):
            self.steps[name]()
        self.peak_memory[name] = None
        if run.accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.steps[name]()
            self.peak_memory[name] = torch.cuda.max_memory_allocated() - before
        return run

    def _phases(self, clock: PhaseClock, steps: int) -> dict[str, list[float]]:
        found = []
        with watched(self.run, clock):
            for _ in range(steps):
                clock.begin(PHASES[0])
                self.steps[OURS]()
                found.append(clock.milliseconds())
        return {phase: [times[phase] for times in found] for phase in PHASES}


def ours(args: Arguments, change: Callable[[Run], None] = lambda run: None) -> tuple[Run, Step]:
    """The trainer, at full GAN, after `change`: its run, and what takes one step of it."""
    run = run_at_full_gan(args, make_vae(args))
    change(run)
    return run, partial(train_on, run, micro_batches(run))


def _textbook(run: Run, repeat_forward: bool) -> tuple[Run, Step]:
    return run, partial(TextbookTrainer(run, repeat_forward).step, micro_batches(run))


def micro_batches(run: Run) -> list[dict[str, Any]]:
    """Random ones for one optimizer step, in pinned memory as the loader's where there is a GPU."""
    opt = run.args.optimization
    batch = random_batch(run, opt.train_batch_size, run.args.data.resolution)
    if run.accelerator.device.type == "cuda":
        batch = {k: v.pin_memory() if torch.is_tensor(v) else v for k, v in batch.items()}
    return [batch] * opt.gradient_accumulation_steps
