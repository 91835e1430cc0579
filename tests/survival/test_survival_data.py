"""A folder of everything that people call images: what can be used is, the rest is named once."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from launching import launch
from PIL import Image, ImageCms
from survival import Variant, command, signal_at

from modules.data.images.images import UnreadableImage, center_crop_adm, decode, random_crop
from modules.data.images.synthetic import SyntheticImages
from modules.image_modes import in_mode


def fill(folder: Path) -> tuple[list[Path], list[Path]]:
    """(pictures that can be used, files that cannot), all with the endings of images."""
    folder.mkdir()
    source = SyntheticImages(12, 40, seed=3)
    picture = source.open(0)

    good = {
        "weiß 図 🙂 'quoted' \t.png": {},
        "wrong ending.png": {"format": "JPEG"},
        "cmyk.jpg": {"mode": "CMYK"},
        "palette.gif": {"mode": "P"},
        "alpha.png": {"mode": "RGBA"},
        "grey.png": {"mode": "L"},
        "profile.jpg": {"icc_profile": ImageCms.ImageCmsProfile(
            ImageCms.createProfile("LAB")).tobytes()},
        "no profile.png": {"icc_profile": b"not a profile"},
        "exif.jpg": {"exif": b"Exif\x00\x00broken"},
        "animated.gif": {"save_all": True, "append_images": [source.open(1)] * 3},
    }  # fmt: skip
    for number, (name, options) in enumerate(good.items()):
        image = source.open(number).convert(options.pop("mode", "RGB"))
        image.save(folder / name, **options)
    picture.resize((1, 1)).save(folder / "one pixel.png")
    picture.resize((20_000, 20)).save(folder / "wide.png")
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(
        folder / "sixteen bits.png"
    )
    used = [folder / name for name in (*good, "one pixel.png", "wide.png", "sixteen bits.png")]

    whole = (folder / "wide.png").read_bytes()
    bad = {
        "cut.png": whole[: len(whole) // 2],
        "empty.jpg": b"",
        "text.png": b"no picture",
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    }
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    Image.new("1", (30_000, 30_000)).save(folder / "bomb.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "nowhere.png").symlink_to("nothing.png")
    (folder / "refused.png").symlink_to("/proc/self/mem")
    (folder / "round").symlink_to(folder, target_is_directory=True)
    links = ("bomb.png", "pipe.png", "device.png", "circle.png", "nowhere.png", "refused.png")
    return used, [folder / name for name in (*bad, *links)]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> tuple[list[Path], list[Path]]:
    return fill(tmp_path_factory.mktemp("zoo") / "pictures")


def test_every_usable_picture_is_neither_black_nor_white(zoo):
    for path in zoo[0]:
        for crop in (center_crop_adm, lambda i, r: random_crop(i, r, position=(0.5, 0.5))):
            pixels = np.asarray(crop(in_mode(decode(path), "RGB"), 16))
            assert 5 < pixels.mean() < 250, path


def test_every_other_file_is_refused_at_once_with_a_reason(zoo):
    for path in zoo[1]:
        started = time.monotonic()
        with pytest.raises(UnreadableImage, match=r"\w{3}"):
            decode(path)
        assert time.monotonic() - started < 2, path


def test_a_line_of_pixels_does_not_fill_the_memory():
    crop = center_crop_adm(Image.new("RGB", (100_000, 1), (9, 99, 199)), 64)
    assert crop.size == (64, 64)
    assert crop.getpixel((32, 32)) == (9, 99, 199)
    assert center_crop_adm(Image.new("RGB", (1, 100_000), (9, 99, 199)), 64).size == (64, 64)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_over_all_of_them_ends_well_and_names_each_bad_one_once(zoo, tmp_path, workers):
    used, bad = zoo
    argv = command(tmp_path, 8, Variant(workers, False, 2), "--train_batch_size", 8,
                   "--max_bad_images", 1, "--train_data_dir", used[0].parent,
                   "--validation_image", used[1], "--logging_steps", 3)  # fmt: skip
    code, output = launch(argv).wait()
    assert code == 0, output
    lines = (tmp_path / "bad_images.txt").read_text(encoding="utf-8").splitlines()
    named = [line.split("\t")[1] for line in lines]
    assert len(named) == len(set(named))
    assert set(named) == set(map(str, bad))
    assert all(len(line.split("\t")[2]) > 3 for line in lines)
    assert all(output.count(f"skipped: {name} (") == 1 for name in named)


def test_what_was_met_before_a_checkpoint_is_named_though_no_row_was_due(zoo, tmp_path):
    used, bad = zoo
    argv = command(tmp_path, 8, Variant(0, False, 1), "--train_batch_size", 23,
                   "--max_bad_images", 1, "--train_data_dir", used[0].parent,
                   "--validation_image", used[1], "--logging_steps", 100)  # fmt: skip
    code, output = launch(argv, partial(signal_at, "modules.training.run:clip_gradients")).wait()
    assert code == 0, output
    assert (tmp_path / "checkpoints" / "step-000001").is_dir()
    lines = (tmp_path / "bad_images.txt").read_text(encoding="utf-8").splitlines()
    assert {line.split("\t")[1] for line in lines} == set(map(str, bad))
