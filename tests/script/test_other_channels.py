"""Autoencoders of grey and of transparent images: trained, measured, exported and loaded again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from launching import ADVERSARIAL, TINY, succeed
from tiny import tiny_arguments, tiny_run, train

from eval.__main__ import main
from eval.memory.random_lpips import random_lpips
from eval.rehearsal import random_batch
from modules.builders.networks import make_vae
from modules.data.images.synthetic import SyntheticImages
from modules.errors import ArgumentError
from modules.image_modes import CHANNELS, mode_of
from modules.models.lpips import build_lpips
from modules.weights.vae_files import load_vae

OTHERS = pytest.mark.parametrize("mode", ["L", "RGBA"])


def draw(folder: Path, mode: str, count: int = 8) -> Path:
    folder.mkdir()
    for index in range(count):
        picture = SyntheticImages(count, 24, seed=7, alpha=mode == "RGBA").open(index)
        picture.convert(mode).save(folder / f"{index}.png")
    return folder


@OTHERS
def test_a_run_of_other_channels_is_validated_exported_and_loaded_like_any(mode, tmp_path):
    out, held = tmp_path / "out", draw(tmp_path / "held", mode, 4)
    succeed([
        *TINY, *ADVERSARIAL, "--train_data_dir", draw(tmp_path / "pictures", mode),
        "--validation_data_dir", held, "--output_dir", out, "--image_mode", mode,
        "--train_batch_size", "2", "--max_train_steps", "4", "--export_ldm",
        "--dataloader_num_workers", "1",
    ])  # fmt: skip

    vae, channels = AutoencoderKL.from_pretrained(out), CHANNELS[mode]
    assert (vae.config.in_channels, vae.config.out_channels) == (channels, channels)
    assert vae(torch.zeros(1, channels, 16, 16)).sample.shape == (1, channels, 16, 16)
    single = load_vae(out / "vae_ldm.safetensors").state_dict()
    assert all(torch.equal(single[name], tensor) for name, tensor in vae.state_dict().items())
    assert f"images: [B, {channels}, H, W]" in (out / "README.md").read_text()

    command = ["reconstruction", "--model", str(out), "--data", str(held), "--resolution", "16",
               "--batch_size", "4", "--metrics", "psnr", "ssim", "--no_progress"]  # fmt: skip
    files = {name: str(tmp_path / f"r.{name}") for name in ("json", "html", "png")}
    assert main([*command, "--json", files["json"], "--report", files["html"],
                 "--grid", files["png"]]) == 0  # fmt: skip
    measured = json.loads(Path(files["json"]).read_text())
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert measured["protocol"]["image_mode"] == mode
    assert measured["models"]["out"]["summary"]["psnr"] == last["val/psnr"]
    assert measured["models"]["out"]["summary"]["ssim"] == last["val/ssim"]


@OTHERS
def test_every_network_and_loss_of_a_step_takes_the_channels(mode):
    run = tiny_run(f"--image_mode {mode}")
    with random_lpips():
        run.perceptual = build_lpips("squeeze")
    batch = random_batch(run, 2, 32)
    assert batch["images"].shape == (2, CHANNELS[mode], 32, 32)
    vae = run.raw_vae.vae
    ends = [vae.encoder.conv_in.weight, vae.decoder.conv_out.weight,
            run.raw_discriminator.model[0].bias]  # fmt: skip
    before = [end.detach().clone() for end in ends]

    train(run, [batch, batch])  # the rate of the first step is 0

    assert all(not torch.equal(old, new) for old, new in zip(before, ends, strict=True))


@OTHERS
def test_perceptual_distance_of_other_channels_is_that_of_their_views(mode):
    with random_lpips():
        network = build_lpips("squeeze")
    colours, others = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    if mode == "L":
        pair = colours[:, :1], others[:, :1]
        expected = network(*(image.repeat(1, 3, 1, 1) for image in pair))
    else:
        opaque = torch.ones(2, 1, 32, 32)
        pair = torch.cat([colours, opaque], 1), torch.cat([others, opaque], 1)
        expected = network(colours, others)
    fakes = pair[1].requires_grad_()

    distances = network(pair[0], fakes)

    torch.testing.assert_close(distances, expected)
    distances.sum().backward()
    assert all(fakes.grad[:, channel].abs().sum() > 0 for channel in range(CHANNELS[mode]))


def test_a_pretrained_model_of_other_channels_is_refused_with_both(tmp_path):
    vae = make_vae(tiny_arguments("--image_mode L"))
    vae.save_pretrained(tmp_path)
    pretrained = f"--pretrained_model_name_or_path {tmp_path}"

    assert mode_of(make_vae(tiny_arguments(pretrained))) == "L"
    assert mode_of(make_vae(tiny_arguments(f"--model_config_name_or_path {tmp_path}"))) == "L"
    for asked in ("RGB", "RGBA"):
        message = f"--image_mode={asked} means .* and the model's images are L, with 1"
        with pytest.raises(ArgumentError, match=message):
            make_vae(tiny_arguments(f"{pretrained} --image_mode {asked}"))


def test_models_of_different_channels_are_not_compared(tmp_path, capsys):
    for mode in ("L", "RGBA"):
        make_vae(tiny_arguments(f"--image_mode {mode}")).save_pretrained(tmp_path / mode)
    models = [str(tmp_path / mode) for mode in ("L", "RGBA")]
    for command in ("reconstruction", "latents", "precision"):
        assert main([command, "--model", *models, "--data", "synthetic"]) == 2
        assert "L takes L and RGBA takes RGBA images" in capsys.readouterr().err
