"""However a run is asked to end, and whoever stops reading what it prints, nothing is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch.distributed as dist
from launching import ROOT, TINY, launch, succeed
from survival import RESUME, signal_at

from modules.distributed import signals
from modules.errors import RunStopped
from modules.output.checkpoint_folders import checkpoint_steps

STEPS = 3


def flags(folder: Path, *more: object) -> list[str]:
    return [
        *TINY, "--dataset_name", "synthetic", "--disc_factor", "0", "--train_batch_size", "2",
        "--output_dir", str(folder), "--max_train_steps", str(STEPS), *map(str, more),
    ]  # fmt: skip


def nobody_reads() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    print_to(writing)


def the_disk_is_full() -> None:
    print_to(os.open("/dev/full", os.O_WRONLY))


def print_to(descriptor: int) -> None:
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115


def nothing_to_print_to() -> None:
    os.close(1)
    os.close(2)
    sys.stdout = sys.stderr = None


def test_a_run_that_learns_nothing_ends_where_its_patience_does_also_when_resumed(tmp_path):
    argv = flags(tmp_path, "--learning_rate", "1e-30", "--early_stopping", 2, "--max_train_steps",
                 9, "--validation_steps", 1, "--checkpointing_steps", 1)  # fmt: skip
    found = []
    for more in ([], RESUME):
        output = succeed([*argv, *more])
        assert "ended the run at step 2 of 9: 2 validations in a row" in output.splitlines()[-1]
        assert checkpoint_steps(tmp_path / "checkpoints") == [1, 2]
        rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
        exported = tmp_path / "diffusion_pytorch_model.safetensors"
        found.append((exported.read_bytes(), [row for row in rows if "val/psnr" in row]))
        shutil.rmtree(tmp_path / "checkpoints" / "step-000002")  # as if killed before it
        exported.unlink()
    assert found[0] == found[1]


@pytest.mark.parametrize("where", [nobody_reads, the_disk_is_full, nothing_to_print_to])
def test_a_run_needs_nobody_to_read_what_it_prints(where, tmp_path):
    code, _ = launch(flags(tmp_path), where).wait()
    assert code == 0
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize("redirected", ["| true", ">/dev/full 2>&1", ">&- 2>&-", ""])
def test_printing_never_fails_nor_does_the_end_of_the_interpreter(redirected):
    """Each way in an interpreter of its own, which speaks ASCII alone."""
    script = (
        "from modules.config.terminal import outlive_the_terminal as o; o(); import sys, time, os;"
        "print(chr(0xd7) * 9); print(chr(0xdcff), file=sys.stderr); time.sleep(0.2);"
        "[print('x' * 9999, file=f) for f in (sys.stdout, sys.stderr) for _ in range(99)];"
        "sys.stdout.write('unfinished'); assert os.open('/', 0) > 2"
    )
    command = f'{sys.executable} -W error -c "{script}" {redirected}; exit ${{PIPESTATUS[0]}}'
    ended = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert b"Traceback" not in ended.stderr
    assert b"Exception" not in ended.stderr
    if not redirected:
        assert ended.stdout.startswith(rb"\xd7")
        assert ended.stdout.endswith(b"unfinished")


def test_ctrl_c_before_training_is_one_line(tmp_path):
    place = partial(signal_at, "modules.builders.data:open_data", signal.SIGINT)
    code, output = launch(flags(tmp_path / "run"), place).wait()
    assert code == 130, output
    assert output.split("\n", 1)[1] == (
        "train_vae.py: interrupted before training; there was nothing to save\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_signal_while_the_latents_are_measured_leaves_it_to_the_next_run(tmp_path):
    place = partial(signal_at, "eval.protocol.latents:full_precision", signal.SIGHUP)
    code, output = launch(flags(tmp_path), place).wait()
    assert code == 0, output
    assert f"Stopped at step {STEPS} of {STEPS} by a signal" in output
    assert checkpoint_steps(tmp_path / "checkpoints") == [STEPS]
    assert not (tmp_path / "config.json").exists()
    succeed(flags(tmp_path, *RESUME))
    assert (tmp_path / "config.json").exists()


def ignore_hangups_and_get_one() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal_at("modules.training.run:clip_gradients", signal.SIGHUP)


def test_a_run_under_nohup_goes_on(tmp_path):
    output = succeed_with(ignore_hangups_and_get_one, tmp_path)
    assert "Stopped at" not in output


def succeed_with(before, folder: Path) -> str:
    code, output = launch(flags(folder, "--num_validation_images", 0), before).wait()
    assert code == 0, output
    return output


@pytest.mark.parametrize(
    ("sent", "ends"),
    [
        ([(signal.SIGINT, 0.0)], None),
        ([(signal.SIGINT, 0.0), (signal.SIGINT, 0.3)], 130),
        ([(signal.SIGTERM, 0.0), (signal.SIGINT, 0.1)], 130),  # another one is another wish
        ([(signal.SIGTERM, 0.0), (signal.SIGTERM, 0.1)], None),  # `timeout` sends two at once
        ([(signal.SIGTERM, 0.0), (signal.SIGTERM, 0.1), (signal.SIGTERM, 0.3)], 143),
        ([(signal.SIGCHLD, 0.0), (signal.SIGHUP, 1.0), (signal.SIGCHLD, 2.0)], None),
    ],
)
def test_a_second_signal_ends_at_once_and_an_echo_does_not(sent, ends, monkeypatch):
    """The clock is ours."""
    codes: list[int] = []
    receiving, sending = os.pipe()
    os.write(sending, bytes(number for number, _ in sent))
    os.close(sending)
    moments = iter([moment for _, moment in sent])
    monkeypatch.setattr(signals.time, "monotonic", lambda: next(moments))
    monkeypatch.setattr(signals.os, "_exit", codes.append)
    signals._count(list(signals.SIGNALS), receiving)
    assert codes == ([] if ends is None else [ends])


def test_processes_that_do_not_find_each_other_are_told_why(monkeypatch, caplog):
    def slow_and_in_vain(**options: object) -> None:
        time.sleep(0.2)
        raise RuntimeError("[/pytorch/gloo/pair.cc:1] timed out connecting\nmore")

    monkeypatch.setattr(signals, "PATIENCE", 0.01)
    monkeypatch.setattr(dist, "new_group", slow_and_in_vain)
    with pytest.raises(RunStopped, match=r"timed out connecting\); .*GLOO_SOCKET_IFNAME"):
        signals._connect(90)
    assert "--ddp_timeout=90" in caplog.text
    assert "127.0.1.1" in caplog.text
    caplog.clear()
    monkeypatch.setattr(dist, "new_group", lambda **options: "group")
    assert signals._connect(90) == "group"
    time.sleep(0.05)
    assert not caplog.text
