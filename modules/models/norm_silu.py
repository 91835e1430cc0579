"""GroupNorm and SiLU as one step of training on a GPU, in channels_last.

PyTorch runs the two one after the other. Under autocast both are in float32, so each pair widens a
picture, keeps it twice for the backward pass, and narrows it again; and GroupNorm's kernel wants
NCHW, where convolutions want channels_last. Together they read and write a picture in the precision
of its convolution, compute in float32, and keep only their input.
"""

from __future__ import annotations

import logging
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from modules.distributed.reduce import gather_from_processes
from modules.errors import one_line
from modules.models.lean_blocks import LeanResnetBlock

logger = logging.getLogger(__name__)


def kernels() -> ModuleType:
    """Those of Triton, which not every installation has."""
    return import_module("modules.models.norm_silu_kernels")


class GroupNormSiLU(nn.GroupNorm):
    """`silu(group_norm(x))`; in eval mode as diffusers computes it, to the bit."""

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, C, h, w], of the precision that a convolution would have here."""
        if not self.training:
            return F.silu(super().forward(inputs))
        dtype, device = inputs.dtype, inputs.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        return _NormSiLU.apply(inputs, self.weight, self.bias, self.num_groups, self.eps, dtype)


class _NormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        dtype: torch.dtype,
    ) -> Tensor:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.cuda.device_of(inputs):  # where Triton launches; autograd sees to it itself
            output, moments = kernels().forward(inputs, weight, bias, groups, eps, dtype)
        ctx.save_for_backward(inputs, moments, weight, bias)
        return output

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        upstream = upstream.contiguous(memory_format=torch.channels_last)
        gradient, (of_bias, of_weight) = kernels().backward(upstream, *ctx.saved_tensors)
        return gradient, of_weight, of_bias, None, None, None


def can_fuse(device: torch.device) -> bool:
    """Whether the kernels run in every process; a warning says why not, where these have GPUs.

    They need Triton, a C compiler and a GPU from Volta on. Collective: the layout of weights hangs
    on the answer, and DDP wants it the same everywhere.
    """
    if device.type != "cuda":
        return False
    failures = [text for text in gather_from_processes([_failure(device)]) if text is not None]
    if failures:
        logger.warning(
            "GroupNorm and SiLU run apart, in half as much time again and up to twice the memory: "
            f"Triton does not work here ({failures[0]}). On Linux it comes with PyTorch and needs "
            "gcc and Python's headers (python3-dev); on Windows, pip install triton-windows"
        )
    return not failures


def _failure(device: torch.device) -> str | None:
    """What the kernels say of `device`, if anything."""
    try:
        ones = torch.ones(1, 2, 2, 2, device=device, requires_grad=True)
        GroupNormSiLU(2, 2, device=device)(ones).sum().backward()
    except Exception as error:  # of Triton, of the compiler that it calls, or of the driver
        return one_line(error)
    return None


def fuse_norms(vae: AutoencoderKL) -> bool:
    """Joins the GroupNorms of lean blocks, and those before `conv_out`, with the SiLU after them.

    In place; weights and their names stay. Attention's norm has no SiLU after it. False, and
    nothing done, where no block is lean, as in a network of another activation.
    """
    lean = [block for block in vae.modules() if isinstance(block, LeanResnetBlock)]
    if not lean:
        return False
    for block in lean:
        block.nonlinearity = nn.Identity()
        block.norm1.__class__ = block.norm2.__class__ = GroupNormSiLU
    for half in (vae.encoder, vae.decoder):
        half.conv_act = nn.Identity()
        half.conv_norm_out.__class__ = GroupNormSiLU
    return True
