"""Two runs never write into one folder, and a dead one never keeps a folder locked."""

from __future__ import annotations

import errno
import fcntl
import logging
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from launching import TINY, launch, launch_together

from eval.__main__ import main as evaluate
from modules.errors import ArgumentError
from modules.models.autoencoder import build_autoencoder
from modules.output.folder_lock import LOCK, FolderLock

FORK = multiprocessing.get_context("fork")


def hold(folder: Path, connection, forks: bool) -> None:
    """Takes the lock, tells the process ids that may have it, and waits to be killed."""
    with FolderLock(folder):
        child = os.fork() if forks else 0
        if forks and child == 0:
            time.sleep(60)
            os._exit(0)
        connection.send(child)
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path, and a child it has forked since."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=hold, args=(tmp_path, theirs, True))
    process.start()
    child = ours.recv()
    yield process
    os.kill(child, signal.SIGKILL)
    process.kill()
    process.join()


def test_a_second_process_is_refused_by_name_and_leaves_the_lock_alone(tmp_path, holder):
    for _ in range(2):
        with pytest.raises(ArgumentError, match=rf"process {holder.pid} on {socket.gethostname()}"):
            FolderLock(tmp_path)
    assert f"process {holder.pid} on " in (tmp_path / LOCK).read_text()


def test_a_killed_process_leaves_the_folder_free_though_its_children_live(tmp_path, holder):
    holder.kill()
    holder.join()
    assert (tmp_path / LOCK).exists()
    with FolderLock(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / LOCK).read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_its_holder_deletes_is_not_locked_by_mistake(tmp_path, monkeypatch):
    """Opened before the holder ended and deleted it, locked afterwards: that is nobody's lock."""
    lockf, calls = fcntl.lockf, []

    def delete_first(descriptor: int, how: int) -> None:
        if not calls:
            os.unlink(tmp_path / LOCK)
        calls.append(descriptor)
        lockf(descriptor, how)

    monkeypatch.setattr(fcntl, "lockf", delete_first)
    with FolderLock(tmp_path) as lock:
        assert len(calls) == 2
        assert os.path.samestat(os.fstat(lock.descriptor), os.stat(tmp_path / LOCK))


def test_who_resumes_waits_for_the_one_before_and_says_so(tmp_path, holder, caplog):
    os.kill(holder.pid, signal.SIGSTOP)
    with pytest.raises(ArgumentError, match="in use by process"):
        FolderLock(tmp_path, patience=0.3)
    assert caplog.text.count("waiting up to 0.3 s for it to end") == 1
    holder.kill()
    with FolderLock(tmp_path, patience=30.0):
        pass


def test_a_file_system_without_locks_is_told_once_and_costs_nothing_else(
    tmp_path, monkeypatch, caplog
):
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with caplog.at_level(logging.WARNING), FolderLock(tmp_path):
        assert caplog.text.count("knows no locks") == 1


def test_a_launch_into_a_locked_folder_ends_with_2_on_every_process(tmp_path):
    argv = [*TINY, "--output_dir", str(tmp_path), "--max_train_steps", "1",
            "--train_batch_size", "2"]  # fmt: skip
    with FolderLock(tmp_path):
        for process in (launch(argv), *launch_together(argv, 2)):
            code, output = process.wait()
            assert code == 2, output
            assert f"is in use by process {os.getpid()} on {socket.gethostname()}" in output
            assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []


def test_an_export_into_the_folder_of_a_run_at_work_is_refused(tmp_path, holder, capsys):
    model = tmp_path.parent / f"{tmp_path.name}-model"
    build_autoencoder(block_out_channels=(8,) * 4, layers_per_block=1).save_pretrained(model)
    argv = ["export", "--model", str(model), "--output", str(tmp_path), "--format", "ldm"]
    assert evaluate(argv) == 2
    assert f"--output={tmp_path} is in use by process {holder.pid}" in capsys.readouterr().err


@pytest.mark.parametrize("written", [False, True])
def test_a_folder_that_was_made_for_nothing_is_taken_away_again(tmp_path, written):
    folder = tmp_path / "runs" / "mine"
    with FolderLock(folder):
        if written:
            (folder / "config.json").touch()
    assert folder.exists() == folder.parent.exists() == written
    (tmp_path / "users").mkdir()
    with FolderLock(tmp_path / "users"):
        pass
    assert (tmp_path / "users").exists()
