"""What a picture and its latents go through alike: scaling, mirroring, quarter turns.

EQ-VAE (Kouzelis et al. 2025, arXiv 2502.09509): where the decoder turns changed latents into the
changed picture, a diffusion model learns the latents faster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_SCALE = Fraction(1, 4)


@dataclass(frozen=True)
class Change:
    """Scales the sides, then mirrors left and right, then turns counterclockwise by `turns` x 90°.

    Maps latents [B, C, h, w] and images [B, K, H, W] alike; `scales`, of height and width, must
    leave whole sides.
    """

    scales: tuple[Fraction, Fraction] = (Fraction(1), Fraction(1))
    mirrored: bool = False
    turns: int = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        """The changed tensor; the same one where nothing changes."""
        if self.scales != (1, 1):
            tensor = resized(tensor, self.scales)
        if self.mirrored:
            tensor = tensor.flip(-1)
        return tensor.rot90(self.turns, (-2, -1)) if self.turns else tensor


def drawn_change(
    draw: Random, probability: float, latents: tuple[int, int], smallest: int = 1
) -> Change:
    """With `probability` a change of each kind, drawn evenly; otherwise one that changes nothing.

    latents: (h, w). The shorter side is scaled to a whole number of latents, at least `smallest`
    and a quarter of them, and fewer than all, of which there must be one; the longer side follows,
    to the nearest whole number.
    """
    if draw.random() >= probability:
        return Change()
    shorter = min(latents)
    side = draw.randrange(max(math.ceil(shorter * SMALLEST_SCALE), smallest), shorter)
    height, width = (Fraction(round(Fraction(n * side, shorter)), n) for n in latents)
    return Change((height, width), mirrored=draw.random() < 0.5, turns=draw.randrange(4))


def resized(tensor: Tensor, scales: tuple[Fraction, Fraction]) -> Tensor:
    """[..., H, W] float32 scaled down bicubically with antialiasing, in float32.

    Two matrix products: the gradient of PyTorch's own resizing differs from run to run on a GPU.
    EQ-VAE resizes bilinearly without antialiasing, by which detail folds back into what remains.
    """
    rows, columns = (
        _resampling(side, int(side * scale), tensor.device)
        for side, scale in zip(tensor.shape[-2:], scales, strict=True)
    )
    with torch.autocast(tensor.device.type, enabled=False):
        return rows @ tensor @ columns.T


def _resampling(before: int, after: int, device: torch.device) -> Tensor:
    """[after, before]: the shares of the old pixels in each new one."""
    unit = torch.eye(before, device=device)[None, None]
    return F.interpolate(unit, (after, before), mode="bicubic", antialias=True)[0, 0]
