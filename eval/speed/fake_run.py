"""A run without memory: the real training loop over fake tensors, which have shapes and no data.

Everything is as on one GPU but for three stand-ins. The tensors are CPU tensors, because autograd
cannot go backward on a device that is not there. `cuda_autocast` adds what autocast does on CUDA
only. And a few lines stand for accelerate, which moves networks in a way fake tensors do not allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from eval.speed.script import skip_to_full_gan, training_script
from eval.speed.textbook_step import DTYPES
from modules.builders import run as builder
from modules.builders.networks import make_discriminator, make_perceptual, make_vae
from modules.config.arguments import Arguments
from modules.models.autoencoder import TrainableVAE
from modules.training.run import Run

LAYOUT = torch.channels_last  # on a GPU


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Under autocast group_norm and interpolate work in float32: so on CUDA, not on the CPU.

    The other functions of a step that the two devices treat differently are outside of autocast.
    """
    with ExitStack() as stack:
        for name in ("group_norm", "interpolate"):
            stack.enter_context(patch.object(F, name, _widened(getattr(F, name))))
        yield


def _widened(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def widened(inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            inputs = inputs.float()
        return function(inputs, *args, **kwargs)

    return widened


class OneProcess:
    """What the training step asks of an Accelerator, for one process."""

    device = torch.device("cpu")
    scaler = None
    num_processes = 1

    def __init__(self, args: Arguments) -> None:
        self.dtype = DTYPES[args.precision.mixed_precision]
        self.gradient_accumulation_steps = args.optimization.gradient_accumulation_steps
        self.sync_gradients = True
        self.step = 0  # micro-batches

    def prepare(self, vae: nn.Module, discriminator: nn.Module, *others: Any) -> tuple[Any, ...]:
        """The same objects; both networks now run under autocast."""
        for network in (vae, discriminator):
            _run_under_autocast(network, self.dtype)
        return vae, discriminator, *others

    @contextmanager
    def accumulate(self, *networks: nn.Module) -> Iterator[None]:
        """Counts micro-batches; gradients are complete at the last one of a step."""
        self.step += 1
        self.sync_gradients = self.step % self.gradient_accumulation_steps == 0
        yield

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        """The tensor: there is nobody else."""
        return tensor

    def unwrap_model(self, network: nn.Module) -> nn.Module:
        """The network, which was not wrapped."""
        return network

    def backward(self, loss: Tensor) -> None:
        """Backward of the loss over the micro-batches of a step."""
        (loss / self.gradient_accumulation_steps).backward()


@contextmanager
def fake_run(args: Arguments, *modes: Any) -> Iterator[tuple[ModuleType, Run]]:
    """The script and a Run of it at full GAN, whose tensors are fake as long as this lasts.

    modes: contexts that see every operation, such as a counter of bytes.
    """
    script, accelerator = training_script(), OneProcess(args)
    vae = TrainableVAE(make_vae(args), args.model.decoder_only)
    discriminator, perceptual = make_discriminator(args, accelerator), make_perceptual(args)
    for network in (vae, discriminator):
        network.to(memory_format=LAYOUT)
    built = {
        "make_accelerator": lambda args: accelerator,
        "convolution_layout": lambda device, width: LAYOUT,
        "make_discriminator": lambda args, accelerator: _fake(discriminator),
        "make_perceptual": lambda args: perceptual and _fake(perceptual),
    }
    with ExitStack() as stack:
        stack.enter_context(patch.multiple(builder, **built))  # the run is made of what is here
        # Where they are is where they stay: a network cannot exchange fake tensors for others.
        stack.enter_context(patch.object(nn.Module, "to", lambda network, *_, **__: network))
        for mode in (FakeTensorMode(allow_non_fake_inputs=True), cuda_autocast(), *modes):
            stack.enter_context(mode)
        run = builder.make_run(args, _fake(vae), args.optimization.images_per_step(1))
        skip_to_full_gan(run)
        yield script, run


def _fake(network: nn.Module) -> nn.Module:
    """The network with fake parameters and buffers of the same shapes, layouts and types."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                requires_grad = parameter.requires_grad
                module._parameters[name] = nn.Parameter(_empty_like(parameter), requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _empty_like(buffer)
    return network


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


def _run_under_autocast(network: nn.Module, dtype: torch.dtype) -> None:
    """As accelerate does with what it prepares: low precision within, float32 tensors without."""
    forward = network.forward

    def widened(*inputs: Tensor) -> Any:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            outputs = forward(*inputs)
        return outputs.float() if isinstance(outputs, Tensor) else outputs

    network.forward = widened
