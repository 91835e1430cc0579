"""Shards that are missing, cut off, exchanged or out of reach are named, and nothing hangs."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import datasets
import pytest
from launching import finish_together, launch, launch_together, succeed
from shards import WRITERS, number_of, row_number, write_shards
from survival import RESUME, Variant, command

from modules.data.sources import files as data_files
from modules.data.sources import open as sources
from modules.data.sources.files import NETWORK_ERRORS, fingerprint
from modules.data.sources.hf_dataset import IMAGE, LoadedRows, NamedDataset, load_rows
from modules.data.streaming.lanes import Lane, ShardRows
from modules.data.streaming.shards import SHARDS_AT_ONCE, Shards
from modules.errors import ArgumentError, RunStopped
from modules.output.checkpoint_folders import checkpoint_steps, verify
from modules.training import resume as progress
from modules.training.run import Run

KINDS = pytest.mark.parametrize("kind", ["parquet", "tar"])


def opened(name: object, **options) -> Shards:
    dataset = NamedDataset(str(name), image_column="png", **options)
    return Shards(load_rows(dataset, streaming=True))


def rows_of(shards: Shards, buffer_size: int = 1) -> ShardRows:
    return ShardRows(shards, seed=0, buffer_size=buffer_size)


def numbers(rows: ShardRows, count: int) -> list[int]:
    return [row_number(row) for row in islice(rows.lane(Lane()), count)]


@KINDS
def test_shards_come_in_another_order_every_epoch_although_rows_are_held_back(kind, tmp_path):
    write_shards(tmp_path / "data", kind, [3] * 12)
    validation, rest = rows_of(opened(tmp_path / "data")).hold_back(6)

    seen = numbers(rest, 300)

    held = {number_of(validation.open(index)) for index in range(len(validation))}
    assert len(held) == 6
    assert not held & set(seen)
    assert len({number // 3 for number in held}) == 3  # of shards that lie apart
    orders = [[number // 3 for number in seen[i : i + 30]] for i in range(0, 300, 30)]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len({tuple(order) for order in orders}) == 10
    # Every shard starts some epoch, and shards follow each other in many ways.
    assert len({order[0] for order in orders}) > 3
    assert len({pair for order in orders for pair in pairwise(order)}) > 60


@KINDS
def test_a_few_shards_are_read_in_turns(kind, tmp_path):
    write_shards(tmp_path / "data", kind, [9] * 6)

    first = [number // 9 for number in numbers(rows_of(opened(tmp_path / "data")), 8)]

    assert first[:SHARDS_AT_ONCE] == first[SHARDS_AT_ONCE:]
    assert len(set(first)) == SHARDS_AT_ONCE


@pytest.mark.parametrize("sizes", [[1, 0, 9, 2], [20], [1] * 13, [0, 0, 12]])
def test_as_many_rows_are_held_back_as_asked_for_however_uneven_the_shards(sizes, tmp_path):
    write_shards(tmp_path / "data", "parquet", sizes)
    shards = opened(tmp_path / "data")

    cells, rest = shards.hold_back(8)

    everything = [cell["path"] for cell, *_ in shards.in_turns(range(len(sizes)), 4)]
    left = [cell["path"] for cell, *_ in rest.in_turns(range(len(sizes)), 4)]
    assert len(cells) == 8
    assert sorted([cell["path"] for cell in cells] + left) == sorted(everything)
    assert len(rest.hold_back(1000)[0]) == sum(sizes) - 8


@KINDS
def test_an_empty_shard_is_no_shard(kind, tmp_path):
    write_shards(tmp_path / "data", kind, [4, 0, 5])

    assert sorted(numbers(rows_of(opened(tmp_path / "data")), 9)) == list(range(9))


def test_a_glob_chooses_the_shards(tmp_path):
    write_shards(tmp_path / "data", "tar", [2, 2, 2])
    rows = rows_of(opened(tmp_path / "data", data_files=["shard-0[02].tar"]))

    assert sorted(numbers(rows, 4)) == [0, 1, 4, 5]


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 5])


def change_columns(path: Path) -> None:
    WRITERS[path.suffix[1:]](path, range(4), column="jpg")


@KINDS
@pytest.mark.parametrize("fault", [remove, cut])
def test_a_shard_that_breaks_after_it_was_listed_is_named_with_the_cure(kind, fault, tmp_path):
    paths = write_shards(tmp_path / "data", kind, [4] * 3)
    rows = rows_of(opened(tmp_path / "data"))
    fault(paths[1])

    with pytest.raises(RunStopped) as stopped:
        numbers(rows, 12)

    message = str(stopped.value)
    assert message.startswith(f"{paths[1]} cannot be read after row")
    assert "Restore this shard, or remove it" in message
    assert "--resume_from_checkpoint latest" in message
    assert "\n" not in message


def test_a_parquet_shard_of_other_columns_is_named(tmp_path):
    paths = write_shards(tmp_path / "data", "parquet", [4] * 3)
    change_columns(paths[2])

    with pytest.raises(RunStopped, match=f"^{paths[2]} cannot be read.*it has no column 'png'"):
        numbers(rows_of(opened(tmp_path / "data")), 12)


def test_pictures_missing_from_a_tar_of_other_columns_are_named_one_by_one(tmp_path):
    paths = write_shards(tmp_path / "data", "tar", [4] * 3)
    WRITERS["tar"](paths[2], range(4), column="pdf")

    failed = set()
    for row in islice(rows_of(opened(tmp_path / "data")).lane(Lane()), 12):
        try:
            row_number(row)
        except ValueError:
            failed.add(row.source.label(row.index))
    assert len(failed) == 4
    assert all("(no png among its pdf, txt)" in label for label in failed)


@pytest.mark.parametrize("streaming", [True, False])
def test_what_can_be_seen_at_the_ends_of_the_files_is_said_at_the_start(streaming, tmp_path):
    def load(kind: str, fault) -> Path:
        folder = tmp_path / f"{kind}-{fault.__name__}"
        paths = write_shards(folder, kind, [3] * 3)
        fault(paths[1])
        load_rows(NamedDataset(str(folder), image_column="png"), streaming=streaming)

    def empty(path: Path) -> None:
        path.write_bytes(b"")

    def empty_first(path: Path) -> None:
        WRITERS["tar"](path.with_name("shard-00.tar"), [])

    for kind, fault, message in (
        ("parquet", cut, r"shard-01\.parquet is cut off; copy it again, or remove it"),
        ("parquet", empty, r"shard-01\.parquet is empty"),
        ("tar", empty, r"shard-01\.tar is empty"),
        ("tar", empty_first, r"the first shard, \S*shard-00\.tar, holds nothing; remove it"),
    ):
        with pytest.raises(ArgumentError, match=rf"^--dataset_name=\S+: .*{message}"):
            load(kind, fault)


def test_a_tar_without_an_end_is_suspected_once(tmp_path, caplog):
    paths = write_shards(tmp_path / "data", "tar", [3] * 3)
    for path in paths[1:]:
        path.write_bytes(path.read_bytes().rstrip(b"\0"))

    with caplog.at_level(logging.WARNING):
        opened(tmp_path / "data")

    (message,) = caplog.messages
    assert f"{paths[1]} (and 1 more) has not the end that a tar has" in message


def test_a_shard_of_no_use_among_those_held_back_is_a_mistake_of_the_arguments(tmp_path):
    paths = write_shards(tmp_path / "data", "tar", [3] * 2)
    shards = opened(tmp_path / "data")
    paths[0].unlink()

    with pytest.raises(ArgumentError, match=rf"^--dataset_name=\S+: {paths[0]} cannot be read"):
        shards.hold_back(2)


def test_a_url_without_what_reads_it_is_a_mistake_of_the_arguments(monkeypatch):
    def missing(*args: object, **options: object) -> None:
        raise ImportError('HTTPFileSystem requires "aiohttp" to be installed')

    monkeypatch.setattr("modules.data.sources.hf_dataset.load_dataset_builder", missing)
    with pytest.raises(ArgumentError, match=r"--dataset_name=parquet: .*aiohttp.*with pip"):
        load_rows(
            NamedDataset("parquet", data_files=["http://127.0.0.1/a.parquet"]), streaming=True
        )


class Unreliable:
    """Rows of one shard, from a connection that breaks at some of them, a number of times."""

    def __init__(self, breaks: dict[int, int], error: Exception) -> None:
        self.breaks, self.error = dict(breaks), error
        self.num_shards, self.opened = 1, 0

    def shard(self, num_shards: int, index: int) -> Unreliable:
        return self

    def skip(self, rows: int) -> Unreliable:
        self.first = rows
        return self

    def iter(self, batch_size: int) -> Iterator[dict]:
        self.opened += 1
        for row in range(self.first, 10):
            if self.breaks.get(row, 0) > 0:
                self.breaks[row] -= 1
                raise self.error
            yield {IMAGE: [{"bytes": None, "path": str(row)}]}


@pytest.fixture
def waited(monkeypatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr(data_files.time, "sleep", seconds.append)
    return seconds


REMOTE = "https://example.org/a.tar"
# What the Hub's client raises; of a class with that name in its own library for requests.
OFFLINE = sys.modules[NETWORK_ERRORS[-1].__module__.split(".")[0]].ConnectError("no route")


@pytest.mark.parametrize(
    ("error", "files"),
    [
        (ConnectionError("gone"), ()),
        (TimeoutError("slow"), ()),
        (OFFLINE, ()),
        (OSError("cut"), (REMOTE,)),
    ],
)
def test_a_connection_that_breaks_is_taken_up_where_it_broke(error, files, waited, caplog):
    rows = Unreliable({0: 1, 4: 3, 5: 3}, error)

    with caplog.at_level(logging.WARNING):
        cells = list(Shards(LoadedRows(rows, "far", files=files)).read(0))

    assert [cell["path"] for cell, _ in cells] == [str(row) for row in range(10)]
    assert waited == [2, 2, 10, 30, 2, 10, 30]
    assert rows.opened == 8
    assert "cannot be read after row 4" in caplog.messages[1]
    assert "trying again in 30 s" in caplog.messages[3]


def test_a_connection_that_stays_broken_ends_the_run_with_a_message(waited):
    rows = Unreliable({7: 1000}, ConnectionError("gone"))
    with pytest.raises(RunStopped, match="shard 1 of 1 of far cannot be read after row 7: Conn"):
        list(Shards(LoadedRows(rows, "far")).read(0))
    assert waited == [2, 10, 30]


@pytest.mark.parametrize("failures", [2, 4])
def test_a_picture_in_a_file_of_its_own_far_away_is_waited_for_too(failures, waited, monkeypatch):
    opened = []

    def open_at_last(path: str, *args: object, **options: object) -> io.BytesIO:
        opened.append(path)
        if len(opened) <= failures:
            raise OFFLINE
        return io.BytesIO(b"picture")

    monkeypatch.setattr(sources, "xopen", open_at_last)
    if failures == 2:
        assert sources.encoded_image({"bytes": None, "path": REMOTE}) == b"picture"
        assert waited == [2, 10]
        return
    with pytest.raises(RunStopped, match=rf"^{REMOTE} cannot be read: ConnectError: no route\."):
        sources.encoded_image({"bytes": None, "path": REMOTE})


@pytest.mark.parametrize("error", [FileNotFoundError("404"), ValueError("cast")])
def test_what_will_not_mend_itself_is_not_waited_for(error, waited):
    files = (REMOTE,) if isinstance(error, FileNotFoundError) else ("here.tar",)
    with pytest.raises(RunStopped, match=f"{files[0]} cannot be read.*Restore this shard"):
        list(Shards(LoadedRows(Unreliable({2: 1}, error), "far", files=files)).read(0))
    assert waited == []


def test_files_are_recognised_by_their_names_and_sizes_wherever_they_lie(tmp_path):
    def of(folder: Path) -> str:
        return fingerprint([str(path) for path in sorted(folder.rglob("*.*"))])

    write_shards(tmp_path / "a", "tar", [3, 2])
    before = of(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "far" / "away")
    assert of(tmp_path / "far" / "away") == before
    paths = write_shards(tmp_path / "b", "tar", [3, 2])
    assert of(tmp_path / "b") == before
    paths[1].rename(tmp_path / "b" / "shard-05.tar")
    assert of(tmp_path / "b") != before
    with (tmp_path / "a" / "shard-00.tar").open("ab") as file:
        file.write(b"\0")
    assert of(tmp_path / "a") != before
    assert fingerprint([]) != fingerprint(["a"]) != fingerprint(["a"], ["etag"])


def test_sizes_of_a_million_files_are_not_all_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(os, "stat", lambda path: asked.append(path) or os.lstat("/"))
    fingerprint([f"/photos/{number}.jpg" for number in range(30_001)])
    assert 5_000 < len(asked) <= 10_000


def argv_for(folder: Path, data: Path, steps: int, *more: object) -> list[str]:
    return command(folder, steps, Variant(1, False, 1), *more, "--dataset_name", data,
                   "--image_column", "png", "--streaming", "--shuffle_buffer_size", 3,
                   "--num_validation_images", 2)  # fmt: skip


def break_after_step(path: str, fault, step: int) -> None:
    update = Run.update

    def update_and_break(self: Run, *turns: bool) -> None:
        update(self, *turns)
        if self.step == step and self.accelerator.is_main_process and Path(path).exists():
            fault(Path(path))

    Run.update = update_and_break


def test_two_processes_that_lose_a_shard_end_with_its_name_and_go_on_without_it(tmp_path):
    data, folder = tmp_path / "data", tmp_path / "run"
    paths = write_shards(data, "tar", (1, 7, 3, 5))  # uneven over two processes and two workers
    argv = argv_for(folder, data, 40)
    runs = launch_together(
        [*argv, "--ddp_timeout", 20], 2, partial(break_after_step, str(paths[1]), remove, 4)
    )
    for run in runs:
        code, output = run.wait()
        assert code == 1, output
        last = output.strip().splitlines()[-1]
        assert last.startswith("train_vae.py: error: "), output
        assert str(paths[1]) in last or "another process of the run has ended" in last
    assert any(str(paths[1]) in run.output for run in runs)
    steps = checkpoint_steps(folder / "checkpoints")
    assert steps
    for step in steps:
        verify(folder / "checkpoints" / f"step-{step:06d}")

    again = launch_together([*argv_for(folder, data, steps[-1] + 3), *RESUME], 2)
    outputs = finish_together(again)
    assert "the files of the training set (names, sizes or versions) are not those" in outputs[0]


@pytest.mark.parametrize("change", [None, "shard", "file"])
def test_files_that_are_exchanged_between_two_launches_are_noticed(change, pictures, tmp_path):
    data, folder = tmp_path / "data", tmp_path / "run"
    if change == "file":
        shutil.copytree(pictures, data)
        argv = partial(argv_for_folder, folder, data)
    else:
        write_shards(data, "parquet", (4, 6, 4))
        argv = partial(argv_for, folder, data)
    succeed(argv(3))
    if change == "shard":
        (data / "shard-01.parquet").unlink()
        write_shards(tmp_path / "other", "parquet", (6,), start=50)[0].rename(
            data / "shard-01.parquet"
        )
    elif change == "file":
        (data / "3.png").rename(data / "3b.png")
    else:
        data = data.rename(tmp_path / "moved")
        argv = partial(argv_for, folder, data)
    output = succeed([*argv(4), *RESUME])
    noticed = "the files of the training set (names, sizes or versions) are not those" in output
    assert noticed == (change is not None)
    state = json.loads((folder / "checkpoints/step-000004/trainer_state.json").read_text())
    assert state["data_fingerprint"]


def argv_for_folder(folder: Path, data: Path, steps: int) -> list[str]:
    return command(folder, steps, Variant(0, False, 1), "--train_data_dir", data)


def forget_the_data() -> None:
    """Writes checkpoints as earlier versions did."""
    whole = progress.trainer_state

    def without(*args: object) -> dict:
        return {key: value for key, value in whole(*args).items() if key != "data_fingerprint"}

    progress.trainer_state = without


def test_a_checkpoint_from_before_fingerprints_is_not_suspected(tmp_path):
    data, folder = tmp_path / "data", tmp_path / "run"
    write_shards(data, "tar", (6, 6))
    code, output = launch(argv_for(folder, data, 3), forget_the_data).wait()
    assert code == 0, output
    state = json.loads((folder / "checkpoints/step-000003/trainer_state.json").read_text())
    assert "data_fingerprint" not in state
    assert "the files of the training set" not in succeed([*argv_for(folder, data, 4), *RESUME])


def test_a_saved_dataset_is_shuffled_like_shards_and_recognised(tmp_path):
    write_shards(tmp_path / "data", "parquet", [30])
    rows = datasets.Dataset.from_parquet(str(tmp_path / "data" / "shard-00.parquet"))
    rows.save_to_disk(tmp_path / "saved")

    seen = numbers(rows_of(opened(tmp_path / "saved")), 30)

    assert sorted(seen) == list(range(30))
    assert seen[:4] != [0, 1, 2, 3]
    dataset = NamedDataset(str(tmp_path / "saved"), image_column="png")
    versions = [load_rows(dataset, streaming=way).fingerprint for way in (True, False)]
    assert versions[0] == versions[1] != fingerprint([])


def test_the_order_of_the_shards_belongs_to_the_seed(tmp_path):
    write_shards(tmp_path / "data", "tar", [2] * 9)
    shards = opened(tmp_path / "data")
    orders = {
        tuple(numbers(ShardRows(shards, seed=seed, buffer_size=1), 18)) for seed in (0, 0, 1, 2)
    }
    assert len(orders) == 3
    assert random.Random(0).sample(range(9), 9) == [6, 8, 0, 2, 4, 3, 1, 5, 7]  # in every version
