"""A process that is lost, stuck or stopped ends the run with a message, and never hangs it."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from launching import Launched, finish_together, launch, launch_together, succeed
from survival import RESUME, Variant, command, differences, rows, signal_at

from modules.output.checkpoint_folders import checkpoint_steps, verify
from modules.training.run import Run

VARIANT = Variant(0, True, 1)


def together(folder: Path, *more: object, before=None, steps: int = 400) -> list[Launched]:
    return launch_together(command(folder, steps, VARIANT, *more), 2, before)


def is_training(folder: Path, steps: int = 2) -> bool:
    log = folder / "metrics.jsonl"
    return log.exists() and log.read_text().count("\n") > steps


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_hangs_ends_the_other_with_a_message(tmp_path, fault):
    healthy, broken = together(tmp_path / "run", "--ddp_timeout", 3)
    healthy.wait_until(lambda: is_training(tmp_path / "run"))
    broken.signal(fault)
    started = time.monotonic()
    code, output = healthy.wait(timeout=60)
    broken.process.kill()
    assert code == 1, output
    assert time.monotonic() - started < 20
    assert "Traceback" not in output
    message = output.strip().splitlines()[-1]
    assert "another process of the run has ended, or has not answered" in message
    assert "--ddp_timeout" in message
    assert "--resume_from_checkpoint latest" in message
    for step in checkpoint_steps(tmp_path / "run" / "checkpoints"):
        verify(tmp_path / "run" / "checkpoints" / f"step-{step:06d}")


def test_a_second_signal_ends_a_process_that_waits_for_another(tmp_path):
    """torchrun sends SIGTERM to all when one has died: whoever waits for it must not save first."""
    waiting, stuck = together(tmp_path / "run")
    waiting.wait_until(lambda: is_training(tmp_path / "run"))
    stuck.signal(signal.SIGSTOP)
    time.sleep(0.5)
    waiting.signal(signal.SIGTERM)
    time.sleep(0.5)
    assert waiting.process.is_alive()
    waiting.signal(signal.SIGTERM)
    code, output = waiting.wait(timeout=10)
    stuck.process.kill()
    assert code == 128 + signal.SIGTERM, output


def poison(term: str) -> None:
    """One number of the second process becomes NaN or infinite, at its fourth step."""
    poisoned = os.environ["RANK"] == "1"
    to_device, judge, update = Run.to_device, Run.judge, Run.update

    def poisoned_batch(self: Run, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        images, noise = to_device(self, batch)
        if poisoned and self.step == 3 and term == "image":
            images[0, 0, 0, 0] = torch.inf
        if poisoned and self.step == 3 and term == "logits":
            self.hook = self.raw_discriminator.model.register_forward_hook(
                lambda *call: call[2] * torch.nan
            )
        return images, noise

    def poisoned_gradient(self: Run, reconstructions: torch.Tensor) -> torch.Tensor:
        if poisoned and self.step == 3 and term == "gradient":
            reconstructions.register_hook(lambda gradient: gradient + torch.inf)
        return judge(self, reconstructions)

    def update_and_tell(self: Run, *turns: bool) -> None:
        before = _sum(self)
        update(self, *turns)
        if hasattr(self, "hook"):
            self.hook.remove()
        print(f"step {self.step} moved {before != _sum(self)} weights {_sum(self)}", flush=True)

    Run.to_device, Run.judge = poisoned_batch, poisoned_gradient
    Run.update = update_and_tell


def _sum(run: Run) -> str:
    networks = (run.raw_vae, run.raw_discriminator)
    tensors = [p for network in networks for p in network.parameters()] + run.ema.averages
    total = sum(float(tensor.detach().double().sum()) for tensor in tensors)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
    return f"{total:.17g}"


@pytest.mark.parametrize("term", ["image", "gradient", "logits"])
def test_a_number_that_is_not_finite_in_one_process_is_skipped_in_all(tmp_path, term):
    runs = together(tmp_path / "run", before=partial(poison, term), steps=5)
    told = []
    for run in runs:
        code, output = run.wait()
        assert code == 0, output
        told.append(re.findall(r"step (\d+) moved (\w+) weights (\S+)", output))
    assert told[0] == told[1]
    assert [moved for _, moved, _ in told[0]] == ["True", "True", "True", "False", "True"]
    last = [row for row in rows(tmp_path / "run") if "train/lr" in row][-1]
    assert last["train/skipped_steps"] == 1


def test_a_run_goes_on_with_another_number_of_processes_where_it_was(tmp_path):
    folder = tmp_path / "run"
    succeed(command(folder, 3, VARIANT))
    outputs = finish_together(together(folder, *RESUME, "--train_batch_size", 1, steps=6))
    assert "was written by 1 processes and is continued by 2" in outputs[0]
    state = json.loads((folder / "checkpoints/step-000006/trainer_state.json").read_text())
    assert (state["step"], state["samples"]) == (6, 12)


def test_signals_at_any_moment_lose_nothing(tmp_path):
    alone, folder, steps = tmp_path / "alone" / "run", tmp_path / "stopped" / "run", 12
    succeed(command(alone, steps, VARIANT))
    argv = [*command(folder, steps, VARIANT), *RESUME]
    places = ("modules.training.checkpoint:_seal", "eval.report.training:write_training_report",
              "eval.validation:comparison_grid", "modules.export.vae:export_vae")  # fmt: skip
    for place in places:
        code, output = launch(argv, partial(signal_at, place)).wait()
        assert code == 0, output
        assert checkpoint_steps(folder / "checkpoints")
    succeed(argv)
    assert differences(folder, alone) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_breaks_a_validation_off_and_the_resumed_run_makes_up_for_it(tmp_path, processes):
    alone, folder, steps = tmp_path / "alone" / "run", tmp_path / "stopped" / "run", 8
    variant, one_by_one = Variant(0, True, 1), ("--validation_batch_size", 1)
    each = 4 // processes  # batches of one validation in a process

    def run(where: Path, before=None) -> None:
        argv = [*command(where, steps, variant, *one_by_one), *RESUME]
        finish_together(launch_together(argv, processes, before))

    run(alone)
    # In the first validation; in that of step 4; in the last, after that of step 4 was made up for.
    first, second = 2 * each + 1, 3 * each + 1  # two baselines are measured before them
    for call, validated in ((first, []), (second, [0]), (second, [0, 4])):
        run(folder, partial(signal_at, "eval.protocol.tally.Tally:add", call=call))
        assert [row["step"] for row in rows(folder) if "val/psnr" in row] == validated
        assert not (folder / "config.json").exists()
    run(folder)
    # The last checkpoint was written before its validation, and says so.
    assert differences(folder, alone) == ["different: state of the trainer or of a generator"]
    ours, theirs = (checkpoint_state(path, steps) for path in (folder, alone))
    assert (ours.pop("validation_due"), theirs.pop("validation_due")) == (True, False)
    found = {"best": None, "stale": None}  # by the last validation
    assert ours | found == theirs | found


def checkpoint_state(folder: Path, step: int) -> dict:
    state = json.loads((folder / f"checkpoints/step-{step:06d}/trainer_state.json").read_text())
    del state["flags"], state["history"]
    return state
