"""A random backbone for LPIPS, where only its speed or its size matters."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from modules.config.arguments import Arguments

BACKBONES = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}


@contextmanager
def with_random_lpips(args: Arguments) -> Iterator[Arguments]:
    """`args` with --lpips_weights naming random weights, which exist while the context does."""
    backbone = BACKBONES[args.losses.lpips_backbone]
    with torch.device("meta"):
        features = getattr(torchvision.models, backbone)(weights=None).features
    features.to_empty(device="cpu")
    for parameter in features.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
        else:
            nn.init.zeros_(parameter)
    with tempfile.TemporaryDirectory(prefix="random-lpips-") as folder:
        file = Path(folder) / f"{backbone}.safetensors"
        tensors = {f"features.{name}": value for name, value in features.state_dict().items()}
        save_file(tensors, file)
        yield replace(args, losses=replace(args.losses, lpips_weights=str(file)))
