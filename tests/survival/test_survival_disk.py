"""Whatever happens to the disk, the last good checkpoint is there and the next run finds it."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
from launching import launch, succeed
from survival import RESUME, Variant, command, differences, killed_at, signal_at

from modules.output.checkpoint_folders import checkpoint_steps, newest_checkpoint, verify

VARIANT, STEPS = Variant(0, True, 1), 9


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A run with checkpoints of steps 6 and 9, that of 3 rotated away."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    succeed(command(folder, STEPS, VARIANT))
    return folder


@pytest.fixture
def broken(alone, tmp_path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(alone, folder)
    return folder


def checkpoint(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:06d}"


def damage(path: Path) -> None:
    file = path / "optimizer.bin"
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize("limit", [1, 2])
def test_a_damaged_newest_checkpoint_never_pushes_out_the_last_good_one(broken, alone, limit):
    """A checkpoint of step 7 is the newest good one, and the damaged one of step 9 is no rival."""
    damage(checkpoint(broken, 9))
    argv = [*command(broken, STEPS, VARIANT, "--checkpoints_total_limit", limit), *RESUME]
    code, output = launch(argv, partial(signal_at, "modules.training.run:clip_gradients")).wait()
    assert code == 0, output
    assert f"{checkpoint(broken, 9) / 'optimizer.bin'} is damaged" in output
    assert newest_checkpoint(broken / "checkpoints") == checkpoint(broken, 7)
    kept = [6, 7, 9][-limit - 1 :]
    assert checkpoint_steps(broken / "checkpoints") == kept
    succeed(argv)
    assert checkpoint_steps(broken / "checkpoints") == [7, 9][-limit:]
    verify(checkpoint(broken, 9))
    assert differences(broken, alone) == [
        f"only in one: checkpoints/{name}/{file}"
        for name in sorted({"step-000006"} | ({"step-000007"} if limit == 2 else set()))
        for file in sorted(path.name for path in checkpoint(alone, 6).iterdir())
    ]


@pytest.mark.parametrize(
    ("place", "call"),
    [("modules.output.checkpoint_folders:remove", 3), ("modules.training.checkpoint:_seal", 2)],
)
def test_half_removed_and_half_written_folders_are_cleared_away(alone, tmp_path, place, call):
    folder = tmp_path / "run"
    argv = command(folder, STEPS, VARIANT)
    assert killed_at(argv, place, call)
    debris = [path for path in folder.rglob(".*") if path.is_dir()]
    assert debris
    succeed([*argv, *RESUME])
    assert differences(folder, alone) == []


def test_a_disk_that_is_full_costs_nothing_but_the_time_to_make_room(alone, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        argv = [*command(folder, STEPS, VARIANT, "--checkpoints_total_limit", 9), *RESUME]
        code, output = launch(argv).wait()
        assert code == 1, output
        assert "No space left on device" in output
        assert "Traceback" not in output
        steps = checkpoint_steps(folder / "checkpoints")
        assert steps
        for step in steps:
            verify(checkpoint(folder, step))
        subprocess.run(["mount", "-o", "remount,size=30m", str(folder)], check=True)
        succeed(argv)
        missing = [line for line in differences(folder, alone) if "step-000003" not in line]
        assert missing == []
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_turns_read_only_ends_the_run_with_a_message(alone, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        argv = [*command(folder, STEPS, VARIANT), *RESUME]
        code, output = launch(argv, partial(remount_read_only_at, 2, str(folder))).wait()
        assert code == 1, output
        assert "Read-only file system" in output
        assert "Traceback" not in output
        assert checkpoint_steps(folder / "checkpoints") == [3]
        code, output = launch(argv).wait()
        assert code == 2, output
        assert "cannot be written to" in output
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        succeed(argv)
        assert differences(folder, alone) == []
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount_read_only_at(call: int, folder: str) -> None:
    """Before the `call`-th checkpoint is written."""
    import modules.training.checkpoint as checkpoints
    from modules.output.folder_lock import FolderLock

    FolderLock._take = lambda self: None  # an open file would keep the disk from turning read-only
    original, calls = checkpoints.clear_debris, [0]

    def remounting(path: Path) -> None:
        calls[0] += 1
        if calls[0] == call:
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        original(path)

    checkpoints.clear_debris = remounting


def test_a_set_that_shrank_or_grew_is_noticed(pictures, tmp_path):
    folder, run = tmp_path / "pictures", tmp_path / "run"
    shutil.copytree(pictures, folder)
    more = ("--train_data_dir", folder)
    argv = [a for a in command(run, 3, VARIANT, *more) if a not in ("--dataset_name", "synthetic")]
    succeed(argv)
    before = json.loads((checkpoint(run, 3) / "trainer_state.json").read_text())["num_train_images"]
    (folder / "0.png").unlink()
    (folder / "1.png").unlink()
    output = succeed([*argv, *RESUME, "--max_train_steps", "6"])
    assert f"the training set had {before} images" in output
    assert f"and has {before - 2} now: the order of the data changes" in output
    state = json.loads((checkpoint(run, 6) / "trainer_state.json").read_text())
    assert state["num_train_images"] == before - 2
