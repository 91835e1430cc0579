"""What leaves a run: complete, float32, and at home in diffusers and latent-diffusion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from launching import TINY, succeed
from safetensors.torch import load_file

from modules.autoencoder import build_autoencoder
from modules.command_line import resolve_arguments
from modules.export import export_vae
from modules.model_card import write_model_card
from modules.vae_files import load_vae

WEIGHTS = "diffusion_pytorch_model.safetensors"


def flags(output_dir: Path, *more: object) -> list[str]:
    return [
        *TINY, "--output_dir", str(output_dir), "--max_train_steps", "2", "--export_ldm",
        "--train_batch_size", "2", *map(str, more),
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


def test_the_result_runs_inside_a_diffusers_pipeline(trained):
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, num_layers=1, sample_size=2,
        patch_size=1, num_embeds_ada_norm=1000, out_channels=4,
    )  # fmt: skip
    vae = AutoencoderKL.from_pretrained(trained)
    pipeline = DiTPipeline(transformer=transformer, vae=vae, scheduler=DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline([1, 2], num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 16, 16, 3)
    assert ((images >= 0) & (images <= 1)).all()


def test_the_single_file_holds_the_same_autoencoder(trained):
    loaded = load_vae(trained / "vae_ldm.safetensors")
    expected = AutoencoderKL.from_pretrained(trained)
    assert loaded.config.scaling_factor == expected.config.scaling_factor
    assert loaded.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


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


@pytest.mark.parametrize("kind", ["scale", "scale_shift", "per_channel"])
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
    assert config["scaling_factor"] == pytest.approx(vae.config.scaling_factor * 5.5, rel=0.5)
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


def test_an_export_that_fails_leaves_the_old_one(vae, tmp_path, monkeypatch):
    export_vae(vae, tmp_path, scaling_factor=2.0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(self, folder, **options):
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / WEIGHTS).write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(AutoencoderKL, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space"):
        export_vae(vae, tmp_path, scaling_factor=3.0)
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


def test_a_metric_that_was_not_measured_from_the_start_does_not_cost_the_card(vae, tmp_path):
    counts = {"val/num_images": 4, "val/nan_images": 0}
    first = {"step": 0, "val/psnr": 10.0, **counts}
    last = {"step": 9, "val/psnr": 20.0, "val/lpips_vgg": 0.5, **counts}
    write_model_card(tmp_path, resolve_arguments([]), vae, steps=9, data="pictures", latents=None,
                     validations=[first, last])  # fmt: skip
    assert "| lpips_vgg | not measured | 0.5 |" in (tmp_path / "README.md").read_text()
