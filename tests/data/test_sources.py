"""Files, folders and datasets of every kind give the same pictures, or an error with its cure."""

from __future__ import annotations

import io
import os
import pickle
import re
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modules.builders.data import open_data
from modules.config.command_line import resolve_arguments
from modules.data.images import image_kinds
from modules.data.images.images import UnreadableImage
from modules.data.sources.files import fingerprint
from modules.data.sources.hf_dataset import IMAGE, LoadedRows, NamedDataset, load_rows
from modules.data.sources.open import (
    FileSource,
    RowSource,
    encoded_image,
    open_files,
    open_folder,
    open_rows,
)
from modules.data.sources.parts import Subset, hold_back, random_subset

COLOURS = [(40 * number, 255 - 40 * number, 10) for number in range(6)]


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), COLOURS[number]).save(file, "PNG")
    return file.getvalue()


def colours(source) -> list[tuple[int, ...]]:
    return [source.open(index).getpixel((0, 0)) for index in range(len(source))]


def write_folder(folder: Path) -> None:
    for number in range(6):
        path = folder / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))


def rows_of_pngs() -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    cells = [{"bytes": png(number), "path": f"{number}.png"} for number in range(6)]
    return datasets.Dataset.from_dict({"image": cells, "caption": list("abcdef")}, features)


def write_parquet(folder: Path) -> None:
    folder.mkdir()
    rows_of_pngs().to_parquet(folder / "train-0.parquet")


def write_plain_bytes(folder: Path) -> None:
    folder.mkdir()
    table = pa.table({"png": [png(number) for number in range(6)], "caption": list("abcdef")})
    pyarrow.parquet.write_table(table, folder / "train.parquet")


def write_webdataset(folder: Path) -> None:
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as tar:
            for number in range(3 * shard, 3 * shard + 3):
                for name, content in ((f"{number}.png", png(number)), (f"{number}.txt", b"words")):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))


def write_saved(folder: Path) -> None:
    rows_of_pngs().save_to_disk(folder)


def write_saved_splits(folder: Path) -> None:
    rows = rows_of_pngs()
    datasets.DatasetDict(train=rows, validation=rows.select([5])).save_to_disk(folder)


WRITERS = [
    (write_folder, "image"),
    (write_parquet, "image"),
    (write_plain_bytes, "png"),
    (write_webdataset, "png"),
    (write_saved, "image"),
    (write_saved_splits, "image"),
]


@pytest.mark.parametrize(("write", "column"), WRITERS)
def test_a_local_dataset_of_any_kind_gives_all_its_pictures_streamed_or_not(
    write, column, tmp_path
):
    folder = tmp_path / "data"
    write(folder)
    dataset = NamedDataset(str(folder), image_column=column)

    source = open_rows(dataset)
    stream = load_rows(dataset, streaming=True).rows

    assert sorted(colours(source)) == sorted(COLOURS)
    assert source.name == str(folder)
    assert len({source.label(index) for index in range(6)}) == 6
    assert isinstance(stream, datasets.IterableDataset)
    contents = [encoded_image(row[IMAGE]) for row in stream]
    loaded = {c if isinstance(c, bytes) else Path(c).read_bytes() for c in contents}
    assert loaded == {png(number) for number in range(6)}


def test_labels_are_paths_of_files_and_numbers_of_rows(tmp_path):
    write_folder(tmp_path / "files")
    write_parquet(tmp_path / "rows")

    files = open_rows(NamedDataset(str(tmp_path / "files")))
    rows = open_rows(NamedDataset(str(tmp_path / "rows")))

    assert Path(files.label(2)).read_bytes() in {png(number) for number in range(6)}
    assert rows.label(2) == f"{tmp_path / 'rows'}[2] (2.png)"


def test_a_split_is_chosen_by_name(tmp_path):
    write_saved_splits(tmp_path / "data")

    source = open_rows(NamedDataset(str(tmp_path / "data"), split="validation"))

    assert colours(source) == [COLOURS[5]]


def test_a_folder_is_searched_recursively_in_sorted_order_whatever_the_names(tmp_path):
    for name in ("b/x.PNG", "a/test_1.jpg", "validation/y.webp", "z.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(0))
    (tmp_path / ".cache").mkdir()
    for name in ("notes.txt", ".hidden.png", "a/._z.png", ".cache/x.png"):
        (tmp_path / name).write_bytes(b"")

    source = open_folder(str(tmp_path))

    labels = [os.path.relpath(source.label(index), tmp_path) for index in range(len(source))]
    assert labels == ["a/test_1.jpg", "b/x.PNG", "validation/y.webp", "z.png"]


@settings(max_examples=20)
@given(st.lists(st.binary(min_size=1, max_size=6), unique=True), st.integers(1, 5))
def test_names_in_one_buffer_are_in_order_and_recognised_as_a_list_would_be(names, at_once):
    names = [b"/photos/" + name.replace(b"/", b"_").replace(b"\0", b"_") for name in names]
    expected = fingerprint(names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modules.data.sources.files.NUM_NAMES", at_once)
        assert FileSource(names).fingerprint() == expected
    assert [FileSource(names).label(index) for index in range(len(names))] == [
        os.fsdecode(name) for name in names
    ]


OTHER_FILES = ("b.HEIC", "c.heic", "d.CR2", "e.psd", "photo", "f.jpg_large", "notes.txt", "g.npy")


@pytest.mark.usefixtures("without_plugins")
def test_pictures_of_a_kind_that_is_not_read_are_counted_and_named_with_the_fix(tmp_path, caplog):
    for name in OTHER_FILES:
        is_picture = name in ("photo", "f.jpg_large")
        (tmp_path / name).write_bytes(png(1) if is_picture else b"anything")
    found = (
        "2 .heic (pip install pillow-heif), 1 .jpg_large (give them the ending of their format), "
        "1 .psd (convert them to PNG)"
    )

    with pytest.raises(ValueError, match="holds no images that is read, but ") as refused:
        open_folder(tmp_path)
    (tmp_path / ".only").mkdir()
    (tmp_path / ".only/b.HEIC").write_bytes(b"anything")
    with pytest.raises(ValueError, match=r"--dataset_name=.*holds 1 .heic \(pip install pillow"):
        load_rows(NamedDataset(str(tmp_path / ".only")))
    with pytest.raises(ValueError, match=r"--validation_image: .*CR2 .* raw photographs"):
        open_files([tmp_path / "d.CR2"])
    (tmp_path / "a.jpg").write_bytes(png(0))
    assert len(open_folder(tmp_path, "--validation_data_dir")) == 1

    (warning,) = caplog.messages
    assert warning.startswith(f"--validation_data_dir={tmp_path}: these are left out: ")
    for text in (str(refused.value), warning):
        assert found in text
        assert "1 .cr2 (raw photographs: develop them to TIFF or PNG)" in text
        assert "1 without ending (give them the ending of their format)" in text
        assert "txt" not in text.replace(str(tmp_path), "").split("; files")[0]


@pytest.fixture
def without_plugins(monkeypatch):
    monkeypatch.setattr("modules.data.images.image_kinds.formats", lambda: ("JPEG", "PNG"))
    for cached in (image_kinds.suffixes, image_kinds.remedy):
        cached.cache_clear()
    yield
    for cached in (image_kinds.suffixes, image_kinds.remedy):
        cached.cache_clear()


def test_what_datasets_leaves_out_of_a_folder_of_images_is_said(tmp_path, caplog):
    for name in ("0.png", "1.png", "2.avif", "3.psb"):
        (tmp_path / name).write_bytes(png(0))

    assert len(load_rows(NamedDataset(str(tmp_path))).rows) == 2

    (warning,) = caplog.messages
    assert "1 .avif (pass the folder as --train_data_dir), 1 .psb (convert" in warning


def test_folders_that_cannot_be_listed_are_counted(tmp_path, caplog, monkeypatch):
    write_folder(tmp_path)
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("1"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)

    assert len(open_folder(tmp_path)) == 3
    (warning,) = caplog.messages
    assert f"1 folders that cannot be read, such as '{tmp_path}/1' (Permission denied)" in warning


def test_links_are_followed_but_not_in_circles(tmp_path):
    write_folder(tmp_path / "elsewhere")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(folder)

    assert len(open_folder(folder)) == 6


def test_paths_that_are_not_unicode_are_opened(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    Path(os.fsdecode(path)).write_bytes(png(3))

    source = open_folder(tmp_path)

    assert colours(source) == [COLOURS[3]]
    assert os.fsencode(source.label(0)) == path


def test_a_missing_folder_an_empty_one_and_packed_data_are_told_apart(tmp_path):
    packed, empty = tmp_path / "packed", tmp_path / "empty"
    write_parquet(packed)
    empty.mkdir()

    for folder, message in (
        (tmp_path / "missing", "is not a folder"),
        (packed / "train-0.parquet", "is not a folder"),
        (empty, r"holds no images; files must end in .* \.png"),
        (packed, r"holds no images; it holds \.parquet files: pass it as --dataset_name"),
    ):
        with pytest.raises(ValueError, match=f"--train_data_dir={folder} {message}"):
            open_folder(str(folder))
        with pytest.raises(ValueError, match="--validation_data_dir="):
            open_folder(str(folder), "--validation_data_dir")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_wrong_column_lists_the_columns_and_those_with_images(streaming, tmp_path):
    write_webdataset(tmp_path / "data")
    write_parquet(tmp_path / "rows")

    for name, columns in (
        ("data", "have png, txt; images are in: png"),
        ("rows", "which has image, caption; images are in: image"),
    ):
        for column in ("photo.txt", "caption", "txt"):
            with pytest.raises(ValueError, match=f"--image_column={column} .*{columns}"):
                load_rows(
                    NamedDataset(str(tmp_path / name), image_column=column), streaming=streaming
                )


def write_samples(path: Path, samples: list[str]) -> None:
    """A tar of samples: each names its members; all are picture number 0, ..., 5 in turn."""
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for number, members in enumerate(samples):
            for member in members.split():
                entry = tarfile.TarInfo(f"./{number:03d}.{member}")
                entry.size = len(png(number))
                tar.addfile(entry, io.BytesIO(png(number)))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["jpg", "image", "png"])
def test_samples_of_a_webdataset_may_differ_in_their_image_format(column, streaming, tmp_path):
    kinds = ["jpg txt", "png json", "JPG", "txt webp", "jpeg cls", "pdf txt"]
    write_samples(tmp_path / "data/0.tar", kinds)

    loaded = load_rows(
        NamedDataset(str(tmp_path / "data"), image_column=column), streaming=streaming
    )

    cells = [row[IMAGE] for row in loaded.rows]
    assert [cell["bytes"] for cell in cells] == [*map(png, range(5)), b""]
    assert cells[3]["path"] == "./003.webp"
    assert cells[5]["path"] == f"./005 (no {column} among its pdf, txt)"


@pytest.mark.parametrize("streaming", [False, True])
def test_of_several_images_in_a_sample_the_column_decides(streaming, tmp_path):
    write_samples(tmp_path / "pairs/0.tar", ["jpg png", "png jpg", "png"])
    write_samples(tmp_path / "masks/0.tar", ["jpg mask.png", "mask.png png", "mask.jpg jpg"])
    options = {"streaming": streaming}

    with pytest.raises(ValueError, match=r"image_column=image: .* several images, jpg, png; name"):
        load_rows(NamedDataset(str(tmp_path / "pairs")), **options)
    for column, found in (("jpg", 2), ("png", 3)):  # a lone png is a mask where others have both
        rows = load_rows(NamedDataset(str(tmp_path / "pairs"), image_column=column), **options).rows
        assert sum(bool(row[IMAGE]["bytes"]) for row in rows) == found
    for column, names in (
        ("jpg", ("jpg", "png", "jpg")),
        ("mask.png", ("mask.png", "mask.png", "mask.jpg")),
    ):
        rows = load_rows(NamedDataset(str(tmp_path / "masks"), image_column=column), **options).rows
        assert [row[IMAGE]["path"].split(".", 2)[2] for row in rows] == list(names)


def test_a_split_may_be_a_part_or_a_sum_of_splits_but_not_of_a_stream(tmp_path):
    for split in ("train", "test"):
        rows_of_pngs().to_parquet(tmp_path / f"{split}.parquet")

    for split, size in (("train[:50%]", 3), ("test+train[4:]", 8)):
        assert len(load_rows(NamedDataset(str(tmp_path), split=split)).rows) == size
        with pytest.raises(ValueError, match=r"--train_split=.* cannot be read with --streaming"):
            load_rows(NamedDataset(str(tmp_path), split=split), streaming=True)
    with pytest.raises(ValueError, match=r"no such split; name one of: .*test"):
        load_rows(NamedDataset(str(tmp_path), split="train+full[:9]"))
    assert load_rows(NamedDataset(str(tmp_path), split="test")).fingerprint != (
        load_rows(NamedDataset(str(tmp_path), split="train[:9]")).fingerprint
    )


def test_validation_has_no_images_of_the_training_split(tmp_path):
    for split in ("train", "test"):
        rows_of_pngs().to_parquet(tmp_path / f"{split}.parquet")

    for training, validation, allowed in (
        ("train", "test", True),
        ("train[:4]", "train[4:]", True),
        ("test", "test", False),
        ("train", "train[:10%]", False),
        ("train+test", "test[:2]", False),
    ):
        argv = [f"--dataset_name={tmp_path}", f"--train_split={training}",
                f"--validation_split={validation}"]  # fmt: skip
        if allowed:
            assert len(open_data(resolve_arguments(argv)).validation) in (2, 6)
            continue
        with pytest.raises(ValueError, match=re.escape(f"--validation_split={validation} has")):
            open_data(resolve_arguments(argv))
    with pytest.raises(ValueError, match="--train_split=test needs --dataset_name"):
        resolve_arguments(["--train_data_dir=x", "--train_split=test"])


@pytest.mark.parametrize("write", [write_parquet, write_saved, write_saved_splits])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_split_lists_the_splits_and_names_the_flag(write, streaming, tmp_path):
    folder = tmp_path / "data"
    write(folder)

    with pytest.raises(ValueError, match=r"--validation_split=nope with --dataset_name.*train"):
        load_rows(
            NamedDataset(str(folder), split="nope", split_flag="--validation_split"),
            streaming=streaming,
        )


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_that_is_not_there_names_the_flag(streaming, tmp_path):
    (tmp_path / "empty").mkdir()

    for name in (tmp_path / "missing", tmp_path / "empty", "nobody/nothing"):
        with pytest.raises(ValueError, match=f"--dataset_name={re.escape(str(name))}"):
            load_rows(NamedDataset(str(name)), streaming=streaming)


def test_a_random_subset_belongs_to_the_seed(tmp_path):
    write_folder(tmp_path)

    def labels(seed: int, max_samples: int) -> list[str]:
        source = random_subset(open_folder(str(tmp_path)), max_samples, seed)
        return [source.label(index) for index in range(len(source))]

    assert labels(1, 4) == labels(1, 4)
    assert len(set(labels(1, 4))) == 4
    assert len({tuple(labels(seed, 3)) for seed in range(8)}) > 1
    assert labels(1, 100) == labels(2, 6)


def test_files_named_one_by_one_keep_their_order_and_must_exist(tmp_path):
    write_folder(tmp_path)
    paths = [tmp_path / "1/5.png", tmp_path / "0/2.png"]

    assert colours(open_files(paths)) == [COLOURS[5], COLOURS[2]]
    with pytest.raises(ValueError, match=r"--validation_image: .*9\.png is not a file"):
        open_files([*paths, tmp_path / "9.png"])


def test_an_unreadable_picture_is_refused_only_when_it_is_opened(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "0/0.png").write_bytes(b"damaged")

    for source in (
        open_folder(str(tmp_path)),
        open_rows(NamedDataset(str(tmp_path))),
        FileSource([tmp_path / "missing.png"]),
        RowSource(LoadedRows(datasets.Dataset.from_dict({IMAGE: [None]}), "rows")),
    ):
        with pytest.raises(UnreadableImage):
            colours(source)
        assert source.label(0)


@settings(max_examples=40)
@given(st.integers(2, 60), st.integers(0, 5), st.data())
def test_holding_back_splits_a_source_in_two_without_overlap(size, seed, data):
    num_images = data.draw(st.integers(1, size - 1))
    source = FileSource([f"{number:03}.png" for number in range(size)])

    train, validation = hold_back(source, num_images, seed)
    again = hold_back(source, num_images, seed)

    labels = [[part.label(index) for index in range(len(part))] for part in (train, validation)]
    assert len(validation) == num_images
    assert sorted(labels[0] + labels[1]) == [source.label(index) for index in range(size)]
    assert np.array_equal(train.indices, again[0].indices)
    assert np.array_equal(validation.indices, again[1].indices)


def test_what_is_held_back_depends_on_the_seed():
    source = FileSource([f"{number}.png" for number in range(50)])

    assert len({tuple(hold_back(source, 5, seed)[1].indices) for seed in range(5)}) == 5


@pytest.mark.parametrize("num_images", [-1, 0, 6, 7])
def test_holding_back_nothing_or_everything_is_refused(num_images):
    source = FileSource(["a.png"] * 6, name="pictures")

    with pytest.raises(
        ValueError, match=f"--num_validation_images={num_images} .* pictures has 6 images"
    ):
        hold_back(source, num_images, seed=0)


def test_large_jpegs_are_decoded_smaller_where_a_target_is_given(tmp_path):
    Image.new("RGB", (400, 300)).save(tmp_path / "large.jpg")
    rows = datasets.Dataset.from_dict(
        {IMAGE: [{"bytes": (tmp_path / "large.jpg").read_bytes(), "path": None}]}
    )

    for whole in (open_folder(tmp_path), RowSource(LoadedRows(rows, "rows"))):
        for source in (whole, Subset(whole, [0])):
            assert source.open(0, 32).size == (100, 75)
            assert source.open(0).size == (400, 300)


def test_sources_travel_to_other_processes(tmp_path):
    write_folder(tmp_path / "files")
    write_parquet(tmp_path / "rows")

    for source in (
        random_subset(open_folder(str(tmp_path / "files")), 4, 0),
        open_rows(NamedDataset(str(tmp_path / "rows"))),
    ):
        assert colours(pickle.loads(pickle.dumps(source))) == colours(source)
