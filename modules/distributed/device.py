"""What a device does well. PyTorch computes anything anywhere, and does not say how slowly."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from modules.errors import ArgumentError, blaming

DEVICE = "ACCELERATE_TORCH_DEVICE"  # by which accelerate is told to use one
WORKSPACE, WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
USE_CPU = "ACCELERATE_USE_CPU"
WIDE = 64  # channels at full resolution; 16 and 32 were measured on one side, 128 on the other


def expected_device(environment: Mapping[str, str]) -> torch.device:
    """Of the kind that accelerate will take; it has not been made yet.

    Raises ArgumentError where the device that the environment asks for is not there.
    """
    if name := environment.get(DEVICE):
        with blaming(f"{DEVICE}={name} in the environment", "unset it"):
            return torch.zeros(1, device=name).device
    on_cpu = environment.get(USE_CPU, "").lower() in ("1", "true", "yes", "on")
    if on_cpu or not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.accelerator.current_accelerator()


def device_name(device: torch.device) -> str:
    """Such as "NVIDIA H200" or "CPU, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        count = torch.get_num_threads()
        return f"CPU, {count} thread{'s' if count > 1 else ''}"
    return device.type.upper()


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 have units, or a library written for them, on `device`.

    GPUs before Ampere and processors without AVX-512 have neither: PyTorch then widens every
    number in software, and a step takes several times as long as in float32, or worse.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and (
            torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
    return True


def convolution_layout(
    device: torch.device, full_resolution_width: int, fused_norms: bool
) -> torch.memory_format:
    """The order of a picture's numbers in memory in which a VAE is fastest to train.

    channels_last, but for two. On a GPU PyTorch's GroupNorm copies such pictures to NCHW and
    convolutions copy them back, which costs more than cuDNN's own copies (15 % of a step on an
    H100); not so with `fused_norms`. On a CPU oneDNN has no weight gradient in it for processors
    without AVX-512, and what stands in for it is four times slower where a network is wide
    (`full_resolution_width` channels) and the picture large.
    """
    if device.type == "cuda" and not fused_norms:
        return torch.contiguous_format
    without_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX2"
    if device.type == "cpu" and without_avx512 and full_resolution_width >= WIDE:
        return torch.contiguous_format
    return torch.channels_last


def make_deterministic() -> None:
    """The same bits on every launch, at the price of speed; to be called before a GPU is touched.

    cuBLAS reads its setting from the environment when it starts. Raises ArgumentError when the
    environment holds another one.
    """
    if os.environ.setdefault(WORKSPACE, WORKSPACES[0]) not in WORKSPACES:
        raise ArgumentError(
            f"--deterministic needs {WORKSPACE} to be one of {', '.join(WORKSPACES)}, and it is "
            f"{os.environ[WORKSPACE]}; unset it"
        )
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
