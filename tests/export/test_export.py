"""What leaves a run: complete, float32, and at home in diffusers and latent-diffusion."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from launching import TINY, succeed
from safetensors.torch import load_file
from vaes import assert_same_weights

from eval.__main__ import main
from modules.export.model_card import Training, write_model_card
from modules.export.vae import export_everything, export_vae
from modules.models.autoencoder import build_autoencoder
from modules.weights.vae_files import load_vae

WEIGHTS = "diffusion_pytorch_model.safetensors"
FP16_WEIGHTS = "diffusion_pytorch_model.fp16.safetensors"
LDM_FILE = "vae_ldm.safetensors"
DISCRIMINATOR = "discriminator/discriminator.safetensors"


def flags(output_dir: Path, *more: object) -> list[str]:
    return [
        *TINY, "--output_dir", str(output_dir), "--max_train_steps", "2", "--export_ldm",
        "--export_fp16", "--train_batch_size", "2", *map(str, more),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    succeed(flags(folder))
    return folder


@pytest.fixture
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return build_autoencoder(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, mid_block_add_attention=False
    )


def test_the_single_file_holds_the_same_autoencoder(trained):
    loaded = load_vae(trained / LDM_FILE)
    expected = AutoencoderKL.from_pretrained(trained)
    assert loaded.config.scaling_factor == expected.config.scaling_factor
    assert_same_weights(loaded, expected)


def test_float16_weights_lie_beside_the_float32_ones_of_the_final_export(trained):
    half = AutoencoderKL.from_pretrained(trained, variant="fp16", torch_dtype=torch.float16)
    assert half.dtype == torch.float16
    plain = AutoencoderKL.from_pretrained(trained)
    assert plain.dtype == torch.float32
    assert half.config.scaling_factor == plain.config.scaling_factor
    assert_same_weights(half.float(), plain.half())
    assert (trained / "best" / WEIGHTS).exists()
    assert not (trained / "best" / FP16_WEIGHTS).exists()


def test_everyone_may_read_what_is_exported(trained):
    for name in ("config.json", WEIGHTS, FP16_WEIGHTS, LDM_FILE):
        assert oct((trained / name).stat().st_mode)[-3:] == "644", name


def test_weights_beyond_float16_cost_that_file_alone_and_are_named(trained, tmp_path):
    vae = AutoencoderKL.from_pretrained(trained)
    with torch.no_grad():
        vae.encoder.conv_in.bias[0] = 70_000.0  # the next normalisation takes it out
    vae.save_pretrained(tmp_path / "source")
    run = tmp_path / "run"
    output = succeed(flags(run, "--pretrained_model_name_or_path", tmp_path / "source",
                           "--decoder_only"))  # fmt: skip
    assert "--export_fp16: no float16 weights were written" in output
    assert "encoder.conv_in.bias" in output
    assert not (run / FP16_WEIGHTS).exists()
    assert (run / "README.md").exists()
    assert f"Wrote {run}/" in output
    assert_same_weights(load_vae(run / LDM_FILE), AutoencoderKL.from_pretrained(run))


def test_no_form_of_earlier_weights_is_left_beside_later_ones(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    succeed(flags(run, "--resume_from_checkpoint", "latest", "--max_train_steps", "3",
                  "--no_export_ldm", "--no_export_fp16", "--disc_factor", "0"))  # fmt: skip
    assert (trained / DISCRIMINATOR).exists()
    assert (run / WEIGHTS).read_bytes() != (trained / WEIGHTS).read_bytes()
    assert not (run / FP16_WEIGHTS).exists()
    assert not (run / LDM_FILE).exists()
    assert not (run / DISCRIMINATOR).exists()


def test_without_a_gan_there_is_no_discriminator(vae, tmp_path):
    export_everything(vae, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS]
    export_everything(vae, tmp_path, discriminator=torch.nn.Linear(1, 1))
    assert load_file(tmp_path / DISCRIMINATOR).keys() == {"weight", "bias"}


@pytest.mark.parametrize("use_ema", ["--use_ema", "--no_use_ema"])
def test_decoder_only_leaves_encoder_and_scale_bit_identical(trained, tmp_path, use_ema):
    source = tmp_path / "source"
    original = AutoencoderKL.from_pretrained(trained)
    original.register_to_config(scaling_factor=0.18215, shift_factor=0.5)
    original.save_pretrained(source)
    run = tmp_path / "run"
    succeed(flags(run, "--pretrained_model_name_or_path", source, "--decoder_only", use_ema,
                  "--max_train_steps", "12"))  # fmt: skip
    before, after = load_file(source / WEIGHTS), load_file(run / WEIGHTS)
    assert before.keys() == after.keys()
    frozen = {name for name in before if name.startswith(("encoder.", "quant_conv."))}
    assert len(frozen) > 10
    for name in before:
        assert torch.equal(before[name], after[name]) == (name in frozen), name
    for folder in (run, run / "best"):
        config = AutoencoderKL.load_config(folder)
        assert config["scaling_factor"] == 0.18215
        assert config["shift_factor"] == 0.5
    assert "The encoder was not trained" in (run / "README.md").read_text()


@pytest.mark.parametrize("kind", ["scale_shift", "per_channel"])
def test_latents_are_normalised_as_asked(tmp_path, kind):
    succeed(flags(tmp_path, "--latent_normalization", kind))
    config = AutoencoderKL.from_pretrained(tmp_path).config
    assert (config.shift_factor is not None) == (kind == "scale_shift")
    assert (config.scaling_factor == 1.0) == (kind == "per_channel")
    if kind == "per_channel":
        assert len(config.latents_mean) == len(config.latents_std) == 4


def test_a_scale_that_a_pretrained_encoder_came_with_is_measured_anew(trained, tmp_path):
    source = tmp_path / "source"
    vae = AutoencoderKL.from_pretrained(trained)
    vae.register_to_config(scaling_factor=0.18215, shift_factor=0.5)
    vae.save_pretrained(source)
    succeed(flags(tmp_path / "run", "--pretrained_model_name_or_path", source))
    config = AutoencoderKL.load_config(tmp_path / "run")
    trained_scale = AutoencoderKL.load_config(trained)["scaling_factor"]
    assert config["scaling_factor"] == pytest.approx(trained_scale, rel=0.5)
    assert config["shift_factor"] is None


def test_the_network_in_training_is_left_as_it_is(vae, tmp_path):
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    vae.to(memory_format=torch.channels_last).train()
    copy = export_vae(vae, tmp_path, scaling_factor=2.0)
    assert vae.config.scaling_factor == 1.0
    assert vae.training
    assert copy is not vae
    assert all(torch.equal(vae.state_dict()[name], tensor) for name, tensor in before.items())
    assert not vae.encoder.conv_in.weight.is_contiguous()


def test_the_export_is_plain_float32_and_readable_by_all(vae, tmp_path):
    vae.to(memory_format=torch.channels_last)
    export_vae(vae, tmp_path, scaling_factor=2.0)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", WEIGHTS}
    assert json.loads((tmp_path / "config.json").read_text())["scaling_factor"] == 2.0
    assert oct((tmp_path / WEIGHTS).stat().st_mode)[-3:] == "644"
    loaded = AutoencoderKL.from_pretrained(tmp_path)
    for name, tensor in vae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert loaded.state_dict()[name].is_contiguous()


@pytest.mark.parametrize(("resolution", "tile"), [(32, 32), (40, 64), (224, 224), (200, 224)])
def test_tiles_are_of_a_size_that_diffusers_can_put_together(tmp_path, resolution, tile):
    """It overlaps them by a quarter, and returns wrong sizes where that is no whole latent."""
    vae = build_autoencoder(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, mid_block_add_attention=False,
        sample_size=resolution,
    )  # fmt: skip
    export_vae(vae, tmp_path)
    loaded = AutoencoderKL.from_pretrained(tmp_path)
    assert loaded.config.sample_size == tile
    loaded.enable_tiling()
    images = torch.zeros(1, 3, tile + 32, tile + 64)
    with torch.no_grad():
        latents = loaded.encode(images).latent_dist.mode()
        assert latents.shape[2:] == (tile // 8 + 4, tile // 8 + 8)
        assert loaded.decode(latents).sample.shape == images.shape


def test_an_export_that_fails_leaves_the_old_one(vae, tmp_path, monkeypatch):
    export_vae(vae, tmp_path, scaling_factor=2.0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(tensors, file, **options):
        file.write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr("modules.weights.tensor_files.save_file", fail)
    with pytest.raises(OSError, match="No space"):
        export_vae(vae, tmp_path, scaling_factor=3.0)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_metric_that_was_not_measured_from_the_start_does_not_cost_the_card(vae, tmp_path):
    counts = {"val/num_images": 4, "val/nan_images": 0}
    first = {"step": 0, "val/psnr": 10.0, **counts}
    last = {"step": 9, "val/psnr": 20.0, "val/lpips_vgg": 0.5, **counts}
    vae.save_config(tmp_path)
    write_model_card(tmp_path, Training("x", "", ""), steps=9, rows=[first, last])
    assert "| LPIPS (VGG) | not measured | 0.5 |" in (tmp_path / "README.md").read_text()


# Without training: python -m eval export


def convert(model: Path, output: Path, *formats: str) -> int:
    return main(["export", "--model", str(model), "--output", str(output), "--format", *formats])


def test_one_file_becomes_a_folder_and_again_a_file_without_a_changed_bit(trained, tmp_path):
    expected = AutoencoderKL.from_pretrained(trained)
    assert convert(trained / LDM_FILE, tmp_path / "folder", "diffusers", "fp16") == 0
    found = AutoencoderKL.from_pretrained(tmp_path / "folder")
    assert found.config.scaling_factor == expected.config.scaling_factor
    assert_same_weights(found, expected)
    assert convert(tmp_path / "folder", tmp_path / "again", "ldm") == 0
    assert [file.name for file in (tmp_path / "again").iterdir()] == [LDM_FILE]
    ours, theirs = load_file(tmp_path / "again" / LDM_FILE), load_file(trained / LDM_FILE)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    half = AutoencoderKL.from_pretrained(
        tmp_path / "folder", variant="fp16", torch_dtype=torch.float16
    )
    assert_same_weights(half.float(), expected.half())


def test_forms_are_added_to_a_models_own_folder_and_its_files_are_left_alone(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert convert(tmp_path, tmp_path, "fp16", "ldm") == 0
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys() | {FP16_WEIGHTS, LDM_FILE}
    assert all(after[name] == content for name, content in before.items())


@pytest.mark.parametrize("form", ["diffusers", "fp16"])
def test_another_models_folder_is_refused(trained, vae, tmp_path, form, capsys):
    vae.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert convert(trained, tmp_path, form) == 2
    assert f"--output={tmp_path} holds another model" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_conversions_that_cannot_be_are_answered_with_the_flag(vae, trained, tmp_path, capsys):
    assert convert(trained, trained / WEIGHTS, "ldm") == 2
    assert "is a file; give a folder" in capsys.readouterr().err
    assert convert(tmp_path / "nothing", tmp_path, "ldm") == 2
    assert f"--model={tmp_path / 'nothing'}" in capsys.readouterr().err
    with torch.no_grad():
        vae.decoder.conv_in.bias[0] = 70_000.0
    vae.save_pretrained(tmp_path)
    assert convert(tmp_path, tmp_path, "fp16") == 2
    assert "too large for float16 (65504): decoder.conv_in.bias" in capsys.readouterr().err
