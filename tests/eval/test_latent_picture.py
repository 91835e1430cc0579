"""Latents for the eye: whose they are, and what their pictures do and do not show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from eval_fixtures import tiny_vae

from eval.metrics.networks import Networks
from eval.protocol.codecs import VAECodec
from eval.protocol.protocol import Protocol, ProtocolImages
from eval.report.grid import GAP
from eval.report.latent_picture import latent_picture
from eval.validation import Validation
from modules.data.images.synthetic import SyntheticImages


def test_the_latents_shown_are_those_of_the_pictures_shown_and_none_is_encoded_twice(monkeypatch):
    images = ProtocolImages(SyntheticImages(5, 16, seed=1), Protocol(16))
    validation = Validation(
        images, ["psnr"], best_metric="psnr", judges=Networks(), batch_size=2, num_grid_images=3,
        device=torch.device("cpu"),
    )  # fmt: skip
    vae, encoded = tiny_vae(), []
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda x: encoded.append(len(x)) or encode(x))
    result = validation.run(vae)
    assert result.latent_grid is not None
    assert encoded == [2, 2, 2]
    assert result.grid_latents.shape == (3, 4, 4, 4)
    originals = torch.stack([kept.original for kept in result.evaluation.samples])
    with torch.no_grad():
        expected = VAECodec(vae).encode(originals).mean
    assert torch.allclose(result.grid_latents, expected, atol=1e-5)


def tiles(latents: torch.Tensor) -> np.ndarray:
    """[n, columns, h, w, 3] uint8: the picture cut into its tiles, at the latents' own size."""
    picture = np.asarray(latent_picture(latents)).astype(int)
    height, width = latents.shape[2:]
    enlarge = 128 // width
    columns = latents.shape[1] + (latents.shape[1] >= 3)
    cell = width * enlarge
    line = (picture.shape[0] - GAP - len(latents) * height * enlarge) // (len(latents) + 1)
    return np.stack([
        [
            picture[
                line + row * (height * enlarge + line) :, GAP + column * (cell + GAP) :
            ][: height * enlarge : enlarge, : cell : enlarge]
            for column in range(columns)
        ]
        for row in range(len(latents))
    ])  # fmt: skip


def smooth(channels: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, 8, 8, generator=generator)


def test_every_channel_is_a_tile_in_grey_that_follows_its_values():
    latents = smooth(4)
    shown = tiles(latents)
    for channel in range(4):
        tile = shown[:, channel + 1]
        assert (tile == tile[..., :1]).all()
        order = np.corrcoef(tile[..., 0].ravel(), latents[:, channel].numpy().ravel())
        assert order[0, 1] > 0.98


def test_pictures_compare_whatever_the_scale_and_the_mean_of_the_latents():
    latents = smooth(4)
    moved = 5.0 * latents + torch.tensor([30.0, -3.0, 0.0, 1.0])[:, None, None]
    assert np.abs(tiles(latents) - tiles(moved)).max() <= 1


def test_a_channel_that_carries_nothing_is_flat_grey():
    latents = smooth(4)
    latents[:, 2] = 7.0 + 1e-3 * latents[:, 2]
    shown = tiles(latents)
    assert np.abs(shown[:, 3] - 128).max() <= 1
    assert shown[:, 1].std() > 30


def test_colours_do_not_flip_from_one_picture_to_the_next():
    for channel in range(4):
        for seed in range(3):
            latents = smooth(4, seed)
            latents[:, channel] *= 10.0
            red = tiles(latents)[:, 0, :, :, 0].ravel()
            assert np.corrcoef(red, latents[:, channel].numpy().ravel())[0, 1] > 0.9


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_are_drawn_too(spoilt):
    latents = smooth(4)
    latents[0, 1, 0, 0] = spoilt
    shown = tiles(latents)
    assert (shown[0, 2, 0, 0] == 128).all()
    assert shown[:, 2].std() > 30
    assert tiles(torch.full((1, 4, 8, 8), spoilt)).std() == 0


def test_few_and_many_channels_make_a_picture():
    assert tiles(smooth(1)).shape == (2, 1, 8, 8, 3)
    assert latent_picture(smooth(64)).width == GAP + 17 * (128 + GAP)
