"""Autoencoders unlike Stable Diffusion's serve everywhere, or are refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from tiny import batch, tiny_arguments, tiny_run, train
from vaes import assert_same_weights

from eval.__main__ import main
from eval.speed.predicted import plan
from modules.builders.networks import make_vae
from modules.errors import ArgumentError
from modules.export.model_card import Training, write_model_card
from modules.models.resampler_init import start_as_resampler
from modules.training.resume import flags_in_force
from modules.weights.vae_files import LDM_FILE, load_vae, save_ldm

DOWN = ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]
UP = ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]


def kl_f16(**config) -> AutoencoderKL:
    """Attention inside the lowest level, as in latent-diffusion's kl-f16, and whatever is added."""
    torch.manual_seed(0)
    return AutoencoderKL(**{
        "down_block_types": DOWN, "up_block_types": UP, "block_out_channels": [16, 16],
        "norm_num_groups": 4, **config,
    })  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A pretrained one; no test changes it."""
    folder = tmp_path_factory.mktemp("kl-f16")
    kl_f16().save_pretrained(folder)
    return folder


# Attention inside the levels


def test_attention_inside_the_levels_trains_and_is_loaded_evaluated_and_exported(
    folder, tmp_path, pictures, capsys
):
    flags = f"--pretrained_model_name_or_path {folder} --recompute norm"
    run = train(tiny_run(flags), [batch(shape=(4, 16, 16)) for _ in range(2)])
    vae = run.raw_vae.vae
    before = load_file(folder / "diffusion_pytorch_model.safetensors")
    inside = [name for name in before if "_blocks." in name and ".attentions." in name]
    assert len(inside) == 30  # one in the encoder, two in the decoder
    assert not any(torch.equal(before[name], vae.state_dict()[name])
                   for name in inside if "to_k.bias" not in name)  # fmt: skip
    assert flags_in_force(run.args, vae)["down_block_types"] == DOWN

    vae.save_pretrained(tmp_path / "trained")
    assert_same_weights(load_vae(tmp_path / "trained"), vae)
    argv = ["--model", str(tmp_path / "trained"), "--output", str(tmp_path), "--format", "ldm"]
    assert main(["export", *argv]) == 0
    assert_same_weights(load_vae(tmp_path / LDM_FILE), vae)
    models = [str(tmp_path / "trained"), str(tmp_path / LDM_FILE)]
    argv = ["reconstruction", "--model", *models, "--data", str(pictures), "--metrics", "psnr",
            "--resolution", "16", "--no_progress", "--json", str(tmp_path / "found")]  # fmt: skip
    assert main(argv) == 0
    found = json.loads((tmp_path / "found").read_text())["models"].values()
    assert len({model["summary"]["psnr"] for model in found}) == 1


def test_its_memory_is_predicted_with_what_attention_takes(folder):
    peaks = {}
    for kind, blocks in (("inside", {}), ("none", {"down_block_types": DOWN[:1] * 2})):
        source = folder.parent / f"memory-{kind}"
        kl_f16(**blocks).save_pretrained(source)
        _, found = plan(tiny_arguments(f"--model_config_name_or_path {source}"))
        peaks[kind] = found.allocated
    assert peaks["inside"] > peaks["none"] > 0


def test_latent_diffusions_file_has_attention_where_latent_diffusion_keeps_it(tmp_path):
    """So that its published kl-f16 loads, whose file holds no configuration."""
    vae = kl_f16(block_out_channels=[32, 32], norm_num_groups=32)
    save_ldm(vae, tmp_path / "vae.safetensors")
    tensors = load_file(tmp_path / "vae.safetensors")
    assert list(tensors["encoder.down.1.attn.0.q.weight"].shape) == [32, 32, 1, 1]
    assert "decoder.up.1.attn.1.proj_out.bias" in tensors
    assert not any(".0.attn." in name for name in tensors)
    torch.save({"state_dict": tensors}, tmp_path / "model.ckpt")
    found = load_vae(tmp_path / "model.ckpt")
    assert_same_weights(found, vae)
    assert list(found.config.down_block_types) == DOWN


def test_export_ldm_says_at_the_start_who_cannot_read_it(folder, tmp_path, caplog):
    make_vae(tiny_arguments(f"--pretrained_model_name_or_path {folder} --export_ldm"))
    (record,) = [r for r in caplog.records if "ComfyUI" in r.getMessage()]
    assert "norm_num_groups 4 and attention inside the levels" in record.getMessage()
    load_vae(folder).save_config(tmp_path)
    (tmp_path / LDM_FILE).touch()
    write_model_card(tmp_path, Training("x", "", ""), steps=0, rows=[])
    card = (tmp_path / "README.md").read_text()
    assert "ComfyUI and A1111 cannot build it: norm_num_groups 4, attention inside" in card
    caplog.clear()
    make_vae(tiny_arguments(f"--pretrained_model_name_or_path {folder}"))
    assert not caplog.records


def test_a_resampler_starts_through_attention_and_any_activation():
    torch.manual_seed(0)
    for activation in ("silu", "gelu", "relu", "mish"):
        vae = kl_f16(block_out_channels=[32, 32], norm_num_groups=2, act_fn=activation)
        start_as_resampler(vae)
        images = F.interpolate(torch.rand(2, 3, 4, 4) * 2 - 1, scale_factor=8, mode="bilinear")
        with torch.no_grad():
            means = vae.encode(images).latent_dist.mean[:, :3]
        assert F.mse_loss(means, F.avg_pool2d(images, 2)).sqrt() < 0.1


@pytest.mark.parametrize(
    "config",
    [
        {"act_fn": "gelu"},
        {"mid_block_add_attention": False},
        {"use_quant_conv": False, "use_post_quant_conv": False},
        {"use_post_quant_conv": False},
        {"latents_mean": [0.1] * 4, "latents_std": [2.0] * 4, "force_upcast": False},
        {"shift_factor": 0.5, "sample_size": [32, 64]},
        {"norm_num_groups": 3, "block_out_channels": [6, 12]},
    ],
)
def test_every_configuration_takes_a_step_and_comes_back_from_its_files(config, tmp_path):
    kl_f16(**config).save_pretrained(tmp_path / "vae")
    flags = f"--pretrained_model_name_or_path {tmp_path / 'vae'}"
    vae = train(tiny_run(flags), [batch(shape=(4, 16, 16))]).raw_vae.vae
    assert all(parameter.isfinite().all() for parameter in vae.parameters())
    save_ldm(vae, tmp_path / LDM_FILE)
    vae.save_pretrained(tmp_path / "trained")
    for path in (tmp_path / LDM_FILE, tmp_path / "trained"):
        found = load_vae(path)
        assert_same_weights(found, vae)
        assert all(found.config[name] == value for name, value in config.items())


# What cannot be trained


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"out_channels": 4}, "out_channels is 4 and must be 3, as in_channels is"),
        ({"in_channels": 2}, "in_channels is 2 and must be 1 .grey., 3"),
        ({"down_block_types": DOWN[:1]}, r"down_block_types is .* must be a list of 2 names"),
        ({"up_block_types": UP + UP[1:]}, r"up_block_types is .* must be a list of 2 names"),
        ({"block_out_channels": [16]}, r"down_block_types is .* must be a list of 1 names"),
        (
            {"down_block_types": ["DownBlock2D"] * 2},
            "DownBlock2D.* must be of DownEncoderBlock2D",
        ),
        ({"norm_num_groups": 3}, "norm_num_groups is 3 and must be a divisor"),
        ({"act_fn": "sine"}, "activation function sine not found"),
        ({"act_fn": None}, "mend its config.json"),
        ({"layers_per_block": [1, 2]}, "must be an integer from 1 to 32"),
        ({"latent_channels": "4"}, "must be an integer from 1 to 4096"),
        ({"sample_size": None}, "mend its config.json"),
    ],
)
@pytest.mark.parametrize("flag", ["pretrained_model", "model_config"])
def test_what_cannot_be_trained_is_refused_with_the_flag(folder, tmp_path, entries, message, flag):
    content = json.loads((folder / "config.json").read_text()) | entries
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "diffusion_pytorch_model.safetensors").symlink_to(
        folder / "diffusion_pytorch_model.safetensors"
    )
    with pytest.raises(ArgumentError, match=f"^--{flag}_name_or_path={tmp_path}: .*{message}"):
        make_vae(tiny_arguments(f"--{flag}_name_or_path {tmp_path}"))


def test_the_measuring_commands_refuse_it_as_well(tmp_path, pictures, capsys):
    kl_f16(out_channels=4).save_pretrained(tmp_path)
    for command in ("reconstruction", "latents", "precision"):
        argv = [command, "--model", str(tmp_path), "--data", str(pictures), "--no_progress"]
        assert main(argv) == 2
        assert f"--model={tmp_path}: out_channels is 4" in capsys.readouterr().err


def test_a_scaling_factor_of_null_is_1_and_said(folder, tmp_path, caplog):
    vae = kl_f16()
    vae.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text()) | {"scaling_factor": None}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert load_vae(tmp_path).config.scaling_factor == 1.0
    assert "null" in caplog.text
