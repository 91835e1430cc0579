"""Features for Fréchet distances where Inception's weights cannot be had."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (3, 32, 64, 128)


class RandomFeatures(nn.Module):
    """A small convolutional network with random weights, the same everywhere and always.

    Random networks tell distributions of images apart (Naeem et al. 2020, section 4.3), but not as
    people do: the distance compares models with each other, and with nothing published.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterList(
            torch.randn(after, before, 3, 3, generator=generator) * math.sqrt(2 / (9 * before))
            for before, after in pairwise(WIDTHS)
        ).requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """images: [B, 3, H, W] uint8. Mean and deviation of every map of every layer, [B, 448]."""
        x, found = images.float() / 127.5 - 1, []
        for weight in self.weights:
            x = F.relu(F.conv2d(x, weight, stride=2, padding=1))
            found += [x.mean(dim=(2, 3)), x.std(dim=(2, 3), correction=0)]
        return (torch.cat(found, dim=1),)
