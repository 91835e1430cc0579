"""torch.compile where it pays, in place, so that names in checkpoints stay as they are."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import nn

from modules.models.discriminator import Discriminator

# Of each block, where the steps of a run need three at most: with gradients, without, for another
# batch size (the discriminator's two turns, LPIPS' last slice). Dynamic shapes add a few that have
# a side of 1.
GRAPHS_PER_BLOCK = 8


def require_compiler(device: torch.device) -> None:
    """Compiles a sum: where no compiler works, that is known before anything is measured."""
    torch.compile(lambda number: number + 1)(torch.zeros(2, device=device))


def compile_networks(
    vae: AutoencoderKL,
    discriminator: Discriminator,
    perceptual: nn.Module | None,
    any_shape: bool,
) -> None:
    """Compiles the networks' insides: for the shapes they first see, or for any shape.

    The VAE's blocks, and not its whole forward: the adaptive weight runs `conv_out` backward alone,
    which it could not if that were part of one compiled graph. The discriminator's layers, and not
    its forward: compiled, spectral norm's power iteration would end elsewhere. An error of the
    compiler ends the run, and so does a block that needs ever new graphs: PyTorch would run it
    uncompiled from then on. PyTorch counts the graphs of all blocks of one class together.
    Validation is not compiled (`eval.metrics.precise`), and makes no graphs.
    """
    blocks = [*vae.encoder.down_blocks, vae.encoder.mid_block]
    blocks += [vae.decoder.mid_block, *vae.decoder.up_blocks, *discriminator.blocks]
    if perceptual is not None:
        blocks.append(perceptual.network)
    torch._dynamo.config.recompile_limit = GRAPHS_PER_BLOCK * len(blocks)
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for block in blocks:
        block.compile(dynamic=any_shape)
