"""A stream in lanes: each byte is read by one worker, and a run goes on from a few numbers."""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from itertools import islice
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import row_number, write_shards
from test_data import assert_equal, batches, merged

from modules.builders.loader import warn_of_lanes
from modules.data.images.synthetic import SyntheticImages
from modules.data.loader import training_loader
from modules.data.samplers.order import Shares
from modules.data.sources.hf_dataset import NamedDataset, load_rows
from modules.data.sources.shard_files import Place
from modules.data.streaming.lanes import Lane, RowStream, ShardRows
from modules.data.streaming.reader import StreamedImages, StreamPosition
from modules.data.streaming.rows import MixedRows, SourceRows
from modules.data.streaming.shards import Shards
from modules.errors import ArgumentError

KINDS = pytest.mark.parametrize("kind", ["parquet", "tar", "saved", "mixture"])
OPTIONS = {"latent_shape": (4, 2, 2), "seed": 7}
LANES, LENGTH = 8, 6  # eight shards of as many pictures


def opened(folder: Path, buffer_size: int = 20) -> ShardRows:
    shards = Shards(load_rows(NamedDataset(str(folder), image_column="png"), streaming=True))
    return ShardRows(shards, seed=7, buffer_size=buffer_size)


@pytest.fixture(scope="module")
def streams(tmp_path_factory, offline) -> dict[str, RowStream]:
    folder = tmp_path_factory.mktemp("streams")
    for kind in ("parquet", "tar"):
        write_shards(folder / kind, kind, [LENGTH] * LANES)
    rows = [datasets.Dataset.from_parquet(str(path)) for path in (folder / "parquet").iterdir()]
    datasets.concatenate_datasets(rows).save_to_disk(folder / "saved")
    found = {kind: opened(folder / kind) for kind in ("parquet", "tar", "saved")}
    assert found["saved"].num_shards == LENGTH * LANES
    write_shards(folder / "few", "tar", [LENGTH] * 2, start=100)
    synthetic = SourceRows(SyntheticImages(30, 24, 0), 7)
    parts = [found["parquet"], opened(folder / "few"), synthetic]
    found["mixture"] = MixedRows(parts, (3, 1, 0.5), 7)
    return found


def numbers(loaded: list[dict]) -> list[int]:
    return [number for batch in loaded for number in batch["images"][:, 0, 0, 0].tolist()]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@KINDS
@pytest.mark.parametrize(("processes", "workers"), [(4, 0), (1, 2), (2, 3)])
def test_samples_are_the_same_for_all_processes_and_workers(streams, kind, processes, workers):
    images, once = StreamedImages(streams[kind], 8, LANES, **OPTIONS), []
    for count, num_workers in ((1, 0), (processes, workers)):
        ranks = [
            batches(images, 9, 8 // count, rank=rank, world_size=count, num_workers=num_workers)
            for rank in range(count)
        ]
        once.append(merged(ranks, images))
    assert_equal(*once)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@KINDS
def test_a_run_goes_on_from_its_checkpoint_wherever_it_was(streams, kind):
    whole = batches(StreamedImages(streams[kind], 8, LANES, **OPTIONS), 40, 6)
    position = StreamPosition(LANES)
    for number, batch in enumerate(whole[:34]):
        if number in (0, 1, 7, 8, 20, 33):  # blocks and epochs end at many of these
            state = json.loads(json.dumps(position.state_dict()))
            cursors = StreamPosition.restored(state, anew=False).cursors
            images = StreamedImages(streams[kind], 8, LANES, cursors, **OPTIONS)
            ranks = [
                batches(images, 5, 3, rank=rank, world_size=2, start_position=6 * number,
                        num_workers=3 * (number == 20))
                for rank in range(2)
            ]  # fmt: skip
            assert_equal(merged(ranks, images), whole[number : number + 5])
        position.advance(batch)


def test_what_workers_fetch_ahead_does_not_move_the_checkpoint(streams):
    images = StreamedImages(streams["tar"], 8, LANES, **OPTIONS)
    states = []
    for workers in (0, 2):
        position = StreamPosition(LANES)
        for batch in batches(images, 5, 4, num_workers=workers):
            position.advance(batch)
        states.append(position.state_dict())
    assert states[0] == states[1]


@pytest.mark.parametrize("kind", ["parquet", "tar", "saved"])
@pytest.mark.parametrize(("processes", "workers"), [(1, 1), (2, 1), (2, 2), (1, 4), (4, 2)])
def test_a_lane_is_read_by_one_worker_of_one_process(
    streams, kind, processes, workers, monkeypatch
):
    stream, readers = streams[kind], Counter()
    images = StreamedImages(stream, 8, LANES, **OPTIONS)
    lane = stream.lane
    monkeypatch.setattr(
        stream, "lane", lambda of, *at: readers.update([of.number]) or lane(of, *at)
    )
    for rank in range(processes):
        for worker in range(workers):
            info = type("Info", (), {"id": worker, "num_workers": workers})
            monkeypatch.setattr(
                "modules.data.streaming.reader.get_worker_info", lambda info=info: info
            )
            monkeypatch.setattr(
                "modules.data.streaming.reader.fsspec.asyn.reset_lock", lambda: None
            )
            loader = training_loader(images, batch_size=4, rank=rank, world_size=processes,
                                     start_position=5, num_workers=workers)  # fmt: skip
            list(islice(loader.loader.dataset, 24))
    assert readers == dict.fromkeys(range(LANES), 1)


@pytest.mark.parametrize("kind", ["parquet", "tar", "saved"])
def test_an_epoch_of_lanes_of_one_length_holds_every_picture_once(streams, kind):
    seen = numbers(batches(StreamedImages(streams[kind], 8, LANES, **OPTIONS), 18, LANES))

    size = LANES * LENGTH
    epochs = [seen[start : start + size] for start in range(0, 3 * size, size)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3


def test_a_lane_gives_its_share_of_the_samples_however_short_it_is(tmp_path):
    write_shards(tmp_path / "data", "parquet", [12, 3, 3])
    seen = numbers(batches(StreamedImages(opened(tmp_path / "data"), 8, **OPTIONS), 12, 12))

    counts = Counter(seen)
    assert {counts[number] for number in range(12)} == {4}
    assert {counts[number] for number in range(12, 18)} == {16}


@settings(max_examples=8)
@given(st.integers(1, 20), st.integers(0, 40), st.integers(1, 40))
def test_any_number_of_lanes_draws_from_all_shards_and_resumes(streams, lanes, start, buffer_size):
    rows = ShardRows(streams["tar"].shards, seed=1, buffer_size=buffer_size)
    seen: set[int] = set()
    for number in range(lanes):
        lane = Lane(number, lanes)
        whole = list(islice(rows.lane(lane), start + 60))
        seen |= {row_number(row) for row in whole}
        cursor = whole[start - 1].cursor if start else None
        resumed = islice(rows.lane(lane, start, cursor), 60)
        for ours, theirs in zip(resumed, whole[start:], strict=True):
            assert (ours.draw, ours.cursor) == (theirs.draw, theirs.cursor)
            assert ours.source.cells == theirs.source.cells
    assert len(seen) == LANES * LENGTH or lanes == 1  # one lane alone is asked for too few


def test_a_larger_buffer_shuffles_a_lane_further(tmp_path):
    write_shards(tmp_path / "data", "tar", [200])

    def distance(buffer_size: int) -> float:
        rows = opened(tmp_path / "data", buffer_size).lane(Lane())
        places = np.array([row_number(row) for row in islice(rows, 200)])
        assert sorted(places) == list(range(200))
        return np.abs(places - np.arange(200)).mean()

    assert distance(1) == 0
    assert 0 < 4 * distance(5) < distance(50) < distance(1000)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_what_lies_before_the_place_is_not_read(kind, tmp_path, monkeypatch):
    (file,) = write_shards(tmp_path / "data", kind, [200])
    if kind == "parquet":
        pq.write_table(pq.read_table(file), file, row_group_size=20)
    shards, read = opened(tmp_path / "data").shards, []

    class Counted(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            read.append(content := super().read(size))
            return content

    monkeypatch.setattr("modules.data.sources.shard_files.open", Counted, raising=False)
    rows = list(shards.read(0))
    whole, every = sum(map(len, read)), file.stat().st_size
    assert every * 0.8 < whole < every + 70_000  # words are passed over; a parquet's end is read
    for row in (199, 185, 100):
        read.clear()
        assert list(shards.read(0, rows[row - 1][1])) == rows[row:]
        assert sum(map(len, read)) < 75_000 + (220 - row) / 200 * every


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_shards_that_are_far_away_are_entered_where_a_run_was(kind, tmp_path):
    paths = write_shards(tmp_path / "data", kind, [30])
    near = list(opened(tmp_path / "data").shards.read(0))
    far = fsspec.filesystem("memory")
    far.pipe(f"/{kind}/shard-00.{kind}", paths[0].read_bytes())

    name, files = kind.replace("tar", "webdataset"), [f"memory://{kind}/shard-00.{kind}"]
    dataset = NamedDataset(name, image_column="png", data_files=files)
    shards = Shards(load_rows(dataset, streaming=True))
    for row in (0, 1, 17, 29):
        place = near[row - 1][1] if row else Place()
        assert list(shards.read(0, place)) == near[row:]


def test_lanes_without_images_read_the_shards_of_the_others(tmp_path, caplog):
    write_shards(tmp_path / "data", "parquet", [4, 0, 5])
    rows = opened(tmp_path / "data")
    with caplog.at_level(logging.WARNING):
        seen = [row_number(row) for row in islice(rows.lane(Lane(1, 3)), 18)]
    assert sorted(seen) == sorted([*range(9)] * 2)
    assert "data has no images for lane 1 of 3" in caplog.messages[0]
    cursor = next(islice(rows.lane(Lane(1, 3)), 7, None)).cursor
    again = [row_number(row) for row in islice(rows.lane(Lane(1, 3), 8, cursor), 10)]
    assert again == seen[8:]

    write_shards(tmp_path / "empty", "parquet", [0, 0])
    with pytest.raises(ArgumentError, match=r"--dataset_name=\S+empty has no images to train on"):
        next(opened(tmp_path / "empty").lane(Lane(1, 2)))


def test_other_shards_begin_the_epoch_again(streams, tmp_path):
    images, position = StreamedImages(streams["mixture"], 8, LANES, **OPTIONS), StreamPosition(8)
    for batch in batches(images, 30, 8):
        position.advance(batch)
    state = json.loads(json.dumps(position.state_dict()))

    anew = StreamPosition.restored(state, anew=True)
    row, (index, epoch) = anew.cursors[3]
    assert (row, index) == (30, -1)
    assert epoch > 2
    for kind in ("tar", "mixture"):  # whatever was streamed before
        images = StreamedImages(streams[kind], 8, anew.lanes, anew.cursors, **OPTIONS)
        rows = list(islice(images.lane(3, 99).rows, 40))
        assert rows[0].draw[0] in (epoch, 8)  # of the synthetic set, which has no cursor
        if kind == "tar":
            seen = [row_number(row) for row in rows[:LENGTH]]
            assert sorted(seen) == list(range(3 * LENGTH, 4 * LENGTH))
    assert StreamPosition.restored(None, anew=False).state_dict() is None


def test_a_cursor_of_a_run_with_other_flags_is_entered_at_its_block(streams):
    rows = ShardRows(streams["tar"].shards, seed=1, buffer_size=40)
    cursor = next(islice(rows.lane(Lane(2, 8)), 50, None)).cursor
    far_off = next(rows.lane(Lane(2, 8), 10**9, cursor))
    assert far_off.draw[0] == cursor[1]


def test_what_is_read_twice_or_comes_less_often_is_said(streams, tmp_path, caplog):
    write_shards(tmp_path / "uneven", "tar", [1, 30, 1, 1])
    uneven = opened(tmp_path / "uneven")
    with caplog.at_level(logging.WARNING):
        warn_of_lanes(streams["tar"], 8, 2, 4)
        warn_of_lanes(streams["saved"], 8, 8, 0)
        assert not caplog.messages
        warn_of_lanes(streams["tar"], 8, 3, 2)
        warn_of_lanes(streams["mixture"], 8, 1, 1)
        warn_of_lanes(uneven, 4, 1, 1)
    divided, few, long = caplog.messages
    assert "8 lanes cannot be divided among 3 processes x 2 workers" in divided
    assert divided.endswith("is 1, 2, 4 or 8")
    assert "few has 2 shards for 8 lanes, each of them read by 4" in few
    assert "shard-01.tar has 82.4 % of the bytes" in long
    assert "gives 25 % of the samples" in long


@settings(max_examples=30)
@given(
    st.lists(st.floats(0.01, 10), min_size=2, max_size=4).map(tuple),
    st.integers(2, 64),
    st.integers(0, 300),
)
def test_lanes_that_go_on_in_step_hold_the_shares_together(weights, lanes, number):
    shares = np.array(weights) / sum(weights)
    every = [Shares(weights, 0).of_lane(lane, lanes) for lane in range(lanes)]
    counts = np.array([lane.counts(number) for lane in every])

    assert (counts.sum(1) == number).all()
    assert np.abs(counts - number * shares).max() <= len(weights) + 1
    assert np.abs(counts.sum(0) - lanes * number * shares).max() <= len(weights) * lanes**0.5 + 1


def test_a_rare_data_set_is_not_drawn_by_all_lanes_at_once():
    every = [Shares((99.9, 0.1), 0).of_lane(lane, 64) for lane in range(64)]
    drawn = [sum(int(lane.counts(n)[1]) for lane in every) for n in range(0, 1001, 100)]
    assert np.abs(np.array(drawn) - 6.4 * np.arange(11)).max() <= 1.1
