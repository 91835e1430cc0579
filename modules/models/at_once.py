"""Networks of the losses go forward and backward in one go, so that no graph of theirs stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def at_once(
    function: Callable[[Tensor], Tensor], reconstructions: Tensor, scale: Tensor | float = 1.0
) -> Tensor:
    """`function(reconstructions)`, whose gradient is taken now and whose graph is freed now.

    function: reconstructions [B, K, H, W] to a scalar, or to values [B] each of which depends on
    its own image alone; it must have nothing else to learn. The value's own backward pass only
    scales the gradient that was kept, float32 and as small as the images: it may be asked for
    twice, for the adaptive weight and for the objective, and the network still runs backward once.
    scale: float16's loss scale, within which the network goes backward.
    """
    return _AtOnce.apply(function, reconstructions, scale)


class _AtOnce(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[[Tensor], Tensor],
        reconstructions: Tensor,
        scale: Tensor | float,
    ) -> Tensor:
        if not ctx.needs_input_grad[1]:
            return function(reconstructions)
        with torch.enable_grad():
            leaf = reconstructions.detach().requires_grad_()
            value = function(leaf)
            (gradient,) = torch.autograd.grad(scale * value.sum(), leaf)
        ctx.save_for_backward(gradient / scale)
        return value.detach()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return None, upstream.reshape(-1, 1, 1, 1) * gradient, None
