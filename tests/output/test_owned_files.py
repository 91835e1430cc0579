"""A run deletes and replaces what runs wrote, and nothing else, whatever lies in its folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.builders.output_dir import check_output_dir, clear_output_dir
from modules.config.command_line import resolve_arguments
from modules.errors import ArgumentError
from modules.export.upload import HfApi, upload
from modules.output.checkpoint_folders import checkpoint_steps, clear_debris, rotate
from modules.output.owned_files import OwnedFiles
from modules.output.run_files import AT_THE_END, RECORD, STEP, WHILE_TRAINING, find

# What a run writes, one of each kind.
WRITTEN = (
    "checkpoints/step-000002/manifest.json", "checkpoints/step-000002/model.safetensors",
    "metrics.jsonl", "train_config.yaml", "report.html", "samples/step-000000.png",
    "best/config.json", "best/diffusion_pytorch_model.safetensors", "config.json", "README.md",
    "diffusion_pytorch_model.safetensors", "discriminator/discriminator.safetensors",
    "logs/train_autoencoderkl/events.out.tfevents.1.host.2",
)  # fmt: skip
# What users keep in the same places.
FOREIGN = (
    "notes.txt", "samples/IMG_0001.jpg", "samples/step-1.png", "samples/step-000001.jpg",
    "best/mine.txt", "checkpoints/step-notes", "checkpoints/step-000002.bak/model.safetensors",
    "checkpoints/step-000002/why.txt", "checkpoints/latest", "discriminator/other.safetensors",
    "logs/slurm-1.out", "logs/other/events.out.tfevents.1.host.2", "metrics.jsonl.old",
)  # fmt: skip


RESUME = ("--resume_from_checkpoint latest",)


def arguments(folder: Path, *more: object):
    return resolve_arguments(["--output_dir", str(folder), *map(str, more)])


def write(folder: Path, *names: str, content: str = "") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content or name)


def begin(folder: Path, *more: object) -> None:
    """What the script does before it writes the first file."""
    check_output_dir(arguments(folder, *more))
    clear_output_dir(arguments(folder, *more))


def run_in(folder: Path, *more: object) -> None:
    """A run, as far as its files are concerned."""
    begin(folder, *more)
    owned = OwnedFiles(folder)
    owned.claim(AT_THE_END)
    write(folder, *WRITTEN)
    owned.sign("README.md")
    owned.sign("train_config.yaml")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file() and path.name != RECORD}  # fmt: skip


@settings(max_examples=15)
@given(before=st.sets(st.sampled_from(FOREIGN)), after=st.sets(st.sampled_from(FOREIGN)))
def test_overwriting_deletes_what_a_run_wrote_and_none_of_the_users_files(before, after):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, *before)
        run_in(folder)
        write(folder, *after)
        begin(folder, "--overwrite_output_dir")
        assert set(contents(folder)) == before | after
        assert all(text == name.encode() for name, text in contents(folder).items())
        assert (folder / "best").exists() == ("best/mine.txt" in before | after)


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("more", ["", "--overwrite_output_dir", *RESUME])
def test_a_file_that_no_run_wrote_is_named_and_kept(tmp_path, name, more):
    write(tmp_path, name, content="mine")
    if name == "checkpoints/step-000002/manifest.json":
        return  # by which a run of an earlier version is known
    with pytest.raises(ArgumentError, match="which no run of this trainer wrote") as refusal:
        begin(tmp_path, *more.split())
    assert f"--output_dir={tmp_path} holds {name}" in str(refusal.value)
    assert contents(tmp_path) == {name: b"mine"}
    assert not (tmp_path / RECORD).exists()


@pytest.mark.parametrize("name", ["README.md", "vae_ldm.safetensors", "config.json"])
def test_what_a_user_puts_there_between_two_launches_is_kept(tmp_path, name):
    begin(tmp_path)
    write(tmp_path, name, content="mine")
    with pytest.raises(ArgumentError, match=name):
        begin(tmp_path, "--resume_from_checkpoint", "latest")
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["metrics.jsonl", "report.html", "config.json",
                                  "vae_ldm.safetensors", "samples/step-000000.png"])  # fmt: skip
@pytest.mark.parametrize("more", ["--overwrite_output_dir", *RESUME])
def test_a_folder_in_place_of_a_file_is_the_users(tmp_path, name, more):
    run_in(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    write(tmp_path, f"{name}/mine.txt")
    before = contents(tmp_path)
    with pytest.raises(ArgumentError, match=f"holds {name}, which no run"):
        begin(tmp_path, *more.split())
    assert contents(tmp_path) == before


def test_a_folder_in_place_of_the_record_is_named(tmp_path):
    (tmp_path / ".train_vae.json").mkdir()
    with pytest.raises(ArgumentError, match=r"holds \.train_vae\.json, which no run"):
        begin(tmp_path)


def test_a_pipe_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ArgumentError, match=r"holds metrics.jsonl, which no run"):
        begin(tmp_path)


@pytest.mark.parametrize("tracker", ["tensorboard", "none"])
def test_a_file_in_place_of_the_logs_matters_to_trackers_alone(tmp_path, tracker):
    write(tmp_path, "logs")
    refused = pytest.raises(ArgumentError, match="holds logs, which") if tracker != "none" else None
    with refused or nullcontext():
        begin(tmp_path, "--report_to", tracker)
    assert (tmp_path / "logs").read_text() == "logs"


def test_what_a_user_puts_there_during_training_is_set_aside(tmp_path):
    begin(tmp_path)
    write(tmp_path, "README.md", "README.md.kept", content="mine")
    OwnedFiles(tmp_path).claim(AT_THE_END)
    assert contents(tmp_path) == {"README.md.kept": b"mine", "README.md.kept1": b"mine"}


def test_a_model_card_that_the_user_went_on_writing_is_the_users(tmp_path):
    run_in(tmp_path)
    begin(tmp_path, "--resume_from_checkpoint", "latest")  # as it was: no objection
    for number, more in enumerate([RESUME[0], "--overwrite_output_dir"]):
        (tmp_path / "README.md").write_text(f"better words {number}")
        begin(tmp_path, *more.split())
        assert (tmp_path / "README.md").read_text() == f"better words {number}"
        OwnedFiles(tmp_path).claim(AT_THE_END)
        kept = tmp_path / f"README.md.kept{number or ''}"
        assert kept.read_text() == f"better words {number}"
        write(tmp_path, "README.md")
        OwnedFiles(tmp_path).sign("README.md")


def test_a_configuration_that_the_user_went_on_writing_is_kept_under_another_name(tmp_path):
    run_in(tmp_path)
    for number, more in enumerate([*RESUME, "--overwrite_output_dir"]):
        (tmp_path / "train_config.yaml").write_text(f"notes {number}")
        begin(tmp_path, *more.split())
        assert not (tmp_path / "train_config.yaml").exists()
        assert (tmp_path / f"train_config.yaml.kept{number or ''}").read_text() == f"notes {number}"
        write(tmp_path, "train_config.yaml")
        OwnedFiles(tmp_path).sign("train_config.yaml")
    begin(tmp_path, *RESUME[0].split())  # as it was written: it is ours
    assert not (tmp_path / "train_config.yaml.kept2").exists()


def test_a_change_during_a_run_is_remembered_to_its_end(tmp_path):
    run_in(tmp_path)
    (tmp_path / "train_config.yaml").write_text("notes")
    OwnedFiles(tmp_path).claim(AT_THE_END)
    assert OwnedFiles(tmp_path).changed == {"train_config.yaml"}


@pytest.mark.parametrize("place", ["other/checkpoints/step-000002", "run/saved/step-000002"])
def test_a_run_is_not_replaced_by_another_that_goes_on_in_its_folder(tmp_path, place):
    folder, resume = tmp_path / "run", ("--resume_from_checkpoint", tmp_path / place)
    run_in(folder)
    write(tmp_path, f"{place}/manifest.json")
    before = contents(folder)
    with pytest.raises(ArgumentError, match=f"already holds a run .*{place} is none of its"):
        begin(folder, *resume)
    assert contents(folder) == before
    begin(folder, *resume, "--overwrite_output_dir")
    assert set(contents(tmp_path)) == {f"{place}/manifest.json"}


def test_latest_does_not_begin_anew_where_a_run_was_exported(tmp_path):
    run_in(tmp_path)
    begin(tmp_path, *RESUME[0].split(), "--overwrite_output_dir")  # it goes on: nothing is deleted
    assert contents(tmp_path).keys() == {*WRITTEN}
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ArgumentError, match="already holds a run"):
        begin(tmp_path, *RESUME[0].split())
    begin(tmp_path, *RESUME[0].split(), "--overwrite_output_dir")
    assert not contents(tmp_path)
    write(tmp_path, "metrics.jsonl")  # of one that was killed before its first checkpoint
    begin(tmp_path, *RESUME[0].split())


def test_names_are_recorded_before_they_are_written_and_whole(tmp_path, monkeypatch):
    """A kill at any moment leaves the old record or the new one."""
    run_in(tmp_path)
    before = (tmp_path / RECORD).read_text()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            OwnedFiles(tmp_path).claim(["one more"])
    assert (tmp_path / RECORD).read_text() == before
    begin(tmp_path, "--overwrite_output_dir")
    assert contents(tmp_path) == {}


def test_links_to_folders_elsewhere_are_kept_and_emptied(tmp_path):
    folder, disk = tmp_path / "run", tmp_path / "disk"
    for name in ("checkpoints", "samples", "best"):
        write(disk / name, "mine.txt")
        write(folder, "notes.txt")
        (folder / name).symlink_to(disk / name)
    (tmp_path / "link").symlink_to(folder)
    run_in(tmp_path / "link")
    begin(tmp_path / "link", "--overwrite_output_dir")
    assert {path.name for path in folder.iterdir() if path.is_symlink()} == {
        "checkpoints", "samples", "best"}  # fmt: skip
    assert set(contents(disk)) == {"checkpoints/mine.txt", "samples/mine.txt", "best/mine.txt"}


@pytest.mark.parametrize("name", ["checkpoints", "samples", "best", "discriminator"])
def test_a_folder_that_cannot_be_made_is_named_at_the_start(tmp_path, name):
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(ArgumentError, match=name):
        begin(tmp_path)


def test_rotation_takes_a_checkpoint_and_leaves_what_others_put_into_it(tmp_path):
    for step in (1, 3, 4):
        write(tmp_path, f"step-{step:06d}/manifest.json", f"step-{step:06d}/model.safetensors")
    theirs = ("step-4", "step-000005.bak/manifest.json", "step-000006", ".partial-step-notes",
              "elsewhere/manifest.json")  # fmt: skip
    write(tmp_path, *theirs, "step-000001/why.txt", ".deleted-step-000000/why.txt")
    (tmp_path / "step-000002").symlink_to(tmp_path / "elsewhere")  # moved to another disk
    assert checkpoint_steps(tmp_path) == [1, 2, 3, 4]
    clear_debris(tmp_path)
    rotate(tmp_path, 5, 1)
    assert checkpoint_steps(tmp_path) == [4]
    shutil.rmtree(tmp_path / "step-000004")
    assert set(contents(tmp_path)) == {
        *theirs, "step-000000.kept/why.txt", "step-000001.kept/why.txt"}  # fmt: skip


def test_a_run_of_an_earlier_version_is_known_by_its_checkpoints(tmp_path):
    write(tmp_path, *WRITTEN, *FOREIGN)
    (tmp_path / "README.md").unlink()
    with pytest.raises(ArgumentError, match=r"already holds a run \(checkpoints"):
        begin(tmp_path)
    begin(tmp_path, "--overwrite_output_dir")
    assert set(contents(tmp_path)) == set(FOREIGN)


def test_the_log_of_another_trainer_is_not_taken_for_ours(tmp_path):
    write(tmp_path, "metrics.jsonl", content='{"loss": 0.1, "step": 1}\n')
    write(tmp_path, "config.json", content="{}")
    with pytest.raises(ArgumentError, match=r"holds metrics.jsonl, config.json, which no run"):
        begin(tmp_path, "--overwrite_output_dir")


@pytest.mark.parametrize(
    ("flag", "place"),
    [("pretrained_model_name_or_path", "."), ("model_config_name_or_path", "../link/best"),
     ("validation_image", "samples/step-000000.png"), ("pretrained_model_name_or_path", "best")],
)  # fmt: skip
def test_what_is_still_to_be_read_is_not_deleted(tmp_path, flag, place):
    folder = tmp_path / "run"
    run_in(folder)
    (tmp_path / "link").symlink_to(folder)
    before = contents(folder)
    with pytest.raises(ArgumentError, match=f"--{flag}=.* would be deleted"):
        begin(folder, "--overwrite_output_dir", f"--{flag}", folder / place)
    assert contents(folder) == before


def test_only_what_a_run_wrote_is_uploaded(tmp_path, monkeypatch):
    write(tmp_path, *WRITTEN, *FOREIGN)
    sent: dict[str, object] = {}
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: sent.update(options))
    upload("me/mine", tmp_path)
    local = {name for name in WRITTEN if name.split("/")[0] in ("checkpoints", "logs")}
    assert sorted(sent["allow_patterns"]) == sorted({*WRITTEN} - local)


def test_the_record_lists_kinds_and_stays_small(tmp_path):
    run_in(tmp_path)
    record = json.loads((tmp_path / RECORD).read_text())
    assert set(record["files"]) >= {*WHILE_TRAINING, *AT_THE_END}
    assert set(record["signed"]) == {"README.md", "train_config.yaml"}
    assert list(find(tmp_path, [f"samples/step-{STEP}.png"])) == [tmp_path / WRITTEN[5]]
