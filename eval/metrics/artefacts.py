"""What an autoencoder adds that no photograph has: worse borders, halos, and regular grids.

Pure functions. Images are 8-bit, [B, 3, H, W] uint8, flat colours are the unrounded output; results
are [B] float64 on the CPU, in 8-bit levels where nothing else is said.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BORDER = 8  # pixels: where a decoder of f8 sees its padding first
ROUNDING_ERROR = 1 / 12  # squared levels: of rounding alone, so that two perfect parts compare
EDGE = 64  # levels within a window, from which it has a strong edge in it
WINDOW = 7  # pixels; halos lie within a few of their edge
CELLS, MARGIN = 16, 4  # periods along the side of a flat image, and those left out at each end


def border_error(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean squared error of the outer BORDER pixels over that of the rest, in dB.

    0 is as good at the border as inside, 3 twice the error; photographs, which have more detail in
    the middle, give any codec less than 0. Of images narrower than 4 BORDER the outer quarter
    counts as border. Sides of at least 4.
    """
    squared = (images.int() - reconstructions.int()).square()
    height, width = squared.shape[-2:]
    border = min(BORDER, height // 4, width // 4)
    inner = squared[..., border : height - border, border : width - border]
    inside, total = (part.sum(dim=(1, 2, 3)).cpu().double() for part in (inner, squared))
    outside = (total - inside) / (squared[0].numel() - inner[0].numel())
    ratio = (outside + ROUNDING_ERROR) / (inside / inner[0].numel() + ROUNDING_ERROR)
    return 10 * torch.log10(ratio)


def halo(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Overshoot beside strong edges: how far pixels leave the range of the original around them.

    For each pixel and channel within a WINDOW whose original spans at least EDGE levels, what the
    reconstruction has above the window's largest or below its smallest value; the mean of that. A
    blurred edge stays within the range and has none. 0 without strong edges.
    """
    x, y = images.float(), reconstructions.float()
    largest, smallest = (s * F.max_pool2d(s * x, WINDOW, 1, WINDOW // 2) for s in (1, -1))
    overshoot = (y - largest).clamp(min=0) + (smallest - y).clamp(min=0)
    beside = (largest - smallest) >= EDGE
    total = (overshoot * beside).sum(dim=(1, 2, 3)).cpu().double()
    return total / beside.sum(dim=(1, 2, 3)).cpu().clamp(min=1)


def flat_images(period: int) -> Tensor:
    """Images of one colour each, CELLS periods wide: [9, 3, H, W] uint8.

    Black, grey, white, and the six primary and secondary colours at 64 and 192.
    """
    corners = torch.cartesian_prod(*[torch.tensor([64, 192])] * 3)[1:-1]
    greys = torch.tensor([0, 128, 255])[:, None].expand(3, 3)
    side = CELLS * period
    colours = torch.cat([greys, corners]).to(torch.uint8)
    return colours[:, :, None, None].expand(-1, -1, side, side).contiguous()


def grid_energy(values: Tensor, factor: int, period: int) -> Tensor:
    """Root mean square of the pattern that repeats every `period` pixels, along both axes.

    The energy at all multiples of 1 / period cycles per pixel, in the units of `values`: slopes are
    taken out by a moving average, then all cells are averaged, which leaves what they share. A grid
    of half the period is part of it, one of another is not.

    values: [B, C, H, W] float, what became of `flat_images(factor)`; period: a divisor of factor.
    """
    slopes = F.avg_pool2d(values, factor, stride=1)
    first, size = MARGIN * factor, (CELLS - 2 * MARGIN) * factor
    inner = (..., slice(first, first + size), slice(first, first + size))
    offset = factor // 2
    detrended = values[inner] - slopes[
        ..., first - offset : first - offset + size, first - offset : first - offset + size
    ]  # fmt: skip
    cells = detrended.cpu().double().unflatten(3, (-1, period)).unflatten(2, (-1, period))
    pattern = cells.mean(dim=(2, 4))
    return pattern.var(dim=(2, 3), correction=0).mean(dim=1).sqrt()
