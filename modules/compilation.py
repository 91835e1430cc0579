"""torch.compile where it pays, in place, so that names in checkpoints stay as they are."""

from __future__ import annotations

from diffusers import AutoencoderKL
from torch import nn

from modules.discriminator import NLayerDiscriminator


def compile_networks(
    vae: AutoencoderKL,
    discriminator: NLayerDiscriminator,
    perceptual: nn.Module | None,
    any_shape: bool,
) -> None:
    """Compiles the networks' insides: for the shapes they first see, or for any shape.

    PyTorch compiles a kind of block for eight shapes at most, and then runs it uncompiled. The
    VAE's blocks, and not its whole forward: the adaptive weight runs `conv_out` backward alone,
    which it could not if that were part of one compiled graph. The discriminator's layers, and not
    its forward: compiled, spectral norm's power iteration would end elsewhere. An error of the
    compiler ends the run.
    """
    blocks = [*vae.encoder.down_blocks, vae.encoder.mid_block]
    blocks += [vae.decoder.mid_block, *vae.decoder.up_blocks, discriminator.model]
    if perceptual is not None:
        blocks.append(perceptual.network)
    for block in blocks:
        block.compile(dynamic=any_shape)
