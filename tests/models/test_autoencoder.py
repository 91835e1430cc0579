"""Building, describing and wrapping the VAE."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL

from modules.models.autoencoder import (
    DEFAULT_WIDTHS,
    TrainableVAE,
    build_autoencoder,
    describe,
    downsample_factor,
    latent_shape,
)


def test_default_is_the_vae_of_stable_diffusion() -> None:
    with torch.device("meta"):
        vae = build_autoencoder()
    assert describe(vae) == "AutoencoderKL f8c4, 48x compression, 83.65 M parameters"
    assert vae.config.norm_num_groups == 32
    assert latent_shape(vae, 256) == (4, 32, 32)


@pytest.mark.parametrize("factor", list(DEFAULT_WIDTHS))
def test_every_factor_shrinks_the_image_by_itself(factor: int) -> None:
    widths = (8,) * len(DEFAULT_WIDTHS[factor])
    vae = build_autoencoder(
        downsample_factor=factor, latent_channels=6, block_out_channels=widths, layers_per_block=1
    )
    assert downsample_factor(vae) == factor
    moments = vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist
    assert moments.mean.shape[1:] == latent_shape(vae, 64) == (6, 64 // factor, 64 // factor)
    assert vae.decode(moments.mean).sample.shape == (1, 3, 64, 64)


@pytest.mark.parametrize("width", [8, 16, 24, 32, 48, 64, 100, 128])
def test_no_group_of_a_small_network_is_a_single_channel(width: int) -> None:
    vae = build_autoencoder(
        downsample_factor=4, block_out_channels=(width,) * 3, layers_per_block=1
    )
    groups = vae.config.norm_num_groups
    assert width % groups == 0
    assert width // groups >= 4
    assert groups <= 32


def test_wrapper_is_encode_then_sample_then_decode() -> None:
    vae = build_autoencoder(block_out_channels=(8,) * 4, layers_per_block=1)
    images, noise = torch.randn(2, 3, 32, 32), torch.randn(2, 4, 4, 4)
    reconstructions, posterior = TrainableVAE(vae)(images, noise)
    expected = vae.encode(images).latent_dist
    torch.testing.assert_close(posterior.mean, expected.mean)
    torch.testing.assert_close(
        reconstructions, vae.decode(expected.mean + expected.std * noise).sample
    )


def test_frozen_encoder_keeps_no_graph() -> None:
    vae = build_autoencoder(block_out_channels=(8,) * 4, layers_per_block=1)
    wrapper = TrainableVAE(vae, decoder_only=True)
    reconstructions, posterior = wrapper(torch.randn(1, 3, 32, 32), torch.randn(1, 4, 4, 4))
    assert not posterior.mean.requires_grad
    assert reconstructions.requires_grad
    frozen = {n.split(".")[0] for n, p in vae.named_parameters() if not p.requires_grad}
    assert frozen == {"encoder", "quant_conv"}


def test_last_layer_gradient_needs_the_last_layer_alone() -> None:
    wrapper = TrainableVAE(build_autoencoder(block_out_channels=(8,) * 4, layers_per_block=1))
    reconstructions, _ = wrapper(torch.randn(1, 3, 32, 32), torch.randn(1, 4, 4, 4))
    ran = []
    for name, module in wrapper.vae.named_modules():
        if not list(module.children()):
            module.register_full_backward_hook(lambda *_, name=name: ran.append(name))
    torch.autograd.grad(
        reconstructions, wrapper.last_layer, torch.ones_like(reconstructions), retain_graph=True
    )
    assert ran == []
    assert isinstance(wrapper.vae, AutoencoderKL)
