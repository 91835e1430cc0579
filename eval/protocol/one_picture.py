"""One picture of any size through a model, and its latents as a file."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from eval.protocol.codecs import VAECodec
from modules.errors import blaming
from modules.weights.tensor_files import read_tensors, write_safetensors

LATENTS = "latents"  # the only tensor in the file
SCALING = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
QUARTERS = 4  # of a tile: one overlaps the next


def require_kind(file: str, mode: str) -> None:
    """Raises ArgumentError where a picture file with this suffix cannot hold images of `mode`."""
    kind = Image.registered_extensions()[Path(file).suffix.lower()]
    with blaming(f"OUT={file}", "such as .png can hold what the model makes"):
        Image.new(mode, (1, 1)).save(io.BytesIO(), kind)


def use_tiles(vae: AutoencoderKL, side: int, factor: int) -> None:
    """Lets diffusers encode and decode larger images in tiles of `side` pixels.

    They overlap by a quarter and are blended. Raises ValueError for a side of which a quarter is no
    whole latent: diffusers rounds it, differently in pixels, and lays the tiles apart.
    """
    if side % (QUARTERS * factor):
        raise ValueError(
            f"--tile={side} must be a multiple of {QUARTERS * factor}: a quarter of it, by which "
            f"tiles overlap, has to be whole latents of {factor} pixels"
        )
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = side, side // factor


def padded(image: Tensor, factor: int) -> Tensor:
    """image: [K, H, W], mirrored at the right and below until both sides are multiples."""
    for dim in (-2, -1):
        length = image.shape[dim]
        period = max(1, 2 * (length - 1))  # there and back again: also of few pixels
        places = torch.arange(-(-length // factor) * factor) % period
        image = image.index_select(dim, torch.minimum(places, period - places))
    return image


def encode(codec: VAECodec, image: Tensor, device: torch.device) -> Tensor:
    """The posterior's mode [1, C, h, w] of an image [K, H, W] uint8 of any size."""
    return codec.encode(padded(image, codec.factor)[None].to(device)).mode()


def save_latents(file: str, latents: Tensor, vae: AutoencoderKL, size: tuple[int, int]) -> None:
    """Writes [1, C, h, w] as they are; what scales them, and the picture's size, beside them.

    size: (height, width) in pixels.
    """
    metadata = {name: json.dumps(vae.config.get(name)) for name in SCALING}
    metadata |= {"height": str(size[0]), "width": str(size[1])}
    write_safetensors({LATENTS: latents}, Path(file), metadata)


def read_latents(file: str, codec: VAECodec) -> tuple[Tensor, tuple[int, int]]:
    """What `save_latents` wrote: the latents and the picture's (height, width).

    Without a size in the file it is that of all the latents. Raises ValueError for other files, and
    for latents of another model.
    """
    if not Path(file).is_file():
        raise ValueError(f"--from_latents={file} does not exist")
    with blaming(f"--from_latents={file}", "give what --latents wrote"):
        tensors, metadata = read_tensors(Path(file))
    latents = tensors.get(LATENTS)
    if latents is None or latents.ndim != 4 or len(latents) != 1:
        raise ValueError(f"--from_latents={file} holds no tensor {LATENTS} [1, C, h, w]")
    if latents.shape[1] != codec.latent_channels or not latents.is_floating_point():
        raise ValueError(
            f"--from_latents={file} has {latents.shape[1]} channels of {latents.dtype}, and the "
            f"model's latents have {codec.latent_channels}: it is of another model"
        )
    whole = [codec.factor * side for side in latents.shape[2:]]
    size = int(metadata.get("height", whole[0])), int(metadata.get("width", whole[1]))
    if not all(side - codec.factor < n <= side for n, side in zip(size, whole, strict=True)):
        raise ValueError(
            f"--from_latents={file} is of a picture of {size[1]}x{size[0]}, and the model would "
            f"make {whole[1]}x{whole[0]} of it: it is of another model"
        )
    return latents.float(), size
