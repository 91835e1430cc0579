"""A run that was killed, stopped or damaged ends exactly like one that was left alone."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from launching import ADVERSARIAL, TINY, launch, succeed

from modules.checkpoint import checkpoint_steps, verify

STEPS = 9
RESUME = ("--resume_from_checkpoint", "latest")


def flags(pictures: Path, output_dir: Path, *more: str) -> list[str]:
    """6 of 10 pictures train, 4 a step: epochs end within steps and between checkpoints."""
    return [
        *TINY, *ADVERSARIAL, "--train_data_dir", str(pictures), "--output_dir", str(output_dir),
        "--train_batch_size", "2", "--gradient_accumulation_steps", "2", "--use_ema",
        "--max_train_steps", str(STEPS), "--checkpointing_steps", "2", "--validation_steps", "3",
        *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(pictures, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    succeed(flags(pictures, folder))
    return folder


@pytest.fixture
def stopped(uninterrupted, tmp_path) -> Path:
    """What lies there when a run is killed after its checkpoint of step 6."""
    folder = tmp_path / "stopped"
    shutil.copytree(uninterrupted, folder)
    for step in (8, STEPS):
        shutil.rmtree(checkpoint(folder, step))
    for file in (*folder.glob("*.json"), *folder.glob("*.safetensors")):
        file.unlink()
    return folder


def checkpoint(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:06d}"


def rows(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without the one number that is a matter of the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name != "train/images_per_s"}
        for line in lines
    ]


def checksums(folder: Path) -> dict[str, str]:
    """Of the last checkpoint, but for the states of generators that nobody seeds or uses."""
    manifest = json.loads((checkpoint(folder, STEPS) / "manifest.json").read_text())
    del manifest["random_states_0.pkl"]
    return manifest


def torch_random_state(folder: Path) -> torch.Tensor:
    file = checkpoint(folder, STEPS) / "random_states_0.pkl"
    return torch.load(file, weights_only=False)["torch_manual_seed"]


def assert_equal_runs(ours: Path, theirs: Path) -> None:
    """Bit for bit: networks, optimizers, schedules, random state, EMA, counters, log, exports."""
    verify(checkpoint(ours, STEPS))
    assert checksums(ours) == checksums(theirs)
    assert torch.equal(torch_random_state(ours), torch_random_state(theirs))
    assert rows(ours) == rows(theirs)
    exported = [path.relative_to(theirs) for path in theirs.rglob("*.safetensors")
                if "checkpoints" not in path.parts]  # fmt: skip
    assert {path.name for path in exported} >= {"discriminator.safetensors"}
    assert len(exported) == 3  # the VAE, the best VAE, the discriminator
    for path in (*exported, "config.json", "best/config.json", "README.md"):
        ours_text, theirs_text = (ours / path).read_bytes(), (theirs / path).read_bytes()
        assert ours_text.replace(ours.name.encode(), theirs.name.encode()) == theirs_text


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_killed_at_random_moments_and_resumed_ends_bit_equal(
    uninterrupted, pictures, tmp_path, workers
):
    delays = random.Random(f"moments {workers}")
    command = flags(pictures, tmp_path, "--dataloader_num_workers", workers, *RESUME)
    for started_anew in (True, False, False):
        run = launch(command)
        log = tmp_path / "metrics.jsonl"
        before = -1 if started_anew else len(rows(tmp_path))
        run.wait_until(lambda log=log, before=before: log.exists() and (
            log.read_text().count("\n") > before))  # fmt: skip
        time.sleep(delays.uniform(0.0, 0.6))
        run.process.kill()
        run.wait()
    succeed(command)
    assert_equal_runs(tmp_path, uninterrupted)


def test_a_kill_before_the_first_checkpoint_starts_anew(uninterrupted, pictures, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "val/psnr": 1.0}\n{"step": 1, "tra')
    (tmp_path / "checkpoints" / ".partial-step-000002").mkdir(parents=True)
    succeed(flags(pictures, tmp_path, *RESUME))
    assert_equal_runs(tmp_path, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_exits_with_0_and_the_resumed_run_ends_bit_equal(
    uninterrupted, pictures, tmp_path, number
):
    command = flags(pictures, tmp_path, "--checkpointing_steps", "100")
    run = launch(command)
    run.wait_until(lambda: (tmp_path / "metrics.jsonl").exists() and len(rows(tmp_path)) > 2)
    run.signal(number)
    code, output = run.wait()
    assert code == 0, output
    (step,) = checkpoint_steps(tmp_path / "checkpoints")
    assert 0 < step < STEPS
    assert not (tmp_path / "config.json").exists()
    succeed([*command, *RESUME])
    assert_equal_runs(tmp_path, uninterrupted)
