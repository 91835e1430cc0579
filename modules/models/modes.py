"""Temporary modes of a network, as context managers that put back exactly what they found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[nn.Module]:
    """Every submodule in eval mode; afterwards each is back in the mode it had itself."""
    training = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield module
    finally:
        for submodule, mode in training:
            submodule.training = mode


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """No gradients for the parameters, and eval mode, so that buffers stand still too.

    A discriminator that judges for the generator is frozen: its `.grad` stays as it was and its
    spectral norm's power iteration does not move. Gradients still flow through it to its input.
    SyncBatchNorm alone stays as it is: in eval mode it would no longer see the whole batch.
    """
    requires_grad = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.requires_grad_(False)
    try:
        with eval_mode(module):
            for submodule in module.modules():
                submodule.training = isinstance(submodule, nn.SyncBatchNorm)
            yield module
    finally:
        for parameter, required in requires_grad:
            parameter.requires_grad_(required)
