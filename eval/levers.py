"""The trainer without one of the things that make it fast, to measure what each is worth.

Each function takes a run as the script made it and takes one lever back, in place. The mathematics
stays the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D

from modules.lean_blocks import LeanResnetBlock, LeanUpsample
from modules.run import Run


def undo_channels_last(run: Run) -> None:
    """Weights and images in PyTorch's default layout, NCHW.

    What the mid-block's attention returns is channels_last all the same, by its transposition, and
    so is the decoder after it.
    """
    run.layout = torch.contiguous_format
    for network in (run.raw_vae, run.raw_discriminator):
        network.to(memory_format=run.layout)


def undo_lean_blocks(run: Run) -> None:
    """Residual blocks as diffusers runs them."""
    for block in run.raw_vae.modules():
        if isinstance(block, LeanResnetBlock):
            block.__class__ = ResnetBlock2D


def undo_lean_upsampling(run: Run) -> None:
    """Upsampling as diffusers runs it: the larger picture first, then the convolution."""
    for block in run.raw_vae.modules():
        if isinstance(block, LeanUpsample):
            block.__class__ = Upsample2D


def undo_fused_adamw(run: Run) -> None:
    """AdamW as PyTorch chooses by default: tensor by tensor on a CPU, foreach on a GPU."""
    for prepared in (run.optimizer_vae, run.optimizer_disc):
        optimizer = prepared.optimizer
        for options in (optimizer.defaults, *optimizer.param_groups):
            options["fused"] = None


UNDO: dict[str, Callable[[Run], None]] = {
    "no-channels-last": undo_channels_last,
    "no-lean-blocks": undo_lean_blocks,
    "no-lean-upsampling": undo_lean_upsampling,
    "no-fused-adamw": undo_fused_adamw,
}
