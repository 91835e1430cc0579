"""What a user can get wrong ends with one clear line, and nothing that was there is lost."""

from __future__ import annotations

import re
import resource
import signal
from pathlib import Path

import datasets
import pytest
from accelerate import Accelerator
from huggingface_hub import constants
from launching import TINY, launch, succeed
from PIL import Image
from survival import fail_for_want_of_space
from tiny import tiny_arguments

from modules.builders.data import open_data
from modules.builders.networks import make_vae
from modules.errors import ArgumentError
from modules.export import vae as export
from modules.models.autoencoder import build_autoencoder
from modules.output.checkpoint_folders import checkpoint_steps, verify
from modules.tracking.metrics_log import read_rows


def flags(output_dir: Path, *more: object) -> list[str]:
    return [
        *TINY, "--output_dir", str(output_dir), "--max_train_steps", "2", "--train_batch_size", "2",
        "--checkpointing_steps", "1", *map(str, more),
    ]  # fmt: skip


def last_words(argv: list[str], expected: int = 2, before=None) -> str:
    """The last line of a launch that must fail with this code, without a traceback."""
    code, output = launch(argv, before).wait()
    assert code == expected, output
    assert "Traceback" not in output
    message = output.strip().splitlines()[-1]
    assert message.startswith("train_vae.py: error: ")
    return message


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> None:
    """Whoever is not on this disk is nobody: a network that does not answer is waited for."""
    for library in (constants, datasets.config):
        monkeypatch.setattr(library, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    """A tiny pretrained f8c4 VAE."""
    folder = tmp_path_factory.mktemp("vae")
    network = build_autoencoder(
        block_out_channels=(8,) * 4, layers_per_block=1, mid_block_add_attention=False
    )
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parquet(tmp_path_factory, pictures) -> Path:
    """A folder of parquet whose pictures are in the column "photo"."""
    folder = tmp_path_factory.mktemp("parquet")
    contents = [(pictures / f"{i}.png").read_bytes() for i in range(10)]
    rows = {"photo": [{"bytes": content, "path": None} for content in contents],
            "label": list(range(10))}  # fmt: skip
    features = datasets.Features({"photo": datasets.Image(), "label": datasets.Value("int64")})
    dataset = datasets.Dataset.from_dict(rows, features=features)
    dataset.to_parquet(folder / "train.parquet")
    return folder


@pytest.mark.parametrize("streaming", ["", "--streaming --max_train_steps 1"])
def test_a_wrong_image_column_lists_the_columns(parquet, tmp_path, streaming):
    flags = f"--dataset_name {parquet} --cache_dir {tmp_path / 'cache'} {streaming}"
    message = (
        f"--image_column=image is not a column of --dataset_name={parquet}, which has photo, "
        "label; images are in: photo"
    )
    with pytest.raises(ArgumentError, match=re.escape(message)):
        open_data(tiny_arguments(flags))


def test_images_that_are_not_there_or_all_held_back(pictures):
    with pytest.raises(ArgumentError, match=r"^--dataset_name=nobody/nothing"):
        open_data(tiny_arguments("--dataset_name nobody/nothing"))
    message = "--num_validation_images=10 .*has 10 images; lower it or name a validation set"
    with pytest.raises(ArgumentError, match=message):
        open_data(tiny_arguments(f"--train_data_dir {pictures} --num_validation_images 10"))


def test_a_validation_image_that_cannot_be_read(tmp_path):
    file = tmp_path / "damaged.png"
    file.write_bytes(b"no picture")
    message = last_words(flags(tmp_path / "run", "--validation_image", file))
    assert "none of the 1 validation images of files can be read" in message
    assert "check --validation_image" in message


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--pretrained_model_name_or_path {vae} --resolution 20",
         "--resolution=20 must be divisible by 8, .*; try 16"),
        ("--pretrained_model_name_or_path {vae} --latent_channels 8",
         "--latent_channels=8 does not match the model's 4"),
        ("--pretrained_model_name_or_path nobody/nothing",
         "--pretrained_model_name_or_path=nobody/nothing: no such file or folder"),
        ("--model_config_name_or_path nobody/nothing",
         "--model_config_name_or_path=nobody/nothing is neither"),
    ],
)  # fmt: skip
def test_models_that_are_not_there_or_do_not_fit(vae, argv, message):
    with pytest.raises(ArgumentError, match=message):
        make_vae(tiny_arguments(argv.format(vae=vae)))


def test_a_folder_that_holds_another_run_is_left_as_it_is(tmp_path):
    succeed(flags(tmp_path, "--dataset_name", "synthetic"))
    (tmp_path / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    message = last_words(flags(tmp_path, "--dataset_name", "synthetic"))
    assert f"--output_dir={tmp_path} already holds a run (checkpoints" in message
    assert "--resume_from_checkpoint latest" in message
    assert "--overwrite_output_dir" in message
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    succeed(flags(tmp_path, "--dataset_name", "synthetic", "--overwrite_output_dir", "--seed", 1))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0, 1, 2, 2]


def test_a_mistake_found_late_does_not_delete_the_run_that_was_to_be_replaced(tmp_path):
    succeed(flags(tmp_path, "--dataset_name", "synthetic"))
    argv = flags(tmp_path, "--overwrite_output_dir", "--train_data_dir", tmp_path / "nowhere")
    last_words(argv)
    last_words(flags(tmp_path, "--overwrite_output_dir", "--report_to", "nobody"))
    last_words(flags(tmp_path, "--overwrite_output_dir", "--lpips_weights", "/nowhere",
                     "--perceptual_scale", 1))  # fmt: skip
    assert checkpoint_steps(tmp_path / "checkpoints") == [1, 2]
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize("below", ["a file", "a system folder"])
def test_a_folder_that_cannot_be_written_to(below, tmp_path):
    (tmp_path / "file").write_text("")
    folder = {"a file": tmp_path / "file" / "run", "a system folder": Path("/proc/run")}[below]
    message = last_words(flags(folder))
    assert f"--output_dir={folder} cannot be written to" in message
    assert "choose another folder" in message


def fill_the_disk_after_a_checkpoint() -> None:
    save = Accelerator.save_state

    def save_once(self: Accelerator, folder: str) -> None:
        save(self, folder)
        Accelerator.save_state = fail_for_want_of_space

    Accelerator.save_state = save_once


def fill_the_disk_for_the_export() -> None:
    export.export_discriminator = fail_for_want_of_space


def allow_small_files_only() -> None:
    """A stand-in for a disk that fills up within a file: the system refuses the rest of it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


def test_a_disk_that_fills_up_leaves_the_checkpoints_before(tmp_path):
    argv = flags(tmp_path, "--dataset_name", "synthetic")
    message = last_words(argv, 1, fill_the_disk_after_a_checkpoint)
    assert "step-000002 could not be written" in message
    assert "No space left on device" in message
    assert "earlier checkpoints are intact" in message
    assert checkpoint_steps(tmp_path / "checkpoints") == [1]
    verify(tmp_path / "checkpoints" / "step-000001")
    succeed([*argv, "--resume_from_checkpoint", "latest"])
    assert checkpoint_steps(tmp_path / "checkpoints") == [1, 2]


def test_a_file_that_cannot_be_finished_leaves_the_checkpoints_before(tmp_path):
    argv = flags(tmp_path, "--num_validation_images", 0, "--max_train_steps", 1)
    succeed(argv)
    more = [*argv, "--max_train_steps", "2", "--resume_from_checkpoint", "latest"]
    message = last_words(more, 1, allow_small_files_only)
    assert "step-000002 could not be written" in message
    assert checkpoint_steps(tmp_path / "checkpoints") == [1]
    verify(tmp_path / "checkpoints" / "step-000001")
    succeed(more)


def test_a_full_disk_at_the_end_ends_with_a_line_as_well(tmp_path):
    argv = flags(tmp_path, "--dataset_name", "synthetic")
    message = last_words(argv, 1, fill_the_disk_for_the_export)
    assert "No space left on device" in message
    assert "make room, then continue with: python " in message
    assert f"--output_dir {tmp_path} " in message
    assert message.endswith(" --resume_from_checkpoint latest")
    assert checkpoint_steps(tmp_path / "checkpoints") == [1, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_among_good_ones_is_named_and_replaced(pictures, tmp_path, workers):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for file in pictures.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "damaged.png").write_bytes((pictures / "0.png").read_bytes()[:100])
    argv = flags(
        tmp_path / "run", "--train_data_dir", folder, "--validation_data_dir", pictures,
        "--dataloader_num_workers", workers, "--train_batch_size", 11, "--max_train_steps", 3,
    )  # fmt: skip
    output = succeed([*argv, "--max_bad_images", "0.2"])
    assert f"unreadable image skipped: {folder / 'damaged.png'}" in output
    lines = (tmp_path / "run" / "bad_images.txt").read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"unreadable\t{folder / 'damaged.png'}\t")

    message = last_words([*argv, "--max_bad_images", "0.01", "--overwrite_output_dir"], 1)
    assert "1 of 11 training images cannot be read" in message
    assert "more than --max_bad_images=0.01 allows" in message
    assert str(tmp_path / "run" / "bad_images.txt") in message


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_of_nothing_but_damaged_images(tmp_path, workers):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.png").write_bytes(b"no picture")
    argv = flags(tmp_path / "run", "--train_data_dir", folder, "--num_validation_images", 0,
                 "--dataloader_num_workers", workers)  # fmt: skip
    message = last_words(argv, 1)
    assert "100 images in a row could not be used" in message
    assert "Check the data" in message


@pytest.mark.parametrize("streaming", [[], ["--streaming", "--shuffle_buffer_size", "4"]])
def test_a_local_parquet_dataset_trains(parquet, tmp_path, streaming):
    argv = flags(tmp_path / "run", "--dataset_name", parquet, "--image_column", "photo",
                 "--cache_dir", tmp_path / "cache", "--max_train_steps", 5)  # fmt: skip
    output = succeed([*argv, *streaming])
    count = "a stream" if streaming else "6 images"
    assert f"{count} of {parquet}" in output
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert rows[0]["val/num_images"] == 4
    assert rows[-1]["step"] == 5


def test_a_picture_smaller_than_the_crop_is_enlarged(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (9, 12), (number * 40, 0, 0)).save(folder / f"{number}.png")
    succeed(flags(tmp_path / "run", "--train_data_dir", folder))
    argv = flags(tmp_path / "run2", "--train_data_dir", folder, "--min_image_size", 10)
    assert "smaller than --min_image_size=10" in last_words(argv, 1)
