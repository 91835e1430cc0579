"""Ways to break a run, and the question whether it ended like one that was left alone."""

from __future__ import annotations

import errno
import itertools
import json
import os
import pkgutil
import random
import re
import shlex
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from launching import ADVERSARIAL, TINY, Launched, launch

from modules.training.run import Run

RESUME = ("--resume_from_checkpoint", "latest")
CLOCK = "train/images_per_s"
# Files whose content belongs to the launch, and generators that nobody seeds or uses.
NOT_COMPARED = ("train_config.yaml", ".train_vae.json", "report.html", "trainer_state.json",
                "manifest.json")  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """What kind of run is broken."""

    workers: int
    gan: bool
    accumulation: int

    def __str__(self) -> str:
        gan = "GAN" if self.gan else "no GAN"
        return f"{self.workers} workers, {gan}, accumulation {self.accumulation}"


def command(output_dir: Path, steps: int, variant: Variant, *more: object) -> list[str]:
    """A tiny run with an average, frequent checkpoints, rotation, validations and exports."""
    adversary = ADVERSARIAL if variant.gan else ["--disc_factor", "0"]
    has_images = {"--dataset_name", "--train_data_dir"}.intersection(map(str, more))
    images = [] if has_images else ["--dataset_name", "synthetic"]
    return [
        *TINY, *adversary, *images, "--output_dir", str(output_dir),
        "--train_batch_size", "2", "--use_ema", "--max_train_steps", str(steps),
        "--gradient_accumulation_steps", str(variant.accumulation),
        "--dataloader_num_workers", str(variant.workers),
        *shlex.split("--checkpointing_steps 3 --checkpoints_total_limit 2 --validation_steps 4"),
        *map(str, more),
    ]  # fmt: skip


def differences(ours: Path, theirs: Path) -> list[str]:
    """What of a finished run is not as in another one, bit for bit; an empty list is wanted.

    Networks, optimizers, schedules, averages, counters, log, pictures and exports; the set of files
    as well, so that neither a missing one nor debris goes unnoticed.
    """
    found = {path for path in _files(ours) ^ _files(theirs) if path.parts[0] != "logs"}
    wrong = [f"only in one: {path}" for path in sorted(found)]
    for path in sorted(_files(ours) & _files(theirs)):
        if path.name in NOT_COMPARED or path.parts[0] == "logs" or path.suffix == ".pkl":
            continue
        if path.name == "metrics.jsonl":
            same = rows(ours) == rows(theirs)
        else:
            same = _timeless(ours, path) == _timeless(theirs, path)
        if not same:
            wrong.append(f"different: {path}")
    last = max((theirs / "checkpoints").glob("step-*")).name
    if state_of(ours / "checkpoints" / last) != state_of(theirs / "checkpoints" / last):
        wrong.append("different: state of the trainer or of a generator")
    return wrong


def rows(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without the one number that is a matter of the clock."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != CLOCK} for line in lines]


def _timeless(run: Path, name: Path) -> bytes:
    """A file's content; of a model card, without the run's name and how long it took."""
    content, unequal = (run / name).read_bytes(), rb"\n(- Time: |    --dataloader_num_workers ).*"
    if name.name != "README.md":
        return content
    return re.sub(unequal, b"", content).replace(run.name.encode(), b"run")


def _files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def state_of(checkpoint: Path) -> dict[str, Any]:
    """The trainer's counters and tallies, and torch's generators."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    del state["flags"], state["history"]  # those of a launch may differ
    for file in sorted(checkpoint.glob("random_states_*.pkl")):
        generator = torch.load(file, weights_only=False)["torch_manual_seed"]
        state[file.name] = generator.tolist()
    return state


def finish(argv: Sequence[str]) -> None:
    """Runs `train_vae.py *argv` to its end, however slow the machine; it must be a good one."""
    code, output = launch(argv).wait(timeout=3600)
    assert code == 0, output


def kill_at_random(
    argv: Sequence[str], folder: Path, kills: int, longest: float, draw: random.Random
) -> Counter[str]:
    """Launches and kills until `kills` kills hit, then lets it end; says what the kills hit.

    longest: seconds after which a launch is killed at the latest; the moment is uniform.
    """
    hits: Counter[str] = Counter()
    while hits.total() < kills:
        started = time.time()
        run = launch([*argv, *RESUME], slow_disk)
        run.process.join(draw.uniform(0.0, longest))
        run.process.kill()
        code, output = run.wait()
        if code == -signal.SIGKILL:
            hits[_what_was_hit(folder, output, started)] += 1
        else:
            assert code == 0, output
    finish([*argv, *RESUME])
    return hits


def fail_for_want_of_space(*args: Any, **options: Any) -> None:
    """In place of a function that writes, on a disk that is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def slow_disk() -> None:
    """Whatever writes or deletes takes its time, so that kills at random moments hit it often."""
    for owner, name in ((os, "replace"), (os, "unlink"), (os, "fsync")):
        setattr(owner, name, _slowly(getattr(owner, name)))


def _slowly(function: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(0.01)
        return function(*args, **options)

    return slow


def _what_was_hit(folder: Path, output: str, started: float) -> str:
    def present(pattern: str) -> bool:
        return any(path.stat().st_mtime >= started for path in folder.glob(pattern))

    if present("checkpoints/.partial-*"):
        return "writing a checkpoint"
    if present("checkpoints/.deleted-*"):
        return "rotation"
    if present(".*.partial") or present("best/.*.partial"):
        return "export"
    if not re.search("INFO (step|Resumed)", output):
        return "start"
    return "steps and validations"


def kill_at(place: str, call: int, after: bool = False) -> None:
    """Makes this process kill itself at the `call`-th call of "module:function", or after it."""
    module, function = place.split(":")
    *owners, name = function.split(".")
    owner = pkgutil.resolve_name(":".join([module, ".".join(owners)]) if owners else module)
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def killing(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **options)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, killing)


def signal_at(place: str, number: int = signal.SIGTERM, call: int = 1) -> None:
    """The signal arrives at this process when it calls "module:function" the `call`-th time."""
    module, name = place.split(":")
    owner = pkgutil.resolve_name(module)
    original, calls = getattr(owner, name), itertools.count(1)

    def signalled(*args: Any, **options: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return original(*args, **options)

    setattr(owner, name, signalled)


def killed_at(argv: Sequence[str], place: str, call: int, after: bool = False) -> bool:
    """Whether a launch of `argv` got as far as that call, and died of it."""
    code, output = launch([*argv, *RESUME], partial(kill_at, place, call, after)).wait()
    assert code in (0, -signal.SIGKILL), output
    return code == -signal.SIGKILL


def tell_resources(every: int) -> None:
    """Prints resident set (kB), open files and threads after every `every`-th step."""
    update = Run.update

    def update_and_tell(self: Run, *turns: bool) -> None:
        update(self, *turns)
        if self.step % every == 0:
            resident = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]
            files, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
            print(f"step {self.step} resources {resident} {files} {threads}", flush=True)

    Run.update = update_and_tell


def resources(output: str) -> list[tuple[int, int, int, int]]:
    """What `tell_resources` printed: (step, resident set in kB, open files, threads)."""
    found = re.findall(r"step (\d+) resources (\d+) (\d+) (\d+)", output)
    return [tuple(map(int, numbers)) for numbers in found]


def seconds_to(run: Launched, code: int) -> float:
    """How long the run takes from now until it ends, which must be with `code`."""
    started = time.monotonic()
    ended, output = run.wait(timeout=3600)
    assert ended == code, output
    return time.monotonic() - started
