"""The VAE's residual blocks without what costs time or memory and changes no result.

`ResnetBlock2D` of diffusers serves U-Nets as well. In a VAE it has no time embedding, no dropout,
and divides by 1; in training it copies the shortcut's input out of the channels_last layout. The
lean forward leaves these out. Weights, names and outputs are the same.
"""

from __future__ import annotations

import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class LeanResnetBlock(ResnetBlock2D):
    """`conv2(silu(norm2(conv1(silu(norm1(x)))))) + shortcut(x)`.

    With `recompute_norm` the normalisation and activation are computed again in the backward pass:
    of each pair only the input stays in memory, in the precision of the convolution before it,
    instead of two more float32 copies under CUDA's autocast. Convolutions are not repeated.
    """

    recompute_norm = False

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None) -> Tensor:
        """input_tensor: [B, C, h, w]. `temb` exists for the caller's sake and is None in a VAE."""
        hidden_states = self.conv1(self._activate(self.norm1, input_tensor))
        hidden_states = self.conv2(self._activate(self.norm2, hidden_states))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        return input_tensor + hidden_states

    def _activate(self, norm: nn.GroupNorm, inputs: Tensor) -> Tensor:
        if self.recompute_norm and self.training:
            return checkpoint(
                _norm_silu, norm, inputs, use_reentrant=False, preserve_rng_state=False
            )
        return _norm_silu(norm, inputs)


def _norm_silu(norm: nn.GroupNorm, inputs: Tensor) -> Tensor:
    return F.silu(norm(inputs))


def make_lean(vae: AutoencoderKL, recompute_norm: bool = False) -> None:
    """Gives every residual block of `vae` the lean forward, in place; weights stay where they are.

    Blocks that are more than a VAE needs (time embedding, dropout, another activation) are kept.
    """
    for block in vae.modules():
        plain = type(block) in (ResnetBlock2D, LeanResnetBlock)
        if plain and _does_nothing_else(block):
            block.__class__ = LeanResnetBlock
            block.recompute_norm = recompute_norm


def _does_nothing_else(block: ResnetBlock2D) -> bool:
    return (
        block.time_emb_proj is None
        and block.upsample is None
        and block.downsample is None
        and block.dropout.p == 0
        and block.output_scale_factor == 1
        and isinstance(block.nonlinearity, nn.SiLU)
    )
