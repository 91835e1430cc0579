"""Own pictures are never trained on, validation images neither, whatever the folders are called."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest

from modules.build_data import open_data
from modules.command_line import resolve_arguments
from modules.errors import ArgumentError
from modules.output_dir import check_output_dir, clear_output_dir
from modules.overlap import lies_in, would_match
from modules.run_files import RECORD


@pytest.fixture
def photos(pictures, tmp_path) -> Path:
    """10 pictures in train/ and 3 of others in val/."""
    shutil.copytree(pictures, tmp_path / "photos" / "train")
    (tmp_path / "photos" / "val").mkdir()
    for name in "abc":
        shutil.copy(pictures / "0.png", tmp_path / "photos" / "val" / f"{name}.png")
    return tmp_path / "photos"


def data(folder: object, *more: object):
    return open_data(resolve_arguments(["--train_data_dir", str(folder), *map(str, more)]))


def labels(source) -> list[str]:
    return [source.label(index) for index in range(len(source))]


def leave_a_run(folder: Path, *pictures_at: str) -> None:
    """What a run leaves that could be taken for photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    clear_output_dir(resolve_arguments(["--output_dir", str(folder)]))
    for name in pictures_at or ("samples/step-000000.png", "samples/step-123456.png",
                                "logs/wandb/run-1/files/media/images/validation.png"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"own")


NONE = ("--num_validation_images", 0)


@pytest.mark.parametrize("place", [".", "run", "train/deep/run", "linked"])
def test_pictures_of_runs_are_no_training_images_and_the_users_beside_them_are(photos, place):
    if place == "linked":
        (photos.parent / "run").mkdir()
        (photos / place).symlink_to(photos.parent / "run")
    folder = photos / place
    folder.mkdir(parents=True, exist_ok=True)
    leave_a_run(folder)
    shutil.copy(photos / "train" / "0.png", folder / "samples" / "mine.png")
    found = labels(data(photos, *NONE).images)
    assert len(found) == 14
    assert not [label for label in found if "step-" in label or "wandb" in label]
    assert labels(data(folder / "samples", *NONE).images) == [str(folder / "samples" / "mine.png")]
    validation = data(photos / "train", "--validation_data_dir", folder / "samples").validation
    assert len(validation) == 1


def test_pictures_of_a_run_without_a_record_are_known_by_its_checkpoints(photos):
    leave_a_run(photos / "old", "samples/step-000000.png", "checkpoints/step-000001/manifest.json")
    (photos / "old" / RECORD).unlink()
    assert len(data(photos, *NONE).images) == 13


def test_samples_on_another_disk_are_known_too(photos, tmp_path):
    (tmp_path / "disk").mkdir()
    (photos / "run").mkdir()
    (photos / "run" / "samples").symlink_to(tmp_path / "disk")
    leave_a_run(photos / "run")
    assert len(data(photos, *NONE).images) == 13


@pytest.mark.parametrize("way", ["below", "a link to the folder", "links to files", "hard links",
                                 "dots"])  # fmt: skip
def test_validation_images_are_left_out_of_training_and_that_is_said(photos, tmp_path, way, caplog):
    other = tmp_path / "validation"
    if way == "a link to the folder":
        other.symlink_to(photos / "val")
    elif way in ("links to files", "hard links"):
        other.mkdir()
        for name in "abc":
            link = os.symlink if way == "links to files" else os.link
            link(photos / "val" / f"{name}.png", other / f"{name}.png")
    folder = {"below": photos / "val", "dots": photos / "train" / ".." / "val"}.get(way, other)
    with caplog.at_level(logging.WARNING):
        found = data(photos, "--validation_data_dir", folder)
    assert (len(found.images), len(found.validation)) == (10, 3)
    assert not [label for label in labels(found.images) if "/val/" in label]
    assert "3 of the training images are validation images as well, such as" in caplog.text
    images = [folder / f"{name}.png" for name in "ab"]
    assert len(data(photos, "--validation_image", *images).images) == 11


def test_a_picture_that_was_held_back_is_not_reached_by_a_link(photos):
    for number in range(10):
        (photos / f"{number}-again.png").symlink_to(photos / "train" / f"{number}.png")
    found = data(photos, "--num_validation_images", 6)
    held = {os.path.realpath(label) for label in labels(found.validation)}
    assert held.isdisjoint(map(os.path.realpath, labels(found.images)))


@pytest.mark.parametrize("validation", ["train", "."])
def test_a_training_set_that_is_all_validated_on_is_refused(photos, validation):
    with pytest.raises(ArgumentError, match=r"every training image .* is a validation image"):
        data(photos / "train", "--validation_data_dir", photos / validation)


def test_what_load_dataset_finds_is_compared_as_far_as_it_is_files(photos, tmp_path):
    folder, one = photos / "train", ("--validation_image", photos / "train" / "0.png")
    flags = ("--dataset_name", "imagefolder", "--cache_dir", tmp_path / "cache")
    assert len(data(folder, *flags, *one).images) == 9
    with pytest.raises(ArgumentError, match="a stream cannot leave it out"):
        data(folder, *flags, *one, "--streaming", "--max_train_steps", 1)
    leave_a_run(folder / "run", "samples/step-000000.png")
    with pytest.raises(ArgumentError, match="is what a run of this trainer wrote"):
        data(folder, *flags, *NONE)


@pytest.mark.parametrize(
    "flags",
    ["--dataset_name {photos}", "--dataset_name {link}", "--dataset_name imagefolder "
     "--train_data_dir {photos}", "--dataset_name imagefolder --data_files {photos}/**",
     "--dataset_name imagefolder --data_files {photos}/*/*/*.png",
     "--dataset_name {photos} --data_files **/*.png",
     "--train_data_dir {photos} --cache_dir {link}/cache"],
)  # fmt: skip
def test_an_output_folder_among_the_data_is_refused_where_it_could_not_be_left_out(photos, flags):
    link = photos.parent / "link"
    link.symlink_to(photos)
    argv = flags.format(photos=photos, link=link).split()
    with pytest.raises(ArgumentError, match="would be trained on; choose a folder outside"):
        check_output_dir(resolve_arguments(["--output_dir", str(photos / "run"), *argv]), False)
    check_output_dir(resolve_arguments(["--output_dir", f"{photos}-run", *argv[:2]]), False)


def test_paths_are_compared_by_what_they_lead_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos[1]" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("photos[1]/deep")
    assert lies_in("link/not/there/yet", "photos[1]")
    assert lies_in("photos[1]", tmp_path / "link" / "..")
    assert not lies_in("photos[1]-run", "photos[1]")
    assert not lies_in("anything", "nowhere")
    assert would_match("link/run/a.png", "photos[[]1]/**")
    assert would_match("link/a.png", f"{tmp_path}/photos*/*/*.png")
    assert not would_match("link/run/a.png", f"{tmp_path}/photos*/*/*.png")
    assert not would_match("photos[1]/a.png", "link/**")
