"""A start that already sees: the network begins as a linear down- and upsampler of the image.

From random weights an autoencoder spends its first thousands of steps on discovering that a picture
has a colour at every place. Here it knows at step 0, and what it learns is added to that: residual
branches end in zeros (as in Fixup, Zhang et al. 2019), and a few channels carry the image past them
through both halves. Three facts make this work: act(x) - act(-x) = x for silu, gelu and relu, so a
pair of channels +x and -x passes an activation unharmed; a large constant in their group decides
its deviation, so that scale and colour survive its GroupNorm; and a convolution of stride 2 can
average four pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from modules.errors import ArgumentError

CONSTANT = 8.0  # large beside the image's [-1, 1]
ENERGY = 0.3  # mean square of an image, or of the latents that carry it
LOGVAR = -6.0  # of the posterior: noise of 0.05 beside a signal of about 0.5


def _separable(*taps: float) -> Tensor:
    return torch.outer(torch.tensor(taps), torch.tensor(taps))


POINT = torch.ones(1, 1)
CENTRE = _separable(0.0, 1.0, 0.0)
AVERAGE = _separable(0.5, 0.5, 0.0)  # diffusers pads on the right and below: these are four pixels


class Slot(NamedTuple):
    """The channels of one group that carry +x, -x and the group's constant."""

    plus: int
    minus: int
    constant: int


def start_as_resampler(vae: AutoencoderKL) -> None:
    """Overwrites the random weights of `vae`, in place; channels that carry nothing stay random.

    The first latents become the image's channels averaged over f x f pixels, or, where latents or
    groups are too few for all of them, their mean and coarsest differences; further latents stay
    random. Raises ArgumentError where no group has a channel each for +x, -x and a constant.
    """
    encoder, decoder = vae.encoder, vae.decoder
    slots, count = _slots(vae), carried(vae)
    if count == 0:
        raise ArgumentError(
            f"--vae_init=resampler needs GroupNorm groups of at least 3 channels; "
            f"{vae.config.norm_num_groups} groups over {min(vae.config.block_out_channels)} "
            "channels are smaller: lower --norm_num_groups, or use --vae_init=random"
        )
    # The network may be without data, on PyTorch's "meta" device; what is written into it is not.
    with torch.no_grad(), torch.device("cpu"):
        mixing = _mixing(vae.config.in_channels, count)
        _silence_residual_branches(vae)
        _carry(encoder, encoder.down_blocks, slots[0][:count], mixing, torch.eye(count))
        _carry(decoder, decoder.up_blocks, slots[1][:count], torch.eye(count),
               torch.linalg.pinv(mixing))  # fmt: skip
        channels = vae.config.latent_channels
        encoder.conv_out.weight[channels:] *= 0.1
        encoder.conv_out.bias[channels:] = LOGVAR
        for convolution in (vae.quant_conv, vae.post_quant_conv):
            if convolution is not None:
                convolution.weight[:, :, 0, 0] = torch.eye(len(convolution.weight))
                nn.init.zeros_(convolution.bias)


def carried(vae: AutoencoderKL) -> int:
    """How many of the image's channels, or of their mixtures, this start can carry; 0 is none."""
    return min(vae.config.in_channels, vae.config.latent_channels, *map(len, _slots(vae)))


def _slots(vae: AutoencoderKL) -> list[list[Slot]]:
    """Where an x can go so that the last norm keeps it: in the encoder, and in the decoder."""
    width, found = min(vae.config.block_out_channels), []
    for norm in (vae.encoder.conv_norm_out, vae.decoder.conv_norm_out):
        size = norm.num_channels // norm.num_groups
        found.append([
            Slot(plus, plus + 1, constant)
            for constant in range(0, norm.num_channels, size)
            for plus in range(constant + 1, constant + size - 1, 2)
            if plus + 1 < width
        ])  # fmt: skip
    return found


def _mixing(channels: int, count: int) -> Tensor:
    """What is carried, from the image's channels: [count, channels], rows of absolute sum 1.

    All of them as they are, or the first rows of a cosine transform over them: the mean, then for
    RGB (R - B) / 2, which is also where most of a photograph's remaining energy is.
    """
    if count == channels:
        return torch.eye(channels)
    places = (torch.arange(channels) + 0.5) / channels
    rows = torch.cos(math.pi * torch.arange(count)[:, None] * places)
    return rows / rows.abs().sum(dim=1, keepdim=True)


def _silence_residual_branches(vae: AutoencoderKL) -> None:
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
        if isinstance(module, Attention):
            nn.init.zeros_(module.to_out[0].weight)
            nn.init.zeros_(module.to_out[0].bias)


def _carry(
    half: nn.Module,
    blocks: nn.ModuleList,
    slots: list[Slot],
    enter: Tensor,
    leave: Tensor,
) -> None:
    """Makes an encoder or decoder pass its inputs along `slots`, through `blocks`.

    enter: [slots, inputs], of which first inputs
    each slot's x is made.
    leave: [outputs, slots], what the first outputs are made of.
    """
    norm = half.conv_norm_out
    size = norm.num_channels // norm.num_groups
    reserved = (slots[-1].constant // size + 1) * size  # what these groups hold besides must be 0
    path = [(half.conv_in, CENTRE)]
    for block in blocks:
        shortcuts = [resnet.conv_shortcut for resnet in block.resnets]
        path += [(shortcut, POINT) for shortcut in shortcuts if shortcut is not None]
        path += [(down.conv, AVERAGE) for down in getattr(block, "downsamplers", None) or []]
        path += [(up.conv, CENTRE) for up in getattr(block, "upsamplers", None) or []]

    for convolution, kernel in path:
        centre = convolution.kernel_size[0] // 2
        convolution.weight[:reserved] = 0
        convolution.bias[:reserved] = 0
        for index, (plus, minus, constant) in enumerate(slots):
            if convolution is half.conv_in:
                convolution.weight[plus, : enter.shape[1]] = enter[index, :, None, None] * kernel
                convolution.weight[minus] = -convolution.weight[plus]
                convolution.bias[constant] = CONSTANT
            else:
                convolution.weight[plus, plus] = convolution.weight[minus, minus] = kernel
                convolution.weight[constant, constant, centre, centre] = 1

    outputs, centre = len(leave), half.conv_out.kernel_size[0] // 2
    half.conv_out.weight[:outputs] = 0
    half.conv_out.bias[:outputs] = 0
    for index, (plus, minus, constant) in enumerate(slots):
        # The norm takes the mean K / size from its group and divides by the deviation; undo both.
        energy = 2 * ENERGY * sum(slot.constant == constant for slot in slots) / size
        deviation = math.sqrt(CONSTANT**2 * (size - 1) / size**2 + energy)
        for channel, sign in ((plus, 1), (minus, -1)):
            norm.weight[channel], norm.bias[channel] = deviation, CONSTANT / size
            half.conv_out.weight[:outputs, channel, centre, centre] = sign * leave[:, index]
