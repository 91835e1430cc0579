"""`python -m eval export --format onnx`: the files compute what torch computes, and say what on."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from diffusers import AutoencoderKL

from eval.__main__ import main
from modules.export import onnx as onnx_export
from modules.weights.vae_files import load_vae

SCALE = 0.3
HALVES = ("vae_encoder", "vae_decoder")


def save_model(folder: Path, seed: int) -> Path:
    """An f2 autoencoder with attention, also inside its levels, as diffusers saves it."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        block_out_channels=[8, 8], norm_num_groups=2, scaling_factor=SCALE,
    )  # fmt: skip
    vae.save_pretrained(folder)
    return folder


def export(model: Path, output: Path) -> int:
    return main(["export", "--model", str(model), "--output", str(output), "--format", "onnx"])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model with its ONNX files beside it, written by the first test that asks for them."""
    folder = save_model(tmp_path_factory.mktemp("model"), seed=0)
    assert export(folder, folder) == 0
    return folder


def session(file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 20), (65, 2, 4)])
def test_both_halves_compute_what_torch_computes_for_any_batch_and_size(model, shape):
    batch, height, width = shape
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(batch, 3, 2 * height, 2 * width, generator=generator) * 2 - 1
    latents = torch.randn(batch, 4, height, width, generator=generator)
    vae = load_vae(model)
    with torch.no_grad():
        moments = vae.encode(images).latent_dist.parameters
        decoded = vae.decode(latents).sample
    encoder, decoder = (session(model / half / "model.onnx") for half in HALVES)
    (found,) = encoder.run(["latent_parameters"], {"sample": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), moments, rtol=0, atol=1e-5)
    (found,) = decoder.run(["sample"], {"latent_sample": latents.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), decoded, rtol=0, atol=1e-5)


@pytest.mark.parametrize("half", HALVES)
def test_each_file_says_what_it_takes_and_that_the_scale_is_not_applied(model, half):
    opened = session(model / half / "model.onnx")
    (taken,) = opened.get_inputs()
    assert taken.shape == ["batch", 3 if half == "vae_encoder" else 4, "height", "width"]
    metadata = opened.get_modelmeta().custom_metadata_map
    assert "scaling_factor" in metadata["latents"]
    assert metadata["latents"].endswith("are not applied")
    assert float(metadata["scaling_factor"]) == SCALE
    assert json.loads(metadata["autoencoder_config"])["latent_channels"] == 4
    assert json.loads((model / half / "config.json").read_text())["scaling_factor"] == SCALE


@pytest.mark.parametrize("half", HALVES)
def test_no_file_tells_where_it_was_made(model, half):
    content = (model / half / "model.onnx").read_bytes()
    for path in (torch.__file__, onnx_export.__file__, str(model)):
        assert str(Path(path).parent).encode() not in content
    assert [file.name for file in sorted((model / half).iterdir())] == ["config.json", "model.onnx"]


@pytest.mark.parametrize("right", [True, False])
def test_the_command_compares_both_halves(model, tmp_path, right, monkeypatch, capsys):
    """What it compares with is another model in the second case, and it says so."""
    monkeypatch.setattr(onnx_export, "export_onnx", lambda vae, folder: [])  # they are there
    given = model if right else save_model(tmp_path, seed=1)
    code = export(given, model)
    *compared, last = capsys.readouterr().out.splitlines()
    assert code == (0 if right else 1)
    compared += [last] * right
    for line, half in zip(compared, HALVES, strict=True):
        assert line.startswith(f"{half}: onnxruntime differs from torch by at most ")
        assert (float(line.split()[-5]) < 1e-5) == right
    assert right or "do not use these files" in last


def test_nan_in_a_file_is_not_acceptable(model, monkeypatch):
    monkeypatch.setattr(onnx_export, "export_onnx", lambda vae, folder: [])
    nan = {"vae_encoder": 0.0, "vae_decoder": float("nan")}
    monkeypatch.setattr(onnx_export, "compare_with_torch", lambda vae, folder: nan)
    assert export(model, model) == 1


def test_a_missing_package_is_named_before_the_model_is_opened(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    assert export(Path("nowhere"), tmp_path / "new") == 2
    assert "pip install onnx onnxscript" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_without_onnxruntime_it_says_that_nothing_was_compared(model, monkeypatch, capsys):
    monkeypatch.setattr(onnx_export, "export_onnx", lambda vae, folder: [])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(onnx_export, "require_onnx", lambda: None)
    assert export(model, model) == 0
    assert "Not compared with torch: run `pip install onnxruntime`" in capsys.readouterr().out
