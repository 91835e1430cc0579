"""`python -m eval` as its users meet it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from eval_fixtures import PixelDistance, tiny_inception, tiny_vae
from launching import ROOT, finish_together, launch_together
from PIL import Image
from test_report import check

from eval.__main__ import main
from eval.metrics.networks import Networks
from eval.protocol.codecs import VAECodec
from eval.protocol.evaluate import evaluate_reconstruction
from eval.protocol.protocol import Protocol, ProtocolImages
from modules.data.images.synthetic import SyntheticImages
from modules.data.sources.open import open_folder
from modules.weights.vae_files import save_ldm

SMALL = ["--resolution", "32", "--no_progress"]


@pytest.fixture
def photos(tmp_path):
    """Five pictures, one of whose names is markup."""
    folder = tmp_path / "photos"
    folder.mkdir()
    source = SyntheticImages(5, 48, 0)
    for index in range(5):
        name = "<b>4&.png" if index == 4 else f"{index}.png"
        source.open(index).save(folder / name)
    return folder


@pytest.fixture
def model(tmp_path):
    """A saved tiny VAE."""
    tiny_vae().save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


def reconstruction(photos, *arguments):
    return main(["reconstruction", "--data", str(photos), *SMALL, *map(str, arguments)])


def test_help_and_mistakes_answer_without_importing_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for arguments, code in (
        (["--help"], 0),
        (["reconstruction", "--help"], 0),
        (["memory", "--recipe", "none"], 2),
        (["latents", "--model", "identity", "--data", "./nowhere"], 2),
        (["reconstruction", "--model", "identity", "--data", "x", "--crop", "round"], 2),
    ):
        command = [sys.executable, "-m", "eval", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert "(default: None)" not in done.stdout
    assert "--crop" in done.stderr


def test_every_file_is_written_and_all_say_the_same(photos, model, tmp_path, capsys):
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "md", "html", "png")}
    code = reconstruction(
        photos,
        *("--model", "identity", model, "jpeg:10"),
        *("--metrics", "psnr", "ssim", "color", "kl"),
        *("--json", files["json"], "--markdown", files["md"]),
        *("--report", files["html"], "--grid", files["png"]),
    )
    assert code == 0
    printed = capsys.readouterr().out
    data = json.loads(files["json"].read_text())
    assert list(data["models"]) == ["identity", "mine", "jpeg:10"]
    psnr = f"{data['models']['mine']['summary']['psnr']:.2f}"
    assert psnr in printed
    assert psnr in files["md"].read_text()
    html = files["html"].read_text()
    assert psnr in html
    check(html)
    assert "<b>4" not in html
    assert "&lt;b&gt;4&amp;.png" in html
    assert Image.open(files["png"]).width > 32
    interval = data["models"]["mine"]["intervals"]["psnr"]
    assert interval["low"] <= data["models"]["mine"]["summary"]["psnr"] <= interval["high"]
    assert data["protocol"]["crop"] == "adm"
    assert data["protocol"]["versions"]["torch"] == torch.__version__.split("+")[0]
    for text in (printed, files["md"].read_text(), html):
        assert "ADM centre crop 32²" in text
        assert data["data"]["content"][:12] in text


def test_the_command_gives_training_validations_numbers_to_the_last_digit(photos, model, tmp_path):
    reconstruction(photos, "--model", model, "--json", tmp_path / "a.json", *METRICS)
    command = json.loads((tmp_path / "a.json").read_text())["models"]["mine"]["summary"]
    images = ProtocolImages(open_folder(photos), Protocol(resolution=32))
    vae = tiny_vae().train().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = evaluate_reconstruction({"vae": VAECodec(vae)}, images, METRICS[1:], progress=False)
    assert found["vae"].summary() == command


METRICS = ["--metrics", "psnr", "ssim", "color", "frequency", "rec", "kl"]


def evaluate_and_leave(folder: str, arguments: list[str]) -> None:
    sys.exit(main(["reconstruction", *arguments, f"{folder}/rank{os.environ['RANK']}.json"]))


def test_two_processes_give_the_numbers_of_one(photos, model, tmp_path):
    arguments = ["--model", model, "jpeg:10", "--data", photos, *METRICS, "--num_samples", "3"]
    arguments = [*map(str, arguments), *SMALL, "--json"]
    finish_together(launch_together([], 2, partial(evaluate_and_leave, str(tmp_path), arguments)))
    assert not (tmp_path / "rank1.json").exists()
    main(["reconstruction", *arguments, str(tmp_path / "one.json")])
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "rank0"))
    assert two["run"]["processes"] == 2
    assert two["data"] == one["data"]
    for label in one["models"]:
        for key in ("summary", "intervals", "worst"):
            assert two["models"][label][key] == one["models"][label][key]
    ours, theirs = (data["models"]["mine"]["latents"] for data in (two, one))
    for key in ("kl", "global_std", "channel_mean", "channel_std"):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-9)


def test_missing_networks_are_no_failure_unless_they_were_asked_for(photos, monkeypatch, capsys):
    reasons = {"rfid": "no connection", "lpips_vgg": "no connection"}
    offline = Networks({"alex": PixelDistance()}, unavailable=reasons)
    monkeypatch.setattr("eval.metrics.networks.open_networks", lambda *arguments: offline)
    assert reconstruction(photos, "--model", "jpeg:10") == 0
    assert "rFID is missing: no connection" in capsys.readouterr().out
    assert reconstruction(photos, "--model", "jpeg:10", "--metrics", "psnr", "lpips") == 1


def test_rfid_is_labelled_with_its_number_of_images(photos, monkeypatch, capsys):
    networks = Networks(inception=tiny_inception())
    monkeypatch.setattr("eval.metrics.networks.open_networks", lambda *arguments: networks)
    assert reconstruction(photos, "--model", "jpeg:10", "--metrics", "rfid") == 0
    assert "rFID@5" in capsys.readouterr().out


def test_folders_pipelines_and_single_files_are_the_same_model(photos, model, tmp_path):
    pipeline = tmp_path / "pipeline"
    tiny_vae().save_pretrained(pipeline / "vae")
    save_ldm(tiny_vae(), tmp_path / "single.safetensors")
    names = [model, pipeline, tmp_path / "single.safetensors"]
    out = tmp_path / "a.json"
    reconstruction(photos, "--model", *names, "--metrics", "psnr", "rec", "--json", out)
    models = json.loads(out.read_text())["models"]
    assert list(models) == ["mine", "pipeline", "single.safetensors"]
    assert len({json.dumps(found["summary"]) for found in models.values()}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "identity", "--data", "/nowhere"], "--data=/nowhere"),
        (["--model", "identity", "--data", "{empty}"], "--data={empty} holds no images"),
        (["--model", "{photos}", "--data", "{photos}"], "--model={photos}"),
        (["--model", "jpeg:500", "--data", "{photos}"], "jpeg:QUALITY with a number from 1 to 100"),
        (["--model", "identity", "--labels", "a", "b", "--data", "{photos}"], "1 different names"),
        (["--model", "identity", "--data", "{photos}", "--lpips_weights", "/no"], "/no does not"),
    ],
)
def test_mistakes_end_with_one_line_that_names_the_flag(
    arguments, message, photos, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    places = {"photos": str(photos), "empty": str(tmp_path / "empty")}
    filled = [argument.format(**places) for argument in arguments]
    if "--lpips_weights" not in filled:
        filled += ["--metrics", "psnr"]
    assert main(["reconstruction", *filled, *SMALL]) == 2
    error = capsys.readouterr().err
    assert message.format(**places) in error
    assert "Traceback" not in error


def test_a_damaged_image_is_named_and_the_rest_is_measured(photos, tmp_path, capsys):
    (photos / "2.png").write_bytes(b"not a picture")
    out = tmp_path / "a.json"
    code = reconstruction(photos, "--model", "jpeg:10", "--metrics", "psnr", "--json", out)
    assert code == 0
    assert re.search(r"unreadable, left out: .*2\.png", capsys.readouterr().out)
    data = json.loads(out.read_text())
    assert data["models"]["jpeg:10"]["summary"]["num_images"] == 4
    assert [Path(name).name for name in data["data"]["unreadable"]] == ["2.png"]


def test_one_image_and_the_synthetic_set_are_data_too(photos, capsys):
    assert reconstruction(photos / "0.png", "--model", "jpeg:10", "--metrics", "psnr") == 0
    assert "all 1" in capsys.readouterr().out
    arguments = ["--model", "jpeg:10", "--metrics", "psnr", "--num_images", "2"]
    assert reconstruction("synthetic", *arguments) == 0
    assert "synthetic" in capsys.readouterr().out


def test_latents_are_written_into_the_config_and_nothing_else_is_touched(photos, model, tmp_path):
    before = json.loads((model / "config.json").read_text())
    arguments = ["latents", "--model", str(model), "--data", str(photos), *SMALL]
    assert main([*arguments, "--json", str(tmp_path / "l.json")]) == 0
    assert json.loads((model / "config.json").read_text()) == before
    assert main([*arguments, "--write", "--normalization", "scale_shift"]) == 0
    after = json.loads((model / "config.json").read_text())
    found = json.loads((tmp_path / "l.json").read_text())["models"]["mine"]
    assert after["scaling_factor"] == pytest.approx(1 / found["global_std"])
    assert after["shift_factor"] == pytest.approx(found["global_mean"])
    changed = {key for key in after if after[key] != before.get(key)}
    assert changed == {"scaling_factor", "shift_factor"}
    assert set(before) == set(after)
    files = {"config.json", "diffusion_pytorch_model.safetensors"}
    assert {path.name for path in model.iterdir()} == files


def test_writing_needs_a_folder_and_says_so_before_measuring(photos, tmp_path, capsys):
    save_ldm(tiny_vae(), tmp_path / "single.safetensors")
    arguments = ["--model", str(tmp_path / "single.safetensors"), "--data", str(photos), "--write"]
    for command in ("latents", "precision"):
        assert main([command, *arguments, *SMALL]) == 2
        assert "--write needs a local folder" in capsys.readouterr().err


def test_precision_writes_force_upcast(photos, model, tmp_path, capsys):
    out = tmp_path / "p.json"
    arguments = ["precision", "--model", str(model), "--data", str(photos), *SMALL]
    assert main([*arguments, "--write", "--json", str(out)]) == 0
    assert "force_upcast should be false" in capsys.readouterr().out
    assert json.loads((model / "config.json").read_text())["force_upcast"] is False
    found = json.loads(out.read_text())["models"]["mine"]["precisions"]
    assert list(found) == ["fp32", "bf16", "fp16"]
    assert found["fp16"]["num_images"] == 5
