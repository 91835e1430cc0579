"""The VAE: built from scratch, described, and wrapped so that one forward serves training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from modules.image_modes import mode_of

# Widths of latent-diffusion's KL autoencoders (Rombach et al. 2022, appendix E); f8 is SD 1.5's.
DEFAULT_WIDTHS = {
    4: (128, 256, 512),
    8: (128, 256, 512, 512),
    16: (128, 128, 256, 256, 512),
    32: (128, 128, 256, 256, 512, 512),
}
MIN_GROUP_CHANNELS = 4


def build_autoencoder(
    *,
    downsample_factor: int = 8,
    latent_channels: int = 4,
    block_out_channels: tuple[int, ...] | None = None,
    layers_per_block: int = 2,
    norm_num_groups: int | None = None,
    mid_block_add_attention: bool = True,
    sample_size: int = 256,
    image_channels: int = 3,
) -> AutoencoderKL:
    """An AutoencoderKL with random weights; the defaults are SD 1.5's VAE, 83.65 M parameters.

    `block_out_channels` has log2(downsample_factor) + 1 widths. `norm_num_groups` defaults to 32,
    halved until a group of the narrowest level has at least MIN_GROUP_CHANNELS channels and every
    width is divisible.
    """
    widths = tuple(block_out_channels or DEFAULT_WIDTHS[downsample_factor])
    return AutoencoderKL(
        in_channels=image_channels,
        out_channels=image_channels,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=layers_per_block,
        latent_channels=latent_channels,
        norm_num_groups=norm_num_groups or _norm_groups(widths),
        mid_block_add_attention=mid_block_add_attention,
        sample_size=sample_size,
        scaling_factor=1.0,  # measured from the trained latents when the weights are exported
    )


def _norm_groups(widths: tuple[int, ...]) -> int:
    groups = 32
    while groups > 1 and (
        min(widths) // groups < MIN_GROUP_CHANNELS or any(width % groups for width in widths)
    ):
        groups //= 2
    return groups


def downsample_factor(vae: AutoencoderKL) -> int:
    """Image side over latent side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def latent_shape(vae: AutoencoderKL, resolution: int) -> tuple[int, int, int]:
    """(C, h, w) of the latents of one image of `resolution` x `resolution`."""
    side = resolution // downsample_factor(vae)
    return vae.config.latent_channels, side, side


def describe(vae: AutoencoderKL) -> str:
    """One line for people: "AutoencoderKL f8c4, 48x compression, 83.65 M parameters".

    The mode of the images is named where it is not RGB.
    """
    factor, channels = downsample_factor(vae), vae.config.latent_channels
    ratio = vae.config.in_channels * factor**2 / channels
    millions = sum(parameter.numel() for parameter in vae.parameters()) / 1e6
    mode = "" if mode_of(vae) == "RGB" else f" of {mode_of(vae)} images"
    size = f"{ratio:g}x compression, {millions:.2f} M parameters"
    return f"AutoencoderKL f{factor}c{channels}{mode}, {size}"


class TrainableVAE(nn.Module):
    """`forward(images, noise)` over both halves of an AutoencoderKL: what accelerate prepares.

    DistributedDataParallel synchronises gradients only for calls of the prepared module's forward;
    calling `encode` and `decode` on the unwrapped network would let the processes drift apart
    without a word. The inner `vae` is what is validated, saved and exported.
    """

    def __init__(self, vae: AutoencoderKL, decoder_only: bool = False) -> None:
        super().__init__()
        self.vae = vae
        self.encoder_context = torch.no_grad if decoder_only else nullcontext
        if decoder_only:
            vae.encoder.requires_grad_(False)
            if vae.quant_conv is not None:
                vae.quant_conv.requires_grad_(False)

    @property
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight, where the adaptive weight compares the two gradients."""
        return self.vae.decoder.conv_out.weight

    def forward(
        self, images: Tensor, noise: Tensor, change: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """Reconstructs `images` from latents drawn with the given standard normal `noise`.

        images: [B, K, H, W] in [-1, 1]; noise: [B, C, h, w]; change: what the latents go through
        before they are decoded. Returns reconstructions [B, K, H, W] (changed likewise), float32
        and unclamped, and the posterior q(z|x). Under autocast the networks run in low
        precision; the moments are float32 from here on, because accelerate widens tensors that a
        forward returns but not the inside of a distribution.
        """
        with self.encoder_context():
            moments = self.vae.encode(images).latent_dist.parameters
        posterior = DiagonalGaussianDistribution(moments.float())
        latents = posterior.mean + posterior.std * noise
        reconstructions = self.vae.decode(latents if change is None else change(latents)).sample
        return reconstructions.float(), posterior
