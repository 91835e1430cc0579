"""A run without memory: the real training loop over fake tensors, which have shapes and no data.

Everything is as on one GPU with Triton but for four stand-ins. The tensors are CPU tensors, because
autograd cannot go backward on a device that is not there. `cuda_autocast` adds what autocast does
on CUDA only, and `OneProcess` stands for accelerate, which keeps one precision for a whole process
and moves networks in a way fake tensors do not allow. `NormSiLUKernels` only allocate.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from accelerate.utils import convert_outputs_to_fp32
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch_fidelity import feature_extractor_inceptionv3 as inception

from eval.memory.random_lpips import random_lpips
from eval.metrics.networks import Networks
from eval.validation import open_judges
from modules.builders import run as builder
from modules.builders.networks import make_discriminator, make_perceptual, make_vae
from modules.config.arguments import Arguments
from modules.distributed.device import convolution_layout
from modules.models import norm_silu
from modules.models.autoencoder import TrainableVAE
from modules.training.run import Run

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}


@contextmanager
def fake_run(args: Arguments, *modes: Any) -> Iterator[tuple[Run, Networks]]:
    """A Run by the script's own builder, at full GAN, and the networks of its validation.

    Their tensors are fake as long as this lasts. What works on real tensors alone, --compile and
    8-bit AdamW, is left out, although `run.args` may ask for it. modes: contexts that see every
    operation, such as a counter of bytes.
    """
    plain = replace(args, precision=replace(args.precision, use_8bit_adam=False, compile=False))
    accelerator = OneProcess(args)
    # Weights that are drawn are as large as weights that are not: only files that were named are
    # read, to refuse what the run would refuse.
    loaded = args.model.pretrained_model_name_or_path or args.losses.lpips_weights
    place = torch.device("cpu" if loaded else "meta")
    with (
        random_lpips(),
        patch.object(inception, "load_state_dict_from_url", lambda *_, **__: {}),
        patch.object(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None),
        warnings.catch_warnings(),
        place,
    ):
        warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")
        vae = make_vae(plain)
        perceptual = make_perceptual(plain)
        discriminator = make_discriminator(plain, accelerator, vae.config.in_channels, perceptual)
        eyes = perceptual or discriminator.perceptual
        judges = open_judges(plain, eyes, place)
    layout = convolution_layout(
        torch.device("cuda"), vae.config.block_out_channels[0], fused_norms=True
    )
    for network in (vae, discriminator):
        network.to(memory_format=layout)
    networks = {vae, discriminator, eyes, *judges.lpips.values(), judges.inception} - {None}
    built_here = {
        "make_accelerator": lambda args: accelerator,
        "can_fuse": lambda device: True,
        "convolution_layout": lambda *_: layout,
        "make_discriminator": lambda *_: discriminator,
        "make_perceptual": lambda args: perceptual,
    }
    with ExitStack() as stack:
        stack.enter_context(patch.multiple(builder, **built_here))
        stack.enter_context(patch.object(norm_silu, "kernels", NormSiLUKernels))
        # Where they are is where they stay: a network cannot exchange fake tensors for others.
        stack.enter_context(patch.object(nn.Module, "to", lambda network, *_, **__: network))
        for mode in (FakeTensorMode(allow_non_fake_inputs=True), cuda_autocast(), *modes):
            stack.enter_context(mode)
        for module in {module for network in networks for module in network.modules()}:
            module.to_empty(device="cpu", recurse=False)
        run = run_at_full_gan(plain, vae)
        run.args = args
        yield run, judges


def run_at_full_gan(args: Arguments, vae: AutoencoderKL) -> Run:
    """A run by the script's builder at its most expensive step: every term counts, with no end."""
    run = builder.make_run(
        args, TrainableVAE(vae, args.model.decoder_only), args.optimization.images_per_step(1)
    )
    run.step = sum(run.schedule.lengths)
    run.step += run.step % 2  # the VAE's turn, if they take turns
    run.max_train_steps = 10**12
    return run


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

    def prepare(self, *prepared: Any) -> tuple[Any, ...]:
        """The same objects; the networks now run under autocast, as accelerate has it."""
        for network in prepared[:2]:
            autocast = torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32)
            network.forward = convert_outputs_to_fp32(autocast(network.forward))
        return prepared

    def accumulate(self, *networks: nn.Module) -> nullcontext:
        """Counts micro-batches; gradients are complete at the last one of a step."""
        self.step += 1
        self.sync_gradients = self.step % self.gradient_accumulation_steps == 0
        return nullcontext()

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        """The tensor: there is nobody else."""
        return tensor

    def unwrap_model(self, network: nn.Module) -> nn.Module:
        """The network, which was not wrapped."""
        return network

    def backward(self, loss: Tensor) -> None:
        """Backward of the loss over the micro-batches of a step."""
        (loss / self.gradient_accumulation_steps).backward()


class NormSiLUKernels:
    """The interface of `modules.models.norm_silu_kernels`, and what these allocate."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """The output, and a group's moments."""
        return torch.empty_like(x, dtype=dtype), weight.new_empty(len(x), groups, 2)

    @staticmethod
    def backward(dy: Tensor, x: Tensor, moments: Tensor, *affine: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x, and of bias and weight."""
        return torch.empty_like(x), moments.new_empty(2, x.shape[1])


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Under autocast group_norm and interpolate work in float32: so on CUDA, not on the CPU.

    The other functions of a step that the two devices treat differently are outside of autocast.
    """
    functions = {name: _widened(getattr(F, name)) for name in ("group_norm", "interpolate")}
    with patch.multiple(F, **functions):
        yield


def _widened(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def widened(inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            inputs = inputs.float()
        return function(inputs, *args, **kwargs)

    return widened
