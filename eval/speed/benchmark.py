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

from eval.rehearsal import random_batch
from eval.speed.device_speed import peak_flops_per_s, useful_flops
from eval.speed.levers import UNDO
from eval.speed.phases import PHASES, PhaseClock, watched
from eval.speed.script import Nobody, skip_to_full_gan, training_script
from eval.speed.spread import Spread, ratio
from eval.speed.stopwatch import MemoryGauge, Stopwatch
from eval.speed.textbook_step import DTYPES, TextbookTrainer
from modules.builders.networks import make_vae
from modules.builders.run import make_run
from modules.config.arguments import Arguments
from modules.distributed.device import device_name
from modules.models.autoencoder import TrainableVAE
from modules.training.run import Run

OURS = "ours"
TEXTBOOKS = {
    "textbook": {},
    "latent-diffusion": {"repeat_forward": True},
    "no-split-backward": {"tuned": True},
}
MIN_WARMUP = 2  # steps: the optimizers make their moments in the first, which is not typical


@dataclass
class Contestant:
    """Something that takes optimizer steps, and what was measured of it."""

    step: Callable[[], None]
    peak_memory: int = 0  # bytes
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
    def teraflops(self) -> Spread:
        """Useful TFLOP/s."""
        return Spread.of([self.flops / ms / 1e9 for ms in self.contestants[OURS].milliseconds])

    @property
    def mfu(self) -> float:
        """The share of the device's measured matmul speed that useful work reaches."""
        return 1e12 * self.teraflops.median / self.peak_flops_per_s

    def images_per_s(self, name: str) -> Spread:
        """Images per second of a contestant."""
        times = self.contestants[name].milliseconds
        return Spread.of([1e3 * self.images_per_step / ms for ms in times])

    def speedup(self, name: str) -> Spread:
        """How many of our steps fit in one of theirs, step by step."""
        return ratio(self.contestants[OURS].milliseconds, self.contestants[name].milliseconds)

    def memory_ratio(self, name: str) -> float | None:
        """Our peak memory over theirs; None on a CPU, whose resident set keeps what was freed."""
        if self.device.startswith("CPU"):
            return None
        return self.contestants[OURS].peak_memory / self.contestants[name].peak_memory


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
        self.args = args
        self.script = training_script()
        self.gauges = {kind: MemoryGauge(torch.device(kind)) for kind in ("cuda", "cpu")}
        self.contestants: dict[str, Contestant] = {}
        self.run = self._enter(OURS, warmup, partial(self._build_ours, args))
        self.batches = _micro_batches(self.run)
        for name in rivals:
            if name in UNDO:
                build = partial(self._build_ours, args, UNDO[name])
            else:
                build = partial(self._build_textbook, **TEXTBOOKS[name])
            self._enter(name, warmup, build)
        for name, arguments in others.items():
            self._enter(name, warmup, partial(self._build_ours, arguments))
        self.stopwatch = Stopwatch(self.run.accelerator.device)

    def measure(self, steps: int, phase_steps: int) -> Result:
        """`steps` of each contestant in turns, then `phase_steps` of ours with marks inside.

        Each round begins with another one: whoever comes first may find other caches and clocks.
        """
        order = deque(self.contestants.values())
        for _ in range(steps):
            for contestant in order:
                marks = [self.stopwatch.mark()]
                contestant.step()
                marks.append(self.stopwatch.mark())
                contestant.milliseconds.append(marks)
            order.rotate(-1)
        for contestant in self.contestants.values():
            contestant.milliseconds = [
                self.stopwatch.milliseconds(marks)[0] for marks in contestant.milliseconds
            ]
        device = self.run.accelerator.device
        return Result(
            device=device_name(device),
            images_per_step=self.args.optimization.images_per_step(1),
            contestants=self.contestants,
            phases=self._phases(phase_steps),
            flops=useful_flops(self.args),
            peak_flops_per_s=peak_flops_per_s(device, DTYPES[self.args.precision.mixed_precision]),
        )

    def _enter(self, name: str, warmup: int, build: Callable[[], Any]) -> Any:
        """Builds a contestant, warms it up, and takes its peak memory without what was there."""
        gc.collect()
        before = {kind: gauge.now() for kind, gauge in self.gauges.items()}
        built, step = build()
        kind = self.run_device(built).type
        for taken in range(max(MIN_WARMUP, warmup)):
            if taken == MIN_WARMUP - 1:
                self.gauges[kind].reset()
            step()
        self.contestants[name] = Contestant(step, self.gauges[kind].peak() - before[kind])
        return built

    @staticmethod
    def run_device(built: Run | TextbookTrainer) -> torch.device:
        """Where a contestant works."""
        return built.accelerator.device if isinstance(built, Run) else built.device

    def _build_ours(
        self, args: Arguments, change: Callable[[Run], None] | None = None
    ) -> tuple[Run, Callable[[], None]]:
        vae = TrainableVAE(make_vae(args), args.model.decoder_only)
        run = make_run(args, vae, args.optimization.images_per_step(1))
        skip_to_full_gan(run)
        if change is not None:
            change(run)
        batches = _micro_batches(run)

        def step() -> None:
            run.loader = batches
            self.script.train(run, Nobody())

        return run, step

    def _build_textbook(self, **options: bool) -> tuple[TextbookTrainer, Callable[[], None]]:
        trainer = TextbookTrainer(self.run, **options)
        return trainer, lambda: trainer.step(self.batches)

    def _phases(self, steps: int) -> dict[str, list[float]]:
        clock, ours = PhaseClock(self.stopwatch), self.contestants[OURS]
        times: dict[str, list[float]] = {phase: [] for phase in PHASES}
        with watched(self.run, clock):
            for _ in range(steps):
                clock.begin(PHASES[0])
                ours.step()
                for phase, milliseconds in clock.milliseconds().items():
                    times[phase].append(milliseconds)
        return times


def _micro_batches(run: Run) -> list[dict[str, Any]]:
    opt = run.args.optimization
    batch = random_batch(run, opt.train_batch_size, run.args.data.resolution)
    if run.accelerator.device.type == "cuda":
        batch = {k: v.pin_memory() if torch.is_tensor(v) else v for k, v in batch.items()}
    return [batch] * opt.gradient_accumulation_steps


def scaling_row(args: Arguments, steps: int, warmup: int) -> dict[str, Any]:
    """One configuration's numbers for a table; None where it does not fit in the GPU's memory."""
    opt = args.optimization
    row: dict[str, Any] = {
        "resolution": args.data.resolution,
        "batch": opt.train_batch_size,
        "accumulation": opt.gradient_accumulation_steps,
        "images_per_s": None,
    }
    try:
        result = Bench(args, warmup).measure(steps, phase_steps=0)
    except torch.OutOfMemoryError:
        return row
    finally:
        gc.collect()
    return row | {
        "images_per_s": result.images_per_s(OURS).to_dict(),
        "ms": Spread.of(result.contestants[OURS].milliseconds).to_dict(),
        "peak_memory_gb": result.contestants[OURS].peak_memory / 1e9,
        "mfu": result.mfu,
    }
