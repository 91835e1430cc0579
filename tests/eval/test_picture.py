"""One picture through a model: any size, and the latents as a file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from eval.__main__ import main
from eval.protocol.codecs import VAECodec
from eval.protocol.one_picture import encode, padded
from modules.data.images.images import normalize, to_uint8, to_uint8_tensor
from modules.data.images.synthetic import SyntheticImages
from modules.models.autoencoder import build_autoencoder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Tiny autoencoders by name: of RGB, of RGBA, and one with other latents."""
    folder = tmp_path_factory.mktemp("models")
    for name, options in (
        ("RGB", {}),
        ("RGBA", {"image_channels": 4}),
        ("c6", {"latent_channels": 6}),
    ):
        torch.manual_seed(0)
        vae = build_autoencoder(
            downsample_factor=4, block_out_channels=(8, 8, 8), layers_per_block=1, **options
        )
        vae.register_to_config(scaling_factor=0.5, shift_factor=0.25)
        vae.save_pretrained(folder / name)
    return folder


@pytest.fixture
def photo(tmp_path) -> Path:
    """45 wide and 30 high when upright; on its side in the file."""
    picture = SyntheticImages(1, 45).open(0).crop((0, 0, 45, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "in.png", exif=exif)
    return tmp_path / "in.png"


def picture(models: Path, name: str, *arguments: object) -> int:
    return main(["picture", "--model", str(models / name), *map(str, arguments)])


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from([4, 8, 32]))
def test_sides_are_continued_by_reflection_to_multiples(height, width, factor):
    image = torch.arange(height * width).view(1, height, width)
    whole = padded(image, factor)
    assert all(side % factor == 0 for side in whole.shape[1:])
    missing = [(0, 0), (0, whole.shape[1] - height), (0, whole.shape[2] - width)]
    assert np.array_equal(whole, np.pad(image, missing, mode="reflect"))


def test_a_picture_of_any_size_comes_back_upright_as_the_model_makes_it(
    models, photo, tmp_path, capsys
):
    assert picture(models, "RGB", photo, tmp_path / "out.png") == 0

    original = to_uint8_tensor(SyntheticImages(1, 45).open(0).crop((0, 0, 45, 30)))
    vae = AutoencoderKL.from_pretrained(models / "RGB")
    with torch.no_grad():
        values = vae(normalize(padded(original, 4))[None]).sample[0, :, :30, :45]
    found = to_uint8_tensor(Image.open(tmp_path / "out.png"))
    assert (found.int() - to_uint8(values).int()).abs().max() <= 1
    error = (found.double() - original.double()).square().mean()
    assert f"PSNR {10 * torch.log10(255**2 / error):.2f} dB" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["RGB", "RGBA"])
def test_latents_in_a_file_give_the_same_picture_and_say_what_scales_them(
    models, photo, tmp_path, name
):
    file, first, second = (tmp_path / n for n in ("z.safetensors", "a.png", "b.png"))
    assert picture(models, name, photo, first, "--latents", file) == 0
    assert picture(models, name, second, "--from_latents", file) == 0

    assert first.read_bytes() == second.read_bytes()
    assert Image.open(first).mode == name
    assert Image.open(first).size == (45, 30)
    with safe_open(file, "pt") as tensors:
        assert tensors.get_tensor("latents").shape == (1, 4, 8, 12)
        metadata = tensors.metadata()
    assert json.loads(metadata["scaling_factor"]) == 0.5
    assert json.loads(metadata["shift_factor"]) == 0.25


def test_tiles_are_used_where_the_picture_is_larger(models, photo, tmp_path):
    for side in (None, 64, 16):
        more = () if side is None else ("--tile", side)
        assert picture(models, "RGB", photo, tmp_path / f"{side}.png", *more) == 0
    whole, large, small = (
        np.asarray(Image.open(tmp_path / f"{side}.png")).astype(int) for side in (None, 64, 16)
    )
    assert np.array_equal(whole, large)
    assert small.shape == whole.shape
    assert not np.array_equal(whole, small)


def test_mistakes_are_named_before_anything_is_written(models, photo, tmp_path, capsys):
    out, latents = tmp_path / "out.png", tmp_path / "z.safetensors"
    (tmp_path / "text.png").write_text("no picture")
    assert picture(models, "c6", photo, tmp_path / "c6.png", "--latents", latents) == 0
    capsys.readouterr()
    for name, arguments, message in (
        ("RGB", (out,), "give IN and OUT"),
        ("RGB", (photo, out, "--from_latents", latents), "give IN and OUT"),
        ("RGB", (tmp_path / "text.png", out), "IN=.*text.png: "),
        ("RGB", (tmp_path / "missing.png", out), "IN=.*missing.png: cannot be read"),
        ("RGB", (photo, tmp_path / "out.xyz"), "OUT=.*out.xyz must end in what names a picture"),
        ("RGB", (photo, tmp_path), "OUT=.* is a folder"),
        ("RGBA", (photo, tmp_path / "out.jpg"), "OUT=.*out.jpg: cannot write mode RGBA as JPEG"),
        ("RGB", (photo, out, "--tile", "20"), "--tile=20 must be a multiple of 16"),
        ("RGB", (photo, out, "--tile", "8"), "--tile=8 must be a multiple of 16"),
        ("RGB", (out, "--from_latents", latents), "--from_latents=.* has 6 channels"),
        ("RGB", (out, "--from_latents", photo), "--from_latents=.* in.png is damaged"),
    ):
        assert picture(models, name, *arguments) == 2
        error = capsys.readouterr().err
        assert re.search(message, error), error
    assert not out.exists()
    assert not (tmp_path / "out.jpg").exists()


def test_the_posteriors_mode_is_what_is_written(models):
    codec = VAECodec(AutoencoderKL.from_pretrained(models / "RGB"))
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    with torch.no_grad():
        posterior = codec.encode(image[None])
        assert torch.equal(encode(codec, image, torch.device("cpu")), posterior.mean)
