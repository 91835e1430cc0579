"""Batches of one shape: nothing is distorted, nothing is left out, and any of them can be next."""

from __future__ import annotations

import io
import math
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile
from test_data import assert_equal, merged

from modules.data import image_sizes
from modules.data.image_sizes import read_sizes
from modules.data.images.images import UnreadableImage, decode, random_crop, upright_shape
from modules.data.images.samples import UNREADABLE
from modules.data.loader import TrainingImages, training_loader
from modules.data.samplers.buckets import (
    MAX_ASPECT,
    Buckets,
    bucket_shapes,
    grouped,
    nearest_shape,
    num_batches,
)
from modules.data.samplers.order import Mixture, Permutations
from modules.data.sources.open import FileSource
from modules.data.sources.parts import Subset
from modules.data.streaming.reader import StreamedImages
from modules.data.streaming.rows import SourceRows

RESOLUTION, FACTOR = 32, 4
OPTIONS = {"latent_shape": (2, 8, 8), "seed": 7}
SIZES = [(40, 60), (60, 40), (50, 50), (48, 80), (33, 38), (70, 42), (64, 33)] * 6

FACTORS = st.sampled_from([4, 8, 16, 32])
MULTIPLES = st.integers(1, 80)
MANY_SIZES = st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1)


class Ramps:
    """Pictures of given (height, width): red grows by 2 a pixel to the right, green downwards."""

    name = "ramps"

    def __init__(self, sizes: list[tuple[int, int]], damaged: tuple[int, ...] = ()) -> None:
        self.sizes, self.damaged = sizes, damaged

    def __len__(self) -> int:
        return len(self.sizes)

    def open(self, index: int, target: int | None = None) -> Image.Image:
        if index in self.damaged:
            raise UnreadableImage("damaged")
        pixels = np.empty((*self.sizes[index], 3), np.uint8)
        pixels[..., 0] = 2 * np.arange(pixels.shape[1])
        pixels[..., 1] = 2 * np.arange(pixels.shape[0])[:, None]
        pixels[..., 2] = index
        return Image.fromarray(pixels)

    def label(self, index: int) -> str:
        return f"ramp {index}"

    def shape(self, index: int) -> tuple[int, int]:
        if index in self.damaged:
            raise UnreadableImage("damaged")
        return self.sizes[index]


def bucketed(sizes=SIZES, damaged=(), order=None, **options) -> TrainingImages:
    source = Ramps(sizes, damaged)
    resolutions = options.get("train_resolutions") or (RESOLUTION,)
    buckets = Buckets(read_sizes(source), resolutions, FACTOR)
    options = {**OPTIONS, "random_flip": False, **options}
    return TrainingImages(source, RESOLUTION, order, buckets, **options)


def batches(dataset, number: int, batch_size: int = 4, **options) -> list[dict]:
    return list(islice(training_loader(dataset, batch_size=batch_size, **options), number))


def epoch_length(dataset: TrainingImages, batch_size: int = 4, epoch: int = 0) -> int:
    return num_batches(dataset.order.indices(epoch), dataset.buckets.of, batch_size)


def indices(batch: dict) -> list[int]:
    return batch["images"][:, 2, 0, 0].tolist()


@given(MULTIPLES, FACTORS)
def test_shapes_fit_the_network_and_the_area_and_lie_between_1_to_2_and_2_to_1(multiple, factor):
    resolution = multiple * factor

    shapes = bucket_shapes(resolution, factor)

    assert (resolution, resolution) in shapes
    for height, width in shapes:
        assert height % factor == 0 == width % factor
        assert 0 < height * width <= resolution**2
        assert max(height, width) <= MAX_ASPECT * min(height, width)
        # As much of the area as there is: another step would be too much.
        assert min(height, width) * (max(height, width) + factor) > resolution**2
    assert {(width, height) for height, width in shapes} == set(shapes)
    tallness = [height / width for height, width in shapes]
    assert tallness == sorted(set(tallness))


def test_the_shapes_at_512_pixels_are_the_documented_ones():
    wide = [(384, 680), (416, 624), (448, 584), (480, 544)]
    tall = [(width, height) for height, width in wide[::-1]]
    assert bucket_shapes(512, 8) == [*wide, (512, 512), *tall]


@settings(max_examples=50)
@given(MANY_SIZES, st.integers(16, 80), FACTORS)
def test_a_picture_of_a_photographs_shape_loses_at_most_an_eighth(sizes, multiple, factor):
    shapes = bucket_shapes(multiple * factor, factor)
    of = nearest_shape(torch.tensor(sizes), shapes)

    for (height, width), bucket in zip(sizes, of.tolist(), strict=True):
        if max(height, width) <= 16 / 9 * min(height, width):
            aspect, crop = width / height, shapes[bucket][1] / shapes[bucket][0]
            assert min(aspect, crop) / max(aspect, crop) >= 7 / 8


@given(MANY_SIZES, MULTIPLES, FACTORS)
def test_the_bucket_is_the_one_with_the_nearest_aspect_ratio(sizes, multiple, factor):
    shapes = bucket_shapes(multiple * factor, factor)
    of = nearest_shape(torch.tensor(sizes), shapes)

    for (height, width), bucket in zip(sizes, of.tolist(), strict=True):
        distances = [abs(math.log(height / width * w / h)) for h, w in shapes]
        assert distances[bucket] == pytest.approx(min(distances), abs=1e-9)


def test_pictures_of_unknown_size_count_as_square():
    buckets = Buckets(torch.tensor([[0, 0], [300, 200]]), [256], 8)

    assert buckets.shape(0, 256) == (256, 256)
    assert buckets.shape(1, 256) == (312, 208)


@given(MANY_SIZES, st.lists(st.integers(1, 40), min_size=2, max_size=4), FACTORS)
def test_every_resolution_has_shapes_of_its_own_area(sizes, multiples, factor):
    resolutions = [multiple * factor for multiple in multiples]
    buckets = Buckets(torch.tensor(sizes), resolutions, factor)

    for index, resolution in enumerate(resolutions * len(sizes)):
        shape = buckets.shape(index // len(resolutions), resolution)
        assert shape in bucket_shapes(resolution, factor)
    assert sum(buckets.occupied().values()) == len(sizes)


@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 6), st.integers(0, 3), st.booleans())
def test_an_epoch_is_cut_into_whole_batches_of_one_bucket(size, batch_size, k, epoch, mixed):
    order = Mixture((size, 9), (1.0, 3.0), seed=1) if mixed else Permutations(size, seed=1)
    bucket_of = torch.arange(size + 9) * 7 % 11 % k
    epochs = order.indices(epoch)

    found = grouped(epochs, bucket_of, batch_size, 0, epoch)

    assert found.shape == (num_batches(epochs, bucket_of, batch_size), batch_size)
    assert all(len(bucket_of[batch].unique()) == 1 for batch in found)
    expected, due = Counter(epochs.tolist()), Counter(found.flatten().tolist())
    assert not expected - due  # nothing is left out
    for bucket in bucket_of[epochs].unique():
        members = epochs[bucket_of[epochs] == bucket].tolist()
        repeated = [i for i, n in (due - expected).items() for _ in range(n) if i in members]
        missing = -len(members) % batch_size
        assert Counter(repeated) == Counter((members * batch_size)[:missing])


def test_the_order_within_a_bucket_is_the_epochs_and_that_of_the_batches_is_drawn():
    epochs, bucket_of = torch.arange(100), torch.arange(100) % 2

    found = [grouped(epochs, bucket_of, 5, seed, epoch) for seed, epoch in
             ((0, 0), (0, 0), (0, 1), (1, 0))]  # fmt: skip

    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[3])
    assert {tuple(batch) for batch in found[0].tolist()} == {
        tuple(range(start + odd, start + odd + 10, 2))
        for start in range(0, 100, 10) for odd in (0, 1)
    }  # fmt: skip
    kinds = bucket_of[found[0][:, 0]].tolist()
    assert 4 <= sum(kinds[:10]) + sum(1 - k for k in kinds[10:]) <= 16  # neither kind first


def test_every_picture_of_an_epoch_comes_in_its_bucket_and_batches_have_one_shape():
    dataset, seen = bucketed(), []

    for batch in batches(dataset, epoch_length(dataset)):
        height, width = batch["images"].shape[2:]
        assert height * width <= RESOLUTION**2
        assert batch["noise"].shape == (4, 2, height // FACTOR, width // FACTOR)
        seen += indices(batch)
        for index in indices(batch):
            assert dataset.buckets.shape(index, RESOLUTION) == (height, width)

    assert set(seen) == set(range(len(SIZES)))
    assert 0 < len(seen) - len(SIZES) < 4 * len(dataset.buckets.occupied())
    assert len({batch["images"].shape for batch in batches(dataset, 8)}) > 2


@pytest.mark.parametrize("crop", ["random", "center"])
def test_crops_are_never_distorted_and_as_large_as_they_can_be(crop):
    dataset = bucketed(SIZES[:7], crop=crop)

    for batch in batches(dataset, 40, batch_size=1):
        red, green = batch["images"][0, 0].float(), batch["images"][0, 1].float()
        to_the_right = (red[:, -3] - red[:, 2]).mean().item() / (red.shape[1] - 5)
        downwards = (green[-3] - green[2]).mean().item() / (green.shape[0] - 5)
        assert to_the_right == pytest.approx(downwards, rel=0.03)
        height, width = SIZES[indices(batch)[0]]
        scale = min(height / red.shape[0], width / red.shape[1])
        assert to_the_right / 2 == pytest.approx(scale, rel=0.03)


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_any_crop_of_any_picture_lies_inside_it(size, shape, position):
    crop = random_crop(Image.new("RGB", size, (9, 9, 9)), shape, position=position)

    assert crop.size == shape[::-1]
    assert crop.getextrema() == ((9, 9), (9, 9), (9, 9))


def test_a_crop_of_its_pictures_own_shape_is_all_of_it_and_others_reach_both_ends():
    picture = Ramps([(40, 60)]).open(0)

    assert random_crop(picture, (40, 60), position=(0.3, 0.9)) == picture
    left = np.asarray(random_crop(picture, (40, 20), position=(0.0, 0.5)))
    right = np.asarray(random_crop(picture, (40, 20), position=(1.0, 0.5)))
    assert np.array_equal(left, np.asarray(picture)[:, :20])
    assert np.array_equal(right, np.asarray(picture)[:, 40:])


def test_what_is_smaller_than_its_crop_is_counted():
    sizes = [(24, 40), (23, 40), (24, 39), (40, 24), (32, 31), (64, 64)]

    (batch,) = batches(bucketed([sizes[0]] * 3), 1, batch_size=3)
    assert batch["upscaled"] == 0
    found = sum(int(b["upscaled"]) for b in batches(bucketed(sizes), 6, batch_size=1))
    assert found == 3


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("several", [None, (16, 32)])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_bucketed_batches_do_not_depend_on_the_number_of_workers(several, num_workers):
    dataset = bucketed(damaged=(2, 3, 9), train_resolutions=several)

    alone = batches(dataset, 20)
    assert_equal(batches(dataset, 20, num_workers=num_workers), alone)
    assert any(batch["rejected"] for batch in alone)


def test_processes_see_the_micro_batches_of_one_that_accumulates():
    dataset = bucketed()

    one = batches(dataset, 24, start_position=8)
    for rank in range(3):
        assert_equal(batches(dataset, 8, rank=rank, world_size=3, start_position=8), one[rank::3])


def test_processes_have_one_resolution_at_a_time_in_buckets_too():
    dataset = bucketed(train_resolutions=(16, 32))

    ranks = [batches(dataset, 12, rank=rank, world_size=2) for rank in range(2)]
    large = [[batch["images"][0, 0].numel() > 16**2 for batch in found] for found in ranks]
    assert large[0] == large[1]
    assert len(set(large[0])) == 2


@pytest.mark.parametrize("several", [None, (16, 16, 32)])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_bucketed_run_resumed_anywhere_continues_the_same_batches(several, mixed):
    order = Mixture((20, 22), (3.0, 1.0), seed=3) if mixed else None
    dataset = bucketed(order=order, train_resolutions=several)
    lengths = [epoch_length(dataset, epoch=epoch) for epoch in range(4)]
    assert (len(set(lengths)) > 1) == mixed

    whole = batches(dataset, 40)
    for skipped in (1, lengths[0] - 1, lengths[0], lengths[0] + lengths[1] + 1, 37):
        assert_equal(batches(dataset, 3, start_position=4 * skipped), whole[skipped : skipped + 3])
    first = 0
    for epoch, length in enumerate(lengths[:3]):
        seen = [index for batch in whole[first : first + length] for index in indices(batch)]
        assert set(seen) == set(dataset.order.indices(epoch).tolist())
        first += length


def test_a_run_continued_with_another_batch_size_starts_at_the_nearest_batch():
    dataset = bucketed()

    whole = batches(dataset, 6, batch_size=5)
    assert_equal(batches(dataset, 2, batch_size=5, start_position=12), whole[2:4])
    assert_equal(batches(dataset, 2, batch_size=5, start_position=13), whole[3:5])


def test_a_bad_picture_is_replaced_by_others_of_its_shape():
    damaged = tuple(range(0, 28, 2))

    class Listed(Ramps):
        def shape(self, index: int) -> tuple[int, int]:
            return self.sizes[index]  # the header is fine, the pixels are not

    source = Listed(SIZES, damaged)
    buckets = Buckets(read_sizes(source), [RESOLUTION], FACTOR)
    dataset = TrainingImages(source, RESOLUTION, None, buckets, random_flip=False, **OPTIONS)
    found = batches(dataset, 2 * epoch_length(dataset))

    assert {rejection.kind for batch in found for rejection in batch["rejected"]} == {UNREADABLE}
    named = {rejection.label for batch in found for rejection in batch["rejected"]}
    assert named == {f"ramp {index}" for index in damaged}
    for batch in found:
        assert not set(indices(batch)) & set(damaged)
        shapes = {dataset.buckets.shape(index, RESOLUTION) for index in indices(batch)}
        assert shapes == {tuple(batch["images"].shape[2:])}


def test_a_bad_picture_alone_in_its_bucket_is_replaced_by_any_other():
    sizes = [(40, 66), (66, 40), (66, 40), (40, 66)]

    found = batches(bucketed(sizes, damaged=(0, 3)), 12, batch_size=2)  # their headers, too

    assert {tuple(batch["images"].shape[2:]) for batch in found} == {(40, 24), (32, 32)}
    assert {index for batch in found for index in indices(batch)} == {1, 2}


def test_a_picture_that_comes_twice_in_an_epoch_is_cropped_in_two_ways():
    often = Mixture((1, 7), (7.0, 1.0), seed=0)  # of 8 samples, 7 are picture 0
    sizes = [(40, 90)] * 8

    (batch,) = batches(bucketed(sizes, order=often), 1, batch_size=8)
    assert len({image.numpy().tobytes() for image in batch["images"]}) > 4
    square = TrainingImages(Ramps(sizes), RESOLUTION, often, **OPTIONS)
    (batch,) = batches(square, 1, batch_size=8)
    assert len({image.numpy().tobytes() for image in batch["images"]}) > 4


def squares(**options) -> TrainingImages:
    return TrainingImages(Ramps([(50, 70)] * 9), RESOLUTION, **{**OPTIONS, **options})


def streamed(**options) -> StreamedImages:
    rows = SourceRows(Ramps([(50, 70)] * 9), seed=7)
    return StreamedImages(rows, RESOLUTION, **{**OPTIONS, **options})


BOTH_KINDS = pytest.mark.parametrize("make", [squares, streamed])


def sides(found: list[dict]) -> list[int]:
    for batch in found:
        images, noise = batch["images"], batch["noise"]
        assert images.shape[2] == images.shape[3]
        assert images.shape[2] * noise.shape[-1] == noise.shape[-2] * images.shape[3]
    return [batch["images"].shape[3] for batch in found]


@BOTH_KINDS
def test_each_batch_draws_one_of_the_resolutions_and_those_named_twice_twice_as_often(make):
    dataset = make(train_resolutions=(8, 16, 16))

    found = sides(batches(dataset, 120, batch_size=1))
    counts = Counter(found)
    assert counts.keys() == {8, 16}
    assert 65 < counts[16] < 95  # 80 are expected, with a deviation of 5
    other = make(train_resolutions=(8, 16, 16), seed=8)
    assert sides(batches(other, 120, batch_size=1)) != found


@BOTH_KINDS
def test_processes_have_the_same_resolution_and_see_together_what_one_sees(make):
    dataset = make(train_resolutions=(8, 16))

    one = batches(dataset, 8, batch_size=4, start_position=3)
    two = [batches(dataset, 8, batch_size=2, rank=rank, world_size=2, start_position=3)
           for rank in range(2)]  # fmt: skip

    assert len(set(sides(one))) == 2
    assert_equal(merged(two, dataset, 3), one)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@BOTH_KINDS
@pytest.mark.parametrize("num_workers", [0, 2])
def test_runs_on_several_resolutions_resume_exactly_with_any_number_of_workers(make, num_workers):
    dataset = make(train_resolutions=(8, 16))

    whole = batches(dataset, 9, batch_size=2)
    rest = batches(dataset, 5, batch_size=2, start_position=8, num_workers=num_workers)
    assert_equal(rest, whole[4:])


def test_a_resolution_changes_the_size_of_a_picture_and_not_its_place():
    several = batches(squares(train_resolutions=(8, 32)), 6)
    one = batches(squares(), 6)

    assert [indices(batch) for batch in several] == [indices(batch) for batch in one]
    pairs = list(zip(several, one, strict=True))
    equal = [(a, b) for a, b in pairs if a["images"].shape == b["images"].shape]
    assert 0 < len(equal) < 6
    for a, b in equal:
        assert_equal([a], [b])


def encoded(format: str, size: tuple[int, int], orientation: int = 1) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", size, (200, 30, 90)).save(file, format, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_header_tells_the_shape_of_the_upright_picture(tmp_path, format, orientation):
    content = encoded(format, (30, 20), orientation)
    (tmp_path / "file").write_bytes(content)

    picture = decode(content)

    assert upright_shape(content) == (picture.height, picture.width)
    assert upright_shape(tmp_path / "file") == (picture.height, picture.width)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_the_size_is_read_without_the_pixels(format, monkeypatch):
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image))
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, format)
    assert upright_shape(file.getvalue()[:2000]) == (200, 300)
    assert not decoded


def test_a_file_without_a_header_has_no_shape(tmp_path):
    for file in (b"", b"no picture", tmp_path, tmp_path / "missing"):
        with pytest.raises(UnreadableImage):
            upright_shape(file)


def test_sizes_are_read_in_the_sources_order_and_unreadable_ones_are_zero(monkeypatch):
    monkeypatch.setattr(image_sizes, "RUN", 5)
    expected = torch.tensor(SIZES, dtype=torch.int32)
    expected[[3, 17]] = 0
    assert torch.equal(read_sizes(Ramps(SIZES, damaged=(3, 17))), expected)

    shares = []
    for rank in range(3):
        monkeypatch.setattr(image_sizes, "process_index_and_count", lambda r=rank: (r, 3))
        shares.append(read_sizes(Ramps(SIZES, damaged=(3, 17))))
    assert torch.equal(sum(shares), expected)
    assert all(len(share.any(1).nonzero()) < len(SIZES) / 2 for share in shares)


def test_sizes_are_read_once_for_each_data_set_and_share_of_it(tmp_path):
    cache, paths = tmp_path / "cache", [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        Image.new("RGB", (20 + number, 30)).save(path)
    source = FileSource(paths)

    sizes = read_sizes(source, cache)
    assert sizes.tolist() == [[30, 20 + number] for number in range(4)]
    (kept,) = cache.iterdir()
    np.save(kept, sizes.numpy() + 1)
    assert torch.equal(read_sizes(FileSource(paths), cache), sizes + 1)
    assert torch.equal(read_sizes(Subset(source, [3, 1]), cache), sizes[[3, 1]])
    kept.write_bytes(kept.read_bytes()[:-5])
    assert torch.equal(read_sizes(source, cache), sizes)
    assert torch.equal(torch.from_numpy(np.load(kept)), sizes)
    Image.new("RGB", (50, 50)).save(paths[2])
    assert read_sizes(source, cache)[2].tolist() == [50, 50]
    assert len(list(cache.iterdir())) == 3
    (tmp_path / "file").touch()
    assert len(read_sizes(source, tmp_path / "file" / "cache")) == 4
