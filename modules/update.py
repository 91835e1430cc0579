"""The mechanics of an optimizer update, decided on the device so that the host never waits."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn


def clip_gradients(optimizer: Any, max_norm: float) -> Tensor:
    """Scales the gradients of its parameters to a norm of at most `max_norm`; returns what it was.

    0 leaves them as they are. A norm that is not finite makes the gradients worthless; the caller
    then skips the update.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def step_unless(skip: Tensor, optimizer: Any) -> None:
    """`optimizer.step()`, or nothing at all where `skip` (a float scalar on the device) is 1.

    PyTorch's fused optimizers take `found_inf`, the switch made for gradient scaling: with it the
    kernel leaves weights, moments and step count as they are, and the host need not know. Others
    (8-bit AdamW) have no such switch, and the host has to ask.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if inner.defaults.get("fused"):
        inner.found_inf = skip
        inner.grad_scale = None
        optimizer.step()
        del inner.found_inf, inner.grad_scale
    elif not skip.item():
        optimizer.step()


def loss_scale(accelerator: Accelerator) -> Tensor | float:
    """The factor on losses that keeps float16 gradients from vanishing; 1 for other precisions."""
    if accelerator.scaler is None:
        return 1.0
    return accelerator.scaler.scale(torch.ones((), device=accelerator.device))


def unscale(accelerator: Accelerator, optimizers: list[Any]) -> None:
    """Takes the loss scale out of the gradients, before they are measured and clipped."""
    if accelerator.scaler is not None:
        for optimizer in optimizers:
            accelerator.scaler.unscale_(optimizer.optimizer)


def adapt_loss_scale(accelerator: Accelerator) -> None:
    """Lowers the loss scale after an overflow, raises it after many updates without one.

    It stays at 1 or more: NaN, which no scale helps, must not leave one at which all gradients
    vanish and that needs thousands of updates for each doubling.
    """
    if accelerator.scaler is not None:
        accelerator.scaler.update()
        accelerator.scaler.update(loss_scale(accelerator).clamp(min=1.0))
