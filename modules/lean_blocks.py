"""The VAE's blocks without what costs time or memory and changes no result.

`ResnetBlock2D` of diffusers serves U-Nets as well. In a VAE it has no time embedding, no dropout,
and divides by 1; in training it copies the shortcut's input out of the channels_last layout. CUDA's
autocast widens nearest-neighbour upsampling, which only copies, to float32. The lean forwards leave
these out. Weights, names and outputs are the same.

With `recompute_cheap` everything but convolutions and attention is computed again in the backward
pass. A convolution's weight gradient needs its input, which is what normalisation, activation or
upsampling returned: of each such group only the first input stays in memory, in the precision of
the convolution before it. Convolutions themselves are not repeated: `checkpoint` stops as soon as
it has what the backward pass asks for, and the convolution's input is the last of that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

INDEX_LIMIT = 2**31  # elements; above it the channels_last kernel of upsampling fails


class LeanResnetBlock(ResnetBlock2D):
    """`conv2(silu(norm2(conv1(silu(norm1(x)))))) + shortcut(x)`."""

    recompute_cheap = False

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None) -> Tensor:
        """input_tensor: [B, C, h, w]. `temb` exists for the caller's sake and is None in a VAE."""
        again = self.recompute_cheap and self.training
        hidden_states = _run(again, _norm_silu_conv, self.norm1, self.conv1, input_tensor)
        hidden_states = _run(again, _norm_silu_conv, self.norm2, self.conv2, hidden_states)
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        return input_tensor + hidden_states


class LeanUpsample(Upsample2D):
    """`conv(twice the size, nearest neighbour)`, in the precision of its input."""

    recompute_cheap = False

    def forward(self, hidden_states: Tensor, output_size: int | None = None) -> Tensor:
        """[B, C, h, w] to [B, C, 2h, 2w]. `output_size` is None in a VAE."""
        again = self.recompute_cheap and self.training
        return _run(again, _upsample_conv, self.conv, hidden_states)


def _run(again: bool, function: Callable[..., Tensor], *inputs: nn.Module | Tensor) -> Tensor:
    if not again:
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def _norm_silu_conv(norm: nn.GroupNorm, conv: nn.Conv2d, inputs: Tensor) -> Tensor:
    return conv(F.silu(norm(inputs)))


def _upsample_conv(conv: nn.Conv2d, inputs: Tensor) -> Tensor:
    if 4 * inputs.numel() > INDEX_LIMIT:
        inputs = inputs.contiguous()
    with torch.autocast(inputs.device.type, enabled=False):
        larger = F.interpolate(inputs, scale_factor=2.0, mode="nearest")
    return conv(larger)


def make_lean(vae: AutoencoderKL, recompute_cheap: bool = False) -> None:
    """Gives every residual block and upsampler of `vae` the lean forward, in place.

    Weights stay where they are. Blocks that are more than a VAE needs (time embedding, dropout,
    another activation, a transposed convolution) are kept.
    """
    for block in vae.modules():
        if type(block) in (ResnetBlock2D, LeanResnetBlock) and _is_plain_residual(block):
            block.__class__ = LeanResnetBlock
            block.recompute_cheap = recompute_cheap
        elif type(block) in (Upsample2D, LeanUpsample) and _is_plain_upsampler(block):
            block.__class__ = LeanUpsample
            block.recompute_cheap = recompute_cheap


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
    )
