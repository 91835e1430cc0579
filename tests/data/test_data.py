"""The stream of samples is one sequence, however many workers and processes read it."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modules.data.bad_images import BadImages
from modules.data.images.images import UnreadableImage, decode, random_crop, to_uint8_tensor
from modules.data.images.samples import MAX_ATTEMPTS, TOO_SMALL, UNREADABLE, Rejection
from modules.data.loader import TrainingImages, training_loader
from modules.data.samplers.batches import ShuffledBatches
from modules.data.samplers.order import Permutations
from modules.data.sources.hf_dataset import IMAGE, LoadedRows, NamedDataset, load_rows
from modules.data.sources.open import FileSource
from modules.data.streaming.lanes import ShardRows
from modules.data.streaming.reader import StreamedImages
from modules.data.streaming.rows import SourceRows
from modules.data.streaming.shards import Shards
from modules.errors import RunStopped

RESOLUTION = 8
OPTIONS = {"latent_shape": (4, 2, 2), "seed": 7}


class Pictures:
    """Pictures by index, some of them damaged and some small."""

    name = "pictures"

    def __init__(self, size: int, damaged: tuple[int, ...] = (), small: tuple[int, ...] = ()):
        self.size, self.damaged, self.small = size, damaged, small

    def __len__(self) -> int:
        return self.size

    def open(self, index: int, target: int | None = None) -> Image.Image:
        if index in self.damaged:
            raise UnreadableImage("damaged")
        side = 5 if index in self.small else RESOLUTION
        return Image.fromarray(picture(index, side, side + 6))

    def label(self, index: int) -> str:
        return f"picture {index}"


def picture(index: int, height: int = RESOLUTION, width: int = RESOLUTION + 6) -> np.ndarray:
    """Channel 0 holds `index`, whatever is cropped and flipped; the others are noise."""
    pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[..., 0] = index
    return pixels


def png(index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(index)).save(file, "PNG")
    return file.getvalue()


def stream_of(cells: list[dict | None], num_shards: int = 1) -> datasets.IterableDataset:
    features = datasets.Features({IMAGE: datasets.Image(decode=False)})
    rows = datasets.Dataset.from_dict({IMAGE: cells}, features)
    return rows.to_iterable_dataset(num_shards=num_shards)


def streamed(size: int, damaged: tuple[int, ...] = (), **options) -> StreamedImages:
    cells = [
        {"bytes": b"damaged" if index in damaged else png(index), "path": f"{index}.png"}
        for index in range(size)
    ]
    return streamed_images(stream_of(cells, min(size, 2)), **options)


def streamed_images(stream, name: str = "stream", buffer_size: int = 4, lanes: int = 1, **options):
    options = {**OPTIONS, **options}
    shards = Shards(LoadedRows(stream, name))
    rows = ShardRows(shards, seed=options["seed"], buffer_size=buffer_size)
    return StreamedImages(rows, RESOLUTION, lanes, **options)


def mapped(size: int, damaged: tuple[int, ...] = (), **options) -> TrainingImages:
    return TrainingImages(Pictures(size, damaged), RESOLUTION, **{**OPTIONS, **options})


def batches(dataset, number: int, batch_size: int = 3, **options) -> list[dict]:
    return list(islice(training_loader(dataset, batch_size=batch_size, **options), number))


def indices(batch: dict) -> list[int]:
    return batch["images"][:, 0, 0, 0].tolist()


def assert_equal(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a["images"], b["images"])
        assert torch.equal(a["noise"], b["noise"])
        assert a["upscaled"] == b["upscaled"]
        assert sorted(a["rejected"]) == sorted(b["rejected"])


def merged(per_rank: list[list[dict]], dataset, start: int = 0) -> list[dict]:
    """What one process with the whole batch would see, from what each of several sees.

    Of a stream, process r has the samples whose position is r modulo their number.
    """
    turns, shift = isinstance(dataset, StreamedImages), start % len(per_rank)
    ranks = per_rank[shift:] + per_rank[:shift] if turns else per_rank
    return [
        {
            key: torch.stack([part[key] for part in parts], int(turns)).flatten(0, 1)
            for key in ("images", "noise")
        }
        | {
            "upscaled": sum(part["upscaled"] for part in parts),
            "rejected": [rejection for part in parts for rejection in part["rejected"]],
        }
        for parts in zip(*ranks, strict=True)
    ]


BOTH_KINDS = pytest.mark.parametrize("make", [mapped, streamed])


@BOTH_KINDS
def test_a_batch_holds_bytes_and_normal_noise(make):
    (batch,) = batches(make(7), 1, batch_size=5)

    assert batch["images"].dtype == torch.uint8
    assert batch["images"].shape == (5, 3, RESOLUTION, RESOLUTION)
    assert batch["noise"].dtype == torch.float32
    assert batch["noise"].shape == (5, 4, 2, 2)
    assert batch["upscaled"].shape == ()
    assert batch["rejected"] == []


@BOTH_KINDS
def test_the_noise_is_standard_normal_and_different_at_every_position(make):
    dataset = make(3, latent_shape=(4, 16, 16))

    noise = torch.cat([batch["noise"] for batch in batches(dataset, 4)])

    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    assert len({sample.sum().item() for sample in noise}) == 12


@BOTH_KINDS
@settings(max_examples=15)
@given(size=st.integers(1, 12), batch_size=st.integers(1, 5))
def test_every_epoch_is_a_permutation_and_no_batch_is_short(make, size, batch_size):
    seen = [
        index
        for batch in batches(make(size), -(-3 * size // batch_size), batch_size=batch_size)
        for index in indices(batch)
    ]

    assert len(seen) % batch_size == 0
    for epoch in range(3):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(size))


@BOTH_KINDS
def test_order_crops_and_flips_change_from_epoch_to_epoch_and_with_the_seed(make):
    first, second = ([indices(batch) for batch in batches(make(20), 20, 1)] for _ in range(2))
    epochs = batches(make(20), 2, 20)
    (other,) = batches(make(20, seed=8), 1, 20)

    assert first == second
    assert indices(epochs[0]) != indices(epochs[1])
    assert indices(epochs[0]) != indices(other)
    crops = [dict(zip(indices(batch), batch["images"].tolist(), strict=True)) for batch in epochs]
    assert sum(crops[0][index] != crops[1][index] for index in range(20)) > 10


@BOTH_KINDS
def test_a_picture_is_cropped_everywhere_and_flipped_half_of_the_time(make):
    whole = torch.from_numpy(picture(0)).permute(2, 0, 1)
    crops = {}
    for flip in (False, True):
        for left in range(7):
            crop = whole[:, :, left : left + RESOLUTION]
            crops[(crop.flip(-1) if flip else crop).numpy().tobytes()] = (left, flip)

    images = batches(make(1), 1, batch_size=200)[0]["images"]

    places = [crops[image.numpy().tobytes()] for image in images]
    assert {left for left, _ in places} == set(range(7))
    assert 70 < sum(flip for _, flip in places) < 130


@BOTH_KINDS
def test_centre_crops_without_flips_are_the_same_every_time(make):
    images = batches(make(1, crop="center", random_flip=False), 1, 6)[0]["images"]

    expected = torch.from_numpy(picture(0)[:, 3:-3]).permute(2, 0, 1)
    assert all(torch.equal(image, expected) for image in images)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@BOTH_KINDS
@pytest.mark.parametrize("num_workers", [1, 3])
def test_batches_do_not_depend_on_the_number_of_workers(make, num_workers):
    dataset = make(10, damaged=(2, 3, 9))

    alone = batches(dataset, 9)
    helped = batches(dataset, 9, num_workers=num_workers)

    assert_equal(helped, alone)
    assert sum(len(batch["rejected"]) for batch in alone) >= 6


@BOTH_KINDS
@pytest.mark.parametrize("start", [3, 8])
@pytest.mark.parametrize(("world_size", "num_workers"), [(2, 0), (3, 0), (2, 2)])
def test_processes_see_together_what_one_sees_with_the_whole_batch(
    make, world_size, num_workers, start
):
    dataset = make(10, damaged=(2, 3))
    options = {"start_position": start, "world_size": world_size, "num_workers": num_workers}

    one = batches(dataset, 5, batch_size=2 * world_size, start_position=start)
    several = [batches(dataset, 5, 2, rank=rank, **options) for rank in range(world_size)]

    assert_equal(merged(several, dataset, start), one)


@BOTH_KINDS
@settings(max_examples=15)
@given(skipped=st.integers(0, 12), size=st.integers(1, 9))
def test_a_run_resumed_anywhere_continues_the_same_stream(make, skipped, size):
    dataset = make(size)

    uninterrupted = batches(dataset, skipped + 4, batch_size=2)

    assert_equal(
        batches(dataset, 4, batch_size=2, start_position=2 * skipped), uninterrupted[skipped:]
    )


@BOTH_KINDS
@pytest.mark.parametrize("num_workers", [0, 1])
def test_loading_leaves_the_global_random_state_alone(make, num_workers):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()

    batches(make(5), 3, num_workers=num_workers)

    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 50))
def test_positions_of_all_processes_are_every_position_once_in_order(batch_size, world, start):
    order = Permutations(7, seed=0)
    per_rank = [
        list(islice(ShuffledBatches(order, lambda _: 8, batch_size, rank, world, start), 6))
        for rank in range(world)
    ]

    places = [place for step in zip(*per_rank, strict=True) for batch in step for place in batch]
    assert [place.position for place in places] == list(
        range(start, start + 6 * world * batch_size)
    )
    for place in places:
        epoch, offset = divmod(place.position, 7)
        assert place.index == order.indices(epoch)[offset]


def test_a_damaged_picture_is_replaced_and_named():
    damaged = (1, 4)

    (batch,) = batches(mapped(6, damaged), 1, batch_size=6)

    assert set(indices(batch)) <= {0, 2, 3, 5}
    expected = {Rejection(f"picture {index}", "damaged", UNREADABLE) for index in damaged}
    assert set(batch["rejected"]) == expected


def test_replacements_of_a_picture_vary():
    dataset = TrainingImages(Pictures(40, damaged=tuple(range(1, 20))), RESOLUTION, **OPTIONS)

    first, second = batches(dataset, 2, batch_size=40)

    assert sorted(indices(first)) != sorted(indices(second))
    for batch in (first, second):
        assert set(indices(batch)) == {0, *range(20, 40)}
        assert max(Counter(indices(batch)).values()) < 8  # 19 pictures needed another one


def test_a_damaged_picture_in_a_stream_is_replaced_by_the_next_good_one():
    clean = [indices(batch)[0] for batch in batches(streamed(9), 16, 1)]
    damaged = tuple(clean[2:4])

    dirty = batches(streamed(9, damaged), 12, 1)

    places = [place for place, index in enumerate(clean[:15]) if index in damaged]
    expected = list(clean)
    for place in reversed(places):
        expected[place] = expected[place + 1]
    assert [indices(batch)[0] for batch in dirty] == expected[:12]
    assert [bool(batch["rejected"]) for batch in dirty] == [p in places for p in range(12)]
    assert len(dirty[2]["rejected"]) == 2
    assert all(r.kind == UNREADABLE for batch in dirty for r in batch["rejected"])
    labels = [r.label for batch in dirty for r in batch["rejected"]]
    assert len(set(labels)) == 2 < len(labels)  # a name is the same whenever it comes by


def test_pictures_below_the_minimum_are_told_apart_from_unreadable_ones():
    source = Pictures(6, damaged=(1,), small=(2, 3))

    (batch,) = batches(TrainingImages(source, RESOLUTION, min_image_size=6, **OPTIONS), 1, 6)

    kinds = {rejection.label: rejection.kind for rejection in batch["rejected"]}
    assert kinds == {"picture 1": UNREADABLE, "picture 2": TOO_SMALL, "picture 3": TOO_SMALL}
    assert set(indices(batch)) <= {0, 4, 5}
    assert batch["upscaled"] == 0
    reason = next(r.reason for r in batch["rejected"] if r.kind == TOO_SMALL)
    assert reason == "11x5 is below --min_image_size=6"


def test_small_pictures_are_enlarged_and_counted_unless_there_is_a_minimum():
    (batch,) = batches(TrainingImages(Pictures(6, small=(2, 3)), RESOLUTION, **OPTIONS), 1, 6)

    assert batch["upscaled"] == 2
    assert sorted(indices(batch)) == list(range(6))


@pytest.mark.parametrize("fast", [False, True])
def test_jpegs_are_decoded_whole_unless_asked_otherwise(fast, tmp_path):
    Image.fromarray(picture(3, 160, 160)).save(tmp_path / "a.jpg")
    expected = random_crop(
        decode(tmp_path / "a.jpg", RESOLUTION if fast else None), RESOLUTION, position=(0.5, 0.5)
    )
    source = FileSource([tmp_path / "a.jpg"])
    options = {"crop": "center", "random_flip": False, "fast_jpeg_decoding": fast, **OPTIONS}

    for dataset in (
        TrainingImages(source, RESOLUTION, **options),
        StreamedImages(SourceRows(source, 0), RESOLUTION, **options),
    ):
        (batch,) = batches(dataset, 1, 1)
        assert torch.equal(batch["images"][0], to_uint8_tensor(expected))


def test_a_minimum_above_the_resolution_is_not_mistaken_for_a_reduced_jpeg(tmp_path):
    paths = [tmp_path / "large.jpg", tmp_path / "small.jpg"]
    for path, side in zip(paths, (160, 40), strict=True):
        Image.new("RGB", (side, side)).save(path)
    options = {"min_image_size": 50, "fast_jpeg_decoding": True, **OPTIONS}
    dataset = TrainingImages(FileSource(paths), RESOLUTION, **options)

    rejected = batches(dataset, 1, batch_size=2)[0]["rejected"]
    assert {rejection.label for rejection in rejected} == {str(paths[1])}


@BOTH_KINDS
@pytest.mark.parametrize("num_workers", [0, 1])
def test_nothing_but_damaged_pictures_is_an_error_and_not_an_endless_search(make, num_workers):
    dataset = make(5, damaged=tuple(range(5)))
    loader = iter(training_loader(dataset, batch_size=1, num_workers=num_workers))

    with pytest.raises(RunStopped, match=f"{MAX_ATTEMPTS} images in a row .* {MAX_ATTEMPTS} unr"):
        next(loader)

    if num_workers:
        loader._shutdown_workers()  # the collector would wait five seconds for them


def test_a_minimum_that_no_picture_reaches_names_the_flag():
    dataset = TrainingImages(Pictures(5), RESOLUTION, min_image_size=100, **OPTIONS)

    with pytest.raises(RunStopped, match=f"{MAX_ATTEMPTS} smaller than --min_image_size=100"):
        batches(dataset, 1)


def test_an_empty_dataset_is_an_error():
    stream = stream_of([{"bytes": png(0), "path": None}]).take(0)

    with pytest.raises(ValueError, match="pictures has no images to train on"):
        mapped(0)
    with pytest.raises(ValueError, match="--dataset_name=nothing has no images to train on"):
        batches(streamed_images(stream, name="nothing"), 1)


def test_streamed_files_without_bytes_are_opened_by_path(tmp_path):
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(b"damaged" if index == 1 else png(index))
    stream = load_rows(NamedDataset(str(tmp_path)), streaming=True).rows
    dataset = streamed_images(stream, name="files", buffer_size=2)

    (batch,) = batches(dataset, 1, batch_size=3)

    assert set(indices(batch)) == {0, 2}
    assert {rejection.label for rejection in batch["rejected"]} == {str(tmp_path / "1.png")}


def test_a_row_without_an_image_is_skipped_and_named():
    cells = [{"bytes": png(index), "path": None} for index in range(3)] + [None]
    dataset = streamed_images(stream_of(cells), buffer_size=2)

    (batch,) = batches(dataset, 1, batch_size=4)

    assert [r.reason for r in batch["rejected"]] == ["the row holds no image"]


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="signals do not name their sender")
@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "USR1"])
def test_a_signal_to_the_whole_job_does_not_kill_the_workers(name):
    loader = iter(training_loader(mapped(9), batch_size=1, num_workers=1))
    next(loader)
    (worker,) = loader._workers

    subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    worker.join(timeout=0.3)

    assert worker.is_alive()
    for _ in range(60):
        next(loader)
    del loader
    worker.join(timeout=4)
    assert not worker.is_alive()


def test_workers_end_when_their_parent_says_so():
    loader = iter(training_loader(mapped(9), batch_size=1, num_workers=1))
    next(loader)
    (worker,) = loader._workers

    torch.utils.data._utils.signal_handling._remove_worker_pids(id(loader))
    worker.terminate()
    worker.join(timeout=4)

    assert worker.exitcode == 0
    loader._worker_pids_set = False


def test_a_process_that_exits_in_the_middle_of_the_stream_leaves_no_workers_behind():
    program = """
import sys; sys.path[:0] = ["tests/data", "tests/support"]
from test_data import mapped, training_loader
loader = iter(training_loader(mapped(9), batch_size=1, num_workers=2))
next(loader)
print(*(worker.pid for worker in loader._workers))
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    for pid in run.stdout.split():
        assert not os.path.exists(f"/proc/{pid}")


BAD = [
    Rejection("a\nb.png", "OSError: cut\toff", UNREADABLE),
    Rejection("c.png", "4x4 is below --min_image_size=8", TOO_SMALL),
    Rejection(os.fsdecode(b"\xff\xfe.png"), "cut", UNREADABLE),
]
LISTED = [
    b"unreadable\ta\\nb.png\tOSError: cut\\toff\n",
    b"too small\tc.png\t4x4 is below --min_image_size=8\n",
    b"unreadable\t\xff\xfe.png\tcut\n",
]


def record_of(folder: Path, max_bad_images: float = 0.5, size: int | None = 100) -> BadImages:
    return BadImages(folder, max_bad_images, size)


def listed(folder: Path) -> list[bytes]:
    return (folder / "bad_images.txt").read_bytes().splitlines(keepends=True)


def test_each_bad_image_is_listed_and_logged_once_and_a_resumed_run_keeps_counting(
    tmp_path, caplog
):
    record = record_of(tmp_path / "output")
    with caplog.at_level(logging.WARNING):
        record.add(BAD)
        record.add([*BAD, *BAD])
        assert listed(tmp_path / "output") == LISTED
        assert len(caplog.messages) == 3

        resumed = record_of(tmp_path / "output", 0.02)
        resumed.add(BAD)
        assert len(caplog.messages) == 3
    with pytest.raises(RunStopped, match="3 of 100 training images cannot be read"):
        resumed.add([Rejection("d.png", "cut", UNREADABLE)])
    assert listed(tmp_path / "output") == [*LISTED, b"unreadable\td.png\tcut\n"]


def test_small_images_are_logged_once_in_all_but_listed_one_by_one(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        record_of(tmp_path, 0).add(Rejection(f"{n}.png", "small", TOO_SMALL) for n in range(20))

    assert len(caplog.messages) == 1
    assert len(listed(tmp_path)) == 20


def test_a_line_that_was_being_written_when_the_run_died_is_dropped(tmp_path):
    record_of(tmp_path).add(BAD)
    with (tmp_path / "bad_images.txt").open("ab") as file:
        file.write(b"unreadable\td.p")

    record_of(tmp_path).add([Rejection("e.png", "cut", UNREADABLE)])

    assert listed(tmp_path) == [*LISTED, b"unreadable\te.png\tcut\n"]


def test_pictures_that_were_repaired_count_no_more(tmp_path):
    record_of(tmp_path).add(BAD)
    repaired = record_of(tmp_path, 0)
    repaired.forget()
    repaired.add([])
    assert not repaired.path.exists()


@pytest.mark.parametrize(
    ("size", "position", "fraction"), [(200, 0, 0.05), (None, 200 * 10, 0.005)]
)
def test_too_many_unreadable_images_stop_the_run_and_name_the_flag(
    tmp_path, size, position, fraction
):
    record = record_of(tmp_path, fraction, size)
    bad = [Rejection(f"{number}.png", "cut", UNREADABLE) for number in range(11)]

    record.add([Rejection(f"small {r.label}", "small", TOO_SMALL) for r in bad], position)
    record.add(bad[:10], position)
    with pytest.raises(RunStopped, match=rf"--max_bad_images={fraction} allows; .*bad_images\.txt"):
        record.add(bad[10:], position)


def test_one_bad_image_at_the_start_of_a_stream_is_no_verdict(tmp_path):
    record_of(tmp_path, 0.01, None).add([Rejection("a.png", "cut", UNREADABLE)], position=1)
