"""torch.compile where it pays, in place, so that names in checkpoints stay as they are."""

from __future__ import annotations

from diffusers import AutoencoderKL
from torch import nn


def compile_networks(vae: AutoencoderKL, perceptual: nn.Module | None, any_shape: bool) -> None:
    """Compiles the VAE's blocks and LPIPS: for the shapes they first see, or for any shape.

    PyTorch compiles a kind of block for eight shapes at most, and then runs it uncompiled. The
    blocks, and not the whole forward: the adaptive weight runs `conv_out` backward alone, which
    it could not if that were part of one compiled graph. An error of the compiler ends the run.
    """
    blocks = [*vae.encoder.down_blocks, vae.encoder.mid_block]
    blocks += [vae.decoder.mid_block, *vae.decoder.up_blocks]
    if perceptual is not None:
        blocks.append(perceptual.network)
    for block in blocks:
        block.compile(dynamic=any_shape)
