"""Data sets are mixed in the shares asked for, from the first batch on, wherever a run resumes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import launch, succeed
from PIL import Image
from shards import number_of, write_shards
from survival import Variant, command, differences, killed_at

from modules.builders.data import open_data
from modules.builders.loader import make_loader
from modules.config.command_line import resolve_arguments, to_yaml
from modules.data.samplers.order import BLOCK, Mixture, Shares
from modules.data.sources.parts import Concatenation, Subset, hold_back, part_sizes
from modules.data.streaming.lanes import Lane
from modules.data.streaming.reader import StreamPosition
from modules.errors import ArgumentError

WEIGHTS = st.lists(st.floats(0.001, 1000), min_size=1, max_size=6).map(tuple)


@settings(max_examples=60)
@given(WEIGHTS, st.integers(0, 10**9))
def test_every_data_set_has_its_share_of_the_first_samples_however_many(weights, number):
    shares = np.array(weights) / sum(weights)
    now, then = Shares(weights, 0).counts(number), Shares(weights, 0).counts(number + 1)

    assert now.sum() == number
    assert np.abs(now - number * shares).max() <= len(weights) / 2 + 1e-3
    assert sorted(then - now) == [0] * (len(weights) - 1) + [1]


def test_many_small_data_sets_that_are_due_at_once_may_hold_a_large_one_up():
    weights = np.array([97, *[0.6] * 5])

    drawn, behind = np.zeros(6, int), 0.0
    for number in range(400):
        assert Shares(tuple(weights), 0).counts(number).tolist() == drawn.tolist()
        behind = max(behind, number * 0.97 - drawn[0])
        drawn[np.argmin((drawn + 0.5) / weights)] += 1
    assert behind > 1.5


@settings(max_examples=40)
@given(WEIGHTS, st.integers(1, 300), st.integers(0, 50), st.integers(0, 5))
def test_any_run_of_samples_holds_the_shares(weights, length, first, seed):
    shares = np.array(weights) / sum(weights)
    draws = [Shares(weights, seed).draws(first + run, length) for run in range(4)]
    parts = np.concatenate([parts for parts, _ in draws])
    sums = np.cumsum(parts[:, None] == np.arange(len(weights)), axis=0)

    for span in (BLOCK, 2 * length):
        counts = sums[span:] - sums[:-span]
        # At both ends there may be a block of which the run holds the worst half.
        bound = 2 * BLOCK * shares * (1 - shares) + len(weights) + 1
        assert (np.abs(counts - span * shares) <= bound).all()


@settings(max_examples=40)
@given(WEIGHTS, st.integers(1, 200))
def test_the_draws_of_a_data_set_are_counted_without_a_gap(weights, length):
    draws = [Shares(weights, 3).draws(run, length) for run in range(5)]
    parts = np.concatenate([parts for parts, _ in draws])
    numbers = np.concatenate([numbers for _, numbers in draws])

    assert len(parts) == 5 * length
    for part in range(len(weights)):
        assert numbers[parts == part].tolist() == list(range((parts == part).sum()))


def test_the_pattern_within_a_batch_is_not_always_the_same():
    patterns = {tuple(Shares((1, 1), 0).draws(run, 8)[0]) for run in range(40)}
    others = {tuple(Shares((1, 1), 1).draws(run, 8)[0]) for run in range(40)}

    assert len(patterns) > 20
    assert patterns != others


def test_each_data_set_goes_through_permutations_of_its_own_from_epoch_to_epoch():
    mixture = Mixture((30, 7, 13), (1.0, 3.0, 0.5), seed=5)
    epochs = [mixture.indices(epoch) for epoch in range(12)]
    indices = torch.cat(epochs).numpy()

    assert all(len(epoch) == mixture.size == 50 for epoch in epochs)
    for start, size in ((0, 30), (30, 7), (37, 13)):
        drawn = indices[(indices >= start) & (indices < start + size)] - start
        passes = [drawn[i : i + size].tolist() for i in range(0, len(drawn) - size + 1, size)]
        assert len(passes) > 2
        assert all(sorted(each) == list(range(size)) for each in passes)
        assert len(set(map(tuple, passes))) == len(passes)
    shares = Counter(np.digitize(indices, (30, 37)).tolist())
    assert [shares[part] / 600 for part in range(3)] == pytest.approx([1 / 4.5, 3 / 4.5, 0.5 / 4.5],
                                                                     abs=0.01)  # fmt: skip


class Numbered:
    """Pictures that are numbers."""

    def __init__(self, name: str, first: int, size: int) -> None:
        self.name, self.first, self.size = name, first, size

    def __len__(self) -> int:
        return self.size

    def open(self, index: int, target: int | None = None) -> Image.Image:
        assert 0 <= index < self.size
        return Image.new("RGB", (20, 20), (self.first + index, 0, 0))

    def label(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def shape(self, index: int) -> tuple[int, int]:
        return 20, 20 + index

    def fingerprint(self) -> str:
        return self.name


def test_sources_one_after_the_other_are_one_source():
    parts = [Numbered("a", 0, 4), Numbered("b", 4, 0), Numbered("c", 4, 3)]
    whole = Concatenation(parts)

    assert [number_of(whole.open(index)) for index in range(len(whole))] == list(range(7))
    assert [whole.label(index) for index in (3, 4)] == ["a[3]", "c[0]"]
    assert whole.shape(5) == (20, 21)
    assert whole.name == "a, b, c"
    assert part_sizes(whole) == (4, 0, 3)
    assert part_sizes(Subset(Subset(whole, [0, 2, 3, 5, 6]), [0, 3, 4])) == (1, 0, 2)


def test_what_is_held_back_of_several_is_in_no_epoch_and_from_all_of_them():
    training, validation = hold_back(Concatenation([Numbered("a", 0, 60), Numbered("b", 60, 40)]),
                                     30, seed=1)  # fmt: skip
    sizes = part_sizes(training)
    indices = Mixture(sizes, (0.5, 0.5), 0).indices(0)

    seen = {number_of(training.open(int(index))) for index in indices}
    held = {number_of(validation.open(index)) for index in range(30)}
    assert not seen & held
    assert min(held) < 60 <= max(held)
    assert sum(sizes) == 70


def batches(
    argv: str,
    number: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    before: Iterable[dict] = (),
) -> list[dict]:
    """before: the batches up to `start`."""
    stream = StreamPosition(1 if "stream_lanes=1" in argv else None)
    for batch in before:
        stream.advance(batch)
    args = resolve_arguments(
        ["--resolution=16", "--disc_factor=0", "--image_column=png", *argv.split()]
    )
    process = SimpleNamespace(process_index=rank, num_processes=world, device=torch.device("cpu"))
    config = SimpleNamespace(in_channels=3, latent_channels=4, block_out_channels=(8, 8, 8, 8))
    vae = SimpleNamespace(config=config)
    loader = make_loader(args, open_data(args), vae, process, start, stream)
    return list(islice(loader, number))


def numbers(loaded: list[dict]) -> list[int]:
    return [number for batch in loaded for number in batch["images"][:, 0, 0, 0].tolist()]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> str:
    """--dataset_name with two folders: pictures 0 ... 19 in parquet and 100 ... 109 in tar."""
    folder = tmp_path_factory.mktemp("two")
    write_shards(folder / "many", "parquet", (12, 5, 3))
    write_shards(folder / "few", "tar", (3, 7), start=100)
    return f"--dataset_name {folder / 'many'} {folder / 'few'} --num_validation_images 6"


def test_without_weights_an_epoch_holds_every_picture_once(two):
    epochs = numbers(batches(f"{two} --train_batch_size=8", 6))

    held = {*range(20), *range(100, 110)} - set(epochs)
    assert len(held) == 6
    assert sorted(epochs[:24]) == sorted(epochs[24:48]) == sorted(set(epochs))


@pytest.mark.parametrize("streaming", ["", "--streaming --max_train_steps=1 --stream_lanes=1"])
@pytest.mark.parametrize("workers", [0, 2])
def test_with_weights_the_shares_hold_and_any_place_processes_and_workers_agree(
    two, streaming, workers
):
    # One lane, as the shards are of different lengths: then an epoch holds every picture once.
    argv = f"{two} --dataset_weights 1 3 --shuffle_buffer_size=5 --train_batch_size=4 {streaming}"
    once = batches(argv, 60)
    seen = numbers(once)

    assert abs(sum(number >= 100 for number in seen) - 180) <= 1
    assert len(set(seen)) == 24
    few = [number for number in seen if number >= 100]
    size = len(set(few))
    assert sorted(few[:size]) == sorted(few[size : 2 * size]) == sorted(set(few))
    argv += f" --dataloader_num_workers={workers}"
    for start in (0, 28, 200):
        resumed = batches(argv, 5, start, before=once[: start // 4])
        expected = once[start // 4 : start // 4 + 5]
        for ours, theirs in zip(resumed, expected, strict=True):
            assert torch.equal(ours["images"], theirs["images"])
            assert torch.equal(ours["noise"], theirs["noise"])
    argv = argv.replace("batch_size=4", "batch_size=2")
    halves = [batches(argv, 5, 28, rank, 2, once[:7]) for rank in range(2)]
    for *parts, whole in zip(*halves, once[7:12], strict=True):
        images = torch.stack([part["images"] for part in parts], 1 if streaming else 0)
        assert torch.equal(images.flatten(0, 1), whole["images"])


def test_a_picture_that_comes_again_in_an_epoch_is_cropped_in_another_way(two):
    for streaming in ("", "--streaming --max_train_steps=1"):
        argv = f"{two} --dataset_weights 1 50 --train_batch_size=24 {streaming}"
        (batch,) = batches(argv, 1)
        pictures = set(numbers([batch]))
        crops = {image.numpy().tobytes() for image in batch["images"]}
        assert len(pictures) < 12
        assert len(crops) > 20


@pytest.mark.parametrize("streaming", ["", "--streaming --max_train_steps=1"])
def test_what_is_measured_on_has_the_shares_of_the_mixture(two, streaming):
    argv = f"--image_column=png {two} --dataset_weights 3 1 {streaming}"
    args = resolve_arguments(argv.split())

    images = open_data(args).finite(args, 20)

    pictures = [number_of(images.open(index)) for index in range(len(images))]
    assert len(pictures) == 20
    assert abs(sum(number >= 100 for number in pictures) - 5) <= 1


def test_no_two_samples_of_a_mixed_stream_share_their_randomness(two):
    argv = f"--image_column=png {two} --dataset_weights 1 1 --streaming --max_train_steps=1"
    data = open_data(resolve_arguments(argv.split()))

    draws = [row.draw for row in islice(data.images.lane(Lane()), 200)]
    assert len(set(draws)) == 200


def test_the_synthetic_set_may_be_one_of_several(two):
    for streaming in ("", "--streaming --max_train_steps=1"):
        argv = f"{two.replace(' --num', ' synthetic --num')} --dataset_weights 1 1 2 {streaming}"
        args = resolve_arguments(
            ["--resolution=16", "--disc_factor=0", "--image_column=png", *argv.split()]
        )
        data = open_data(args)
        assert data.name.endswith("many, " + data.name.split(", ")[1] + ", synthetic")
        labels = [data.validation.label(index) for index in range(len(data.validation))]
        assert len(labels) == len(set(labels)) == 6
        assert sum(label.startswith("synthetic/") for label in labels) >= 3
        assert len(numbers(batches(argv, 3))) == 12


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--dataset_name a b --dataset_weights 1", "--dataset_weights=1 must be 2 numbers, one"),
        ("--dataset_name a b --dataset_weights 1 0", "--dataset_weights=0.0 must be at least"),
        ("--dataset_name a b --dataset_weights 1 nan", "must be at least"),
        ("--dataset_name a b --dataset_weights 1 inf", "must be at least"),
        ("--dataset_weights 1", "--dataset_weights=1 must be 0 numbers"),
        ("--dataset_name a b --data_files c", "--data_files cannot be used with several"),
        ("--dataset_name a b --dataset_config_name c", "--dataset_config_name cannot be used with"),
        ("--dataset_name a b --train_data_dir c", "--train_data_dir cannot be used with several"),
        ("--dataset_name a b --validation_split c", "--validation_split=c cannot be used with"),
        ("--dataset_name a b --streaming --max_train_steps 1", "needs --dataset_weights: a stream"),
    ],
)
def test_flags_that_do_not_go_together_are_named(argv, message):
    with pytest.raises(ArgumentError, match=message):
        resolve_arguments(argv.split())


def test_nothing_left_of_a_data_set_names_it(two):
    argv = f"--image_column=png {two} --dataset_weights 1 1"
    with pytest.raises(ArgumentError, match=r"--dataset_name=\S*many has no images left to tr"):
        open_data(resolve_arguments(f"{argv} --max_train_samples 1".split()))
    with pytest.raises(ArgumentError, match=r"--dataset_name=\S* has no images left to train"):
        open_data(resolve_arguments(f"{argv} --num_validation_images 29".split()))


def test_names_and_weights_survive_a_round_trip_and_one_name_may_be_a_plain_string(tmp_path):
    argv = ["--dataset_name", "a", "synthetic", "--dataset_weights", ".7", ".3"]
    args = resolve_arguments(argv)
    (tmp_path / "train_config.yaml").write_text(to_yaml(args))
    assert resolve_arguments(["--config", str(tmp_path / "train_config.yaml")]) == args

    (tmp_path / "one.yaml").write_text(yaml.safe_dump({"dataset_name": "synthetic"}))
    one = resolve_arguments(["--config", str(tmp_path / "one.yaml")])
    assert one == resolve_arguments(["--dataset_name=synthetic"])


def test_a_run_on_a_mixture_that_is_killed_ends_like_one_that_is_not(two, tmp_path):
    alone, killed = tmp_path / "alone" / "run", tmp_path / "killed" / "run"
    more = [*two.split(), "--dataset_weights", ".7", ".3", "--image_column", "png"]

    def argv(folder):
        return command(folder, 8, Variant(0, True, 1), *more)

    output = succeed(argv(alone))
    assert f"0.7 {more[1]} + 0.3 {more[2]}, random 16 x 16 crops" in output
    assert killed_at(argv(killed), "modules.training.run:clip_gradients", 9)
    code, output = launch([*argv(killed), "--resume_from_checkpoint", "latest"]).wait()
    assert code == 0, output
    assert "Resumed from" in output
    assert "not those that" not in output
    assert differences(killed, alone) == []
