"""The kinds of images that a model may take: grey, RGB, and RGB with alpha.

A picture is cropped and resized with its colours multiplied by alpha (mode RGBa), so that what is
invisible never bleeds into what is seen. What knows three colours alone (LPIPS, Inception, the
metrics, the eye) gets grey repeated, and transparent images over black and over white.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
MODES = {channels: mode for mode, channels in CHANNELS.items()}


def mode_of(vae: AutoencoderKL) -> str:
    """The mode of the images that a model takes and gives."""
    return MODES[vae.config.in_channels]


def in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """A picture of mode RGB or RGBA for a model of `mode`; of mode RGBa where that is RGBA.

    Grey is the luminance (ITU-R 601); what is transparent lies over white, or keeps its alpha, and
    what has no alpha is opaque.
    """
    if mode == "RGBA":
        return picture.convert("RGBA").convert("RGBa")
    if picture.mode == "RGBA":
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture)
        picture = white
    return picture if mode == picture.mode else picture.convert(mode)


def rgb_views(images: Tensor) -> list[Tensor]:
    """What three channels show of images: themselves, grey repeated, or over black and over white.

    images: [..., K, H, W], uint8 in [0, 255] or float in [-1, 1]; alpha is the last of 4 channels.
    Returns one or two [..., 3, H, W] of the same type. Opaque images are their own views exactly.
    """
    channels = images.shape[-3]
    if channels == CHANNELS["L"]:
        return [images.expand(*images.shape[:-3], 3, -1, -1)]
    if channels == CHANNELS["RGB"]:
        return [images]
    whole = images.dtype == torch.uint8
    low, high = (0.0, 255.0) if whole else (-1.0, 1.0)
    colours, alpha = images.float().split([3, 1], dim=-3)
    share = (alpha - low) / (high - low)
    views = [share * colours + (1 - share) * ground for ground in (low, high)]
    return [view.round().to(torch.uint8) for view in views] if whole else views


def over_views(
    measure: Callable[[Tensor, Tensor], Tensor], images: Tensor, reconstructions: Tensor
) -> Tensor:
    """The mean over their RGB views of a measure of two batches [B, K, H, W] of images."""
    pairs = zip(rgb_views(images), rgb_views(reconstructions), strict=True)
    return torch.stack([measure(*pair) for pair in pairs]).mean(dim=0)


def to_picture(image: Tensor) -> Image.Image:
    """image: uint8 [K, H, W] to a picture of its mode."""
    return Image.fromarray(image.permute(1, 2, 0).squeeze(-1).contiguous().cpu().numpy())


def side_by_side(image: Tensor) -> Tensor:
    """The RGB views of one image [K, H, W] in a row, for the eye."""
    return torch.cat(rgb_views(image), dim=-1)
