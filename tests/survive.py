"""Breaks runs in the ways we know, counts what survives, and prints a table for the README.

    python tests/survive.py                        # everything but the long run
    python tests/survive.py --only crash --kills 50
    python tests/survive.py --only places signals

The runs are tiny and on the CPU: what is tested is the trainer, not the hardware.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from launching import launch, launch_together, succeed
from survival import (
    RESUME,
    Variant,
    command,
    differences,
    kill_at_random,
    killed_at,
    resources,
    rows,
    seconds_to,
    tell_resources,
)

VARIANTS = (Variant(2, True, 3), Variant(0, True, 1), Variant(0, False, 3), Variant(2, False, 1))
# Where a run can die, as (function, the calls of it to die at).
PLACES = (
    ("accelerate:Accelerator.save_state", (1, 2)),
    ("modules.checkpoint:save_file", (1, 2)),
    ("modules.checkpoint:_seal", (1, 3)),
    ("os:replace", (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18)),
    ("os:unlink", (1, 2, 5, 9, 12, 20, 30)),
    ("shutil:rmtree", (1, 2, 3, 4, 5, 6)),
    ("modules.metrics_log:MetricsLog.append", (1, 2, 5, 9)),
    ("modules.journal:Journal.draw", (1, 2, 3)),
    ("eval.training_report:write_training_report", (1, 2, 3)),
    ("eval.latent_pass:measure_latents", (1,)),
    ("modules.export:export_discriminator", (1,)),
    ("modules.export:write_model_card", (1,)),
)


@dataclass
class Row:
    """One line of the table."""

    fault: str
    tried: int
    survived: int
    lost: str

    def __str__(self) -> str:
        return f"| {self.fault} | {self.tried} | {self.survived} | {self.lost} |"


def crash(folder: Path, kills: int, seed: int) -> Iterator[Row]:
    """SIGKILL at moments uniform in time, over one run each."""
    for number, variant in enumerate(VARIANTS):
        alone, killed = folder / f"{number}-alone" / "run", folder / f"{number}-killed" / "run"
        steps = max(30, 3 * kills)
        succeed(command(alone, steps, variant))
        started = time.monotonic()
        succeed([*command(alone, steps, variant), *RESUME])  # nothing left but start and export
        longest = 2.5 * (time.monotonic() - started)
        argv = command(killed, steps, variant)
        hits = kill_at_random(argv, killed, kills, longest, random.Random(f"{seed} {variant}"))
        wrong = differences(killed, alone)
        where = ", ".join(f"{place} {count}" for place, count in hits.most_common())
        lost = "; ".join(wrong[:5]) or f"nothing: bit-equal after {steps} steps (hit: {where})"
        yield Row(f"SIGKILL at random, {variant}", kills, 0 if wrong else kills, lost)


def places(folder: Path, kills: int, seed: int) -> Iterator[Row]:
    """SIGKILL in the middle of everything that writes."""
    del kills, seed
    variant = Variant(0, True, 1)
    alone, steps = folder / "alone" / "run", 9
    succeed(command(alone, steps, variant))
    for place, calls in PLACES:
        tried, wrong = 0, []
        for call in calls:
            for after in (False, True):
                killed = folder / f"{place}-{call}-{after}".replace(":", "-") / "run"
                argv = command(killed, steps, variant)
                if not killed_at(argv, place, call, after):
                    continue
                tried += 1
                succeed([*argv, *RESUME])
                found = differences(killed, alone)
                wrong += [f"call {call}{' (after)' * after}: {', '.join(found[:3])}"] * bool(found)
        lost = "; ".join(wrong[:4]) or "nothing: bit-equal"
        yield Row(f"SIGKILL in `{place}`", tried, tried - len(wrong), lost)


def signals(folder: Path, kills: int, seed: int) -> Iterator[Row]:
    """SIGTERM and SIGUSR1 at random moments of training, in one process and in two."""
    draw, variant, steps = random.Random(seed), Variant(2, True, 1), 40
    for processes in (1, 2):

        def start(argv: list[str], count: int = processes) -> list:
            return [launch(argv)] if count == 1 else launch_together(argv, count)

        alone = folder / f"{processes}-alone" / "run"
        for run in start(command(alone, steps, variant)):
            seconds_to(run, 0)
        stopped, delays = folder / f"{processes}-stopped" / "run", []
        argv = [*command(stopped, steps, variant), *RESUME]
        where: Counter[str] = Counter()
        while sum(where.values()) < max(4, kills // 5):
            runs = start(argv)
            log = stopped / "metrics.jsonl"
            before = log.stat().st_mtime_ns if log.exists() else 0
            runs[0].wait_until(lambda r=runs: "Steps:" in r[0].output)
            time.sleep(draw.uniform(0.0, 1.0))
            number = draw.choice([signal.SIGTERM, signal.SIGUSR1])
            target = draw.choice(runs)
            del before
            if target.process.exitcode is None:
                target.signal(number)
            delays.append(max(seconds_to(run, 0) for run in runs))
            where[signal.Signals(number).name] += 1
        for run in start(argv):
            seconds_to(run, 0)
        wrong = differences(stopped, alone)
        tried = sum(where.values())
        lost = "; ".join(wrong[:4]) or (
            f"nothing: exit 0 within {max(delays):.1f} s at most, resumed bit-equal"
        )
        yield Row(f"{' or '.join(sorted(where))} at random, {processes} process(es)", tried,
                  0 if wrong else tried, lost)  # fmt: skip
        assert rows(stopped)


def long(folder: Path, kills: int, seed: int) -> Iterator[Row]:
    """2,000 steps: memory, open files, threads and folders stay as they are."""
    del kills, seed
    argv = command(folder / "run", 2000, Variant(2, True, 1))
    argv += ["--checkpointing_steps", "100", "--validation_steps", "10", "--logging_steps", "10"]
    code, output = launch(argv, partial(tell_resources, 200)).wait(timeout=3600)
    assert code == 0, output
    told = resources(output)
    sizes = [resident for _, resident, _, _ in told]
    growth = max(sizes) / sizes[0] - 1
    flat = len({tuple(counts) for _, _, *counts in told}) == 1
    pictures = len(list((folder / "run" / "samples").iterdir()))
    log = (folder / "run" / "metrics.jsonl").stat().st_size / 2000
    text = (
        f"resident set at most {growth:+.1%} of {sizes[0] / 1000:.0f} MB at step 200; open files "
        f"{told[0][2]} to {told[-1][2]}, threads {told[0][3]} to {told[-1][3]}; {pictures} "
        f"pictures; metrics.jsonl {log:.0f} bytes a step"
    )
    yield Row("2,000 steps", 1, int(growth <= 0.03 and flat and pictures <= 101), text)


FAULTS = {"crash": crash, "places": places, "signals": signals, "long": long}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="random kills over each run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS))
    args = parser.parse_args()
    print("| fault | times tried | times survived | lost |\n|---|---|---|---|", flush=True)
    for name in args.only:
        with tempfile.TemporaryDirectory(prefix=f"survive-{name}-") as folder:
            for row in FAULTS[name](Path(folder), args.kills, args.seed):
                print(row, flush=True)


if __name__ == "__main__":
    main()
