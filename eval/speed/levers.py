"""The trainer without one of the things that make it fast, to measure what each is worth.

Each function takes a run as the script made it and takes one lever back, in place. The mathematics
stays the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from modules.models.lean_blocks import LeanResnetBlock, LeanUpsample
from modules.models.norm_silu import GroupNormSiLU
from modules.training.run import Run


def undo_layout(run: Run) -> None:
    """Weights and images in the layout that `convolution_layout` did not choose.

    What the mid-block's attention returns is channels_last in both, by its transposition, and so
    is the decoder after it.
    """
    nchw = run.layout == torch.contiguous_format
    run.layout = torch.channels_last if nchw else torch.contiguous_format
    for network in (run.raw_vae, run.raw_discriminator):
        network.to(memory_format=run.layout)


def undo_lean(lean: type[nn.Module], plain: type[nn.Module], run: Run) -> None:
    """Blocks as diffusers runs them: all activations kept; upsampling first, then convolution."""
    for block in run.raw_vae.modules():
        if isinstance(block, lean):
            block.__class__ = plain


def undo_fused_adamw(run: Run) -> None:
    """AdamW as PyTorch chooses by default: tensor by tensor on a CPU, foreach on a GPU."""
    for prepared in (run.optimizer_vae, run.optimizer_disc):
        optimizer = prepared.optimizer
        for options in (optimizer.defaults, *optimizer.param_groups):
            options["fused"] = None


def undo_fused_norms(run: Run) -> None:
    """GroupNorm and SiLU apart, in NCHW, as on a GPU where Triton does not work."""
    for block in run.raw_vae.modules():
        if isinstance(block, GroupNormSiLU):
            block.__class__ = nn.GroupNorm
        if isinstance(getattr(block, "nonlinearity", None), nn.Identity):
            block.nonlinearity = nn.SiLU()
    for half in (run.raw_vae.vae.encoder, run.raw_vae.vae.decoder):
        half.conv_act = nn.SiLU()
    if run.accelerator.device.type == "cuda" and run.layout == torch.channels_last:
        undo_layout(run)


UNDO: dict[str, Callable[[Run], None]] = {
    "no-fused-norms": undo_fused_norms,
    "other-layout": undo_layout,
    "no-lean-blocks": partial(undo_lean, LeanResnetBlock, ResnetBlock2D),
    "no-lean-upsampling": partial(undo_lean, LeanUpsample, Upsample2D),
    "no-fused-adamw": undo_fused_adamw,
}
