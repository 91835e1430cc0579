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
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))
sys.path.insert(0, str(Path(__file__).parent.parent))

from launching import Launched, launch, launch_together
from survival import (
    RESUME,
    Variant,
    command,
    differences,
    finish,
    kill_at_random,
    killed_at,
    resources,
    seconds_to,
    tell_resources,
)

VARIANTS = (Variant(0, False, 3), Variant(2, False, 1), Variant(2, True, 3), Variant(0, True, 1))
# Where a run can die, as (function, the calls of it to die at).
PLACES = (
    ("accelerate:Accelerator.save_state", (1, 2)),
    ("modules.training.checkpoint:save_file", (1, 2)),
    ("modules.training.checkpoint:_seal", (1, 3)),
    ("os:replace", (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18)),
    ("os:unlink", (1, 2, 5, 9, 12, 20, 30)),
    ("shutil:rmtree", (1, 2, 3, 4, 5, 6)),
    ("modules.tracking.metrics_log:MetricsLog.append", (1, 2, 5, 9)),
    ("modules.tracking.journal:Journal.draw", (1, 2, 3)),
    ("eval.report.training:write_training_report", (1, 2, 3)),
    ("eval.protocol.latents:measure_latents", (1,)),
    ("modules.export.vae:export_discriminator", (1,)),
    ("modules.export.model_card:write_model_card", (1,)),
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
        steps = max(30, 2 * kills)
        finish(command(alone, steps, variant))
        started = time.monotonic()
        finish([*command(alone, steps, variant), *RESUME])  # nothing left but start and export
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
    finish(command(alone, steps, variant))
    for place, calls in PLACES:
        tried, wrong = 0, []
        for call in calls:
            for after in (False, True):
                killed = folder / f"{place}-{call}-{after}".replace(":", "-") / "run"
                argv = command(killed, steps, variant)
                if not killed_at(argv, place, call, after):
                    continue
                tried += 1
                finish([*argv, *RESUME])
                found = differences(killed, alone)
                wrong += [f"call {call}{' (after)' * after}: {', '.join(found[:3])}"] * bool(found)
        lost = "; ".join(wrong[:4]) or "nothing: bit-equal"
        yield Row(f"SIGKILL in `{place}`", tried, tried - len(wrong), lost)


def signals(folder: Path, kills: int, seed: int) -> Iterator[Row]:
    """SIGTERM and SIGUSR1 at random moments of training, in one process and in two."""
    draw, variant, steps = random.Random(seed), Variant(2, True, 1), 40
    for processes in (1, 2):
        alone, stopped = folder / f"{processes}-alone" / "run", folder / f"{processes}" / "run"
        wait_for(start(command(alone, steps, variant), processes))
        argv = [*command(stopped, steps, variant), *RESUME]
        delays = []
        while len(delays) < max(4, kills // 5):
            runs = start(argv, processes)
            runs[0].wait_until(lambda first=runs[0]: "INFO step" in first.output)
            time.sleep(draw.uniform(0.0, 1.0))
            target, number = draw.choice(runs), draw.choice([signal.SIGTERM, signal.SIGUSR1])
            if target.process.is_alive():
                target.signal(number)
            delays.append(wait_for(runs))
        wait_for(start(argv, processes))
        wrong = differences(stopped, alone)
        lost = "; ".join(wrong[:4]) or (
            f"nothing: every process exits with 0 within {max(delays):.1f} s, resumed bit-equal"
        )
        name = f"SIGTERM or SIGUSR1 at random, to one of {processes} process(es)"
        yield Row(name, len(delays), 0 if wrong else len(delays), lost)


def start(argv: list[str], processes: int) -> list[Launched]:
    """One process as it is, several as torchrun starts them."""
    return [launch(argv)] if processes == 1 else launch_together(argv, processes)


def wait_for(runs: list[Launched]) -> float:
    """Seconds until all have ended, which must be with 0."""
    return max(seconds_to(run, 0) for run in runs)


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
