"""A run that was killed, stopped or damaged ends exactly like one that was left alone."""

from __future__ import annotations

import random
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from launching import ADVERSARIAL, SCRIPT, TINY, launch, succeed
from safetensors.torch import load_file
from survival import RESUME, differences, rows, state_of
from tiny import largest_difference

from modules.builders import run as builder
from modules.builders.networks import make_vae
from modules.builders.output_dir import resume_path
from modules.config.command_line import resolve_arguments
from modules.errors import ArgumentError
from modules.output.checkpoint_folders import checkpoint_steps, verify
from modules.training.resume import reached_by
from modules.training.run import Run

STEPS = 9


def flags(pictures: Path, output_dir: Path, *more: str) -> list[str]:
    """6 of 10 pictures train, 4 a step: epochs end within steps and between checkpoints."""
    return [
        *TINY, *ADVERSARIAL, "--train_data_dir", str(pictures), "--output_dir", str(output_dir),
        "--train_batch_size", "2", "--gradient_accumulation_steps", "2", "--use_ema",
        "--max_train_steps", str(STEPS), "--checkpointing_steps", "2", "--validation_steps", "3",
        "--eq_prob", "0.5", *more,
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


def assert_equal_runs(ours: Path, theirs: Path) -> None:
    """Bit for bit, but for earlier checkpoints: a run that is stopped makes others."""
    verify(checkpoint(ours, STEPS))
    assert not [line for line in differences(ours, theirs)
                if not re.search(rf"checkpoints/step-(?!0*{STEPS}/)", line)]  # fmt: skip


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
    output = succeed(flags(pictures, tmp_path, *RESUME))
    assert f"{tmp_path} has no checkpoint yet; a new run begins" in output
    assert_equal_runs(tmp_path, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
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
    python, script, *goes_on = shlex.split(output.splitlines()[-1])
    assert (python, script) == ("python", str(SCRIPT))
    succeed(goes_on)
    assert_equal_runs(tmp_path, uninterrupted)


def test_a_second_signal_ends_the_run_at_once(pictures, tmp_path):
    run = launch(flags(pictures, tmp_path), before=make_every_update_take_minutes)
    run.wait_until(lambda: "updating" in run.output)
    run.signal(signal.SIGTERM)
    time.sleep(0.3)
    assert run.process.is_alive()
    run.signal(signal.SIGUSR1)
    code, output = run.wait(timeout=10)
    assert code == 128 + signal.SIGUSR1, output
    assert not (tmp_path / "checkpoints").exists()


def make_every_update_take_minutes() -> None:
    def update(self: Run, *turns: bool) -> None:
        print("updating", flush=True)
        time.sleep(300)

    Run.update = update


def damage(newest: Path, name: str) -> Path:
    """A file of a checkpoint with a flipped bit, without its end, or gone."""
    file, content = newest / name, bytearray((newest / name).read_bytes())
    file.unlink()
    if name == "model.safetensors":
        content[-10] ^= 1
        file.write_bytes(content)
    elif name == "optimizer.bin":
        file.write_bytes(content[:-100])
    return file


def checkpoint_for(folder: Path, wanted: object = "latest") -> Path | None:
    """The one from which a run in this folder would go on."""
    argv = ["--output_dir", str(folder), "--resume_from_checkpoint", str(wanted)]
    return resume_path(resolve_arguments(argv).checkpoints)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.bin", "ema.safetensors", "manifest.json"]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(stopped, caplog, name):
    damaged = damage(checkpoint(stopped, 6), name)
    assert checkpoint_for(stopped) == checkpoint(stopped, 4)
    assert str(checkpoint(stopped, 6)) in caplog.text
    assert damaged.name in caplog.text
    with pytest.raises(ArgumentError, match=f"={damaged.parent} is no .*{damaged.name}"):
        checkpoint_for(stopped, damaged.parent)


def test_a_checkpoint_that_was_not_finished_is_never_taken(uninterrupted, stopped, pictures):
    unfinished = checkpoint(stopped, 8).with_name(".partial-step-000008")
    shutil.copytree(checkpoint(stopped, 6), unfinished)
    assert checkpoint_steps(stopped / "checkpoints") == [2, 4, 6]
    output = succeed(flags(pictures, stopped, *RESUME))
    assert f"Resumed from {checkpoint(stopped, 6)} at step 6" in output  # the newest
    assert not unfinished.exists()
    assert_equal_runs(stopped, uninterrupted)


def test_a_rotation_that_a_kill_prevented_is_made_up_for(stopped, pictures):
    limits = ("--checkpoints_total_limit", "1", "--max_train_steps", "6")
    output = succeed(flags(pictures, stopped, *limits, *RESUME))
    assert checkpoint_steps(stopped / "checkpoints") == [6]
    assert "nothing is left to train: step 6 is reached and --max_train_steps=6 asks" in output
    assert (stopped / "config.json").exists()


def test_other_flags_count_from_there_on_and_are_told(stopped, pictures):
    other = ("--learning_rate", "1e-5", "--seed", "7")
    output = succeed(flags(pictures, stopped, *other, *RESUME))
    assert "INFO resuming with --learning_rate=1e-05 (was 0.001)" in output
    assert "WARNING --seed=7 (was 0): " in output
    assert "begin anew at step 6" in output
    rates = {row["step"]: row["train/lr"] for row in rows(stopped) if "train/lr" in row}
    assert rates == dict.fromkeys(range(1, 7), 1e-3) | dict.fromkeys(range(7, 10), 1e-5)
    # What was validated before is not compared with: other images are held back now.
    assert [row["step"] for row in rows(stopped) if "val/psnr" in row] == [0, 3, 6, 6, 9]
    assert re.search(r"PSNR .* dB at step 6, .* dB at step 9", output)
    card = (stopped / "README.md").read_text()
    assert "| 4 validation images | step 6 | step 9 |" in card
    assert "From step 6 on: `learning_rate` 1e-05 (before: 0.001), `seed` 7 (before: 0), " in card
    config = (stopped / "train_config.yaml").read_text()
    assert "# From step 6 on: learning_rate: 1e-05 (before: 0.001)\n" in config
    assert (
        resolve_arguments(["--config", str(stopped / "train_config.yaml")]).optimization.seed == 7
    )


def test_moments_follow_weights_that_lie_otherwise_in_memory(uninterrupted, stopped, pictures):
    run = launch(flags(pictures, stopped, *RESUME), before=take_the_other_layout)
    code, output = run.wait()
    assert code == 0, output
    ours, theirs = (load_file(f / "diffusion_pytorch_model.safetensors")
                    for f in (stopped, uninterrupted))  # fmt: skip
    assert largest_difference(ours, theirs) < 1e-5


def take_the_other_layout() -> None:
    builder.convolution_layout = lambda *_: torch.contiguous_format


def refused(argv: list[str]) -> str:
    code, output = launch(argv).wait()
    assert code == 2, output
    assert "Traceback" not in output
    return output.splitlines()[-1]


def test_a_checkpoint_of_another_network_is_refused(stopped, pictures):
    before = (stopped / "metrics.jsonl").read_bytes()
    other = ("--block_out_channels", "8", "8", "8", "16")
    message = refused(flags(pictures, stopped, *other, *RESUME))
    assert "--resume_from_checkpoint" in message
    assert "--block_out_channels is 8 8 8 8 there and 8 8 8 16 here" in message
    assert "use the flags of that run" in message
    assert checkpoint_steps(stopped / "checkpoints") == [2, 4, 6]
    assert (stopped / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "key", ["latent_channels 8", "image_mode L", "disc_hidden_channels 16", "disc_norm_type none"]
)
def test_what_the_network_is_decides_whatever_the_flags_say(stopped, pictures, key):
    args = resolve_arguments(flags(pictures, stopped, f"--{key.replace(' ', '=')}"))
    name, value = key.split()
    with pytest.raises(ArgumentError, match=f"--{name} is .* there and {value} here"):
        reached_by(checkpoint(stopped, 6), args, make_vae(args))


def test_an_average_that_was_not_kept_is_refused(pictures, tmp_path):
    command = [*flags(pictures, tmp_path, "--max_train_steps", "2")]
    succeed([*command, "--no_use_ema"])
    assert "--use_ema is False there and True here" in refused([*command, *RESUME])


def test_a_checkpoint_before_others_of_its_run_is_refused(stopped):
    path = checkpoint(stopped, 2)
    with pytest.raises(ArgumentError, match=f"={path} lies before step 4"):
        checkpoint_for(stopped, path)


def test_a_run_branches_off_into_another_folder(uninterrupted, pictures, tmp_path):
    path = checkpoint(uninterrupted, 2)
    succeed(flags(pictures, tmp_path, "--resume_from_checkpoint", str(path)))
    last = f"checkpoints/step-{STEPS:06d}/"
    assert not [line for line in differences(tmp_path, uninterrupted) if last in line]
    ours, theirs = (state_of(checkpoint(run, STEPS)) for run in (tmp_path, uninterrupted))
    assert ours["best"]["step"] >= 2
    for own in ("best", "stale", "random_states_0.pkl"):  # of the validation where it begins
        del ours[own], theirs[own]
    assert ours == theirs
    first, *others = rows(tmp_path)
    assert first["step"] == 2
    assert first["val/psnr"] > 0
    assert [row for row in rows(uninterrupted) if row["step"] > 2] == others
    assert (tmp_path / "best" / "config.json").exists()


def test_a_run_whose_every_checkpoint_is_damaged_is_not_begun_again(stopped, pictures):
    for step in (2, 4, 6):
        damage(checkpoint(stopped, step), "ema.safetensors")
    before = (stopped / "metrics.jsonl").read_bytes()
    assert "every checkpoint in" in refused(flags(pictures, stopped, *RESUME))
    assert (stopped / "metrics.jsonl").read_bytes() == before


def test_a_path_that_is_no_checkpoint_is_refused(stopped):
    for path in (stopped / "checkpoints" / "step-7", stopped / "samples", stopped / "checkpoints"):
        with pytest.raises(ArgumentError, match=f"--resume_from_checkpoint={path} is no intact"):
            checkpoint_for(stopped, path)
