"""What of a run can be watched: trackers, the bar and the last words."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import shlex
import shutil
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from launching import ROOT, TINY, launch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from eval.__main__ import build_parser
from modules.builders.farewell import farewell
from modules.config.command_line import resolve_arguments
from modules.tracking.journal import Journal
from modules.tracking.metrics_log import read_rows
from modules.tracking.trackers import end_trackers, send_histograms, send_picture, start_trackers
from modules.tracking.verdict import validation_line, verdict

STEPS = 4
CHANNELS = [f"latents/channel_{number:02d}" for number in range(4)]


def flags(output_dir: Path, *more: object) -> list[str]:
    return [
        *TINY, "--dataset_name", "synthetic", "--output_dir", str(output_dir), "--report_to", "all",
        "--train_batch_size", "2", "--max_train_steps", str(STEPS), "--validation_steps", "2",
        "--checkpointing_steps", "2", *map(str, more),
    ]  # fmt: skip


def run(elsewhere: Path, *argv: str, **environment: str) -> tuple[int, str]:
    """Launches with `elsewhere` as the working directory."""
    elsewhere.mkdir(exist_ok=True)
    environment = {"WANDB_MODE": "offline", **environment, "ELSEWHERE": str(elsewhere)}
    return launch(argv, before=go_elsewhere, **environment).wait()


def go_elsewhere() -> None:
    os.chdir(os.environ["ELSEWHERE"])


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def tracked(elsewhere, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tracked")
    code, output = run(elsewhere, *flags(folder))
    assert code == 0, output
    return folder


@pytest.fixture(scope="module")
def resumed(tracked, elsewhere, tmp_path_factory) -> Path:
    """As if killed after the last rows and before the last checkpoint: both are written again."""
    folder = tmp_path_factory.mktemp("resumed") / "run"
    shutil.copytree(tracked, folder, symlinks=True)
    shutil.rmtree(folder / "checkpoints" / f"step-{STEPS:06d}")
    code, output = run(elsewhere, *flags(folder, "--resume_from_checkpoint", "latest"))
    assert code == 0, output
    return folder


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def wandb_runs(folder: Path) -> list[Path]:
    return sorted((folder / "logs" / "wandb").glob("offline-run-*"))


def wandb_rows(folder: Path) -> list[dict[str, Any]]:
    """The history of an offline run of Weights & Biases: one dictionary for each step."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("*.wandb")
    found = []
    for content in leveldb_records(file.read_bytes()):
        items = Record.FromString(content).history.item
        if items:
            found.append({item.key or "/".join(item.nested_key): json.loads(item.value_json)
                          for item in items})  # fmt: skip
    return found


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log that has 7 bytes of header: parts of them fill 32 KiB blocks."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def tensorboard(folder: Path) -> EventAccumulator:
    everything = {"scalars": 0, "images": 0, "histograms": 0}
    events = EventAccumulator(str(folder / "logs" / "train_autoencoderkl"), everything)
    events.Reload()
    return events


def test_weights_and_biases_gets_every_number_offline(tracked):
    (folder,) = wandb_runs(tracked)
    logged = {row["_step"]: row for row in wandb_rows(folder)}
    assert sorted(logged) == [0, 1, 2, 3, 4]
    for row in rows(tracked):
        for name, value in row.items():
            if name != "step":
                assert logged[row["step"]][name] == pytest.approx(value, nan_ok=True), name


def test_weights_and_biases_gets_pictures_and_histograms(tracked):
    (folder,) = wandb_runs(tracked)
    for row in wandb_rows(folder):
        if "val/psnr" in row:
            assert sum(row["latents/all/values"]) == 2 * 4 * 2 * 2  # images, channels, positions
            assert all(sum(row[f"{name}/values"]) == 2 * 2 * 2 for name in CHANNELS)
    pictures = {path.name.rsplit("_", 1)[0]: path for path in folder.rglob("*.png")}
    assert set(pictures) == {f"{name}_{step}" for name in ("validation", "latents")
                             for step in (0, 2, 4)}  # fmt: skip
    with (
        Image.open(pictures["validation_4"]) as sent,
        Image.open(tracked / "samples" / "step-000004.png") as drawn,
    ):
        assert np.array_equal(np.asarray(sent), np.asarray(drawn))


def test_tensorboard_gets_latents_as_pictures_and_histograms(tracked):
    events = tensorboard(tracked)
    assert [event.step for event in events.Images("latents")] == [0, 2, 4]
    assert [event.step for event in events.Histograms("latents/all")] == [0, 2, 4]
    assert {"latents/all", *CHANNELS} == set(events.Tags()["histograms"])
    assert events.Histograms("latents/all")[0].histogram_value.num == 2 * 4 * 2 * 2


def test_nothing_is_written_where_the_run_was_started(tracked, resumed, elsewhere):
    assert list(elsewhere.iterdir()) == []


def test_a_resumed_run_is_the_same_run_and_goes_on_where_it_stopped(resumed):
    first, second = wandb_runs(resumed)
    assert first.name.rsplit("-", 1)[1] == second.name.rsplit("-", 1)[1]
    again = {row["_step"]: row for row in wandb_rows(second)}
    assert list(again) == [3, 4]
    before = {row["_step"]: row for row in wandb_rows(first)}
    for step in again:  # so that it does not matter which of the two copies is kept
        assert again[step]["train/rec_loss"] == before[step]["train/rec_loss"]


def test_tensorboard_shows_every_step_of_a_resumed_run_once(resumed):
    events = tensorboard(resumed)
    assert [event.step for event in events.Scalars("train/rec_loss")] == [1, 2, 3, 4]
    for tag in ("validation", "latents"):
        assert [event.step for event in events.Images(tag)] == [0, 2, 4]


def test_a_new_run_in_an_old_folder_is_a_new_run_in_the_trackers(resumed, elsewhere, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(resumed, folder, symlinks=True)
    more = ("--overwrite_output_dir", "--max_train_steps", "1", "--report_to", "wandb")
    code, output = run(elsewhere, *flags(folder, *more))
    assert code == 0, output
    (ours,), theirs = wandb_runs(folder), wandb_runs(resumed)
    assert ours.name.rsplit("-", 1)[1] != theirs[0].name.rsplit("-", 1)[1]


def test_a_missing_login_is_answered_and_leaves_no_run_behind(elsewhere, tmp_path):
    wandb = ("--report_to", "wandb", "--max_train_steps", "1")
    code, output = run(
        elsewhere, *flags(tmp_path / "run", *wandb), WANDB_MODE="online", HOME=str(tmp_path)
    )
    assert code == 2, output
    assert "wandb login" in output
    assert "WANDB_MODE=offline" in output
    assert "Traceback" not in output
    code, output = run(elsewhere, *flags(tmp_path / "run", "--report_to", "none", "--dry_run"))
    assert code == 0, output


def test_the_farewell_leaves_the_summary_on_the_screen(elsewhere, tmp_path):
    argv = flags(tmp_path, "--max_train_steps", "1", "--report_to", "wandb")
    code, output = run(elsewhere, *argv)
    assert code == 0, output
    at = output.index(f"Wrote {tmp_path}/")
    assert len(output[at:].splitlines()) <= 24
    time_of_day = r"^\d\d:\d\d:\d\d "
    assert re.search(time_of_day + r"INFO step 0 of 1: PSNR .*; downsample:8: ", output, re.M)
    assert re.search(time_of_day + r"INFO step 1 of 1: PSNR .* dB \(.*; .* images/s, 00:00 left$",
                     output, re.M)  # fmt: skip
    assert f"{tmp_path}/report.html" in output[at:]
    assert "\r" not in output


def chosen_for(folder: Path, step: int) -> dict[str, str]:
    """The environment in which Weights & Biases starts."""
    stub = SimpleNamespace(is_main_process=True, log_with=["tensorboard", "wandb"],
                           logging_dir=str(folder / "logs"), project_dir=str(folder),
                           init_trackers=lambda *args: None)  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", {**os.environ})
        start_trackers(stub, "project", {}, step)
        return {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}


def test_the_environment_goes_before_what_the_run_would_choose(tmp_path, monkeypatch):
    ours = chosen_for(tmp_path, 0)
    assert ours["WANDB_NAME"] == tmp_path.name
    assert ours["WANDB_DIR"] == str(tmp_path / "logs")
    for variable in ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_NAME"):
        monkeypatch.setenv(variable, "theirs")
        assert chosen_for(tmp_path, 0)[variable] == "theirs"


def test_branches_and_new_starts_are_runs_of_their_own(tmp_path):
    """A branch resumes at a step, in a folder that has no run yet."""

    def run_id(name: str, step: int) -> str:
        return chosen_for(tmp_path / name, step)["WANDB_RUN_ID"]

    here = run_id("here", 7)
    assert run_id("there", 7) != here
    assert run_id("here", 9) == here
    assert run_id("here", 0) != here  # it starts anew
    file = tmp_path / "there" / "logs" / "wandb_run_id.txt"
    file.write_bytes(b"\0\xff")
    assert run_id("there", 9) == file.read_text()


def test_errors_that_are_not_of_weights_and_biases_pass(tmp_path, monkeypatch):
    def broken(*args: Any) -> None:
        raise ZeroDivisionError

    stub = SimpleNamespace(is_main_process=True, log_with=["wandb"], logging_dir=str(tmp_path),
                           project_dir=str(tmp_path), init_trackers=broken)  # fmt: skip
    monkeypatch.setattr(os, "environ", {**os.environ})
    with pytest.raises(ZeroDivisionError):
        start_trackers(stub, "project", {}, 0)


def test_trackers_without_pictures_or_histograms_go_without():
    tracker = SimpleNamespace(name="csv")
    send_picture([tracker], "latents", Image.new("RGB", (2, 2)), 0)
    send_histograms([tracker], {"latents/all": np.zeros(3)}, 0)


def test_a_log_file_gets_few_plain_lines(tmp_path, monkeypatch, caplog):
    """The clock is ours: a second a step."""
    log, clock = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr("modules.tracking.journal.time.monotonic", lambda: clock[0])
    journal = Journal(Accelerator(cpu=True), tmp_path, 3604, 100)
    journal.start_at(0)
    with caplog.at_level("INFO"):
        for step in range(1, 3605):
            clock[0] += 1.0
            journal.advance()
            journal.write(step, "train", {"rec_loss": 0.1, "images_per_s": 1.0})
            if step % 1201 == 0:
                journal.write(step, "val", {"psnr": 20.0})
    journal.close()
    assert log.getvalue() == ""
    lines = caplog.messages
    assert len(lines) == 361 + 1  # every tenth, and the last
    assert lines[1] == "step 11 of 3604, 59:53 left: rec_loss 0.1, images_per_s 1"
    assert lines[-1].startswith("step 3604 of 3604, 00:00 left")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_message_stands_above_the_bar_that_moves_in_a_terminal(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = logging.StreamHandler(terminal)
    monkeypatch.setattr(logging.root, "handlers", [handler])
    journal = Journal(Accelerator(cpu=True), tmp_path, 3, 100)
    journal.start_at(0)
    logging.getLogger("modules").warning("said in between")
    journal.close()
    shown = [line.split("\r")[-1] for line in terminal.getvalue().split("\n")]
    assert shown[0] == "said in between"
    assert shown[1].startswith("Steps")
    assert logging.root.handlers == [handler]


def validations(*psnr: float, **metrics: float) -> list[dict[str, float]]:
    return [{"step": 100 * i, "val/psnr": value, "val/num_images": 4,
             **{f"val/{name}": number for name, number in metrics.items()}}
            for i, value in enumerate(psnr)]  # fmt: skip


def test_a_validation_is_told_with_its_change_and_the_best():
    assert validation_line(validations(20.0)) == "PSNR 20.00 dB"
    line = validation_line(validations(20.0, 22.5, ssim=0.5))
    assert line == "PSNR 22.50 dB (+2.50), SSIM 0.5000, best so far"
    line = validation_line(validations(20.0, 22.5, 21.0))
    assert line == "PSNR 21.00 dB (-1.50), best 22.50 dB at step 100"
    assert validation_line(validations(20.0, math.nan)).endswith("best 20.00 dB at step 0")


def test_what_is_worse_than_the_start_or_than_bicubic_is_said():
    baselines = {"downsample:8": {"psnr": 22.0}, "jpeg:10": {"psnr": 30.0}}
    assert verdict(validations(20.0), False, baselines) == ""  # a start promises nothing
    assert verdict(validations(20.0, 22.5), False, baselines) == ""
    assert "worse than at step 0: see best/" in verdict(validations(20.0, 22.5), True, baselines)
    for psnr in (21.9, math.nan):
        wrong = verdict(validations(20.0, psnr), False, baselines)
        assert wrong.startswith("worse than bicubic (downsample:8: 22.00 dB)")
    assert verdict(validations(20.0, 1.0), False, {}) == ""


def test_a_tracker_that_fails_ends_no_run(tmp_path, caplog):
    def fail(*args: Any, **options: Any) -> None:
        raise ConnectionError("no network")

    trackers = [SimpleNamespace(name="wandb", log=fail, log_images=fail, finish=fail)]
    accelerator = Accelerator(cpu=True)
    accelerator.trackers = trackers
    journal = Journal(accelerator, tmp_path, 3, 100)
    journal.start_at(0)
    for step in range(3):
        journal.write(step, "train", {"rec_loss": 0.1})
        journal.draw(step, Image.new("RGB", (2, 2)))
    end_trackers(trackers)
    assert caplog.text.count("no network") == 1
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 3


def last_words(*argv: str, rows: Sequence[dict[str, float]] = ()) -> list[str]:
    args = resolve_arguments(["--output_dir", "runs/a name that people give", *argv])
    return farewell(args, 0.91234567, rows).splitlines()


@pytest.mark.parametrize("number", [0, 2000])
def test_the_last_words_fit_a_small_screen(number, monkeypatch):
    """However long the run was: 24 lines of 100 columns."""
    monkeypatch.chdir(ROOT)
    lines = last_words(rows=validations(*(20.0 + i / 1000 for i in range(number))))
    assert 2 <= len(lines) <= 24
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("argv", "data"),
    [
        (["--dataset_name", "synthetic"], "synthetic"),
        (["--train_data_dir", "photos"], "path/to/unseen"),
        (["--train_data_dir", "photos", "--validation_data_dir", "my own"], "my own"),
    ],
)
def test_the_commands_of_the_last_words_can_be_pasted(argv, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # `python -m eval` is found from anywhere
    said = "\n".join(last_words(*argv, "--resolution", "64", "--perceptual_scale", "0"))
    place, command, code = re.search(
        r"^PYTHONPATH=(\S+) python -m eval (.*)\n\n.*:\n(from diffusers .*)", said, re.M | re.S
    ).groups()
    assert Path(place) == ROOT
    asked = build_parser().parse_args(shlex.split(command.replace("\\\n", " ")))
    assert asked.model == ["runs/a name that people give", "downsample:8", "jpeg:10"]
    assert (asked.data, asked.resolution) == (data, 64)
    assert asked.metrics == ["psnr", "ssim", "frequency"]
    compile(code, "last words", "exec")
