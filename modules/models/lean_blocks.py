"""The VAE's blocks without what costs time or memory and changes no result.

`ResnetBlock2D` of diffusers serves U-Nets as well. In a VAE it has no time embedding, no dropout,
and divides by 1; in training it copies the shortcut's input out of the channels_last layout.
`Upsample2D` convolves a picture in which every pixel stands four times, so that a 3x3 kernel covers
only four different ones. The lean forwards leave these out. Weights and names are the same, and so
are outputs, but for the order in which upsampling adds up.

With `recompute_cheap` everything but convolutions and attention is computed again in the backward
pass. A convolution's weight gradient needs its input, which is what normalisation and activation
returned: of each such pair only the first input stays in memory, in the precision of the
convolution before it. Convolutions themselves are not repeated: `checkpoint` stops as soon as it
has what the backward pass asks for, and the convolution's input is the last of that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class LeanResnetBlock(ResnetBlock2D):
    """`conv2(silu(norm2(conv1(silu(norm1(x)))))) + shortcut(x)`."""

    recompute_cheap = False

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None) -> Tensor:
        """input_tensor: [B, C, h, w]. `temb` exists for the caller's sake and is None in a VAE."""
        again = self.recompute_cheap and self.training
        act = self.nonlinearity
        hidden_states = _run(again, _norm_act_conv, self.norm1, act, self.conv1, input_tensor)
        hidden_states = _run(again, _norm_act_conv, self.norm2, act, self.conv2, hidden_states)
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        return input_tensor + hidden_states


class LeanUpsample(Upsample2D):
    """`conv(twice the size, nearest neighbour)`, without making the larger picture to train on.

    In eval mode the arithmetic is diffusers' to the bit, so that what is measured is what the
    exported file gives.
    """

    def forward(self, hidden_states: Tensor, output_size: int | None = None) -> Tensor:
        """[B, C, h, w] to [B, C, 2h, 2w]. `output_size` is None in a VAE."""
        if not self.training:
            return super().forward(hidden_states, output_size)
        kernel = upsampling_kernel(self.conv.weight)
        return F.conv_transpose2d(hidden_states, kernel, self.conv.bias, stride=2, padding=1)


def upsampling_kernel(weight: Tensor) -> Tensor:
    """The transposed convolution that equals nearest-neighbour upsampling and a 3x3 convolution.

    weight: [O, I, 3, 3], of a convolution with padding 1. Returns [I, O, 4, 4], for stride 2 and
    padding 1. An input pixel becomes 2 x 2 equal ones; the weights with which they reach the same
    output pixel are added here, once. That leaves 16 products for an input pixel instead of 36.
    """
    sums = F.pad(weight, (1, 1, 1, 1))
    sums = sums[..., 1:, :] + sums[..., :-1, :]
    sums = sums[..., 1:] + sums[..., :-1]
    return sums.flip(-2, -1).transpose(0, 1)


def _run(again: bool, function: Callable[..., Tensor], *inputs: nn.Module | Tensor) -> Tensor:
    if not again:
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def _norm_act_conv(norm: nn.GroupNorm, act: nn.Module, conv: nn.Conv2d, inputs: Tensor) -> Tensor:
    return conv(act(norm(inputs)))


def make_lean(vae: AutoencoderKL, recompute_cheap: bool = False) -> None:
    """Gives every residual block and upsampler of `vae` the lean forward, in place.

    Weights stay where they are. Blocks that are more than a VAE needs (time embedding, dropout,
    another activation, a transposed convolution) are kept.
    """
    for block in vae.modules():
        if type(block) in (ResnetBlock2D, LeanResnetBlock) and _is_plain_residual(block):
            block.__class__ = LeanResnetBlock
            block.recompute_cheap = recompute_cheap
        elif type(block) is Upsample2D and _is_plain_upsampler(block):
            block.__class__ = LeanUpsample


def _is_plain_residual(block: ResnetBlock2D) -> bool:
    return (
        block.time_emb_proj is None
        and block.upsample is None
        and block.downsample is None
        and block.dropout.p == 0
        and block.output_scale_factor == 1
        and isinstance(block.nonlinearity, nn.SiLU)
    )


def _is_plain_upsampler(block: Upsample2D) -> bool:
    return (
        block.norm is None
        and block.use_conv
        and not block.use_conv_transpose
        and block.interpolate
        and block.name == "conv"
        and block.conv.kernel_size == (3, 3)
    )
