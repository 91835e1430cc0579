"""Runs on several shapes and resolutions: exact steps, exact resumes, and clear refusals."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest
import torch
from launching import launch, launch_together, succeed
from survival import RESUME, rows
from test_resume import assert_equal_runs, flags
from test_step import textbook_gradients
from tiny import batch, gradients, largest_difference, tiny_run, train_without_update

from modules.builders.networks import make_vae
from modules.config.command_line import resolve_arguments
from modules.data.images.synthetic import SyntheticImages
from modules.errors import ArgumentError
from modules.training.losses import kl_loss
from modules.training.run import Run

SHAPES = [(40, 27), (27, 40), (36, 36), (40, 30), (44, 26), (26, 44), (33, 33)] * 2
SMALL = ("--downsample_factor", "4", "--block_out_channels", "8", "8", "8", "--resolution", "24")
RESOLUTIONS = ("--train_resolutions", "16", "24", "32")
BUCKETS = ("--aspect_ratio_bucketing",)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of pictures of several shapes."""
    folder, source = tmp_path_factory.mktemp("photos"), SyntheticImages(len(SHAPES), 44, seed=5)
    for index, (width, height) in enumerate(SHAPES):
        source.open(index).crop((0, 0, width, height)).save(folder / f"{index}.png")
    return folder


def print_shapes() -> None:
    to_device = Run.to_device

    def to_device_and_print(self: Run, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        print("shape", *batch["images"].shape[2:], flush=True)
        return to_device(self, batch)

    Run.to_device = to_device_and_print


def shapes(output: str) -> list[tuple[int, int]]:
    lines = [line.split() for line in output.splitlines() if line.startswith("shape ")]
    return [(int(height), int(width)) for _, height, width in lines]


def for_data(several: tuple[str, ...], argv: list[str]) -> list[str]:
    """The flags, but a folder that is streamed is a dataset's."""
    streamed = "--streaming" in several
    return ["--dataset_name" if streamed and f == "--train_data_dir" else f for f in argv]


@pytest.mark.parametrize(
    "several",
    [(*SMALL, *RESOLUTIONS, *BUCKETS), (*SMALL, *RESOLUTIONS, "--streaming")],
    ids=["buckets", "stream"],
)
def test_a_run_on_several_shapes_killed_and_resumed_ends_bit_equal(photos, tmp_path, several):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uninterrupted = launch(for_data(several, flags(photos, whole, *several)), before=print_shapes)
    workers = ("--dataloader_num_workers", "2")
    command = for_data(several, flags(photos, killed, *several, *workers))
    run = launch([*command, *RESUME])
    log = killed / "metrics.jsonl"
    run.wait_until(lambda: log.exists() and log.read_text().count("\n") > 5)
    time.sleep(random.Random(str(several)).uniform(0.0, 0.3))
    run.process.kill()
    run.wait()
    assert "Resumed from" in succeed([*command, *RESUME])

    code, output = uninterrupted.wait()
    assert code == 0, output
    assert len({height * width for height, width in shapes(output)}) > 2
    oblong = any(height != width for height, width in shapes(output))
    assert oblong == ("--aspect_ratio_bucketing" in several)
    assert_equal_runs(killed, whole)


def test_two_processes_train_as_one_that_accumulates_their_batches(photos, tmp_path):
    losses = ("--disc_factor", "0", "--max_train_steps", "4", "--validation_steps", "4")
    options = (*SMALL, *BUCKETS, *losses, "--eq_prob", "0")  # all processes change alike at a time
    together = launch_together(
        flags(photos, tmp_path / "two", *options, "--gradient_accumulation_steps", "1"),
        2,
        before=print_shapes,
    )
    alone = launch(flags(photos, tmp_path / "one", *options), before=print_shapes)

    outputs = [process.wait() for process in (*together, alone)]
    assert all(code == 0 for code, _ in outputs), outputs
    first, second, one = (shapes(output) for _, output in outputs)
    assert [shape for pair in zip(first, second, strict=True) for shape in pair] == one
    assert first != second
    for ours, theirs in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4, abs=1e-5)


def test_the_gradient_of_an_oblong_batch_is_latent_diffusions():
    options, given = "--kl_scale 1e-3 --disc_scale 0.7", batch(shape=(4, 3, 5), sides=(24, 40))
    run = tiny_run(options)
    ours = gradients(train_without_update(run, [given]).raw_vae)
    theirs = textbook_gradients(tiny_run(options), given)
    elements = 3 * 24 * 40
    assert largest_difference(ours, {n: g / elements for n, g in theirs.items()}) < 1e-5


def test_the_kl_of_an_oblong_batch_is_its_sum_over_the_number_of_elements():
    run, given = tiny_run(), batch(shape=(4, 3, 5), sides=(24, 40))
    images, noise = run.to_device(given)
    posterior = run.raw_vae(images, noise)[1]
    mean, logvar = posterior.mean, posterior.logvar
    expected = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum() / (2 * 3 * 24 * 40)
    found = kl_loss(posterior.kl(), images[0].numel())
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--train_resolutions 128 100", "--train_resolutions=100 must be divisible by "
         "--downsample_factor=8; try 96"),
        ("--train_resolutions 256 4", "--train_resolutions=4 must be at least 8"),
        ("--aspect_ratio_bucketing --streaming --dataset_name photos --max_train_steps 9",
         "--aspect_ratio_bucketing cannot be used with --streaming: .* use --train_resolutions"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_flag_and_a_fix(argv, message):
    with pytest.raises(ArgumentError, match=message):
        resolve_arguments(argv.split())


def test_resolutions_must_fit_a_given_model(tmp_path):
    config = tmp_path / "config.json"
    make_vae(tiny_run("--downsample_factor 8").args).save_config(tmp_path)
    argv = ["--model_config_name_or_path", str(config), "--resolution", "64", "--train_resolutions"]
    with pytest.raises(ArgumentError, match=r"--train_resolutions=60 must be divisible by 8, .*64"):
        make_vae(resolve_arguments([*argv, "64", "60"]))
    make_vae(resolve_arguments([*argv, "64", "56"]))


def test_the_banner_names_the_crops_and_the_log_the_shapes(photos, tmp_path):
    steps = ("--max_train_steps", "1", "--validation_steps", "1")
    output = succeed(flags(photos, tmp_path, *SMALL, *BUCKETS, *RESOLUTIONS, *steps))
    assert "random crops in about each image's shape, of the area of 16 x 16 or 24 x 24" in output
    found = re.search(r"at resolution 32: (.*); the first epoch takes (\d+) batches", output)
    counts = re.findall(r"(\d+) of \d+ x \d+", found[1])
    assert " of 40 x 24" in found[1]
    assert sum(map(int, counts)) == len(SHAPES) - 4
    assert int(found[2]) == sum(-(-int(count) // 2) for count in counts)
