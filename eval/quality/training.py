"""Trains every arm with every seed, several at a time, in processes and folders of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.quality.arms import Arm
from modules.config.command_line import resolve_arguments
from modules.errors import ArgumentError

LAST_LINES = 8  # of the log of a run that failed
PATIENCE = 0.2  # seconds between looks at what is running


@dataclass(frozen=True)
class Training:
    """One arm with one seed. Its folder has a log and, once it has ended well, a record beside."""

    name: str
    seed: int
    output: Path
    command: tuple[str, ...]
    steps: int
    images_per_step: int

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """Everything that the process printed."""
        return self.output.with_name(f"{self.output.name}.log")

    @property
    def record(self) -> Path:
        """The command, as JSON."""
        return self.output.with_name(f"{self.output.name}.json")

    def finished(self) -> bool:
        """Whether it need not be repeated. ArgumentError where another command was trained here."""
        if not self.record.exists():
            return False
        if json.loads(self.record.read_text()) != [*self.command]:
            raise ArgumentError(
                f"--output_dir: {self.output} was trained by another command ({self.record}); "
                "rename the arm, or delete both"
            )
        return True


def plan(
    arms: Sequence[Arm], common: Sequence[str], seeds: Sequence[int], output: Path
) -> list[Training]:
    """Every arm with its first seed, then with its next: who comes late in a busy hour is no arm.

    common: flags that all arms share. Raises ArgumentError for a folder of another training.
    """
    trainings = []
    for seed in dict.fromkeys(seeds):
        for arm in arms:
            resolved = resolve_arguments([*common, *(() if arm.peer else arm.words)])
            folder = output.resolve() / arm.name / f"seed-{seed}"
            trainings.append(Training(
                arm.name, seed, folder, tuple(arm.command(common, seed, folder)),
                resolved.optimization.max_train_steps, resolved.optimization.images_per_step(1),
            ))  # fmt: skip
            trainings[-1].finished()
    return trainings


def train_all(trainings: Sequence[Training], at_once: int) -> dict[Training, str]:
    """Runs them in the order given, `at_once` side by side; why each one that failed did.

    Each gets its share of the CPU's threads, unless OMP_NUM_THREADS is set. The others go on after
    a failure; those that run are ended where this is interrupted.
    """
    threads = str(max(1, len(os.sched_getaffinity(0)) // at_once))
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **os.environ}
    waiting = deque(training for training in trainings if not training.finished())
    running: dict[Training, subprocess.Popen[bytes]] = {}
    failed, total = {}, len(waiting)
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                training = waiting.popleft()
                print(f"[{total - len(waiting)}/{total}] {training}", flush=True)
                running[training] = _start(training, environment)
            time.sleep(PATIENCE)
            for training in [t for t, process in running.items() if process.poll() is not None]:
                if reason := _end(training, running.pop(training).returncode):
                    failed[training] = reason
                    print(f"{training} failed: {reason}", flush=True)
    finally:
        for process in running.values():
            process.terminate()
    return failed


def _start(training: Training, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    training.output.parent.mkdir(parents=True, exist_ok=True)
    with training.log.open("wb") as log:
        return subprocess.Popen(
            training.command, stdout=log, stderr=subprocess.STDOUT, env=environment
        )


def _end(training: Training, code: int) -> str | None:
    """Writes the record and drops the checkpoints; why it failed, if it did."""
    if code or not (training.output / "config.json").exists():
        lines = training.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return "\n  ".join([f"exit code {code}; the end of {training.log}:", *lines])
    shutil.rmtree(training.output / "checkpoints", ignore_errors=True)
    training.record.write_text(json.dumps(training.command))
    return None
