"""Latents for the eye: channels in grey, and the three directions that vary most as colours."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from eval.report.grid import draw_rows, shown

MOST_CHANNELS = 16  # shown one by one
CONTRAST = 0.99  # the fraction of all values that lies between black and white


def latent_picture(latents: Tensor) -> Image.Image:
    """One row for each image: principal components (from 3 channels up), then the channels.

    latents: [n, C, h, w], any float type. Mid-grey is a channel's median, and one scale serves all
    channels and images: a channel that carries little is flat, wherever training has come to. What
    is not finite is mid-grey. Under each channel stand its mean and deviation in that image.
    """
    latents = latents.detach().cpu().float()
    titles: list[str] = []
    columns: list[tuple[Tensor, list[str]]] = []  # [n, 3, h, w] uint8, and captions
    centred = _centred(latents)
    if latents.shape[1] >= 3:
        titles.append("components")
        columns.append(
            (_levels(_components(centred)), [f"image {row}" for row in range(len(latents))])
        )
    levels = _levels(centred)
    for channel in range(min(latents.shape[1], MOST_CHANNELS)):
        titles.append(f"channel {channel}")
        captions = [f"{z.mean():+.2f} ± {z.std(correction=0):.2f}" for z in latents[:, channel]]
        columns.append((levels[:, channel, None].expand(-1, 3, -1, -1), captions))
    rows = [
        [(shown(pixels[row]), captions[row]) for pixels, captions in columns]
        for row in range(len(latents))
    ]
    return draw_rows(titles, rows)


def _centred(latents: Tensor) -> Tensor:
    """[n, C, h, w] minus the median of each channel; 0 where a value is not finite."""
    flat = latents.transpose(0, 1).flatten(1)
    median = flat.where(flat.isfinite(), torch.nan).nanmedian(dim=1).values
    return torch.nan_to_num(latents - median[:, None, None], nan=0.0, posinf=0.0, neginf=0.0)


def _components(centred: Tensor) -> Tensor:
    """The first three principal components over all images and positions, [n, 3, h, w].

    Each points to where its largest loading is positive, so that colours do not flip in between.
    """
    flat = centred.transpose(0, 1).flatten(1).double()
    flat = flat - flat.mean(dim=1, keepdim=True)
    directions = torch.linalg.eigh(flat @ flat.T).eigenvectors[:, -3:].flip(1)
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    return torch.einsum("nchw,cd->ndhw", centred, (directions * largest.sign()).float())


def _levels(centred: Tensor) -> Tensor:
    """Values around 0 as uint8: CONTRAST of them fit between 0 and 255, and 0 is 128."""
    magnitudes = centred.abs().flatten().sort().values
    limit = magnitudes[round(CONTRAST * (len(magnitudes) - 1))].clamp(min=1e-12)
    return ((centred / limit).clamp(-1.0, 1.0) * 127.0 + 128.0).to(torch.uint8)
