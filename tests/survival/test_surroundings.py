"""Foreign content in a run's files and drives that know less than others do not matter to a run."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import stat
from pathlib import Path

import pytest
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from launching import TINY, launch
from PIL import Image

from modules.output.checkpoint_folders import (
    checkpoint_steps,
    clear_debris,
    newest_checkpoint,
    rotate,
)
from modules.output.durable import flush, where_supported
from modules.output.run_files import DAMAGED_METRICS
from modules.tracking import metrics_log
from modules.tracking.journal import Journal
from modules.tracking.metrics_log import MetricsLog, best_psnr, read_rows

FOREIGN = [
    b"\0" * 20, b'{"note": "x"}', b"lowered the rate here", b"[1, 2]", b"7", b"null", b"",
    b'{"step": "3"}', b'{"step": true}', b'{"step": 1.5}', b'{"step": NaN}', b"\xff\xfe\x80",
    b'{"step": 1' + b"0" * 6000 + b"}", b"[" * 100_000, b'{"step": 2, "cut',
]  # fmt: skip


def strictly(line: bytes) -> dict[str, float]:
    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(line, parse_constant=refuse)


@given(st.lists(st.sampled_from(FOREIGN), max_size=4), st.integers(0, 4), st.booleans())
def test_what_is_no_row_is_set_aside_and_the_rows_are_kept(foreign, place, cut):
    with pytest.MonkeyPatch.context() as patch:
        said: list[tuple[object, ...]] = []
        patch.setattr(metrics_log.logger, "warning", lambda *args: said.append(args))
        ours = [b'{"step": %d, "train/rec_loss": 0.5}' % step for step in range(4)]
        lines = [*ours[:place], *foreign, *ours[place:]]
        whole = b"\n".join(lines) + (b'\n{"step": 4, "tra' if cut else b"\n")
        file = Path(os.environ.get("TMPDIR", "/tmp"), f"rows-{os.getpid()}", "metrics.jsonl")
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(whole)
        log = MetricsLog(file)
        log.keep_up_to(2)
        assert [row["step"] for row in log.rows()] == [0, 1, 2]
        assert file.read_bytes() == b"".join(line + b"\n" for line in ours[:3])
        assert len(said) == bool(foreign)
        if foreign:
            assert said[0][1] == len(foreign)
            assert file.with_name(DAMAGED_METRICS).read_bytes() == whole


def test_rows_of_other_editors_and_of_earlier_versions_are_read(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"step": 0, "a": 1}\r\n{"step": 1, "a": NaN, "b": "text"}\n'
                     b'{"step": 2, "a": null, "b": 1e999}\n')  # fmt: skip
    first, second, third = read_rows(file)
    assert first == {"step": 0, "a": 1}
    assert second.keys() == {"step", "a"}
    assert math.isnan(second["a"])
    assert math.isnan(third["a"])


def test_the_log_is_json_whatever_the_numbers_are(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(0, {"val/psnr": math.nan, "val/ssim": -math.inf, "val/kl": 1.5})
    log.append(1, {"val/psnr": 20.0})
    first, second = map(strictly, log.file.read_bytes().splitlines())
    assert first == {"step": 0, "val/psnr": None, "val/ssim": None, "val/kl": 1.5}
    assert second == {"step": 1, "val/psnr": 20.0}
    assert best_psnr(log.rows())["step"] == 1
    assert math.isnan(read_rows(log.file)[0]["val/psnr"])


def test_a_row_that_found_no_room_is_written_with_the_next(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(1, {"a": 1.0})
    truncated_disk(monkeypatch)
    with pytest.raises(OSError, match="No space"):
        log.append(2, {"a": 2.0})
    monkeypatch.undo()
    assert [row["step"] for row in read_rows(log.file)] == [1]
    log.append(3, {"a": 3.0})
    assert [strictly(line)["step"] for line in log.file.read_bytes().splitlines()] == [1, 2, 3]


def truncated_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what is written arrives, then the disk is full."""
    real = Path.open

    class Full:
        def __init__(self, stream):
            self.stream, self.calls = stream, 0

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.stream.close()

        def __getattr__(self, name):
            return getattr(self.stream, name)

        def write(self, data):
            self.calls += 1
            if self.calls > 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.stream.write(data[: len(data) // 2])

    monkeypatch.setattr(Path, "open", lambda self, *a, **k: Full(real(self, *a, **k)))


def test_a_long_log_takes_no_longer_to_show_and_keeps_every_validation(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_log, "MOST_ROWS", 50)
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1000):
        log._remember({"step": step, "train/rec_loss": 1.0})
        if step % 100 == 0:
            log._remember({"step": step, "val/psnr": 1.0})
    rows = log.rows()
    steps = [row["step"] for row in rows if "train/rec_loss" in row]
    assert 25 <= len(steps) <= 50
    assert len({b - a for a, b in itertools.pairwise(steps)}) == 1
    assert steps[0] == 0
    assert [row["step"] for row in rows if "val/psnr" in row] == list(range(0, 1000, 100))
    monkeypatch.setattr(Path, "open", None)  # nothing is read any more
    assert log.rows() == rows


def test_foreign_names_in_the_folders_of_a_run_are_left_alone(tmp_path):
    samples, checkpoints = tmp_path / "samples", tmp_path / "checkpoints"
    samples.mkdir()
    checkpoints.mkdir()
    foreign = [samples / name for name in ("step-abc.png", "step-.png", "step-1 (copy).png")]
    foreign += [checkpoints / name for name in ("step-000001", ".partial-step-1", "step-x")]
    for path in foreign:
        path.write_text("theirs")
    journal = Journal(Accelerator(cpu=True), tmp_path, 1000, 1)
    for step in range(0, 300, 7):
        journal.draw(step, Image.new("RGB", (1, 1)))
    assert checkpoint_steps(checkpoints) == []
    clear_debris(checkpoints)
    rotate(checkpoints, 5, 1)
    assert all(path.read_text() == "theirs" for path in foreign)


@pytest.mark.parametrize(
    "manifest", [b"{}", b"[]", b"null", b"\0\0", b"\xff", b'["trainer_state.json"]']
)
def test_a_foreign_manifest_is_a_damaged_checkpoint(manifest, tmp_path, caplog):
    (tmp_path / "step-000003").mkdir()
    (tmp_path / "step-000003" / "manifest.json").write_bytes(manifest)
    assert newest_checkpoint(tmp_path) is None
    assert "step-000003 has no readable manifest.json" in caplog.text


def know_little() -> None:
    """exFAT, FAT and some SMB and FUSE drives refuse chmod, links and fsync of a folder."""
    real = os.fsync

    def refuse(path: object, *args: object, **options: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    os.chmod, os.link, os.utime, os.fsync = refuse, refuse, refuse, fsync


def test_a_drive_that_knows_little_and_names_that_are_not_ascii(tmp_path):
    """A whole run with every form of export, into a folder of such a name."""
    folder = tmp_path / "café ×"
    argv = [*TINY, "--dataset_name", "synthetic", "--output_dir", str(folder), "--max_train_steps",
            "2", "--train_batch_size", "2", "--export_ldm", "--export_fp16"]  # fmt: skip
    code, output = launch(argv, know_little, PYTHONIOENCODING="ascii:strict").wait()
    assert code == 0, output
    for name in ("config.json", "README.md", "report.html", "train_config.yaml"):
        assert (folder / name).exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_drive_that_fails_is_not_one_that_knows_little(number, tmp_path, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        flush(tmp_path)
    with where_supported():
        raise OSError(errno.ENOTSUP, "Not supported")
