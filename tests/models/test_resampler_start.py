"""The start that already sees."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_arguments
from torch import Tensor

from modules.builders import banner
from modules.builders.networks import make_vae
from modules.data.images.images import normalize, to_uint8_tensor
from modules.data.images.synthetic import SyntheticImages
from modules.errors import ArgumentError
from modules.models.resampler_init import start_as_resampler


def pictures(count: int = 2, resolution: int = 64) -> Tensor:
    source = SyntheticImages(count, resolution)
    return normalize(torch.stack([to_uint8_tensor(source.open(index)) for index in range(count)]))


PICTURES = pictures()


def network(
    widths: tuple[int, ...], groups: int, latents: int = 4, channels: int = 3, **config
) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        channels, channels, ("DownEncoderBlock2D",) * len(widths), ("UpDecoderBlock2D",) * len(
        widths), widths, latent_channels=latents, norm_num_groups=groups, **config,
    )  # fmt: skip


@st.composite
def networks(draw: st.DrawFn) -> AutoencoderKL:
    """f2 to f32, up to 16 latents of images of 1 to 4 channels, groups of 3 channels and more."""
    latents, channels = draw(st.integers(1, 16)), draw(st.integers(1, 4))
    size = draw(st.integers(3, 12))
    groups = draw(st.integers(-(-channels // ((size - 1) // 2)), 6))  # enough for all channels
    growth = sorted(draw(st.lists(st.integers(1, 3), min_size=1, max_size=5)))
    widths = (size * groups, *(size * groups * factor for factor in growth))
    return network(widths, groups, latents, channels, use_quant_conv=draw(st.booleans()))


def resampled(images: Tensor, vae: AutoencoderKL) -> tuple[Tensor, Tensor]:
    """The latents and the picture that the network gives."""
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
        return posterior.mean, vae.decode(posterior.mode()).sample


@settings(max_examples=25)
@given(networks())
def test_it_starts_as_the_average_of_each_square(vae: AutoencoderKL) -> None:
    start_as_resampler(vae)
    channels, latents = vae.config.in_channels, vae.config.latent_channels
    images = torch.cat([PICTURES, PICTURES.flip(2)], dim=1)[:, :channels]
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    means, output = resampled(images, vae)
    if latents < channels:  # what the channels have in common is there
        means, output, images = means[:, :1], output.mean(1, True), images.mean(1, True)
    squares = F.avg_pool2d(images, factor)
    assert F.mse_loss(means[:, : images.shape[1]], squares).sqrt() < 0.02
    assert F.mse_loss(output, F.interpolate(squares, scale_factor=factor)).sqrt() < 0.04


def test_two_latents_of_three_colours_carry_brightness_and_blue_against_yellow() -> None:
    vae = network((16, 32), groups=2, latents=2)
    start_as_resampler(vae)
    red, green, blue = F.avg_pool2d(PICTURES, 2).split(1, dim=1)
    wanted = torch.cat([(red + green + blue) / 3, (red - blue) / 2], dim=1)
    assert F.mse_loss(resampled(PICTURES, vae)[0], wanted).sqrt() < 0.02


def test_groups_too_few_for_all_colours_carry_their_mean() -> None:
    vae = network((4, 16), groups=1)
    start_as_resampler(vae)
    output = resampled(PICTURES, vae)[1]
    assert output.std(dim=1).max() < 1e-4
    grey = PICTURES.mean(dim=1)
    assert F.mse_loss(output[:, 0], grey) < 0.2 * grey.var()


@pytest.mark.parametrize(("widths", "groups"), [((16, 16), 8), ((2, 64), 2), ((64, 2), 1)])
def test_groups_that_cannot_carry_an_image_are_refused(widths, groups) -> None:
    with pytest.raises(ArgumentError, match=r"at least 3 channels.*--norm_num_groups"):
        start_as_resampler(network(widths, groups))


def test_every_vae_from_scratch_starts_so_where_it_can_and_the_banner_says_how() -> None:
    def start(flags: str) -> tuple[dict[str, Tensor], str]:
        args = tiny_arguments(flags)
        vae = make_vae(args)
        return vae.state_dict(), banner.networks(args, vae)["Start"]

    for flags, same, different, said in (
        ("", "--vae_init resampler", "--vae_init random", "a linear down- and upsampler"),
        ("--norm_num_groups 8", "--norm_num_groups 8 --vae_init random", "", "random weights: the"),
    ):
        weights, text = start(flags)
        assert text.startswith(said)
        assert all(torch.equal(weights[name], value) for name, value in start(same)[0].items())
        other, _ = start(different)
        assert not torch.equal(weights["decoder.conv_out.weight"], other["decoder.conv_out.weight"])
    assert "random weights, as --vae_init says" in start("--vae_init random")[1]
    with pytest.raises(ArgumentError, match="8 groups over 8 channels"):
        start("--norm_num_groups 8 --vae_init resampler")


def test_every_weight_learns_after_the_first_step() -> None:
    vae = network((16, 16, 32, 32), groups=2)
    start_as_resampler(vae)
    optimizer = torch.optim.SGD(vae.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        posterior = vae.encode(PICTURES).latent_dist
        output = vae.decode(posterior.mean + posterior.std * torch.randn_like(posterior.mean))
        (F.mse_loss(output.sample, PICTURES) + 1e-6 * posterior.kl().mean()).backward()
        optimizer.step()
    still = [name for name, p in vae.named_parameters() if not p.grad.abs().sum() > 0]
    assert [name for name in still if not name.endswith("to_k.bias")] == []  # softmax ignores it
