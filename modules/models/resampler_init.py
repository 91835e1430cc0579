"""A start that already sees: the network begins as a linear down- and upsampler of the image.

From random weights a small autoencoder spends its first thousands of steps on discovering that a
picture has a colour at every place. Here it knows at step 0, and what it learns is added to that:
residual branches end in zeros (as in Fixup, Zhang et al. 2019), and a few channels carry the image
past them through both halves. Three facts make this work: silu(x) - silu(-x) = x, so a pair of
channels +x and -x passes an activation unharmed; a group with the constants +K and -K keeps scale
and colour through its GroupNorm; and a stride-2 convolution can average four pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from modules.errors import ArgumentError

CONSTANT = 4.0  # K: large beside the image's [-1, 1], so that it alone decides a group's deviation
LOGVAR = -6.0  # of the posterior: noise of 0.05 beside a signal of about 0.5
COLOURS = 3


@dataclass(frozen=True)
class Carrier:
    """One channel that carries +-1 times a colour of the image, or +-K."""

    channel: int
    colour: int | None
    sign: int


def start_as_resampler(vae: AutoencoderKL) -> None:
    """Overwrites the random weights of `vae`, in place; channels that carry nothing stay random.

    Latents 0 to 2 become the image's colours averaged over f x f pixels; further ones stay random.
    Raises ArgumentError when there are fewer latents than colours, or the groups are too small.
    """
    if vae.config.latent_channels < COLOURS:
        raise ArgumentError(
            f"--vae_init=resampler needs --latent_channels of at least {COLOURS}, "
            f"not {vae.config.latent_channels}"
        )
    with torch.no_grad():
        _silence_residual_branches(vae)
        encoder, decoder = vae.encoder, vae.decoder
        carriers = _carriers(encoder.conv_norm_out)
        _enter(encoder.conv_in, carriers, encoder.conv_norm_out)
        for block in encoder.down_blocks:
            _pass_through(block, carriers, encoder.conv_norm_out)
        _leave(encoder.conv_norm_out, encoder.conv_out, carriers)
        channels = vae.config.latent_channels
        encoder.conv_out.weight[channels:] *= 0.1
        encoder.conv_out.bias[channels:] = LOGVAR

        for convolution in (vae.quant_conv, vae.post_quant_conv):
            if convolution is not None:
                nn.init.eye_(convolution.weight.view(convolution.weight.shape[:2]))
                nn.init.zeros_(convolution.bias)

        carriers = _carriers(decoder.conv_norm_out)
        _enter(decoder.conv_in, carriers, decoder.conv_norm_out)
        for block in decoder.up_blocks:
            _pass_through(block, carriers, decoder.conv_norm_out)
        _leave(decoder.conv_norm_out, decoder.conv_out, carriers)


def _carriers(norm: nn.GroupNorm) -> list[Carrier]:
    """Which channels carry what, so that every group of `norm` with a colour has its constants."""
    size = norm.num_channels // norm.num_groups
    if size >= 2 * COLOURS + 2:
        groups = [range(COLOURS)]
    elif size >= 4 and norm.num_groups >= COLOURS:
        groups = [[colour] for colour in range(COLOURS)]
    else:
        raise ArgumentError(
            f"--vae_init=resampler needs groups of at least 4 channels and 3 of them, or of at "
            f"least 8; --norm_num_groups={norm.num_groups} over {norm.num_channels} channels gives "
            f"{size}"
        )
    carriers = []
    for group, colours in enumerate(groups):
        roles = [*colours, None]
        signed = [(role, sign) for role in roles for sign in (1, -1)]
        carriers += [
            Carrier(group * size + place, colour, sign)
            for place, (colour, sign) in enumerate(signed)
        ]
    return carriers


def _silence_residual_branches(vae: AutoencoderKL) -> None:
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
        if isinstance(module, Attention):
            nn.init.zeros_(module.to_out[0].weight)
            nn.init.zeros_(module.to_out[0].bias)


def _reserved(carriers: list[Carrier], norm: nn.GroupNorm) -> slice:
    """All channels of the groups that carry; those without a role there must be zero."""
    size = norm.num_channels // norm.num_groups
    return slice(0, (max(carrier.channel for carrier in carriers) // size + 1) * size)


def _clear(convolution: nn.Conv2d, reserved: slice) -> None:
    convolution.weight[reserved] = 0
    convolution.bias[reserved] = 0


def _enter(convolution: nn.Conv2d, carriers: list[Carrier], norm: nn.GroupNorm) -> None:
    """The first three inputs (colours, or latents) and the constants get onto their channels."""
    _clear(convolution, _reserved(carriers, norm))
    centre = convolution.kernel_size[0] // 2
    for carrier in carriers:
        if carrier.colour is None:
            convolution.bias[carrier.channel] = carrier.sign * CONSTANT
        else:
            convolution.weight[carrier.channel, carrier.colour, centre, centre] = carrier.sign


def _pass_through(block: nn.Module, carriers: list[Carrier], norm: nn.GroupNorm) -> None:
    """Shortcuts and resampling convolutions keep the carrying channels where they are."""
    for resnet in block.resnets:
        if resnet.conv_shortcut is not None:
            _carry(resnet.conv_shortcut, carriers, norm, torch.ones(1, 1))
    for downsampler in getattr(block, "downsamplers", None) or []:
        average = torch.zeros(3, 3)
        average[:2, :2] = 0.25  # diffusers pads on the right and below: these are the four pixels
        _carry(downsampler.conv, carriers, norm, average)
    for upsampler in getattr(block, "upsamplers", None) or []:
        repeat = torch.zeros(3, 3)
        repeat[1, 1] = 1.0
        _carry(upsampler.conv, carriers, norm, repeat)


def _carry(
    convolution: nn.Conv2d, carriers: list[Carrier], norm: nn.GroupNorm, kernel: Tensor
) -> None:
    _clear(convolution, _reserved(carriers, norm))
    for carrier in carriers:
        convolution.weight[carrier.channel, carrier.channel] = kernel


def _leave(norm: nn.GroupNorm, convolution: nn.Conv2d, carriers: list[Carrier]) -> None:
    """Undoes the normalisation and joins each pair: outputs 0 to 2 are the colours again."""
    size = norm.num_channels // norm.num_groups
    convolution.weight[:COLOURS] = 0
    convolution.bias[:COLOURS] = 0
    centre = convolution.kernel_size[0] // 2
    for carrier in carriers:
        if carrier.colour is not None:
            # In a group of `size` channels, +-K alone make a deviation of K sqrt(2 / size).
            norm.weight[carrier.channel] = CONSTANT * (2 / size) ** 0.5
            convolution.weight[carrier.colour, carrier.channel, centre, centre] = carrier.sign
