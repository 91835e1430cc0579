"""Nothing in a file that was given runs, nothing is written elsewhere, and no secret is told."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from launching import launch, succeed
from survival import Variant, command

from eval.metrics.fid import build_inception
from modules.config.outputs import LoggingArguments
from modules.errors import ArgumentError
from modules.models.lpips import build_lpips

TOKEN = "hf_averysecrettoken"


class Bomb:
    """Creates a file when a pickle of it is read."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.crater),)


def plant(file: Path, crater: Path, with_torch: bool) -> None:
    if with_torch:
        torch.save({"state": Bomb(crater)}, file)
    else:
        file.write_bytes(pickle.dumps(Bomb(crater)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    succeed(command(folder, 3, Variant(0, True, 1)))
    return folder


@pytest.mark.parametrize("with_torch", [True, False])
@pytest.mark.parametrize("name", ["optimizer.bin", "scheduler_1.bin", "random_states_0.pkl",
                                  "ema.safetensors", "pytorch_model.bin"])  # fmt: skip
def test_a_checkpoint_that_holds_code_is_refused_and_never_run(trained, tmp_path, name, with_torch):
    crater, checkpoint = tmp_path / "crater", tmp_path / "step-000003"
    checkpoint.mkdir()
    for file in (trained / "checkpoints" / "step-000003").iterdir():
        (checkpoint / file.name).write_bytes(file.read_bytes())
    plant(checkpoint / name, crater, with_torch)
    if name == "pytorch_model.bin":  # accelerate's second choice
        (checkpoint / "model.safetensors").unlink()
    files = [file for file in checkpoint.iterdir() if file.name != "manifest.json"]
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    (checkpoint / "manifest.json").write_text(json.dumps(sums))

    argv = command(tmp_path / "run", 6, Variant(0, True, 1))
    code, output = launch([*argv, "--resume_from_checkpoint", str(checkpoint)]).wait()
    assert code == 2, output
    assert "Traceback" not in output
    assert f"--resume_from_checkpoint={checkpoint} is refused" in output
    assert not crater.exists()


@pytest.mark.parametrize("with_torch", [True, False])
@pytest.mark.parametrize("build", [build_inception, lambda f: build_lpips("squeeze", f)])
def test_networks_that_hold_code_are_refused_and_never_run(tmp_path, build, with_torch):
    file, crater = tmp_path / "network.pth", tmp_path / "crater"
    plant(file, crater, with_torch)
    with pytest.raises(ValueError, match=f"weights={file}"):
        build(str(file))
    assert not crater.exists()
    # The bomb works: reading it carelessly sets it off.
    torch.load(file, weights_only=False) if with_torch else pickle.loads(file.read_bytes())
    assert crater.exists()


@pytest.mark.parametrize("name", ["logging_dir", "tracker_project_name"])
@pytest.mark.parametrize("path", ["/tmp/elsewhere", "../elsewhere", "logs/../../elsewhere"])
def test_a_configuration_cannot_write_outside_the_output_folder(name, path):
    with pytest.raises(ArgumentError, match=f"--{name}={path} must lie inside --output_dir"):
        LoggingArguments(**{name: path})


def test_names_in_an_archive_lead_nowhere(pictures, tmp_path):
    archive, around = tmp_path / "data" / "shard-000000.tar", tmp_path / "around"
    archive.parent.mkdir()
    with tarfile.open(archive, "w") as tar:
        for number in range(10):
            content = (pictures / f"{number}.png").read_bytes()
            member = tarfile.TarInfo(f"../../{around.name}/<img src=x>{number}.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    for streaming in ([], ["--streaming", "--shuffle_buffer_size", "4"]):
        run = tmp_path / f"run{len(streaming)}"
        argv = command(run, 2, Variant(0, False, 1), "--image_column", "png",
                       "--cache_dir", tmp_path / "cache", *streaming)  # fmt: skip
        argv[argv.index("synthetic")] = str(archive.parent)
        succeed(argv)
        assert (run / "config.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"data", "cache", "run0", "run3"}


def test_the_token_is_told_to_nobody_and_names_are_escaped(tmp_path):
    folder = tmp_path / "<script>alert(1)<"
    argv = command(folder, 2, Variant(0, True, 1), "--hub_token", TOKEN)
    argv[argv.index("none", argv.index("--report_to"))] = "tensorboard"
    output = succeed(argv)
    assert TOKEN not in output
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"train_config.yaml", "README.md", "report.html"} <= {path.name for path in files}
    assert any("tfevents" in path.name for path in files)
    for path in files:
        assert TOKEN.encode() not in path.read_bytes(), path
    page = (folder / "report.html").read_text()
    assert "alert(1)" in page
    assert "<script>alert" not in page
